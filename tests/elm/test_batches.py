"""What a batch of training is: rows of like length, and a head that is asked for answers alone."""

import copy

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from data.conversations.rows import packed, question_row
from elm import EcgCollator
from elm.training.stages import as_dataset, lengths_of, stage_args, under_condition
from elm.training.trainer import ElmTrainer
from encoders.ecg_byte import EcgByteEncoder, EcgByteSettings, EcgByteTokenizer


@pytest.fixture(scope="module")
def source(make_ecg):
    return {f"r{i}": make_ecg(i, seconds=10 - 2 * i) for i in range(4)}


def row(ecgs, question, answer):
    return question_row(
        id=question, ecgs=ecgs, patient_ids=["p"] * len(ecgs), question_type="t", question=question, answer=[answer]
    )


ROWS = [
    row(["r0"], "Is it?", "yes"),
    row(["r3", "r2"], "Compare the two ECGs.", "sinus rhythm"),
    row(["r1"], "What is the rhythm?", "atrial fibrillation, sinus rhythm"),
    row([], "What?", "no"),
]


def with_extractor(processor, extractor):
    changed = copy.copy(processor)
    changed.feature_extractor, changed.pool = extractor, 1
    return changed


def test_rows_whose_ecgs_take_more_tokens_are_longer(pair, source):
    byte = EcgByteTokenizer.train(list(source.values()), 50, EcgByteSettings(max_tokens=20_000), progress=False)
    _, extractor = EcgByteEncoder.for_tokenizer(byte)
    count = {record: int(extractor([ecg])["token_mask"].sum()) for record, ecg in source.items()}
    assert len(set(count.values())) == 4
    fixed = lengths_of(ROWS, pair.processor, source)
    assert fixed == as_dataset(ROWS)["length"][:]
    varying = lengths_of(ROWS, with_extractor(pair.processor, extractor), source)
    assert lengths_of(ROWS, with_extractor(pair.processor, extractor), source, grouped=False) == fixed
    more = [b - a for a, b in zip(fixed, varying)]
    assert more == [4 * count["r0"], 4 * (count["r3"] + count["r2"]), 4 * count["r1"], 0]
    # Told before ECGs are taken away, the order of rows is the same under every training condition.
    assert as_dataset(under_condition(ROWS, None, "none", 0), varying)["length"][:] == varying


@pytest.mark.parametrize("questions_per_row", [1, 3])
def test_the_loss_and_its_gradients_are_the_stock_ones(make_pair, source, tmp_path, questions_per_row):
    rows = packed([*ROWS, row(["r0"], "Is this a normal ECG?", "no"), row(["r0"], "Then?", "no")], questions_per_row)
    found = []
    for kind in (SFTTrainer, ElmTrainer):
        model, processor = make_pair()
        args = SFTConfig(
            output_dir=str(tmp_path), report_to="none", bf16=False, use_cpu=True, gradient_checkpointing=False,
            disable_tqdm=True, per_device_train_batch_size=8,
        )  # fmt: skip
        trainer = kind(
            model=model, args=stage_args(args, "t"), train_dataset=as_dataset(rows), processing_class=processor,
            data_collator=EcgCollator(processor, source),
        )  # fmt: skip
        seen = []
        batch = trainer.data_collator(rows)
        model.model.register_forward_hook(lambda *_, seen=seen: seen.append(_[-1].last_hidden_state.shape[1]))
        loss = trainer.compute_loss(model, dict(batch))
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.detach(), gradients, seen, batch["labels"]))
    (loss, gradients, (whole,), labels), (ours, our_gradients, (scored,), _) = found
    assert whole == labels.shape[1] and scored == int((labels[:, 1:] != -100).sum(dim=1).max()) <= whole / 2
    assert torch.allclose(ours, loss, rtol=1e-6)
    assert torch.allclose(our_gradients, gradients, atol=1e-6 * float(gradients.abs().max()) + 1e-8)
