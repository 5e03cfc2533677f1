from types import SimpleNamespace

import pytest
import torch

from data.conditions import apply
from data.conversations.rows import question_row
from eval.answers import ModelResponder, ScriptedResponder, question_messages


class Tokenizer:
    """A token is a character; 0 is padding."""

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def batch_decode(self, ids, skip_special_tokens=False):
        assert skip_special_tokens
        return ["".join(chr(i) for i in row if i) for row in ids.tolist()]


class Processor:
    """Refuses what the real one refuses: ECG parts without ECGs. Signals are `[N, 1]`, the first sample of each."""

    tokenizer = Tokenizer()

    def __call__(self, *, messages, ecgs=None, ecg_mask=None, add_generation_prompt, padding_side, return_tensors):
        assert add_generation_prompt and padding_side == "left" and return_tensors == "pt"
        parts = [[part for message in turns for part in message["content"]] for turns in messages]
        owned = [sum(part["type"] == "ecg" for part in of) for of in parts]
        assert [turns[-1]["role"] for turns in messages] == ["user"] * len(messages)
        texts = ["".join(part["text"] for part in of) for of in parts]
        width = max(map(len, texts))
        ids = torch.tensor([[0] * (width - len(text)) + [ord(c) for c in text] for text in texts])
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
        if ecgs is not None:
            assert [len(group) for group in ecgs] == owned
            first = [float(ecg.signal[0, 0]) for group in ecgs for ecg in group]
            batch["ecg_values"] = torch.tensor(first, dtype=torch.float64)[:, None]
            batch["ecg_times"] = torch.arange(1, len(first) + 1)[:, None]
            batch["token_mask"] = torch.ones(len(first), 1, dtype=torch.bool)
        elif ecg_mask is not None:
            assert len(ecg_mask) == sum(owned)
        else:
            assert sum(owned) == 0
        return batch


class Model:
    """Says the sum of the signals of each row's ECGs after the question, shifted by one character."""

    ecg_inputs = ("ecg_values", "ecg_times", "token_mask", "ecg_features", "ecg_mask")
    device, dtype, training = torch.device("cpu"), torch.float32, True

    def __init__(self, owned):
        self.owned, self.calls = owned, []  # ECGs per question text

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def generate(self, *, input_ids, attention_mask, do_sample, max_new_tokens, **ecg):
        assert not do_sample and not self.training and not torch.is_grad_enabled()
        self.calls.append(SimpleNamespace(size=len(input_ids), max_new_tokens=max_new_tokens, **ecg))
        signal = ecg.get("ecg_values", ecg.get("ecg_features"))
        left = iter([] if signal is None else signal[:, 0].tolist())
        said = []
        for text in Tokenizer().batch_decode(input_ids, skip_special_tokens=True):
            total = None if signal is None else sum(next(left) for _ in range(self.owned[text]))
            said.append(f" {text[-1]}{'?' if total is None else int(total)} ".ljust(10, "\0"))
        assert next(left, None) is None
        return torch.cat([input_ids, torch.tensor([[ord(c) for c in text] for text in said])], dim=1)


@pytest.fixture
def rows():
    return [
        question_row(
            id=str(i),
            ecgs=[f"p{i:02d}-0"] * (1 + i % 2),
            patient_ids=[f"p{i:02d}"],
            question_type="single-query",
            question="q" * (i * 7 % 11) + chr(97 + i),
            answer=["yes"],
        )
        for i in range(11)
    ]


@pytest.fixture
def expected(cohort, rows):
    def of(row, factor=1):
        number = sum(cohort.questions.source[record].signal[0, 0] for record in row["ecgs"])
        return f"{row['question'][-1]}{int(number * factor)}"

    return of


@pytest.fixture
def make(cohort, rows):
    def make(**settings):
        model = Model({row["question"]: len(row["ecgs"]) for row in rows})
        return model, ModelResponder(model, Processor(), cohort.questions.source, batch_size=4, **settings)

    return make


def test_answers_come_in_the_order_of_the_rows(rows, make, expected):
    model, responder = make()
    assert responder.ask(rows, "real") == [expected(row) for row in rows]
    assert [call.size for call in model.calls] == [4, 4, 3]
    assert model.training  # as it was
    assert all(call.ecg_values.dtype == torch.float32 for call in model.calls)


def test_zeros_reach_the_model_in_place_of_signals_only(rows, make):
    model, responder = make()
    assert responder.ask(rows, "zero") == [f"{row['question'][-1]}0" for row in rows]
    for call in model.calls:
        assert not call.ecg_values.any() and call.ecg_times.all() and call.token_mask.all()


def test_no_ecg_means_no_tensor_of_one(rows, make):
    model, responder = make()
    assert responder.ask(apply("none", rows), "none") == [f"{row['question'][-1]}?" for row in rows]
    assert not any(vars(call).keys() & set(Model.ecg_inputs) for call in model.calls)


def test_swapped_rows_are_answered_about_their_donors(rows, make, expected):
    donors = [["p59-1"] * len(row["ecgs"]) for row in rows]
    swapped = apply("swap", rows, donors)
    assert make()[1].ask(swapped, "swap") == [expected(row) for row in swapped]


class Store:
    def __init__(self, source, factor):
        self.source, self.factor = source, factor

    def get(self, record_ids):
        values = [[self.factor * float(self.source[record].signal[0, 0])] for record in record_ids]
        return {"ecg_features": torch.tensor(values), "ecg_mask": torch.ones(len(values), 1, dtype=torch.bool)}


def test_cached_features_take_the_place_of_signals_but_not_for_zeros(cohort, rows, make, expected):
    source = cohort.questions.source
    model, responder = make(features=Store(source, 2))
    assert responder.ask(rows, "real") == [expected(row, 2) for row in rows]
    assert all(call.ecg_mask.all() and not hasattr(call, "ecg_values") for call in model.calls)
    assert responder.ask(rows, "zero") == [f"{row['question'][-1]}0" for row in rows]
    assert hasattr(model.calls[-1], "ecg_values")
    model, responder = make(features=Store(source, 2), zeros=Store(source, 3))
    assert responder.ask(rows, "zero") == [expected(row, 3) for row in rows]


def test_there_is_room_for_the_longest_answer(rows, make):
    model, responder = make(max_new_tokens=5)
    responder.ask(rows, "real")
    assert model.calls[-1].max_new_tokens == 5
    responder.ask([{**rows[0], "answer": ["atrial fibrillation", "yes"]}], "real")
    assert model.calls[-1].max_new_tokens >= len("atrial fibrillation, yes") + 1


def test_the_answer_is_never_shown(rows):
    assert [m["role"] for m in question_messages(rows[0])] == ["user"]
    assert ScriptedResponder(lambda row, condition: row["id"] + condition).ask(rows[:2], "real") == ["0real", "1real"]
