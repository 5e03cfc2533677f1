"""An interrupted evaluation, started again, leaves the bytes of one that was not interrupted."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversations.rows import question_row
from eval.answerers.scripted import ScriptedResponder
from eval.audit import journal as journals
from eval.audit.journal import Journal, Question, batches_of
from eval.scoring.lines import Answer
from helpers.read_only import little_room


def ask_all(responder, condition, rows, options, gold, journal, batch_size):
    questions = [Question(*asked) for asked in zip(rows, options, gold, strict=True)]
    return journals.ask_all(responder, condition, questions, journal, batch_size)


SETTINGS = {"model": "abc", "questions": "def", "batch_size": 4, "seed": 0}
CONDITIONS = ("real", "swap")
BATCH = 4


class Stopped(BaseException):
    """As when the process is killed."""


class Counting(ScriptedResponder):
    """Notes what it is asked; stops before the given batch."""

    def __init__(self, stop_before=None, scores=True):
        super().__init__(
            lambda row, condition: f"é {row['id']}, {condition}",
            (lambda row, condition, texts: [-len(text) - len(row["id"]) / 3 for text in texts]) if scores else None,
        )
        self.stop_before, self.asked, self.prepared, self.scored = stop_before, [], [], []

    def prepare(self, rows, condition):
        self.prepared.append((condition, len(rows)))

    def ask(self, rows, condition):
        if len(self.asked) == self.stop_before:
            raise Stopped
        self.asked.append([row["id"] for row in rows])
        return super().ask(rows, condition)

    def score(self, rows, condition, options):
        self.scored += options
        return super().score(rows, condition, options)


@pytest.fixture(scope="module")
def rows():
    def row(i):
        return question_row(
            id=f"q{i * 7 % 10}", ecgs=[f"r{i}"], patient_ids=["p"], question_type="t",
            question="?" * (i * 3 % 5), answer=["yes"],
        )  # fmt: skip

    return [row(i) for i in range(10)]


def options_of(rows):
    return [(None, ["yes", "no"], ["no", "none"])[i % 3] for i in range(len(rows))]


def run(folder, rows, responder, settings=SETTINGS):
    """Asks everything; returns the answers and the file."""
    with Journal(folder, settings) as journal:
        gold, options = ["yes"] * len(rows), options_of(rows)
        found = {c: ask_all(responder, c, rows, options, gold, journal, BATCH) for c in CONDITIONS}
    return found, journal.path


@pytest.fixture
def whole(tmp_path, rows):
    found, path = run(tmp_path / "whole", rows, Counting())
    return found, path.read_bytes()


def test_answers_come_in_the_order_of_the_rows(whole, rows):
    found, _ = whole
    for condition in CONDITIONS:
        for row, options, answer in zip(rows, options_of(rows), found[condition]):
            assert answer.text == f"é {row['id']}, {condition}"
            logp = {text: round(-len(text) - 2 / 3, 5) for text in ("yes", "no", "none")}
            assert answer.logp == (None if options is None else [logp[text] for text in options])
            assert answer.gold_logp == logp["yes"]


def test_the_right_answer_is_scored_once(tmp_path, rows):
    responder = Counting()
    with Journal(tmp_path, {}) as journal:
        ask_all(responder, "real", rows[:2], [["no", "yes"], None], ["yes", "maybe"], journal, BATCH)
    assert sorted(responder.scored) == [["maybe"], ["no", "yes"]]


def test_without_scores_there_are_none(tmp_path, rows):
    with Journal(tmp_path, {}) as journal:
        found = ask_all(Counting(scores=False), "real", rows, options_of(rows), ["yes"] * 10, journal, BATCH)
    assert found[1] == Answer(f"é {rows[1]['id']}, real", None, None)


@pytest.mark.parametrize("batch", range(6))
def test_stopped_before_any_batch_and_started_again(tmp_path, rows, whole, batch):
    first, second = Counting(stop_before=batch), Counting()
    with pytest.raises(Stopped):
        run(tmp_path, rows, first)
    found, path = run(tmp_path, rows, second)
    assert (found, path.read_bytes()) == whole
    assert len(first.asked) + len(second.asked) == 6 and len(second.asked) == 6 - batch
    again = Counting()
    assert run(tmp_path, rows, again)[0] == whole[0]
    assert again.asked == again.prepared == []


def test_a_torn_line_is_cut_off(tmp_path, rows, whole):
    found, data = whole
    path = run(tmp_path, rows, Counting())[1]
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        responder = Counting()
        again, _ = run(tmp_path, rows, responder)
        assert again == found and path.read_bytes() == data
        assert len(responder.asked) == 6 - max(data[:end].count(b"\n") - 1, 0)
    assert list(tmp_path.glob("[!.]*.*")) == [path]


def test_what_is_asked_first_is_prepared_once_and_for_all_rows(tmp_path, rows):
    with pytest.raises(Stopped):
        run(tmp_path, rows, Counting(stop_before=1))
    responder = Counting()
    run(tmp_path, rows, responder)
    assert responder.prepared == [("real", 10), ("swap", 10)]


def test_other_settings_are_another_file(tmp_path, rows):
    paths = [
        run(tmp_path, rows, Counting(), settings)[1]
        for settings in (SETTINGS, SETTINGS | {"seed": 1}, dict(reversed(SETTINGS.items())))
    ]
    assert paths[0] == paths[2] != paths[1]
    assert sorted(tmp_path.glob("[!.]*")) == sorted(set(paths))
    assert json.loads(paths[1].read_text().splitlines()[0]) == {"settings": SETTINGS | {"seed": 1}}
    assert all(path.name.startswith("asked-") and len(path.stem) == 14 for path in paths)


def test_damage_before_the_end_is_named(tmp_path, rows):
    path = run(tmp_path, rows, Counting())[1]
    lines = path.read_bytes().splitlines(keepends=True)

    def refused(changed, match):
        path.write_bytes(b"".join(changed))
        with pytest.raises(ValueError, match=match) as error:
            run(tmp_path, rows, Counting())
        assert str(path) in str(error.value) and "delete the file" in str(error.value)
        assert path.read_bytes() == b"".join(changed)

    refused([*lines[:2], lines[2][:20] + b"\n", *lines[3:]], "line 3 is not a batch of answers")
    refused([*lines[:2], b"[1]\n", *lines[3:]], "line 3 is not a batch of answers")
    refused([*lines[:2], *lines[3:]], "line 3 is batch 2 of 'real', out of turn")
    refused([*lines[:3], *lines[2:]], "line 4 is batch 1 of 'real', out of turn")
    refused([lines[0].replace(b"abc", b"xyz"), *lines[1:]], "line 1 does not hold the settings")
    refused(lines[1:], "line 1 does not hold the settings")


@pytest.mark.parametrize(
    "change",
    [
        {"ecgs": ["other"]},
        {
            "messages": question_row(id="", ecgs=["r"], patient_ids=[], question_type="", question="x", answer=[])[
                "messages"
            ]
        },
        {"id": "other"},
    ],
)
def test_answers_to_other_questions_are_not_taken(tmp_path, rows, change):
    run(tmp_path, rows, Counting())
    with pytest.raises(ValueError, match="holds answers to other questions under 'real' than are asked now"):
        run(tmp_path, [{**rows[0], **change}, *rows[1:]], Counting())


def test_other_options_are_other_questions(tmp_path, rows):
    with Journal(tmp_path, {}) as journal:
        ask_all(Counting(), "real", rows, [None] * 10, ["yes"] * 10, journal, BATCH)
        for options, gold in (([["no"]] * 10, ["yes"] * 10), ([None] * 10, ["no"] * 10)):
            with pytest.raises(ValueError, match="other questions"):
                ask_all(Counting(), "real", rows, options, gold, journal, BATCH)
        with pytest.raises(ValueError, match="other questions"):
            ask_all(Counting(), "real", rows[:4], [None] * 4, ["yes"] * 4, journal, BATCH)


@pytest.mark.slow
def test_a_full_disk_is_said_with_the_file_and_asking_goes_on_from_there(tmp_path, rows):
    entry = {"id": "q", "asked": "0", "text": "yes", "logp": None, "gold_logp": None}
    with little_room(), Journal(tmp_path, {"model": "m"}) as journal:
        journal.add("real", [entry])
        with pytest.raises(OSError) as info:
            journal.add("real", [entry] * 500)
    assert info.value.filename == str(journal.path)
    with Journal(tmp_path, {"model": "m"}) as journal:
        assert journal.batches("real") == [[entry]]


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path):
    code = f"from eval.audit.journal import Journal\nJournal({str(tmp_path)!r}, {{}})"
    with Journal(tmp_path, {}) as journal:
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode and f"{journal.path} is being written by another process" in other.stderr
        with Journal(tmp_path, {"seed": 1}):
            pass
        with pytest.raises(RuntimeError, match="another process"):
            Journal(tmp_path, {})
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5), st.randoms())
def test_batches_are_the_longest_questions_first_whatever_the_order_of_rows(lengths, batch_size, random):
    rows = [
        question_row(id=f"q{i}", ecgs=[], patient_ids=[], question_type="", question="?" * n, answer=["yes"])
        for i, n in enumerate(lengths)
    ]

    def ids():
        return [[rows[i]["id"] for i in batch] for batch in batches_of(rows, batch_size)]

    found = ids()
    by_id = dict(zip((row["id"] for row in rows), lengths))
    flat = [id for batch in found for id in batch]
    assert flat == sorted(by_id, key=lambda id: (-by_id[id], id))
    assert all(len(batch) == batch_size for batch in found[:-1])
    random.shuffle(rows)
    assert ids() == found


@pytest.mark.parametrize(
    ("fn", "score", "match"),
    [
        (None, lambda *_: [float("nan")], "question 'q0' under 'real': the log-probability of 'yes' is nan"),
        (None, lambda *_: [float("-inf")], "the log-probability of 'yes' is -inf"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path, rows, fn, score, match):
    with Journal(tmp_path, {}) as journal, pytest.raises(ValueError, match=match):
        ask_all(ScriptedResponder(lambda *_: "", score), "real", rows[:1], [None], ["yes"], journal, 1)
    assert journal.path.read_bytes().count(b"\n") == 1


def test_wrong_numbers_are_named(tmp_path, rows):
    class Silent(Counting):
        def ask(self, rows, condition):
            return []

    with Journal(tmp_path, {}) as journal:
        with pytest.raises(ValueError, match="condition 'real': 4 questions asked but 0 answers given"):
            ask_all(Silent(), "real", rows, [None] * 10, ["yes"] * 10, journal, BATCH)
        with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
            ask_all(Counting(), "real", rows, [None] * 10, ["yes"] * 10, journal, 0)
