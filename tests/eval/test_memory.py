"""An audit that remembers says what one without a memory says, asks less, and can be interrupted like it."""

import json
import shutil
from pathlib import Path
from zlib import crc32

import pytest

from data.experiment.conditions import condition_named
from eval.answerers.base import question_messages
from eval.answerers.memory import Remembering, remembering
from eval.answerers.scripted import ScriptedResponder
from eval.audit.run import run as audit
from eval.audit.settings import AuditSettings


class Reader(ScriptedResponder):
    """Answers by words and records alone; where it is told to, by how many are asked together, too."""

    def __init__(self, by_batch=False, left=10**9):
        super().__init__(None, None, name="reader")
        self.scores, self.by_batch, self.left, self.count = True, by_batch, left, 0

    def ask(self, rows, condition):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.count += len(rows)
        extra = len(rows) if self.by_batch else ""
        return [f"{('yes', 'no')[crc32(key.encode()) % 2]} {extra}" for key in self._keys(rows, condition)]

    def score(self, rows, condition, options):
        extra = len(rows) / 1000 if self.by_batch else 0
        return [
            [-(crc32(f"{key}{text}".encode()) % 1000) / 500 - 0.01 - extra for text in texts]
            for key, texts in zip(self._keys(rows, condition), options)
        ]

    def _keys(self, rows, condition):
        zero = condition_named(condition).level == "input"
        return [
            json.dumps([question_messages(row), ["zeros"] * len(row["ecgs"]) if zero else row["ecgs"]]) for row in rows
        ]


class Recognizing(Reader):
    def inputs(self, rows, condition):
        return self._keys(rows, condition)


def run(responder, cohort, folder):
    """All files of an audit, which is written to the same place each time."""
    out = folder / "out"
    settings = AuditSettings(model=Path("models/x"), out=out, batch_size=50, draws=100)
    audit(settings, responder=responder, questions=cohort.questions)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.slow
def test_the_bytes_are_those_of_an_audit_without_a_memory(cohort, tmp_path):
    plain, recognizing = Reader(), Recognizing()
    files = run(plain, cohort, tmp_path)
    inputs = set(inputs_of(files["predictions.jsonl"].splitlines()))
    shutil.rmtree(tmp_path / "out")
    assert run(recognizing, cohort, tmp_path) == files
    assert recognizing.count == len(inputs) < plain.count / 2


def inputs_of(lines):
    """What was asked in each line, as `Reader` sees it."""
    for line in map(json.loads, lines):
        ecgs = line["donors"] or line["ecgs"]
        yield line["question"], *{"zero": ["zeros"] * len(ecgs), "none": []}.get(line["condition"], ecgs)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 1, 3, 7])
def test_interrupted_it_asks_together_what_it_would_have_asked_together(cohort, tmp_path, left):
    whole = run(Recognizing(by_batch=True), cohort, tmp_path)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(Recognizing(by_batch=True, left=left), cohort, tmp_path)
    first = next((tmp_path / "out").glob("asked-*")).read_bytes()
    second = Recognizing(by_batch=True)
    assert run(second, cohort, tmp_path) == whole
    assert whole[next((tmp_path / "out").glob("asked-*")).name].startswith(first)
    done = Recognizing(by_batch=True)
    assert run(done, cohort, tmp_path) == whole and done.count == 0


def test_only_who_knows_its_inputs_gets_a_memory():
    plain, recognizing = Reader(), Recognizing()
    assert remembering(plain) is plain
    memory = remembering(recognizing)
    assert isinstance(memory, Remembering)
    assert (memory.levels, memory.scores, memory.name) == (plain.levels, True, "reader")
