"""MELP's pretraining: pairs, masked leads, recordings left out, a text model of one's own, what is measured."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, TrainingArguments

from data.ecg import LEADS, Ecg
from data.synthetic import SyntheticCohort
from encoders import new_encoder
from encoders.melp import alignment, training
from encoders.melp.alignment import Alignment
from encoders.melp.files import new_pretraining
from encoders.melp.training import MelpTrainer, PairCollator, Pairs, new_text_model, unreadable

SIZES = training.SMALL | {"sampling_rate": 100, "conv_pos_kernel": 8, "n_queries_contrast": 4, "n_queries_caption": 5}
TEXTS = [
    "sinus rhythm. normal rate. normal ECG.",
    "atrial fibrillation. slow heart rate, bradycardia.",
    "sinus rhythm. tachycardia. left axis deviation",
    "atrial fibrillation. right bundle branch block.",
]


class Source(dict):
    """Recordings by name, that counts how often it is asked."""

    asked = 0

    def __getitem__(self, record):
        self.asked += 1
        return super().__getitem__(record)


@pytest.fixture(scope="module")
def cohort():
    return SyntheticCohort(6, records_per_patient=2)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    new_text_model(TEXTS, training.SMALL_TEXT, folder)
    return folder


@pytest.fixture(scope="module")
def parts(text_folder):
    torch.manual_seed(0)
    encoder, extractor = new_encoder("ecg_melp", **SIZES)
    model, tokenizer = new_pretraining(encoder, text_folder, text_weights=False, **training.SMALL_SIDE)
    return model, extractor, tokenizer


@pytest.fixture(scope="module")
def pairs(cohort, parts):
    records = list(cohort.records)
    return Pairs(records, cohort, parts[1], {record: TEXTS[i % 4] for i, record in enumerate(records)})


# --- data -------------------------------------------------------------------------------------------------------------


def test_masked_leads_follow_from_seed_and_number_alone(pairs):
    masked = Pairs(pairs.records, pairs.source, pairs.extractor, pairs.texts, lead_mask=0.5, seed=3)
    here, again, later = (masked[number] for number in (2, 2, 2 + len(pairs)))
    assert torch.equal(here["ecg_values"], again["ecg_values"])
    assert here["text"] == later["text"] == pairs.texts[pairs.records[2]]
    assert not torch.equal(here["ecg_values"], later["ecg_values"]), "other leads in the next epoch"
    plain = pairs[2]["ecg_values"]
    gone = torch.stack([(masked[2 + k * len(pairs)]["ecg_values"] == 0).all(dim=1) for k in range(60)])
    assert 0.42 < float(gone.float().mean()) < 0.58
    kept = ~(here["ecg_values"] == 0).all(dim=1)
    assert torch.equal(here["ecg_values"][kept], plain[kept]) and (plain != 0).any(dim=1).all()


def test_recordings_that_cannot_be_read_are_left_out_and_told(cohort, parts, tmp_path, caplog):
    names = cohort.records[:3]
    found = Source({name: cohort[name] for name in names})
    signal = cohort[names[0]].signal.copy()
    signal[3, 5] = np.nan
    found["broken"] = Ecg(signal, 100, LEADS, record_id="broken")
    found["flat"] = Ecg(np.zeros((12, 1000), np.float32), 100, LEADS, record_id="flat")
    found["short of leads"] = Ecg(signal[:2], 100, LEADS[:2], record_id="short of leads")
    with caplog.at_level(logging.WARNING):
        refused = unreadable(list(found), found, "key", parts[1], tmp_path)
    assert set(refused) == {"broken", "flat", "short of leads"}
    assert "not finite" in refused["broken"] and refused["flat"] == "all leads are constant"
    assert "has no lead V1" in refused["short of leads"] or "no lead" in refused["short of leads"]
    assert "3 of 6 recordings left out, such as broken" in caplog.text
    asked = found.asked
    assert unreadable(list(found), found, "key", parts[1], tmp_path) == refused and found.asked == asked
    with pytest.raises(ValueError, match="none of 1 recordings can be trained on, the first 'flat': all leads"):
        unreadable(["flat"], found, "key", parts[1], tmp_path)


@pytest.mark.slow  # processes that import torch
def test_several_processes_find_the_same(cohort, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 1)
    records = [*cohort.records, *cohort.records[:4]]  # 16 chunks: enough for two processes
    assert unreadable(records, cohort, "key", parts[1], tmp_path, jobs=2) == {}
    (file,) = tmp_path.glob("unreadable-*.json")
    assert json.loads(file.read_text()) == {}


def test_a_tokenizer_made_of_reports_is_the_same_each_time(text_folder, tmp_path):
    new_text_model(TEXTS, training.SMALL_TEXT, tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / file).read_bytes() == (text_folder / file).read_bytes(), file
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == len(tokenizer)
    ids = tokenizer("Sinus rhythm.", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["sinus", "rhythm", "."]
    spelt = tokenizer("arrest", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(spelt) == ["a", "##r", "##r", "##e", "##s", "##t"]


def test_reports_without_a_full_stop_can_be_trained_on(parts, tmp_path):
    new_text_model(["sinusrhythmus lagetyp normal", "vorhofflimmern für müller"], training.SMALL_TEXT, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(".") != tokenizer.unk_token_id
    assert "ü" in tokenizer.decode(tokenizer("müller", add_special_tokens=False)["input_ids"])
    new_pretraining(new_encoder("ecg_melp", **SIZES)[0], tmp_path, text_weights=False, **training.SMALL_SIDE)


# --- training ---------------------------------------------------------------------------------------------------------


def test_norms_biases_and_the_temperature_do_not_decay(parts, pairs, tmp_path):
    model = parts[0]
    args = TrainingArguments(tmp_path, use_cpu=True, weight_decay=0.2, report_to="none")
    trainer = MelpTrainer(lambda model: {}, anew=True, model=model, args=args, train_dataset=pairs)
    trainer.create_optimizer()
    groups = trainer.optimizer.param_groups
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    norms = {
        id(weight)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm)
        for weight in module.parameters()
    }
    for name, weight in model.named_parameters():
        spared = id(weight) in norms or "bias" in name or name == "logit_scale"
        assert decay[id(weight)] == (0.0 if spared else 0.2), name


# --- measuring --------------------------------------------------------------------------------------------------------


def told(pairs, parts, patients, batch_size=5, **settings):
    model, _, tokenizer = parts
    for name in ("contrast_weight", "caption_weight", "local_weight"):
        setattr(model.config, name, settings.get(name, 1.0))
    with torch.no_grad():
        sums = Alignment(pairs, patients, PairCollator(tokenizer, model.config.text_length), batch_size)(model)
    return sums, {name: sums.above[name].sum() / sums.below[name].sum() for name in sums.above}


def test_what_is_measured_is_what_a_loop_over_pairs_finds(pairs, parts, cohort):
    model, _, tokenizer = parts
    patients = [cohort.patient_of[record] for record in pairs.records]
    _, found = told(pairs, parts, patients)
    collator = PairCollator(tokenizer, model.config.text_length)
    with torch.no_grad():
        out = model(**collator([pairs[i] for i in range(len(pairs))]))
    cosines = out.similarity.numpy()
    gaps, wins, alone, by_report = [], [], [], []
    for i, record in enumerate(pairs.records):
        others = [
            j for j, other in enumerate(pairs.records)
            if patients[j] != patients[i] and pairs.texts[other] != pairs.texts[record]
        ]  # fmt: skip
        assert 0 < len(others) < len(pairs) - 2, "neither the same patient's nor the same words"
        gaps.append(cosines[i, i] - np.mean([cosines[i, j] for j in others]))
        wins += [float(cosines[i, j] < cosines[i, i]) for j in others]
        by_report += [float(cosines[j, i] < cosines[i, i]) for j in others]
        alone.append(sum(cosines[i, j] > cosines[i, i] for j in others) < 10)
    assert found["alignment_gap"] == pytest.approx(np.mean(gaps), abs=1e-5)
    assert found["own_report_preferred"] == pytest.approx(np.mean(wins), abs=0.011)
    assert found["own_recording_preferred"] == pytest.approx(np.mean(by_report), abs=0.011)
    assert found["own_report_in_ten"] == np.mean(alone)
    assert found["caption_nats"] == pytest.approx(float(out.caption_loss), abs=1e-4)


def test_captions_of_another_ecg_are_given_another_patients_recording(pairs, parts, cohort, monkeypatch):
    patients = [cohort.patient_of[record] for record in pairs.records]
    sums, _ = told(pairs, parts, patients, batch_size=len(pairs))
    model, _, tokenizer = parts
    others = Alignment(pairs, patients, PairCollator(tokenizer, 128), 4).others()
    for row in range(len(pairs)):
        far = alignment._first(others[row], row + len(pairs) // 2)
        assert patients[far] != patients[row] and pairs.texts[pairs.records[far]] != pairs.texts[pairs.records[row]]
        collator = PairCollator(tokenizer, model.config.text_length)
        with torch.no_grad():
            mixed = pairs[row] | {"ecg_values": pairs[far]["ecg_values"]}
            loss = float(model(**collator([mixed, mixed])).caption_loss)
        ours = sums.above["caption_nats_of_other_ecg"][row] / sums.below["caption_nats_of_other_ecg"][row]
        assert ours == pytest.approx(loss, abs=1e-4)


def test_the_size_of_batches_changes_no_number_but_the_local_one(pairs, parts, cohort):
    patients = [cohort.patient_of[record] for record in pairs.records]
    one, other = (told(pairs, parts, patients, batch_size=size)[1] for size in (3, 12))
    assert one.keys() == other.keys() and "local_preferred" in one
    for name in one.keys() - {"local_preferred"}:
        assert one[name] == pytest.approx(other[name], abs=2e-2 if "preferred" in name else 1e-5), name


def test_reports_that_are_all_alike_leave_nothing_to_compare(pairs, parts, cohort):
    alike = Pairs(pairs.records, pairs.source, pairs.extractor, dict.fromkeys(pairs.records, TEXTS[0]))
    sums, _ = told(alike, parts, [cohort.patient_of[record] for record in pairs.records])
    assert set(sums.above) == {"caption_nats"}


@pytest.mark.parametrize(
    ("allowed", "start", "found"), [([1, 0, 1, 0], 1, 2), ([1, 0, 0, 0], 1, 0), ([0, 0, 0, 0], 2, 2), ([0, 1], 3, 1)]
)
def test_the_next_that_is_allowed(allowed, start, found):
    assert alignment._first(np.array(allowed, bool), start) == found
