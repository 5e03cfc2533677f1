"""What the audit's report says: the numbers it was given, nothing that was not asked, and nothing that is not text."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import zlib
from collections.abc import Collection
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from data.experiment.conditions import CONDITIONS, FAST
from eval.report import figures, headline
from eval.report import page as pages
from eval.report import sections as texts
from eval.report import write as reporting
from eval.report.figures import FIGURES
from eval.report.parts import Facts, Items, Table, Terms
from eval.report.strips import MARGIN, Example
from eval.scoring.lines import Line, by_condition, scored
from eval.scoring.numbers import measure
from eval.scoring.results import RUNGS, TEXT_ONLY, About, Block, Report

# The tests below read and change what report.json holds; here it becomes the report again.


def sections(report, pictures=()):
    return texts.sections(Report.from_json(report), pictures)


def draw(report):
    return figures.draw(Report.from_json(report))


def finding(report):
    return headline.finding(Report.from_json(report))


def reasons(report):
    return headline.reasons(Report.from_json(report))


def markdown(report, sections):
    return reporting.markdown(Report.from_json(report), sections)


def table(block):
    return reporting.table(Block.from_json(block))


def page(report, sections, pictures, examples):
    return pages.page(Report.from_json(report), sections, pictures, list(map(Example.from_json, examples)))


def write(out, report, lines, examples=()):
    return reporting.write(out, Report.from_json(report), lines, list(map(Example.from_json, examples)))


def an_answer(**fields):
    return dataclasses.replace(scripted(conditions=["real"], patients=3)[0], **fields)


FINDINGS = {  # attribute: its group
    "atrial fibrillation": "rhythm",
    "ventricular ectopy": "ectopy",
    "left bundle branch block": "conduction",
    "baseline drift": "noise",
}
RATES = ["bradycardia", "normal rate", "tachycardia"]
HOSTILE = '<script>alert("1")</script> & <img src=x onerror=alert(2)> | $\\frac$ </svg></style>'


def scripted(
    reads: Collection[str] = ("rhythm", "ectopy", "conduction", "rate"),
    conditions: Collection[str] = FAST,
    patients: int = 60,
    scores: bool = True,
    seed: int = 0,
) -> list[Line]:
    """Lines of a model that reads findings of some groups in nine of ten ECGs, and else says what is most common."""
    rng = np.random.default_rng(seed)
    truth = {
        f"p{i:03d}": {name: ["yes" if rng.random() < 0.4 else "no"] for name in FINDINGS}
        | {"rate": [RATES[rng.integers(3)]], "voltage": ["yes" if i % 2 else "no"]}
        for i in range(patients)
    }
    vocabulary = frozenset(["yes", "no", *RATES])
    found = []
    for condition in conditions:
        for i, (patient, mine) in enumerate(truth.items()):
            others = [name for name in truth if name != patient]
            for attribute, answer in mine.items():
                kind = "single-query" if attribute == "rate" else "single-verify"
                options = RATES if attribute == "rate" else ["no", "yes"]
                group = FINDINGS.get(attribute, attribute)
                if condition in ("swap", "both-swap"):
                    donor = others[(7 * i + 3) % len(others)]
                elif condition in ("swap-flip", "swap-same"):
                    fits = [p for p in others if (truth[p][attribute] != answer) == (condition == "swap-flip")]
                    donor = fits[(5 * i) % len(fits)]
                else:
                    donor = patient
                shown = truth[donor][attribute]
                seen = condition in ("real", "reverse", "swap", "swap-flip", "swap-same")
                follows = group in reads and seen and rng.random() < 0.9
                said = shown[0] if follows else options[0]
                logp = np.log([0.7 if option == said else 0.3 / (len(options) - 1) for option in options])
                logp += rng.normal(0, 0.2, len(options))
                line = {
                    "condition": condition,
                    "id": f"{patient}/{attribute}",
                    "question": f"Does this ECG show {attribute}?",
                    "question_type": kind,
                    "template_id": 1 + list(mine).index(attribute),
                    "attribute": attribute,
                    "group": group,
                    "control": "voltage" if attribute == "voltage" else "",
                    "patient_ids": [patient],
                    "ecgs": [f"{patient}-1"],
                    "donors": [f"{donor}-1"] if donor != patient else [],
                    "donor_patients": [donor] if donor != patient else [],
                    "answer": answer,
                    "shown_answer": shown,
                    "prediction": said,
                    "options": options if scores else None,
                    "logp": logp.tolist() if scores else None,
                    "gold_logp": float(logp[options.index(answer[0])]) if scores else None,
                    "majority_right": answer == ["no"],
                    "majority_by_question_right": answer == ["no"],
                }
                found.append(scored(Line.from_json(line), vocabulary))
    return found


def planted() -> list[Line]:
    """Simulated patients whose heart rate, and whose ST level, is moved."""
    found = []
    for parameter, attribute, doses, limit in (
        ("heart_rate", "tachycardia", (60, 80, 95, 105, 120, 150), 100),
        ("st_mv", "anterior ST elevation", (0.0, 0.1, 0.2, 0.3), 0.15),
    ):
        for patient in range(12):
            for dose in doses:
                yes = dose > limit
                p = 1 / (1 + math.exp(-6 * (dose - limit) / (doses[-1] - doses[0]) + 0.1 * (patient % 3)))
                line = {
                    "id": f"{parameter}-{patient}-{dose}", "condition": "planted", "parameter": parameter, "dose": dose,
                    "sign": 1, "attribute": attribute, "group": "rate", "control": "", "question_type": "single-verify",
                    "template_id": 1, "question": f"Is there {attribute}?", "patient_ids": [f"s{patient}"],
                    "ecgs": [f"s{patient}~{dose}"], "donors": [], "donor_patients": [],
                    "answer": ["yes" if yes else "no"],
                    "shown_answer": ["yes" if yes else "no"], "prediction": "yes" if p > 0.5 else "no",
                    "options": ["no", "yes"], "logp": [math.log(1 - p), math.log(p)], "gold_logp": 0.0,
                    "majority_right": not yes, "majority_by_question_right": not yes,
                }  # fmt: skip
                found.append(scored(Line.from_json(line), frozenset(["yes", "no"])))
    return found


def ladder() -> dict[str, Any]:
    rungs = {"encoder": 0.95, "projected": 0.94, "state": 0.9, "answer": 0.88}
    values, before = {}, None
    for name, value in rungs.items():
        change = None if before is None else round(value - before, 6)
        values[name] = {
            "label": RUNGS[name],
            "auroc": value,
            "interval": [value - 0.02, value + 0.02],
            "change": change,
            "change_interval": None if change is None else [change - 0.01, change + 0.01],
        }
        before = value
    return {
        "rungs": values,
        "fraction_read": 0.844444,
        "fraction_interval": [0.8, 0.9],
        "findings": {
            name: {
                "group": group,
                "headline": group != "noise",
                "auroc": {rung: value + 0.01 * i for rung, value in rungs.items()},
                "train": 400, "n": 60, "positives": 25, "patients": 60,
            }
            for i, (name, group) in enumerate(FINDINGS.items())
        },
        "n": 180, "patients": 60, "findings_in_headline": 3, "max_train": 400,
        "representation": "tokens: one after the other (640 and 640 numbers)",
        "notes": ["Left out for fewer than 10 questions held out of one answer: bradycardia."],
    }  # fmt: skip


def report_of(lines: list[Line], **more: Any) -> dict[str, Any]:
    about = {
        "model": "out/sft-llava",
        "training": "abc",
        "dataset": "simulated cohort",
        "command": "python -m eval.ablation --model out/sft-llava",
        "seed": 0,
        "draws": 200,
        "limit": None,
        "available": 360,
        "text_only": None,
        "notes": ["Two questions were dropped."],
        "vocabulary": ["no", "yes"],
    }
    return measure(by_condition(lines), About.from_json(about)).to_json() | more


def example(*said: str, leads: dict[str, list[float]] | None = None) -> dict[str, Any]:
    """A flip pair whose right answers are yes and no."""
    flat = {"II": [0.0] * 1000, "V1": [0.0] * 1000}
    return {
        "question": "Does this ECG show atrial fibrillation?",
        "ecgs": [
            {
                "record": record, "fs": 100.0, "leads": leads or flat, "right": [right], "said": told,
                "correct": told == right, "p": {"no": 0.25, "yes": 0.75} if record == "r1" else None,
            }
            for record, right, told in zip(("r1", "r2"), ("yes", "no"), said)
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def full():
    """Everything that can be asked, of a model that reads all but ectopy."""
    told = scripted(reads=("rhythm", "conduction", "rate"), conditions=[c for c in CONDITIONS if c != "planted"])
    blind = [dataclasses.replace(line, condition=TEXT_ONLY) for line in scripted(reads=(), conditions=["none"])]
    return report_of([*told, *planted(), *blind], ladder=ladder())


@pytest.fixture(scope="module")
def small():
    """Two conditions without an ECG of another patient, of a model that does not score."""
    return report_of(scripted(conditions=["real", "none"], scores=False))


@pytest.fixture(scope="module")
def drawn(full):
    return draw(full)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Drawing takes seconds, which only tests that look at pictures need wait for."""
    if "drawn" not in request.fixturenames:
        names = {True: FIGURES, False: ("conditions.png",)}
        fake = lambda report: {name: b"\x89PNG" + bytes(30) for name in names[report.ladder is not None]}  # noqa: E731
        monkeypatch.setattr(reporting, "draw", fake)


@pytest.fixture
def changed(full):
    """A copy that a test may change."""
    return copy.deepcopy(full)


class Page(HTMLParser):
    """What stands on a page: text by element, and every attribute."""

    VOID = {"meta", "img", "link", "br", "path", "rect"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.paths: list[dict[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements that are never closed"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.paths += [dict(attrs)] if tag == "path" else []
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join("".join(data for tag, data in self.text if tag not in ("style", "title")).split())


def markdown_tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not inside:
                found.append([])
            if not all(set(cell) <= set("-:") and cell for cell in cells):
                found[-1].append(cells)
        inside = line.startswith("|")
    return found


def row_of(tables: list[list[list[str]]], head: str, name: str) -> dict[str, str]:
    """The row of that name in the first table whose head begins so."""
    table = next(table for table in tables if table[0][0] == head)
    return dict(zip(table[0], next(row for row in table[1:] if row[0] == name)))


# --- what is said -----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_report(full):
    text = markdown(full, sections(full, FIGURES))
    tables = markdown_tables(text)
    for name in FAST:
        told, row = full["conditions"][name], row_of(tables, "the model is given", CONDITIONS[name].label)
        low, high = (100 * limit for limit in told["interval"])
        assert row["right answers"] == f"{100 * told['accuracy']:.1f} % ({low:.1f} to {high:.1f})"
        assert row["questions"] == f"{told['n']}" and row["valid answers"] == "100.0 %"
        if name != "real":
            gap = full["real_minus"][name]
            assert row["real ECG minus this"].startswith(f"{100 * gap['difference']:+.1f} (".replace("-", "−"))
            assert row["answer changed"] == f"{100 * full['changed'][name]['rate']:.1f} %"
    row = row_of(tables, "the model is given", "(a model trained without ECGs)")
    assert row["right answers"].startswith(f"{100 * full['conditions'][TEXT_ONLY]['accuracy']:.1f} %")
    row = row_of(tables, "the model is given", "(most common answer to each question)")
    assert row["right answers"].startswith(f"{100 * full['majority_by_question']:.1f} %")
    verdict = full["verdict"]
    assert verdict["verdict"] == "reads" and text.index("**The model reads the ECG.**") < text.index("## ")
    for number in (verdict["gap"], verdict["over_majority"]):
        assert f": {100 * number:+.1f} points**" in text
    for needed in ("lower limit at least +10", "p below 0.05", "lower limit above 0"):
        assert f"Asked of a reader: {needed}; holds" in text
    row = row_of(tables, "group of findings", "ectopy")
    assert row["verdict"] == "`ignores`" and row["p, corrected"] == "1.000"
    assert row["pairs (patients)"] == "60 (60)" and row["swap-flip gap"].startswith("+0.0 (")
    assert row_of(tables, "group of findings", "noise")["verdict"] == "`ignores` (not counted)"
    kind, row = full["by_type"]["single-query"], row_of(tables, "questions", "single-query")
    assert row["both right"].startswith(f"{100 * kind['flips']['paired_flip']:.1f} %") and row["p"] == "< 0.001"
    row = row_of(tables, "kind of question", "single-query")
    assert kind["swap_p_corrected"] < 0.001 and row["p"] == "< 0.001"
    told, row = full["findings"]["atrial fibrillation"], row_of(tables, "finding", "atrial fibrillation")
    assert (
        row["AUROC"].startswith(f"{told['auroc']:.3f} (") and row["questions (with it)"] == f"60 ({told['positives']})"
    )
    assert row["AUROC, another patient's ECG"] == f"{told['auroc_swap']:.3f}"
    assert row["balanced accuracy"] == f"{100 * told['balanced_accuracy']:.1f} %"
    assert f"Brier score {full['verify']['brier']:.3f}" in text
    assert row_of(tables, "answers", "surest 25 %")["right"] == f"{100 * full['verify']['selective']['0.25']:.1f} %"
    row = row_of(tables, "", "its own ECG")
    assert row["another question"] == f"{100 * full['shapley']['accuracy']['ecg']:.1f} %"
    assert f"the ECG brings {100 * full['shapley']['ecg']:+.1f} and the question" in text
    row = row_of(tables, "what is moved: question", "heart rate: tachycardia")
    assert row["moved"] == "60 to 150 per minute" and row["correlation"].startswith("+1.00")
    row = row_of(tables, "told from", "the answer")
    assert row["AUROC"] == "0.880 (0.860 to 0.900)" and row["change"] == "−0.020 (−0.030 to −0.010)"
    assert "hold 84 % (95 % 80 to 90)" in text
    assert f"true difference of {100 * full['smallest_detectable']:.1f} points" in text
    assert "voltage" not in str(tables[1]) and row_of(tables, "control", "voltage")["questions (patients)"] == "60 (60)"
    assert full["command"] in text and "* Two questions were dropped." in text


def test_page_and_markdown_say_the_same(full, drawn):
    told = sections(full, FIGURES)
    shown = Page(page(full, told, drawn, []))
    tables = [[[cell.replace("`", "") for cell in row] for row in table] for table in markdown_tables(
        markdown(full, told)
    )]  # fmt: skip
    assert shown.tables == tables and len(tables) == sum(isinstance(p, Table) for s in told for p in s.parts)
    for part in (part for section in told for part in section.parts):
        match part:
            case str():
                texts = [part]
            case Facts():
                texts = [text for fact in part.facts for text in (fact.name, fact.value, fact.detail, fact.meaning)]
            case Terms():
                texts = [text for pair in part.terms.items() for text in pair]
            case Items():
                texts = list(part.items)
            case _:
                continue
        assert not [text for text in texts if " ".join(text.replace("`", "").split()) not in shown.words]


def test_nothing_is_said_of_what_was_not_asked(full, small, tmp_path):
    titles = [section.key for section in sections(full, FIGURES)]
    assert titles == [
        "verdict", "conditions", "flips", "groups", "kinds", "findings", "likelihood", "calibration", "shapley", "dose",
        "ladder", "controls", "detectable", "terms", "limits", "notes", "again",
    ]  # fmt: skip
    assert [s.key for s in sections({**small, "notes": []})] == [
        "conditions", "kinds", "controls", "terms", "limits", "again"
    ]  # fmt: skip
    write(tmp_path, full, [])
    assert {path.name for path in tmp_path.glob("*.png")} == set(FIGURES)
    written = write(tmp_path, small, [])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert [path.name for path in tmp_path.glob("*.png")] == ["conditions.png"]  # the others were of another report
    for text in ((tmp_path / "report.md").read_text(), Page((tmp_path / "report.html").read_text()).words):
        for word in ("another patient", "AUROC", "gap", "Shapley", "Brier", "dose", "encoder's features", "noise"):
            assert word not in text.replace("Zeros, noise or no ECG", ""), word
        assert "Two questions were dropped." in text


def test_the_model_without_ecgs_is_asked_for_where_it_is_missing(full, small):
    assert "--text_only" not in table(full) and "trained without ECGs" in table(full)
    assert "`--train_condition none`" in table(small) and "`--text_only DIR`" in table(small)
    assert "not compared with a model trained without ECGs" in markdown(small, sections(small))
    block = full["by_type"]["single-verify"]
    assert f"{block['n']:,}" in table(block) and f"| {full['n']} " not in table(block)


def test_a_sample_is_called_a_sample(changed):
    assert "a sample of" not in markdown(changed, [])
    changed.update(limit=42, available=3874)
    assert "(a sample of 42 of 3,874, evenly over templates" in markdown(changed, [])


@pytest.mark.parametrize(
    ("verdict", "of_groups", "evidence", "says"),
    [
        ("reads", ["reads", "ignores"], {}, "The model reads the ECG."),
        ("partly", ["reads", "ignores", "ignores"], {}, "would be `reads`, but only 1 of the 3 groups"),
        ("partly", ["reads"], {"gap_interval": [0, 0.08], "breaks": None}, "would be `ignores`: only these groups"),
        ("inconclusive", [], {"pairs": 0, "gap": None, "gap_interval": [None, None], "paired_flip": None,
                              "exchanged": None, "p": None}, "No flip pair was asked"),
        ("inconclusive", [], {"pairs": 49}, "There are 49 flip pairs of 60 patients; it takes 50 pairs of 20"),
        ("inconclusive", [], {"gap_interval": [-0.1, 0.3]}, "−10.0 to +30.0 points, excludes neither"),
        ("inconclusive", [], {"answered": 0.2}, "Only 20 % of its answers are valid."),
    ],
)  # fmt: skip
def test_the_verdict_is_explained(changed, verdict, of_groups, evidence, says):
    found = changed["verdict"]
    sentences = {"reads": "The model reads the ECG.", "partly": "The model reads the ECG in part. It reads: a."}
    sentences["inconclusive"] = "These answers do not show whether the model reads the ECG."
    one = next(iter(found["groups"].values()))
    found["groups"] = {str(i): {**one, "verdict": told, "counts": True} for i, told in enumerate(of_groups)}
    found.update(verdict=verdict, sentence=sentences[verdict], **evidence)
    if "answered" in evidence:
        found["sentence"] += " Only 20 % of its answers are valid."
    assert says in finding(changed) and finding(changed).startswith(sentences[verdict].split(". ")[0])
    assert finding(changed).count("reads the ECG") == 1  # every sentence once
    assert ("wap-flip gap +" in finding(changed)) == (found["pairs"] > 0)
    assert all(reason in markdown(changed, []) for reason in reasons(changed))


def test_without_a_verdict_it_says_why(changed):
    changed["verdict"] = None
    assert finding(changed).startswith("No verdict")
    assert not {"verdict", "groups"} & {section.key for section in sections(changed)}
    assert "No verdict" in page(changed, sections(changed), {}, [])


def test_one_patient_has_no_interval(tmp_path):
    one = [line for line in scripted(conditions=["real", "none"]) if line.patient_ids == ["p007"]]
    report = report_of(one)
    assert report["conditions"]["real"]["interval"] == [None, None] and "conditions.png" in draw(report)
    write(tmp_path, report, [])
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "(interval unknown)" in text and "With 1 patients, the intervals are too narrow" in text


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_same_report_is_the_same_bytes(full, tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        written = write(folder, full, [an_answer(id="é")], [example("yes", "no")])
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in written)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name
    assert json.loads((folders[0] / "report.json").read_text()) == full
    (line,) = (folders[0] / "predictions.jsonl").read_text().splitlines()
    assert '"id": "é"' in line and Line.from_json(json.loads(line)) == an_answer(id="é")


def test_the_report_itself_is_written_last(small, tmp_path, monkeypatch):
    order, real = [], reporting.written_whole
    monkeypatch.setattr(reporting, "written_whole", lambda path, mode="wb": (order.append(path), real(path, mode))[1])
    assert write(tmp_path, small, []) == order
    assert [path.name for path in order] == [
        "predictions.jsonl", "conditions.png", "report.md", "report.html", "summary.json", "report.json"
    ]  # fmt: skip


def test_a_failure_leaves_the_last_report(full, small, tmp_path):
    write(tmp_path, full, [an_answer()])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def lines():
        yield an_answer(id="new")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        write(tmp_path, small, lines())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path, {**small, "majority": math.nan}, [])
    with pytest.raises(ValueError, match=r"line 2 of the predictions, 'q7' under 'real': .*not JSON compliant"):
        write(tmp_path, small, [an_answer(id="q6"), an_answer(id="q7", logp=[-math.inf])])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_figures_are_drawn_of_what_was_measured(full, small, drawn):
    assert tuple(drawn) == FIGURES
    assert list(draw({**small, "verdict": None})) == list(draw(small)) == ["conditions.png"]
    assert draw(full) == drawn  # the same bytes


def test_figures_are_whole_pngs_that_tell_no_date(drawn):
    for name, png in drawn.items():
        assert png.startswith(b"\x89PNG\r\n\x1a\n"), name
        kinds, at = [], 8
        while at < len(png):
            length = int.from_bytes(png[at : at + 4])
            kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
            assert int.from_bytes(png[at + 8 + length : at + 12 + length]) == zlib.crc32(kind + data)
            kinds.append(kind)
            at += 12 + length
        assert at == len(png) and kinds[-1] == b"IEND" and set(kinds) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}, name
        assert 600 <= int.from_bytes(png[16:20]) <= 1500 and 400 <= int.from_bytes(png[20:24]) <= 3000, name


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(full, drawn):
    told = sections(full, FIGURES)
    text = page(full, told, drawn, [example("yes", "no")])
    shown = Page(text)
    for tag, name, value in shown.attributes:
        if name in ("src", "srcset", "poster", "data", "action", "xlink:href"):
            assert tag == "img" and value.startswith("data:image/png;base64,")
        elif name == "href":
            assert tag == "a" and value.startswith("#")
        elif (tag, name, value) != ("svg", "xmlns", "http://www.w3.org/2000/svg"):  # a name, which is never fetched
            assert "url(" not in value and "//" not in value and not name.startswith("on")
    tags = {tag for tag, _, _ in shown.attributes} | {tag for tag, _ in shown.text}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    styles = "".join(data for tag, data in shown.text if tag == "style")
    assert "url(" not in styles and "@import" not in styles and "//" not in styles
    ids = {value for _, name, value in shown.attributes if name == "id"}
    assert {value[1:] for _, name, value in shown.attributes if name == "href"} <= ids
    assert len([value for tag, name, value in shown.attributes if (tag, name) == ("img", "alt") and value]) == 4
    assert shown.words.count("Research use only. Not a medical device.") == 2


def test_text_from_data_stays_text(changed, drawn, tmp_path):
    """Question, names of groups and records, answers, notes: whoever made the data set does not write on the page."""
    found = changed["verdict"]
    found["groups"] = {HOSTILE: next(iter(found["groups"].values()))}
    for name in ("by_type", "findings", "controls"):
        changed[name] = {f"{HOSTILE}{i}": block for i, block in enumerate(changed[name].values())}
    changed["dose_response"] = {f"heart_rate: {HOSTILE}": next(iter(changed["dose_response"].values()))}
    changed["ladder"]["notes"] = [HOSTILE]
    changed.update(model=HOSTILE.replace("/", ""), dataset=HOSTILE, command=HOSTILE, notes=[HOSTILE])
    shown = example(HOSTILE, HOSTILE, leads={HOSTILE: [0.1] * 500})
    shown["question"] = HOSTILE
    for ecg in shown["ecgs"]:
        ecg.update(record=HOSTILE, right=[HOSTILE], p={HOSTILE: 1.0})
    write(tmp_path, changed, [], [shown])
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text and "<img src=x" not in text
    read = Page(text)
    assert read.words.count('<script>alert("1")</script>') > 20
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert HOSTILE in "".join(value for _, name, value in read.attributes if name == "aria-label")
    told = re.sub(r"```.*?```", "", (tmp_path / "report.md").read_text(), flags=re.DOTALL)
    assert not re.search(r"<[a-zA-Z/!]", told) and "&lt;script>" in told
    assert all(len({len(row) for row in table}) == 1 for table in markdown_tables(told))  # no cell is split


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("yes", "no"), "Both answers are right"),
        (("Yes", " yes"), "The same answer twice"),
        (("no", "yes"), "not both right"),
        (("", "no"), "not both right"),
    ],
)
def test_examples_say_what_was_asked_answered_and_right(small, said, told):
    words = Page(page(small, sections(small), {}, [example(*said)])).words
    assert "“Does this ECG show atrial fibrillation?”" in words and told in words
    for record, right, answer in zip(("r1", "r2"), ("yes", "no"), said):
        judged = "right" if answer == right else "wrong"
        assert f"({record})" in words and f"Right answer: {right}" in words
        assert f"The model said: {answer.strip() or 'nothing'} ({judged})" in words
    assert "Its probabilities: no 25 %; yes 75 %" in words and words.count("Its probabilities") == 1


def test_strips_are_drawn_to_the_scale_of_the_paper(small):
    step = np.zeros(1000)
    step[200:] = 1.0  # mV, from 2 s on
    wild = np.full(1000, 40.0)
    shown = example("yes", "no", leads={"II": step.tolist(), "V1": (-0.4 * step).tolist()})
    shown["ecgs"][1]["leads"] = {"II": (0.5 * step).tolist(), "V1": wild.tolist()}
    shown["ecgs"][1]["fs"] = 250.0
    read = Page(page(small, sections(small), {}, [shown]))
    boxes = [tuple(map(float, v.split())) for tag, name, v in read.attributes if (tag, name) == ("svg", "viewbox")]
    assert boxes[0] == boxes[1] and boxes[0][2] == MARGIN + 25 * 5 and boxes[0][3] % 5 == 0
    drawn = read.paths
    traces = [path["d"] for path in drawn if path["class"] == "ecg-trace"]

    def lines(path):
        """Points in mm, `[points, 2]`, of each line: a place, then steps, in hundredths of a millimetre."""
        for place, steps in re.findall(r"M([^l]*)l([^M]*)", path):
            steps = [int(number) for number in re.findall(r"-?\d+", steps)]
            moves = [[int(number) for number in place.split()], *np.reshape(steps, (-1, 2)).tolist()]
            yield np.cumsum(moves, axis=0) / 100

    for style, step in (("ecg-minor", 1), ("ecg-bold", 5)):
        for path in (path for path in drawn if path["class"] == style):
            at = {float(line[0, 0] if line[0, 0] == line[1, 0] else line[0, 1]) for line in lines(path["d"])}
            assert {place % 5 == 0 for place in at} == {step == 5} and {place % 1 for place in at} == {0}
    pulses, traces = zip(*(list(lines(path)) for path in traces))
    for pulse in pulses:
        np.testing.assert_allclose(np.diff(pulse, axis=0)[1:4], [[0, -10], [5, 0], [0, 10]])
    assert len(pulses) == len(traces) == 4
    first, second, slower, high = traces
    base = first[0, 1]
    assert base % 5 == 0 and second[0, 1] % 5 == 0  # baselines on lines of the paper
    np.testing.assert_allclose(first[[0, 200, 500], 0] - MARGIN, [0, 50, 125])
    np.testing.assert_allclose(first[[199, 200], 1], [base, base - 10])
    np.testing.assert_allclose(second[[199, 200], 1] - second[0, 1], [0, 4])
    np.testing.assert_allclose(slower[250, 0] - MARGIN, 25)
    assert len(slower) == 1000 and slower[-1, 0] <= boxes[1][2]  # four seconds are all there is
    assert (high[:, 1] == second[0, 1] - 400).all() and boxes[1][3] < 150  # true to scale, but takes no more paper
    assert {data for tag, data in read.text if tag == "text"} == {"II", "V1"}
