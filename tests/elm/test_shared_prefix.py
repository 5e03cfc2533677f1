"""Questions that share an ECG's tokens in one row: the logits, losses and gradients of a row for each."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import SFTConfig

from data.conversations.rows import QuestionSet, assistant, dialogues, packed, question_row, user
from elm import EcgCollator
from elm.inputs.features import FeatureStore
from elm.inputs.packing import join
from elm.model.attention import mask_of_questions
from elm.saved.arguments import ElmArguments
from elm.training.build import build_collator
from elm.training.stages import as_dataset, stage_args, train_stage, under_condition

ECG = 99


@pytest.fixture(scope="module")
def source(make_ecg):
    return {f"r{i}": make_ecg(i, seconds=10 - i) for i in range(5)}


def row(ecgs, question, answer):
    return question_row(
        id=question, ecgs=ecgs, patient_ids=["p"] * len(ecgs), question_type="t", question=question, answer=[answer]
    )


ROWS = [
    row(["r1"], "Is it?", "yes"),
    row(["r4", "r2"], "Compare the two ECGs.", "sinus rhythm"),
    row(["r1"], "What is the rhythm?", "atrial fibrillation, sinus rhythm"),
    row(["r1"], "Is it?", "no"),  # asked twice, answered otherwise
    row(["r4", "r2"], "Is this a normal ECG?", "no"),
    row(["r0"], "Is it normal?", "yes"),  # alone
    row(["r1"], "Is this a normal ECG?", "no"),
    row(["r4", "r2"], "Is this a normal ECG?", "no"),  # the same twice
    row([], "What?", "no"),  # without ECG
    row([], "What is the rhythm?", "yes"),
]


def conversations(rows):
    return [(messages, r["ecgs"]) for r in rows for messages in (r["messages"], *r["others"])]


def doubled(batch):
    """Signals in the precision of the test's models: what is compared is not to drown in rounding."""
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def same_logits(model, batch, singles):
    """Every question's logits in the packed batch are those it has alone; returns how many were compared."""
    together, compared = model.double()(**doubled(batch)).logits, 0
    alone = iter(singles)
    for r, questions in enumerate(batch["question_ids"]):
        real = batch["attention_mask"][r].bool()
        for q in range(1, int(questions.max()) + 1):
            single = next(alone)
            here = real & ((questions == 0) | (questions == q))
            assert torch.equal(batch["input_ids"][r][here], single["input_ids"][0])
            assert torch.equal(batch["position_ids"][r][here], torch.arange(int(here.sum())))
            torch.testing.assert_close(together[r][here], model(**doubled(single)).logits[0], atol=1e-5, rtol=0)
            compared += 1
    assert next(alone, None) is None
    return compared


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_logits_and_loss_are_those_of_one_question_per_row(make_pair, source, tmp_path, attention, turns, cached):
    model, processor = make_pair("beats", pool=2)
    model.set_attn_implementation(attention)
    store = FeatureStore(model.model.encoder, processor.feature_extractor, source, "c", tmp_path) if cached else None
    collator = EcgCollator(processor, source, store)
    rows = packed(dialogues(ROWS, turns), 3)
    assert {len(r["others"]) for r in rows} == ({0, 1, 2} if turns == 1 else {0, 1})
    batch = collator(rows)
    split = [{**ROWS[0], "messages": messages, "ecgs": ecgs} for messages, ecgs in conversations(rows)]
    assert same_logits(model, batch, [collator([one]) for one in split]) == len(split)
    several = collator(split)
    assert "question_ids" not in several
    losses = [model(**doubled(one)).loss for one in (batch, several)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    # As many tokens are learned, none of them right behind another question.
    assert (batch["labels"] != -100).sum() == (several["labels"] != -100).sum()
    begins = batch["question_ids"].diff(dim=1, prepend=torch.zeros(len(rows), 1)) != 0
    assert begins.sum() >= len(split) and (batch["labels"][begins] == -100).all()
    if turns == 1:
        assert batch["attention_mask"].sum() < 0.8 * several["attention_mask"].sum()


def test_gradients_are_those_of_one_question_per_row(make_pair, source):
    model, processor = make_pair(pool=2)
    collator = EcgCollator(processor, source)
    rows = packed(ROWS, 4)
    split = [{**ROWS[0], "messages": messages, "ecgs": ecgs} for messages, ecgs in conversations(rows)]
    grads = []
    for batch in (rows, split):
        model.zero_grad()
        model(**collator(batch)).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and any("projector" in name for name in grads[0])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


LLAMA_3 = (
    "{% for message in messages %}{{ '|' + message['role'] + '|\n\n' + message['content'] | trim + '<eos>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '|assistant|\n\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}<eos>"
    "{% else %}USER: {{ message['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@torch.no_grad()
@pytest.mark.parametrize("template", [LLAMA_3, PLAIN])
def test_it_holds_for_any_chat_template(make_pair, source, template):
    model, processor = make_pair(pool=2)
    processor.chat_template = template
    collator = EcgCollator(processor, source)
    rows = packed(ROWS, 10)
    split = [{**ROWS[0], "messages": messages, "ecgs": ecgs} for messages, ecgs in conversations(rows)]
    assert same_logits(model, collator(rows), [collator([one]) for one in split]) == len(ROWS)


ids = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(ids, st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_a_row_holds_every_conversation_once(prompt, rest):
    """Whatever they have in common, answers too: taken apart, the row gives back all ids, labels and positions."""
    given_ = [([ECG, *prompt, *words, *said], [-100] * (1 + len(prompt + words)) + said) for words, said in rest]
    row = join(given_, ECG)
    questions = np.array(row["question_ids"])
    assert row["input_ids"].count(ECG) == 1
    for i, (ids, labels) in enumerate(given_, 1):
        here = np.flatnonzero((questions == 0) | (questions == i))
        assert [row["input_ids"][k] for k in here] == ids
        assert [row["labels"][k] for k in here] == labels
        assert [row["position_ids"][k] for k in here] == list(range(len(ids)))
        assert row["labels"][np.flatnonzero(questions == i)[0]] == -100
    shared, firsts = (questions == 0).sum(), {given_[i][0][(questions == 0).sum()] for i in range(len(given_))}
    answers = min(sum(label == -100 for label in labels) for _, labels in given_)
    assert len(firsts) > 1 or shared == answers - 1, "a longer prefix would do"


def test_a_token_sees_the_prefix_its_own_past_and_nothing_else():
    questions, real = torch.tensor([[0, 0, 1, 1, 2, 2, 0, 0]]), torch.tensor([[1] * 6 + [0] * 2])
    want = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 1, 0, 0],
            [1, 1, 0, 0, 0, 0, 1, 0],
            [1, 1, 0, 0, 0, 0, 0, 1],
        ]
    ).bool()
    seen = mask_of_questions(questions, real, "sdpa", torch.float32)
    assert seen.dtype == torch.bool and torch.equal(seen[0, 0, :6], want[:6])
    assert seen.any(dim=-1).all()  # padding too attends to something
    added = mask_of_questions(questions, real, "eager", torch.bfloat16)
    assert added.dtype == torch.bfloat16 and torch.equal(added == 0, seen) and added.isfinite().all()


def test_what_cannot_share_a_prefix_is_refused(pair, source):
    later = [{"role": "user", "content": [{"type": "text", "text": "Is this?"}, {"type": "ecg", "text": ""}]}]
    other = [{"role": "user", "content": [{"type": "text", "text": "Was that?"}, {"type": "ecg", "text": ""}]}]
    turns = [user(0, "What?"), assistant("no")]
    for conversations_ in ([later + turns[1:], other + turns[1:]], [turns + later, turns + later]):
        messages, *others = conversations_
        with pytest.raises(ValueError, match="differ before the last ECG.*questions_per_row: 1"):
            EcgCollator(pair.processor, source)([{**ROWS[0], "messages": messages, "others": others}])
    with pytest.raises(ValueError, match="2 conversations are given but the others of 1"):
        pair.processor([turns, turns], others=[[turns]])
    with pytest.raises(ValueError, match="conversation 0 has 1 ECG placeholders|has 0 ECG placeholders but 1 ECGs"):
        pair.processor([ROWS[0]["messages"]], [[source["r1"]]], others=[[turns]])


def test_an_attention_that_cannot_keep_questions_apart_is_refused(make_pair, source, tmp_path):
    model, processor = make_pair()
    batch = EcgCollator(processor, source)(packed(ROWS[:3], 3))
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager, got 'flash_attention_2'.*questions_per_row: 1"):
        model(**batch)
    questions = QuestionSet("t", source, "t", ROWS, [], [], {})
    arguments = ElmArguments(questions_per_row=2, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="sdpa or eager, got 'flash_attention_2'"):
        build_collator(arguments, model, processor, questions)
    assert build_collator(ElmArguments(cache_dir=str(tmp_path)), model, processor, questions).features is not None


# --- rows and training ------------------------------------------------------------------------------------------------


def test_packing_puts_rows_about_the_same_recordings_together():
    rows = packed(ROWS, 3)
    assert [(r["ecgs"], 1 + len(r["others"])) for r in rows] == [
        (["r1"], 3), (["r4", "r2"], 3), (["r0"], 1), (["r1"], 1), ([], 2),
    ]  # fmt: skip
    assert rows[0]["id"] == "Is it?+What is the rhythm?+Is it?" and rows[0]["others"][1] == ROWS[3]["messages"]
    asked = [messages for messages, _ in conversations(rows)]
    assert len(asked) == len(ROWS) and all(r["messages"] in asked for r in ROWS)
    assert packed(ROWS, 1) == [{**r, "others": []} for r in ROWS]
    with pytest.raises(ValueError, match="at least one question, got questions_per_row 0"):
        packed(ROWS, 0)


def test_packed_rows_under_the_conditions_of_training_keep_their_order_and_length(pair, source):
    patient_of = {record: f"p{record}" for record in source}
    questions = QuestionSet("t", source, "t", ROWS, [], [], patient_of)
    rows = packed(ROWS, 3)
    for condition in ("real", "none", "shuffled"):
        shown = under_condition(rows, questions, condition, 0)
        assert [r["id"] for r in shown] == [r["id"] for r in rows]
        assert as_dataset(shown)["length"][:] == as_dataset(rows)["length"][:]
        batch = EcgCollator(pair.processor, source)(shown)
        has_ecg = (batch["input_ids"] == pair.processor.ecg_token_id).any(dim=1).tolist()
        assert has_ecg == [condition != "none"] * 4 + [False]
    words = sum(len(r["question"] + r["answer"][0]) for r in ROWS[:4] if r["ecgs"] == ["r1"])
    assert as_dataset(rows)["length"][0] == 10_000 + words


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_through_trl_gives_the_weights_of_one_question_per_row(make_pair, source, tmp_path, checkpointing):
    """Two steps over the same questions: all that were packed into a batch, alone."""
    weights, losses = [], []
    for questions_per_row, batch_size in ((4, 2), (1, 8)):
        model, processor = make_pair(pool=2)
        model.train()
        model.model.encoder.requires_grad_(False)
        store = FeatureStore(model.model.encoder, processor.feature_extractor, source, "c", tmp_path / "cache")
        rows = [r for r in ROWS if r["ecgs"] == ["r1"]] + [ROWS[1]] * 4
        args = stage_args(
            SFTConfig(
                output_dir=str(tmp_path / str(questions_per_row)), max_steps=2, per_device_train_batch_size=batch_size,
                learning_rate=1e-2, lr_scheduler_type="constant", optim="sgd", bf16=False, use_cpu=True,
                logging_steps=1, gradient_checkpointing=checkpointing, report_to="none", disable_tqdm=True,
                save_strategy="no",
            ),
            "sft",
        )  # fmt: skip
        trainer = train_stage(
            model, processor, packed(rows, questions_per_row), EcgCollator(processor, source, store), args, resume=False
        )
        weights.append(model.state_dict())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][1] < losses[0][0]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
