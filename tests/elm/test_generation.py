"""Generation: the cache, padding, beams and returned sequences change nothing about which ECG a row answers about."""

import pytest
import torch
from transformers import DynamicCache

from data.conversations.rows import user


@pytest.fixture(scope="module")
def asked(make_ecg):
    """Conversations of 2, 0, 1, 1 and 2 ECGs, of 1 to 3 tokens each, and their ECGs."""
    messages = [
        [user(2, "Compare the two ECGs.")],
        [user(0, "What is the rhythm?")],
        [user(1, "Is it?")],
        [user(1, "Is this a normal ECG, yes or no?")],
        [user(2, "yes?")],
    ]
    seconds = [[10, 3], [], [7], [2], [5, 10]]
    return messages, [[make_ecg(10 * i + j, seconds=s) for j, s in enumerate(row)] for i, row in enumerate(seconds)]


@torch.no_grad()
def answers(pair, messages, ecgs, **settings):
    """What is said in every returned row, up to its end."""
    model, processor = pair
    batch = processor(messages, ecgs, add_generation_prompt=True, padding_side="left")
    tokens = model.generate(**batch, max_new_tokens=8, **{"do_sample": False, **settings})
    end = processor.tokenizer.eos_token_id
    new = [row[batch["input_ids"].shape[1] :].tolist() for row in tokens]
    return [row[: row.index(end) + 1] if end in row else row for row in new]


def alone(pair, messages, ecgs, **settings):
    return [row for m, e in zip(messages, ecgs) for row in answers(pair, [m], [e], **settings)]


def test_the_ecgs_decide_what_is_said(pair, asked, make_ecg):
    """Or no other test here could tell one ECG from another."""
    messages, ecgs = asked
    others = [[make_ecg(100 + i, seconds=ecg.duration) for i, ecg in enumerate(row)] for row in ecgs]
    said, otherwise = answers(pair, messages, ecgs), answers(pair, messages, others)
    assert [a != b for a, b in zip(said, otherwise)] == [bool(row) for row in ecgs]
    swapped = answers(pair, [messages[0]], [ecgs[0][::-1]])
    assert swapped != said[:1], "which of two ECGs comes first does not matter"


def test_a_padded_batch_answers_like_its_rows_alone(pair, asked):
    assert answers(pair, *asked) == alone(pair, *asked)


def test_with_and_without_a_cache(pair, asked):
    cached = answers(pair, *asked)
    assert answers(pair, *asked, use_cache=False) == cached
    assert answers(pair, *asked, cache_implementation="static") == cached


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_keep_their_ecgs(pair, asked, settings):
    together = answers(pair, *asked, **settings)
    assert len(together) == 5 * settings.get("num_return_sequences", 1)
    assert together == alone(pair, *asked, **settings)
    assert together == answers(pair, *asked, **settings, use_cache=False)


def test_returned_sequences_keep_their_ecgs(pair, asked):
    """Samples from the likeliest token alone are the greedy answer, which tells the ECGs apart."""
    sampled = answers(pair, *asked, do_sample=True, top_k=1, num_return_sequences=3)
    assert sampled == [said for said in answers(pair, *asked) for _ in range(3)]


def test_samples_follow_the_distribution_of_their_own_ecgs(pair, asked):
    """Every sampled first token is likely given the row's own ECGs."""
    messages, ecgs = [asked[0][i] for i in (0, 4)], [asked[1][i] for i in (0, 4)]
    torch.manual_seed(0)
    sampled = answers(pair, messages, ecgs, do_sample=True, top_k=3, num_return_sequences=10)
    with torch.no_grad():
        likely = [
            pair.model(**pair.processor(m, e, add_generation_prompt=True)).logits[0, -1].topk(3).indices.tolist()
            for m, e in zip(messages, ecgs)
        ]
    assert set(likely[0]) != set(likely[1])
    for row, said in enumerate(sampled):
        assert said[0] in likely[row // 10]
    assert len({said[0] for said in sampled[:10]}) > 1


@torch.no_grad()
def test_cached_encoder_output_survives_expansion(pair, asked):
    model, processor = pair
    batch = processor(*asked, add_generation_prompt=True, padding_side="left")
    want = model.generate(**batch, num_beams=2, max_new_tokens=5)
    encoded = model.model.encoder(batch.pop("ecg_values"), token_mask=batch.pop("token_mask"))
    got = model.generate(
        **batch, ecg_features=encoded.last_hidden_state, ecg_mask=encoded.mask, num_beams=2, max_new_tokens=5
    )
    assert torch.equal(got, want)


def test_expansion_refuses_what_it_cannot_share_out(pair, asked):
    model, processor = pair
    batch = processor(*asked, padding_side="left")
    with pytest.raises(ValueError, match="need token_mask"):
        model.generate(**{name: value for name, value in batch.items() if name != "token_mask"}, num_beams=2)
    fewer, others = batch["token_mask"].clone(), batch["token_mask"].roll(1, 0)
    fewer[0] = False
    with pytest.raises(ValueError, match="the text has 12 <ecg> tokens but the ECGs give 9"):
        model.generate(**{**batch, "token_mask": fewer}, num_beams=2)
    with pytest.raises(ValueError, match="an ECG is split"):
        model.generate(**{**batch, "token_mask": others}, num_beams=2)


def test_a_prompt_with_placeholders_needs_its_ecg(pair, make_ecg):
    """`generate` brings a cache from the start, so the forward pass takes the prompt for a continuation."""
    model, processor = pair
    batch = processor([user(1, "Is it?")], [make_ecg(1)], add_generation_prompt=True)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for settings in ({}, {"num_beams": 2}, {"use_cache": False}):
        with pytest.raises(ValueError, match="the text has [36] <ecg> tokens but no ECG"):
            model.generate(**text, max_new_tokens=2, **settings)
    with pytest.raises(ValueError, match="the text has 3 <ecg> tokens but the ECGs give 6"):
        model.generate(**text, ecg_values=torch.zeros(2, 12, 1000), max_new_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_placeholder_is_never_said(make_pair, make_ecg, use_cache):
    """Said by the model itself it would be one more than its ECGs have tokens."""
    model, processor = make_pair(pool=2)
    batch = processor([user(1, "Is it?")], [make_ecg(1)], add_generation_prompt=True)
    hidden = model.model(**batch).last_hidden_state[0, -1]
    model.lm_head.weight[model.config.ecg_token_id] = 100 * hidden / hidden.norm()
    assert model(**batch).logits[0, -1].argmax() == model.config.ecg_token_id
    said = model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=use_cache)
    assert (said == model.config.ecg_token_id).sum() == 3


@torch.no_grad()
def test_a_dialogue_goes_on_from_its_cache(pair, make_ecg):
    """The second turn's prompt repeats the first one's placeholders; their ECG is in the cache already."""
    model, processor = pair
    first = processor([user(1, "Is it?")], [make_ecg(1)], add_generation_prompt=True)
    cache = DynamicCache()
    said = model.generate(**first, past_key_values=cache, max_new_tokens=4, do_sample=False)
    more = torch.cat([said, processor.tokenizer("<user>yes no?<assistant>", return_tensors="pt").input_ids], dim=1)
    went_on = model.generate(more, past_key_values=cache, max_new_tokens=4, do_sample=False)
    ecg = {name: first[name] for name in ("ecg_values", "token_mask")}
    assert torch.equal(went_on, model.generate(more, **ecg, max_new_tokens=4, do_sample=False))
