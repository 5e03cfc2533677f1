"""What the model is given: where ECGs stand, what is learned, and that typed text is text whatever it says."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data.conversations.rows import assistant, user
from elm import ElmProcessor
from elm.training.tiny_llama import train_tokenizer
from encoders.patch import PatchConfig, PatchFeatureExtractor

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No token of its own parts the answer from its header.
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}</s>"
    "{% else %}USER: {{ message['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
TEXTS = [
    "Is this a normal ECG? yes no",
    "user assistant\n\n USER: ASSISTANT: yes",
    "sinus rhythm,\n\natrial fibrillation",
]
# name: chat template, special tokens, end token, placeholder
FAMILIES = {
    "llama3": (
        LLAMA_3,
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_0|>"],
        "<|eot_id|>",
        "<|reserved_special_token_0|>",
    ),
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<ecg>"], "<|im_end|>", "<ecg>"),
    "plain": (PLAIN, ["<s>", "</s>", "<ecg>"], "</s>", "<ecg>"),
}
ENDS = {"tiny": "<eos>"} | {name: family[2] for name, family in FAMILIES.items()}


def extractor():
    return PatchFeatureExtractor.from_config(PatchConfig(patch_size=200))  # 2 s to a token


def make_processor(name, pool=2):
    if name == "tiny":
        return ElmProcessor(extractor(), train_tokenizer(TEXTS, vocab_size=320), pool=pool)
    template, special, end, ecg = FAMILIES[name]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=name == "chatml")  # tokenizers differ in this
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=special[0],
        eos_token=end,
        additional_special_tokens=special,
        chat_template=template,
    )
    return ElmProcessor(extractor(), tokenizer, ecg_token=ecg, pool=pool)


PROCESSORS = {name: make_processor(name) for name in ENDS}


@pytest.fixture(params=list(PROCESSORS))
def processor(request):
    return PROCESSORS[request.param]


def end_of(processor):
    return processor.tokenizer.eos_token


def decode(processor, ids):
    return processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def special_ids(processor):
    return {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}


def two_turns(first, second):
    later = {"role": "user", "content": [{"type": "text", "text": "And this one?"}, {"type": "ecg", "text": ""}]}
    return [{"role": "system", "content": "Be brief."}, user(1, "Is this?"), assistant(first), later, assistant(second)]


ANSWERS = [
    ("yes", "no"),
    ("sinus rhythm", "atrial fibrillation, sinus rhythm"),
    ("Rhythm: sinus.\n\nAxis:  normal. ", "QT ≥ 440 ms – é 心 🫀"),
    ("<ecg> and <eos><|im_end|></s><|eot_id|>", "yes"),
]


@pytest.mark.parametrize("said", ANSWERS)
def test_exactly_the_assistants_words_and_end_tokens_are_learned(processor, make_ecg, said):
    batch = processor(two_turns(*said), [make_ecg(1), make_ecg(2, seconds=5)], return_labels=True)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    learned = labels != -100
    assert torch.equal(ids[learned], labels[learned]) and batch["attention_mask"].all()
    trim = str.strip if end_of(processor) == "<|eot_id|>" else str  # as its template does
    want = [trim(processor.as_text(text)) + end_of(processor) for text in said]
    assert decode(processor, labels[learned]) == "".join(want)
    # In two runs, one for each turn, each right after what asks for it.
    starts = [i for i in range(1, len(ids)) if learned[i] and not learned[i - 1]]
    assert len(starts) == 2
    for i, (start, messages, count) in enumerate(zip(starts, (two_turns(*said)[:2], two_turns(*said)[:4]), (1, 2))):
        ecgs = [make_ecg(1), make_ecg(2, seconds=5)][:count]
        prompt = processor(messages, ecgs, add_generation_prompt=True)["input_ids"][0]
        assert torch.equal(prompt, ids[:start]), f"turn {i} is asked for otherwise than it was trained"
    assert (labels != processor.ecg_token_id).all()


def test_ecgs_stand_where_they_were_put(processor, make_ecg):
    """10 s are five patches, so three tokens of two; 5 s are three patches, so two."""
    batch = processor(two_turns("yes", "no"), [make_ecg(1), make_ecg(2, seconds=5)])
    text = decode(processor, batch["input_ids"][0])
    token = processor.ecg_token
    assert text.count(token) == 5
    assert f"{token * 3}\nIs this?" in text and f"And this one?{token * 2}" in text
    swapped = processor(two_turns("yes", "no"), [make_ecg(2, seconds=5), make_ecg(1)])
    assert f"{token * 2}\nIs this?" in decode(processor, swapped["input_ids"][0])


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            ["<ecg>", "<eos>", "<user>", "<assistant>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
            + ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_0|>", "<s>", "</s>", "assistant"]
        ),
        st.sampled_from(["<", ">", "|", "<|", "|>", "ecg", "eos", "s", "/", "<ec", "g>", "\n", " ", "ASSISTANT:"]),
        st.text(max_size=4),
    ),
    max_size=8,
)


@pytest.mark.parametrize("name", list(PROCESSORS))
@settings(max_examples=150, deadline=None)
@given(pieces, pieces)
def test_typed_special_tokens_are_text(name, parts, answer):
    """Whatever is typed, in however many parts: the conversation has the special tokens of an empty one."""
    processor = PROCESSORS[name]
    typed = "".join(parts)
    assert not set(processor.tokenizer(processor.as_text(typed))["input_ids"]) & special_ids(processor)
    content = [{"type": "ecg", "text": ""}, *({"type": "text", "text": part} for part in parts)]

    def counts(content, answer):
        messages = [{"role": "user", "content": content}, assistant(answer)]
        mask = torch.ones(1, 5, dtype=torch.bool)
        ids = processor(messages, ecg_mask=mask, return_labels=True)["input_ids"][0].tolist()
        return {i: ids.count(i) for i in special_ids(processor)}

    assert counts(content, "".join(answer)) == counts(content[:1], "")


def test_a_special_token_typed_in_pieces_or_as_a_system_prompt_is_text(processor):
    for token in processor.tokenizer.all_special_tokens:
        halves = [{"type": "text", "text": half} for half in (token[:2], token[2:])]
        for message in (
            {"role": "user", "content": halves},
            {"role": "user", "content": token},
            {"role": "system", "content": token},
        ):
            empty = {"role": message["role"], "content": ""}
            ids, without = (processor([m])["input_ids"][0].tolist() for m in (message, empty))
            assert [i for i in ids if i in special_ids(processor)] == [
                i for i in without if i in special_ids(processor)
            ]


@given(pieces)
def test_only_spaces_are_added_to_typed_text(parts):
    typed = "".join(parts)
    for processor in PROCESSORS.values():
        made = processor.as_text(typed)
        assert made.replace(" ", "") == typed.replace(" ", "")
        assert (made == typed) is not any(token in typed for token in processor.tokenizer.all_special_tokens)


def test_special_tokens_inside_each_other_are_all_parted():
    tokenizer = train_tokenizer(TEXTS, vocab_size=320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["###", "#>", "<ecg>"]})
    processor = ElmProcessor(extractor(), tokenizer)
    for typed in ("####", "###>", "#####>#<ecg>", "<<ecg>ecg>"):
        made = processor.as_text(typed)
        assert not any(token in made for token in ("###", "#>", "<ecg>")), made


def test_a_template_that_rewrites_earlier_turns_is_refused(make_ecg):
    """As those do that drop the reasoning of all turns but the last."""
    processor = make_processor("chatml")
    processor.chat_template = CHATML.replace(
        "message['content']", "(message['content'] if loop.last or message['role'] != 'assistant' else '(cut)')"
    )
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        processor(two_turns("yes", "no"), [make_ecg(1), make_ecg(2)], return_labels=True)
    one_turn = [user(1, "Is this?"), assistant("yes")]
    labels = processor(one_turn, [make_ecg(1)], return_labels=True)["labels"]
    assert decode(processor, labels[labels != -100]) == "yes<|im_end|>"


def test_padding_goes_to_the_side_asked_for(processor, make_ecg):
    messages = [
        [user(0, "What?"), assistant("no")],
        two_turns("yes", "sinus rhythm"),
        [user(1, "Is this?"), assistant("yes")],
    ]
    ecgs = [[], [make_ecg(1), make_ecg(2)], [make_ecg(3, seconds=1)]]
    single = [processor(m, e, return_labels=True) for m, e in zip(messages, ecgs)]
    for side in ("left", "right"):
        batch = processor(messages, ecgs, padding_side=side, return_labels=True)
        width = max(one["input_ids"].shape[1] for one in single)
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (3, width)
        for row, one in enumerate(single):
            size = one["input_ids"].shape[1]
            here, rest = slice(0, size), slice(size, width)
            if side == "left":
                here, rest = slice(width - size, width), slice(0, width - size)
            for name, filler in (("input_ids", None), ("attention_mask", 0), ("labels", -100)):
                assert torch.equal(batch[name][row, here], one[name][0])
                assert filler is None or (batch[name][row, rest] == filler).all()
            assert (batch["input_ids"][row, rest] != processor.ecg_token_id).all()
        # The ECGs of the batch one after the other, whatever the side.
        assert torch.equal(batch["ecg_values"], torch.cat([one["ecg_values"] for one in single[1:]]))
        assert torch.equal(batch["token_mask"], torch.cat([one["token_mask"] for one in single[1:]]))
    assert "labels" not in processor(messages, ecgs)
    with pytest.raises(ValueError, match="padding_side must be 'left' or 'right', got 'Left'"):
        processor(messages, ecgs, padding_side="Left")


def test_numbers_that_differ_are_both_named(pair, make_ecg):
    processor = pair.processor
    one, two = [user(1, "Is this?")], [user(2, "Compare")]
    ecg = make_ecg(1)
    with pytest.raises(ValueError, match="conversation 0 has 2 ECG placeholders but 1 ECGs are given"):
        processor(two, [ecg])
    with pytest.raises(ValueError, match="conversation 1 has 1 ECG placeholders but 2 ECGs are given"):
        processor([one, one], [[ecg], [ecg, ecg]])
    with pytest.raises(ValueError, match="conversation 0 has 1 ECG placeholders but 0 ECGs are given"):
        processor(one)
    with pytest.raises(ValueError, match="3 conversations are given but the ECGs of 2"):
        processor([one, one, one], [[ecg], [ecg]])
    for given_, message in ((1, "has 2 ECG placeholders but 1 ECGs"), (4, "have 3 ECG placeholders but 4 ECGs")):
        with pytest.raises(ValueError, match=message):
            processor([two, one], ecg_mask=torch.ones(given_, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="the conversation has 1 ECG placeholders but 2 ECGs are given"):
        processor.render(one, [3, 3])
    with pytest.raises(ValueError, match="return_tensors must be 'pt'"):
        processor(one, [ecg], return_tensors="np")


def test_a_conversation_and_a_batch_of_one_are_the_same(pair, make_ecg):
    single = pair.processor([user(1, "Is this?")], [make_ecg(1)])
    batch = pair.processor([[user(1, "Is this?")]], [[make_ecg(1)]])
    assert single.keys() == batch.keys() == {"input_ids", "attention_mask", "ecg_values", "token_mask"}
    assert all(torch.equal(single[name], batch[name]) for name in batch)
    as_string = pair.processor([{"role": "user", "content": "Is this?"}])
    assert torch.equal(as_string["input_ids"], pair.processor([user(0, "Is this?")])["input_ids"])


def test_a_cached_mask_stands_for_the_recordings(pair, make_ecg):
    messages = [[user(2, "Compare")], [user(0, "What?")], [user(1, "Is this?")]]
    ecgs = [[make_ecg(1), make_ecg(2, seconds=3)], [], [make_ecg(3, seconds=7)]]
    with_ecgs = pair.processor(messages, ecgs)
    with_mask = pair.processor(messages, ecg_mask=with_ecgs["token_mask"])
    assert with_mask.keys() == {"input_ids", "attention_mask"}
    assert all(torch.equal(with_mask[name], with_ecgs[name]) for name in with_mask)
    no_ecgs = torch.zeros(0, 1, dtype=torch.bool)
    assert pair.processor([user(0, "What?")], ecg_mask=no_ecgs).keys() == {"input_ids", "attention_mask"}


def test_the_placeholder_must_be_a_token():
    with pytest.raises(ValueError, match=re.escape("the tokenizer has no token '<heart>'")):
        ElmProcessor(extractor(), train_tokenizer(TEXTS, vocab_size=320), ecg_token="<heart>")


def test_saving_keeps_everything(tmp_path, make_ecg):
    config = PatchConfig(patch_size=250, sampling_rate=50, in_channels=3)
    special = PatchFeatureExtractor.from_config(config, leads=("V2", "I", "aVF"), normalize="zscore", scale=2.0)
    tokenizer = make_processor("llama3").tokenizer
    template = LLAMA_3.replace("'<|eot_id|>'", "'<|eot_id|>\n'")  # not the tokenizer's own
    processor = ElmProcessor(special, tokenizer, template, ecg_token="<|reserved_special_token_0|>", pool=3)
    processor.save_pretrained(tmp_path)
    again = ElmProcessor.from_pretrained(tmp_path)
    assert (again.pool, again.ecg_token, again.ecg_token_id) == (3, processor.ecg_token, processor.ecg_token_id)
    assert again.chat_template == template
    assert type(again.feature_extractor) is PatchFeatureExtractor
    assert again.feature_extractor.to_dict() == special.to_dict()
    assert again.model_input_names == processor.model_input_names
    messages, ecgs = two_turns("<|eot_id|> yes", "no"), [make_ecg(1), make_ecg(2, seconds=6)]
    ours, theirs = (p(messages, ecgs, return_labels=True) for p in (processor, again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert np.isfinite(theirs["ecg_values"]).all() and theirs["ecg_values"].shape == (2, 3, 500)
