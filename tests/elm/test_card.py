"""The model card: every number comes from the folder's files, and the hub's own code reads its metadata."""

import json
import math

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

import elm
from elm.saved.card import write_card
from elm.saved.folder import save
from eval.report.summary import summary
from eval.scoring.results import Report

TRAINING = {
    "language_model": "meta-llama/Llama-3.2-1B-Instruct",
    "dataset_name": "ecgqa+ecgqa-derived",
    "corpora": ["ptb-xl"],
    "notes": ["12 questions were dropped."],
    "train_condition": "shuffled",
    "arguments": {"encoder": "someone/melp", "align_steps": 120, "train_encoder": False},
    "processes": 2,
    "lora": {"r": 16, "alpha": 32},
    "trainer": {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "max_steps": -1, "num_train_epochs": 3.0,
        "learning_rate": 0.0002, "lr_scheduler_type": "cosine", "bf16": True, "fp16": False, "seed": 7,
    },
    "losses": [2.0, 0.1234],
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}  # fmt: skip
VERDICT = {
    "verdict": "partly", "sentence": "The model reads the ECG in part. It reads: rhythm.", "patients": 200,
    "questions": 3000, "pairs": 1234, "gap": 0.21234, "gap_interval": [0.15, 0.27], "paired_flip": 0.4,
    "exchanged": 0.187, "p": 0.0001, "over_majority": -0.01234, "over_majority_interval": [-0.03, 0.005],
    "answered": 1.0, "breaks": None, "groups": {},
}  # fmt: skip
FALLS = {"valid": 1.0, "abstained": 0, "empty": 0, "unparsed": 0, "by_likelihood": None}
AUDITED = {
    "model": "model", "training": "abc", "command": "", "seed": 0, "draws": 2000, "text_only": None, "notes": [],
    "vocabulary": [], "majority": 0.4, "real_minus": {}, "flips": None, "changed": {}, "lift": {}, "verify": None,
    "excluded_controls": [], "by_type": {}, "by_group": {}, "by_attribute": {}, "by_template": {}, "controls": {},
    "findings": {}, "shapley": None, "dose_response": {}, "reports": None,
    "dataset": "ecgqa", "limit": None, "available": 5000, "n": 3100, "patients": 210, "verdict": VERDICT,
    "conditions": {
        "real": {"accuracy": 0.9123, "interval": [0.9, 0.93], "n": 3100, **FALLS},
        "swap": {"accuracy": 0.5, "interval": [None, None], "n": 3099, **FALLS},
        "reverse": {"accuracy": 0.7, "interval": [0.6, 0.8], "n": 3100, **FALLS},
        "text-only": {"accuracy": 0.46, "interval": [0.45, 0.48], "n": 3100, **FALLS},
    },
    "majority_by_question": 0.4567,
    "majority_interval": [0.44, 0.47],
}  # fmt: skip


@pytest.fixture
def folder(make_pair, tmp_path):
    pair = make_pair("beats", pool=2)
    pair.model.config.encoder_config.pretrained_on = "MIMIC-IV-ECG: ECGs and reports"
    return save(*pair, tmp_path / "model", training=TRAINING)


def audited(folder, earlier=False, **changes):
    report = {**AUDITED, **changes}
    (folder / "ablation").mkdir()
    (folder / "ablation" / "report.json").write_text(json.dumps(report))
    if not earlier:
        short = summary(Report.from_json(report)).to_json()
        (folder / "ablation" / "summary.json").write_text(json.dumps(short))
    (folder / "ablation" / "report.md").write_text("# Report")
    write_card(folder)
    return (folder / "README.md").read_text()


def test_the_card_says_what_must_be_known(folder):
    card = (folder / "README.md").read_text()
    parameters = json.loads((folder / "training.json").read_text())["parameters"]
    for words in (
        "Research use only. Not a medical device. Not for diagnosis or treatment.",
        "**Not audited.** Whether this model reads the ECG or guesses from the question is not known",
        "## Intended use",
        "Out of scope: diagnosis",
        "pretrained on: MIMIC-IV-ECG: ECGs and reports",
        "Language model: meta-llama/Llama-3.2-1B-Instruct (llama)",
        "at most 3 language-model tokens per ECG",
        f"{parameters:,} parameters",
        "Questions: ecgqa+ecgqa-derived.",
        "12 questions were dropped.",
        "- PTB-XL: CC BY 4.0 (<https://physionet.org/content/ptb-xl/>).",
        "- ECG-QA: CC BY 4.0 (<https://github.com/Jwoo5/ecg-qa>).",
        "they are NOT ECG-QA",
        "- MIMIC-IV-ECG 1.0: ODbL 1.0",
        "ECGs given in training: shuffled.",
        "120 steps of the projector",
        "LoRA on the language model (r 16, alpha 32)",
        "3 epochs of 64 rows, learning rate 0.0002 (cosine), bfloat16, seed 7.",
        "Last training loss: 0.123.",
        "Made with python 3.11.7, torch 2.13.0.",
        "elm.load(FOLDER)",
    ):
        assert words in card, words
    assert "Splits and leaks" not in card and "4 bits" not in card
    assert elm.load(folder)[0].config.encoder_config.pretrained_on == "MIMIC-IV-ECG: ECGs and reports"


def test_leaks_and_quantisation_are_told(folder):
    record = folder / "training.json"
    told = json.loads(record.read_text()) | {"leaks": ["No patient is in both splits."], "quantization": "nf4: 4 bits."}
    record.write_text(json.dumps(told))
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "## Splits and leaks\n\n- No patient is in both splits.\n" in card and "\n- nf4: 4 bits.\n" in card


@pytest.mark.parametrize(
    ("changes", "told", "untold"),
    [
        (
            {},
            [
                "**The model reads the ECG in part. It reads: rhythm.**",
                "Swap-flip gap: +21.2 points (+15.0 to +27.0)",
                "1,234 pairs of ECGs, 200 patients",
                "Both answers of a pair right: 40.0 %; with the two ECGs exchanged 18.7 %, p < 0.001",
                "Over the most common answer to each question: −1.2 points (−3.0 to +0.5)",
                "| the real ECG | 91.2 % (90.0 to 93.0) |",
                "| another patient's ECG | 50.0 % |",
                "| (a model trained without ECGs) | 46.0 % (45.0 to 48.0) |",
                "| (most common answer to each question) | 45.7 % (44.0 to 47.0) |",
                "3,100 questions about 210 held-out patients. Intervals are 95 %, by patient.",
                "`ablation/report.md`",
            ],
            ["backwards", "no ECG", "a sample of"],
        ),
        ({"verdict": {**VERDICT, "pairs": 0, "gap": None}}, [VERDICT["sentence"]], ["Swap-flip", "of a pair"]),
        ({"verdict": None, "limit": 3100}, ["| the real ECG |", "a sample of 5,000"], ["Swap-flip"]),
    ],
)
def test_the_card_tells_what_the_audit_found_and_nothing_else(folder, changes, told, untold):
    card = audited(folder, **changes)
    section = card.partition("## Does it read the ECG?")[2].partition("\n## ")[0]
    assert "Not audited" not in card
    assert not [words for words in told if words not in section]
    assert not [words for words in untold if words in section]


def test_an_audit_by_earlier_code_still_shows_its_verdict(folder):
    """Its folder has no summary.json; one that is published has no answers either, to score them again."""
    card = audited(folder, earlier=True)
    section = card.partition("## Does it read the ECG?")[2].partition("\n## ")[0]
    assert f"**{VERDICT['sentence']}**" in section and "--rescore" in section and "`ablation/report.md`" in section
    assert "Not audited" not in card and ModelCard.load(folder / "README.md").data.eval_results is None
    for text in ("[]", "{", '{"dataset": "ecgqa"}'):
        (folder / "ablation" / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"report\.json: "):
            write_card(folder)


def test_the_hub_reads_the_metadata_as_it_was_meant(folder):
    audited(folder)
    card = ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.base_model) == (
        "transformers", "other", ["meta-llama/Llama-3.2-1B-Instruct", "someone/melp"],
    )  # fmt: skip
    assert data.datasets == ["ecgqa", "ecgqa-derived"] and "ecg" in data.tags
    results = {result.metric_type: result for result in data.eval_results}
    assert set(results) == {"accuracy", "accuracy_swap", "swap_flip_gap", "paired_flip", "over_majority"}
    assert results["accuracy"].metric_value == 0.9123
    assert results["accuracy"].metric_args == {"interval_95": [0.9, 0.93], "n": 3100}
    assert results["accuracy_swap"].metric_args == {"n": 3099}  # no interval is known
    assert results["swap_flip_gap"].metric_args == {"interval_95": [0.15, 0.27], "n": 1234}
    assert all(math.isfinite(result.metric_value) and result.dataset_name == "ecgqa" for result in data.eval_results)
    metadata = metadata_load(folder / "README.md")
    assert model_index_to_eval_results(metadata["model-index"]) == ("model", data.eval_results)
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_parts_from_folders_are_no_base_models(make_pair, tmp_path, monkeypatch):
    """A name that could be a hub id but is a folder here was read from the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "llama").mkdir(parents=True)
    for language_model in ("out/llama", "tiny", "/data/models/llama"):
        training = TRAINING | {"language_model": language_model, "arguments": {"encoder": "tiny"}}
        card = ModelCard.load(save(*make_pair(), tmp_path / "model", training=training) / "README.md")
        assert card.data.base_model is None and card.data.eval_results is None


def test_an_encoder_that_has_seen_nothing_is_called_that(make_pair, tmp_path):
    folder = save(*make_pair(), tmp_path / "model", training={**TRAINING, "dataset_name": "ours", "corpora": []})
    card = (folder / "README.md").read_text()
    assert "pretrained on: nothing stated" in card and "- Not known: ask whoever trained the model." in card
