"""Questions about the simulated cohort: true, balanced, held out, and the words alone tell nothing."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from data.conversations import load_questions, synthetic
from data.conversations.rows import answer_text, same_question
from data.conversations.synthetic_pairs import SHARES
from data.synthetic import SyntheticCohort

SMALL = {"patients": 120, "held_out_patients": 40, "questions": 20, "held_out_questions": 5}


@pytest.fixture(scope="module")
def default():
    return synthetic.load()


@pytest.fixture(scope="module", params=["default", "small", "validation", "pairs"])
def questions(request, default):
    settings = {"small": SMALL, "validation": {**SMALL, "held_out": "validation", "seed": 3}}
    settings["pairs"] = {**SMALL, "pairs": 300}
    return default if request.param == "default" else synthetic.load(**settings[request.param])


def planted(p, i):
    """Findings of a recording and those not to be asked about, from its parameters alone."""
    fast = p.heart_rate[i] > 100
    signs = {
        "atrial fibrillation": p.atrial_fibrillation[i],
        "first degree AV block": p.pr_ms[i] > 200,
        "premature ventricular complexes": p.pvc[i],
        "bradycardia": p.heart_rate[i] < 60,
        "tachycardia": fast,
        "left bundle branch block": p.conduction[i] == 1,
        "right bundle branch block": p.conduction[i] == 2,
        "anterior ST elevation": p.st_mv[i] > 0 and p.st_site[i] == 1,
        "inferior ST elevation": p.st_mv[i] > 0 and p.st_site[i] == 2,
        "left axis deviation": p.axis_deg[i] < -30,
        "right axis deviation": p.axis_deg[i] > 90,
    }
    found = {name for name, there in signs.items() if there}
    if not found:
        found.add("normal ECG")
    found |= {("no noise", "baseline drift", "muscle noise")[p.noise[i]]} - {"no noise"}
    found |= {"high QRS voltage"} if p.gain[i] > 1.5 else {"low QRS voltage"} if p.gain[i] < 0.6 else set()
    excluded = {"first degree AV block"} if p.atrial_fibrillation[i] or fast else set()
    excluded |= {"anterior ST elevation", "inferior ST elevation"} if p.conduction[i] == 1 else set()
    return found, excluded


QUERIES = {  # question: the findings it may be answered with, and its answer where there is none of them
    "What is the rhythm of this ECG?": (["atrial fibrillation"], "sinus rhythm"),
    "Is the heart rate normal, slow or fast in this ECG?": (["bradycardia", "tachycardia"], "normal rate"),
    "How is the intraventricular conduction of this ECG?": (
        ["left bundle branch block", "right bundle branch block"],
        "normal conduction",
    ),
    "Where does this ECG show ST elevation?": (["anterior ST elevation", "inferior ST elevation"], "no ST elevation"),
    "What is the direction of the electrical axis of this ECG?": (
        ["left axis deviation", "right axis deviation"],
        "normal axis",
    ),
    "What kind of noise does this ECG show?": (["baseline drift", "muscle noise"], "no noise"),
    "How high is the QRS voltage of this ECG?": (["high QRS voltage", "low QRS voltage"], "normal QRS voltage"),
}
VERIFY = r"Does this ECG show (?P<x>.+)\?|Is there (?P<y>.+) in this ECG\?|Is (?P<z>.+) present in this ECG\?"
CHOOSE = r"Which does this ECG show, (?P<a>.+) or (?P<b>.+)\?"
NEW = (
    r"Does the second ECG show (?P<x>.+) that the first ECG does not show\?"
    r"|Is there new (?P<y>.+) in the second ECG compared to the first\?"
)
WHICH = r"Which of the two ECGs shows (?P<x>.+)\?|In which of these ECGs is there (?P<y>.+)\?"


def solve(question, found):
    """Kind of question, findings it is about, and its answer for ECGs with these findings."""

    def name(match):
        return next(value for value in match.groups() if value)

    def yes(true):
        return {"yes" if true else "no"}

    if question == "Is this a normal ECG?":
        return "single-verify", ["normal ECG"], yes("normal ECG" in found[0])
    if question in QUERIES:
        names, otherwise = QUERIES[question]
        return "single-query", names, {n for n in names if n in found[0]} or {otherwise}
    if match := re.fullmatch(NEW, question):
        x = name(match)
        return "verify", [x], yes(x in found[1] and x not in found[0])
    if match := re.fullmatch(WHICH, question):
        x = name(match)
        return "query", [x], {f"{n} ECG" for n, f in zip(("first", "second"), found) if x in f} or {"none"}
    if match := re.fullmatch(CHOOSE, question):
        names = [match["a"], match["b"]]
        return "single-choose", names, {n for n in names if n in found[0]} or {"none"}
    match = re.fullmatch(VERIFY, question)
    return "single-verify", [name(match)], yes(name(match) in found[0])


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_true_and_about_nothing_excluded(questions, split):
    cohort, facts = questions.source, {}
    for row in getattr(questions, split):
        for record in row["ecgs"]:
            if record not in facts:
                facts[record] = planted(cohort.parameters, cohort.index(record))
        found, excluded = zip(*(facts[record] for record in row["ecgs"]))
        kind, names, answer = solve(row["question"], found)
        assert set(row["answer"]) == answer, row
        assert not any(name in without for name in names for without in excluded), row
        assert (
            row["question_type"].removeprefix("comparison_consecutive-").removeprefix("comparison_irrelevant-") == kind
        )
        for name in names:  # the cohort's own account of itself agrees
            for record, f in zip(row["ecgs"], found):
                assert cohort.present(name)[cohort.index(record)] == (name in f)


def counts(rows):
    by_question = defaultdict(Counter)
    for row in rows:
        by_question[row["question"]][answer_text(row["answer"])] += 1
    return by_question


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_balanced_for_every_question_text(questions, split):
    for question, answers in counts(getattr(questions, split)).items():
        assert len(answers) > 1 and len(set(answers.values())) == 1, (question, answers)


def test_training_and_test_ask_the_same_with_the_same_answers(default):
    train, test = counts(default.train), counts(default.test)
    assert {q: set(a) for q, a in train.items()} == {q: set(a) for q, a in test.items()}


def test_the_words_alone_score_chance(default):
    train = counts(default.train)
    majority = {question: answers.most_common(1)[0][0] for question, answers in train.items()}
    rows = [row for row in default.test if not row["control"]]
    right = np.mean([answer_text(row["answer"]) == majority[row["question"]] for row in rows])
    chance = np.mean([1 / len(train[row["question"]]) for row in rows])
    assert right == pytest.approx(chance, abs=0.01)
    assert chance < 0.45


def test_the_other_recording_of_a_patient_does_not_tell_either(default):
    # Of the patients asked about in training none is asked about again, and a patient's two visits are unrelated, so a
    # model that knows the patient but reads another recording of his must be at chance.
    cohort = default.source
    rows = [row for row in default.test if row["question_type"].startswith("single") and not row["control"]]
    answers, right, chance = counts(rows), [], []
    for row in rows:
        record = row["ecgs"][0]
        other = f"{record[:-1]}{3 - int(record[-1])}"
        answer = solve(row["question"], [planted(cohort.parameters, cohort.index(other))[0]])[2]
        right.append(answer == set(row["answer"]))
        chance.append(1 / len(answers[row["question"]]))
    assert np.mean(right) < np.mean(chance) + 0.04


def test_ids_are_unique(questions):
    rows = [*questions.train, *questions.test, *questions.reports]
    assert len({row["id"] for row in rows}) == len(rows)


def patients(rows):
    return {patient for row in rows for patient in row["patient_ids"]}


def test_splits_share_no_patient(default):
    validation = synthetic.load(held_out="validation")
    assert validation.train == default.train and validation.reports == default.reports
    splits = [patients(default.train), patients(default.test), patients(validation.test)]
    assert sum(len(split) for split in splits) == len(set().union(*splits))
    assert patients(default.reports) <= {f"s{i:05d}" for i in range(2000)} and splits[0] <= patients(default.reports)
    assert min(len(s) for s in splits) > 450


def test_rows_name_the_recordings_of_their_patients(questions):
    for row in [*questions.train, *questions.test, *questions.reports]:
        assert [questions.patient_of[record] for record in row["ecgs"]] == row["patient_ids"]
        parts = row["messages"][0]["content"]
        assert [part["type"] for part in parts] == ["ecg"] * len(row["ecgs"]) + ["text"]
        assert parts[-1]["text"] == row["question"]
        assert row["messages"][1]["content"] == [{"type": "text", "text": answer_text(row["answer"])}]
        assert len(row["messages"]) == 2


def test_comparisons_are_of_one_patient_or_of_two(questions):
    order = Counter()
    for row in [*questions.train, *questions.test]:
        kind = row["question_type"]
        assert len(row["ecgs"]) == len(set(row["ecgs"])) == (1 if kind.startswith("single") else 2)
        if kind.startswith("comparison"):
            assert len(set(row["patient_ids"])) == (1 if "consecutive" in kind else 2), row["id"]
            order[kind.split("-")[0], row["ecgs"][0] < row["ecgs"][1]] += 1
    for kind in ("comparison_consecutive", "comparison_irrelevant"):  # neither order tells anything
        assert 0.4 < order[kind, True] / (order[kind, True] + order[kind, False]) < 0.6


def test_voltage_is_a_control(questions):
    for row in [*questions.train, *questions.test]:
        assert row["control"] == ("voltage" if "voltage" in row["question"] else "")
        assert ("voltage" in row["attribute"]) == bool(row["control"])
        assert "voltage" in answer_text(row["answer"]) or row["answer"] in (["yes"], ["no"]) or not row["control"]
    assert {row["template_id"] for row in questions.test if row["control"]} == {1, 10}


GROUPS = {
    "atrial fibrillation": "rhythm", "rhythm": "rhythm", "bradycardia": "rate", "tachycardia": "rate", "rate": "rate",
    "first degree AV block": "AV conduction", "left bundle branch block": "conduction",
    "right bundle branch block": "conduction", "conduction": "conduction", "premature ventricular complexes": "ectopy",
    "anterior ST elevation": "ST", "inferior ST elevation": "ST", "st": "ST", "left axis deviation": "axis",
    "right axis deviation": "axis", "axis": "axis", "baseline drift": "noise", "muscle noise": "noise",
    "noise": "noise", "high QRS voltage": "voltage", "low QRS voltage": "voltage", "voltage": "voltage",
    "normal ECG": "normal ECG",
}  # fmt: skip


def test_groups_are_the_families_of_what_is_asked(questions):
    for row in [*questions.train, *questions.test]:
        families = {GROUPS[name] for name in row["attribute"].split(" / ")}
        assert row["group"] == (families.pop() if len(families) == 1 else "several")
    assert {row["group"] for row in questions.train} == {*GROUPS.values(), "several"}


def test_the_same_question_has_the_same_answers_to_choose_from(default):
    answers, texts = defaultdict(set), defaultdict(set)
    for row in default.test:
        answers[row["question"]].add(answer_text(row["answer"]))
        texts[same_question(row)].add(row["question"])
    for alike in texts.values():  # its paraphrases
        assert len({frozenset(answers[text]) for text in alike}) == 1 and len(alike) <= 3
    # A comparison has the same words for two visits and for two patients: those are two questions.
    assert len(texts) == len({(row["template_id"], row["attribute"]) for row in default.test})


def test_the_default_test_split_is_large_enough(default):
    rows = [row for row in default.test if not row["control"]]
    assert len(rows) >= 3000
    per_template = Counter(row["template_id"] for row in rows)
    assert per_template.keys() | {10} == set(range(1, 15)) and min(per_template.values()) >= 50
    assert Counter(row["template_id"] for row in default.test)[10] >= 50
    assert {row["question_type"] for row in rows} == {
        *(f"single-{kind}" for kind in ("verify", "choose", "query")),
        *(f"comparison_{pair}-{kind}" for pair in ("consecutive", "irrelevant") for kind in ("verify", "query")),
    }
    # A template is of one type and its attributes have one set of answers each, whatever the phrasing.
    assert len({(row["template_id"], row["question_type"]) for row in rows}) == len(per_template)


def test_a_report_tells_all_that_is_planted_and_nothing_else(default):
    cohort = default.source
    names = {name for i in range(len(cohort)) for name in planted(cohort.parameters, i)[0]}
    assert len(names) == 16
    assert [row["ecgs"][0] for row in default.reports] == list(cohort.records[:4000])
    for row in default.reports[:1000]:
        (text,) = row["answer"]
        found, _ = planted(cohort.parameters, cohort.index(row["ecgs"][0]))
        assert {name for name in names if name in text} == found, text
        assert ("sinus rhythm" in text) == ("atrial fibrillation" not in found)
        assert row["question_type"] == "report" and not row["control"]
    assert len({row["answer"][0] for row in default.reports}) > 500


def test_settings_decide_everything():
    a, b = (synthetic.load(**SMALL) for _ in range(2))
    assert a.train == b.train and a.test == b.test and a.reports == b.reports
    other = synthetic.load(**SMALL, seed=1)
    assert other.train != a.train and other.test != a.test and other.reports != a.reports
    more = synthetic.load(**{**SMALL, "questions": 40})
    assert more.test == a.test and 1.2 * len(a.train) < len(more.train)


def test_the_number_of_questions_is_what_was_asked_for(default):
    each = {q: next(iter(a.values())) for q, a in counts(default.test).items()}
    assert each["What is the rhythm of this ECG?"] == 28
    assert sum(each[text] for text in each if "atrial fibrillation" in text and re.fullmatch(VERIFY, text)) == 80
    assert each["Which does this ECG show, bradycardia or tachycardia?"] == 12
    assert max(Counter((r["template_id"], r["attribute"], *r["answer"]) for r in default.train).values()) <= 1000


@pytest.mark.parametrize("pairs", [0, 20])
@pytest.mark.parametrize(("patients", "held_out"), [(1, 1), (2, 1), (3, 2), (10, 4)])
def test_a_handful_of_patients_is_no_error_and_stays_balanced(patients, held_out, pairs):
    few = synthetic.load(patients=patients, held_out_patients=held_out, pairs=pairs)
    assert len(few.reports) == 2 * patients
    for rows in (few.train, few.test):
        for question, answers in counts(rows).items():
            assert len(answers) > 1 and len(set(answers.values())) == 1, (question, answers)


def test_one_visit_each_leaves_out_what_needs_two():
    cohort = SyntheticCohort(80, records_per_patient=1)
    rows = synthetic._Asker(cohort, np.arange(80), 10, np.random.default_rng(0)).all()
    kinds = {row["question_type"].split("-")[0] for row in rows}
    assert kinds == {"single", "comparison_irrelevant"}


def test_recordings_can_be_cached(tmp_path):
    cached = synthetic.load(**SMALL, cache=tmp_path)
    assert not list(tmp_path.iterdir())
    record = cached.test[0]["ecgs"][0]
    np.testing.assert_allclose(cached.source[record].signal, synthetic.load(**SMALL).source[record].signal, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 1


def test_load_questions_finds_sets_by_name_and_names_mistakes():
    assert load_questions("synthetic", **SMALL).train == synthetic.load(**SMALL).train
    with pytest.raises(ValueError, match="unknown dataset 'ptb': one of synthetic, ecg_qa"):
        load_questions("ptb")
    with pytest.raises(
        ValueError, match="'synthetic' has no setting fold, patient: it has patients, held_out, held_out_p"
    ):
        load_questions("synthetic", patient=3, fold=1, seed=2)
    with pytest.raises(ValueError, match="held_out must be 'test' or 'validation', got 'train'"):
        load_questions("synthetic", held_out="train")


@pytest.mark.slow
def test_pairs_take_the_place_of_single_questions_about_two_ecgs():
    """The same words and answers, about training patients alone; what is held out, and all else, stays as it is."""
    plain, pairs = synthetic.load(), synthetic.load(pairs=1000)
    assert pairs.test == plain.test and pairs.reports == plain.reports
    one, two = ([row for row in pairs.train if len(row["ecgs"]) == n] for n in (1, 2))
    assert one == [row for row in plain.train if len(row["ecgs"]) == 1]
    assert {question: set(answers) for question, answers in counts(two).items()} == {
        question: set(answers)
        for question, answers in counts(plain.train).items()
        if "ECGs" in question or "second" in question
    }
    assert patients(two) <= patients(pairs.reports)
    by_pair = Counter(tuple(row["ecgs"]) for row in two)
    assert 900 < len(by_pair) <= 1000 and max(by_pair.values()) <= 8 and len(two) > 5 * len(by_pair)
    other = synthetic.load(pairs=1000, seed=1)
    assert {tuple(row["ecgs"]) for row in other.train} != {tuple(row["ecgs"]) for row in pairs.train}


@pytest.mark.slow
def test_pairs_show_what_they_show_in_fixed_shares():
    """Else "yes, it is new" could be told from the second ECG alone, and "in both" would hardly be learned."""
    questions, shown = synthetic.load(pairs=2000), {"verify": Counter(), "query": Counter()}
    for row in questions.train:
        if len(row["ecgs"]) == 2:
            present = questions.source.present(row["attribute"])
            state = tuple(bool(present[questions.source.index(record)]) for record in row["ecgs"])
            shown[row["question_type"].split("-")[1]][state] += 1
    for kind, shares in SHARES.items():
        assert {state: n / shown[kind].total() for state, n in shown[kind].items()} == pytest.approx(shares, abs=0.03)
