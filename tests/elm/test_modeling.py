"""The forward pass: text alone is the language model's own, and every ECG lands where its placeholders stand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, LlamaForCausalLM

from data.conversations.rows import assistant, user
from elm import ElmConfig, ElmForConditionalGeneration, ElmModel, ElmProcessor
from elm.model.projectors import Projector
from encoders.melp import MelpModel


def llama_of(model):
    """The stock language model with the same weights."""
    llama = LlamaForCausalLM(model.config.text_config).eval()
    llama.model.load_state_dict(model.model.language_model.state_dict())
    llama.lm_head.load_state_dict(model.lm_head.state_dict())
    return llama


def three_conversations(make_ecg):
    """No ECG, one of 10 s, and two of unlike lengths in unlike places."""
    later = {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "ecg"}]}
    messages = [
        [user(0, "What is the rhythm?"), assistant("no")],
        [user(1, "Is this a normal ECG?"), assistant("yes")],
        [user(1, "Is this?"), assistant("no"), later, assistant("sinus rhythm")],
    ]
    return messages, [[], [make_ecg(1)], [make_ecg(2, seconds=3), make_ecg(3, seconds=7)]]


def by_hand(model, batch):
    """Logits of every row, its ECG tokens put in place one at a time."""
    llama = llama_of(model)
    encoded = model.model.encoder(batch["ecg_values"], token_mask=batch["token_mask"])
    projected, kept = model.model.projector(encoded.last_hidden_state, encoded.mask)
    queue = [token for ecg, keep in zip(projected, kept) for token, kept_ in zip(ecg, keep) if kept_]
    out = []
    for ids, attention in zip(batch["input_ids"], batch["attention_mask"]):
        ids = ids[attention.bool()]
        embeddings = torch.stack(
            [
                queue.pop(0) if token == model.config.ecg_token_id else llama.get_input_embeddings().weight[token]
                for token in ids.tolist()
            ]
        )
        out.append(llama(inputs_embeds=embeddings[None]).logits[0])
    assert not queue
    return out


@pytest.mark.parametrize("tied", [True, False])
def test_text_alone_is_the_language_models_own(make_pair, tied):
    model, processor = make_pair(tied=tied)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) is tied
    batch = processor([[user(0, "What is the rhythm?")], [user(0, "yes")]])
    with torch.no_grad():
        ours, theirs = model(**batch).logits, llama_of(model)(**batch).logits
    assert (ours - theirs).abs().max() == 0.0


@torch.no_grad()
@pytest.mark.parametrize("pool", [1, 2, 5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_ecgs_land_where_their_placeholders_stand(make_pair, make_ecg, pool, side):
    model, processor = make_pair(pool=pool)
    batch = processor(*three_conversations(make_ecg), padding_side=side)
    for row, (logits, want) in enumerate(zip(model(**batch).logits, by_hand(model, batch))):
        torch.testing.assert_close(logits[batch["attention_mask"][row].bool()], want, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_masks_with_holes_are_packed(make_pair):
    """An encoder may leave out tokens anywhere: what remains takes the places in order."""
    model, processor = make_pair(pool=2)
    torch.manual_seed(1)
    mask = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    counts = model.config.tokens_per_ecg(mask)
    assert counts == [2, 2, 0, 1]
    messages = [[user(2, "Compare")], [user(1, "Is this?")], [user(1, "And this?")]]
    batch = dict(processor(messages, ecg_mask=mask), ecg_values=torch.randn(4, 12, 1000), token_mask=mask)
    assert (batch["input_ids"] == model.config.ecg_token_id).sum(1).tolist() == [4, 0, 1]
    for row, (logits, want) in enumerate(zip(model(**batch).logits, by_hand(model, batch))):
        torch.testing.assert_close(logits[batch["attention_mask"][row].bool()], want, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder", "tokens"), [("features", 62), ("beats", 5), ("tokens", 7), ("rhythm", 1), ("patch", 5)]
)
@pytest.mark.parametrize("pool", [1, 4])
def test_every_output_of_every_encoder_feeds_the_model(make_pair, make_ecg, encoder, tokens, pool):
    model, processor = make_pair(encoder, pool=pool)
    batch = processor(
        [[user(1, "Is it?")], [user(2, "Which?")]], [[make_ecg(1)], [make_ecg(2), make_ecg(3, seconds=4)]]
    )
    short = {"features": 25, "patch": 2}.get(encoder, tokens)  # 4 s; queries look at whatever there is
    assert model.config.max_tokens_per_ecg == -(-tokens // pool)
    assert model.config.tokens_per_ecg(batch["token_mask"]) == [-(-n // pool) for n in (tokens, tokens, short)]
    placeholders = (batch["input_ids"] == model.config.ecg_token_id).sum(1).tolist()
    assert placeholders == [-(-tokens // pool), -(-tokens // pool) + -(-short // pool)]
    out = model(**batch)
    assert out.logits.shape == (*batch["input_ids"].shape, model.config.text_config.vocab_size)
    assert out.logits.isfinite().all()
    changed = model(**{**batch, "ecg_values": batch["ecg_values"].roll(1, 0)}).logits
    assert (changed - out.logits).abs().max() > 1e-2, "blind to its ECGs"


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["heart-words", "heart-beats", "heart-leads", "heart-compact", "codes"])
def test_sentences_of_heart_beats_feed_the_model(make_pair, make_ecg, encoder):
    """As many tokens as there are words, beats or leads in each recording."""
    model, processor = make_pair(encoder)
    ecgs = [make_ecg(1), make_ecg(2), make_ecg(3, seconds=4)]
    sentences = [processor.feature_extractor.sentence(ecg) for ecg in ecgs]
    words = [int((sentence.in_chan > 0).sum()) for sentence in sentences]
    beats = [len(sentence.beat_of_word) for sentence in sentences]
    counts = {
        "heart-words": [1 + n for n in words],
        "heart-beats": beats,
        "heart-leads": [12, 12, 12],
        "heart-compact": [13 + n for n in beats],
        "codes": words,
    }[encoder]
    assert words == [12 * n for n in beats] and len({*beats}) > 1
    batch = processor([[user(1, "Is it?")], [user(2, "Which?")]], [ecgs[:1], ecgs[1:]])
    assert model.config.tokens_per_ecg(batch["token_mask"]) == counts
    placeholders = (batch["input_ids"] == model.config.ecg_token_id).sum(1).tolist()
    assert placeholders == [counts[0], counts[1] + counts[2]]
    out = model(**batch)
    assert out.logits.isfinite().all()
    batch["words"][0] *= -1
    assert (model(**batch).logits - out.logits)[0].abs().max() > 1e-2, "blind to its ECGs"


def test_a_wrong_number_of_tokens_names_both(pair, make_ecg):
    model, processor = pair
    batch = processor([user(2, "Compare")], [make_ecg(1), make_ecg(2)])
    with pytest.raises(ValueError, match="the text has 6 <ecg> tokens but the ECGs give 3"):
        model(**{**batch, "ecg_values": batch["ecg_values"][:1], "token_mask": batch["token_mask"][:1]})


def test_ecg_and_text_must_come_together(pair, make_ecg):
    model, processor = pair
    batch = processor([user(1, "Is it?")], [make_ecg(1)])
    ids, attention = batch["input_ids"], batch["attention_mask"]
    with pytest.raises(ValueError, match="the text has 3 <ecg> tokens but no ECG"):
        model(input_ids=ids, attention_mask=attention)
    embeddings = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="ECGs need input_ids"):
        model(inputs_embeds=embeddings, ecg_values=batch["ecg_values"])
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


@torch.no_grad()
def test_encoder_output_may_be_given_in_place_of_signals(pair, make_ecg):
    model, processor = pair
    batch = processor(*three_conversations(make_ecg))
    want = model(**batch).logits
    encoded = model.model.encoder(batch.pop("ecg_values"), token_mask=batch.pop("token_mask"))
    batch["ecg_features"] = encoded.last_hidden_state
    assert torch.equal(model(**batch, ecg_mask=encoded.mask).logits, want)
    with pytest.raises(ValueError, match="has 6 <ecg> tokens but the ECGs give 9"):
        model(**batch)  # without a mask every token counts


@torch.no_grad()
def test_projected_tokens_may_be_given_in_place_of_signals(pair, make_ecg):
    model, processor = pair
    batch = processor(*three_conversations(make_ecg))
    want = model(**batch).logits
    encoded = model.model.encoder(batch.pop("ecg_values"), token_mask=batch.pop("token_mask"))
    embeds, kept = model.model.projector(encoded.last_hidden_state, encoded.mask)
    embeds[~kept] = torch.nan  # never looked at
    assert torch.equal(model(**batch, ecg_embeds=embeds, ecg_mask=encoded.mask).logits, want)
    whole = processor([user(1, "Is it?")], [make_ecg(1)])
    want = model(**whole).logits
    text = {name: whole[name] for name in ("input_ids", "attention_mask")}
    got = model(**text, ecg_embeds=embeds[:1]).logits  # without a mask every token counts
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"ecg_embeds has \(1, 3\) tokens, those of ecg_mask are \(1, 2\)"):
        model(**text, ecg_embeds=embeds[:1], ecg_mask=encoded.mask[:1, :4])


def test_an_ecg_is_given_in_one_form(pair, make_ecg):
    model, processor = pair
    batch = processor([user(1, "Is it?")], [make_ecg(1)])
    features, embeds = torch.zeros(1, 5, 12), torch.zeros(1, 3, 32)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for forms, named in (
        ({"ecg_features": features, "ecg_embeds": embeds}, "ecg_features and ecg_embeds"),
        ({"ecg_values": batch["ecg_values"], "ecg_embeds": embeds}, "ecg_values and ecg_embeds"),
        ({"ecg_values": batch["ecg_values"], "ecg_features": features}, "ecg_values and ecg_features"),
    ):
        with pytest.raises(ValueError, match=f"the ECGs are given in two forms, {named}"):
            model(**text, **forms)


@torch.no_grad()
def test_projected_tokens_survive_expansion(pair, make_ecg):
    model, processor = pair
    messages, ecgs = three_conversations(make_ecg)
    messages = [turns[:1] for turns in messages[1:]] + [[user(2, "yes?")]]
    ecgs = [ecgs[1], ecgs[2][:1], ecgs[2]]
    batch = processor(messages, ecgs, add_generation_prompt=True, padding_side="left")
    want = model.generate(**batch, num_beams=2, max_new_tokens=5)
    encoded = model.model.encoder(batch.pop("ecg_values"), token_mask=batch.pop("token_mask"))
    embeds, _ = model.model.projector(encoded.last_hidden_state, encoded.mask)
    got = model.generate(**batch, ecg_embeds=embeds, ecg_mask=encoded.mask, num_beams=2, max_new_tokens=5)
    assert torch.equal(got, want)


@torch.no_grad()
def test_loss_and_kept_logits(pair, make_ecg):
    model, processor = pair
    batch = processor(*three_conversations(make_ecg), return_labels=True)
    out = model(**batch)
    predicted, said = out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(predicted[said != -100], said[said != -100]))
    for keep, expected in (
        (1, out.logits[:, -1:]),
        (3, out.logits[:, -3:]),
        (torch.tensor([0, 2]), out.logits[:, [0, 2]]),
    ):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        torch.testing.assert_close(model(**inputs, logits_to_keep=keep).logits, expected)


def test_only_what_requires_grad_gets_one(make_pair, make_ecg):
    model, processor = make_pair(pool=2)
    batch = processor(*three_conversations(make_ecg), return_labels=True)
    model(**batch).loss.backward()
    # All but the embedding row that is never read, as ECGs take its place, learn from everything.
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
    assert model.get_input_embeddings().weight.grad[model.config.ecg_token_id].abs().max() == 0

    model.zero_grad()
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    model(**batch).loss.backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {f"model.projector.{name}" for name, _ in model.model.projector.named_parameters()}
    assert all(weight.grad.abs().sum() > 0 for weight in model.model.projector.parameters())


def test_lora_trains_its_own_weights_and_the_projector(make_pair, make_ecg):
    model, processor = make_pair("features")  # an encoder with layers of the same names
    batch = processor([user(1, "Is it?"), assistant("yes")], [make_ecg(1)], return_labels=True)
    wanted = LoraConfig(
        r=2, target_modules=r"model\.language_model\..*\.(q_proj|down_proj)", modules_to_save=["projector"]
    )
    tuned = get_peft_model(model, wanted)
    tuned(**batch).loss.backward()
    learned = {name for name, weight in tuned.named_parameters() if weight.grad is not None}
    assert learned == {name for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert all("lora" in name and "language_model" in name or "projector.modules_to_save" in name for name in learned)
    assert len([name for name in learned if "projector" in name]) == len(list(model.model.projector.parameters())) // 2


@torch.no_grad()
def test_from_parts_takes_the_parts_as_they_are(text_config, encoder_config, make_ecg, make_pair):
    """In their precision and without a copy; the new projector is float32."""
    torch.manual_seed(0)
    language = LlamaForCausalLM(text_config(tie_word_embeddings=True)).to(torch.bfloat16).eval()
    encoder = MelpModel(encoder_config("beats")).eval()
    config = ElmConfig(text_config=language.config, encoder_config=encoder.config, ecg_token_id=4)
    model = ElmForConditionalGeneration.from_parts(config, encoder, language).eval()
    assert model.model.encoder is encoder and model.model.language_model is language.model
    assert not any(weight.is_meta for weight in (*model.parameters(), *model.buffers()))
    assert {weight.dtype for weight in model.model.projector.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.model.language_model.parameters()} == {torch.bfloat16}
    processor = make_pair("beats").processor
    text = processor([user(0, "What is the rhythm?")])
    assert torch.equal(model(**text).logits, language(**text).logits)
    answered = model(**processor([user(1, "Is it?")], [make_ecg(1)]))
    assert answered.logits.isfinite().all() and answered.logits.dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_auto_classes_load_the_saved_model(make_pair, make_ecg, tmp_path, tied):
    model, processor = make_pair("tokens", pool=2, tied=tied)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config, loaded = AutoConfig.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(config, ElmConfig) and config.to_diff_dict() == model.config.to_diff_dict()
    assert isinstance(loaded, ElmForConditionalGeneration) and isinstance(again, ElmProcessor)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    args = [user(1, "Is it?")], [make_ecg(1)]
    assert torch.equal(loaded(**again(*args)).logits, model(**processor(*args)).logits)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, ElmModel) and isinstance(base.projector, Projector)
    hidden = base(**again(*args)).last_hidden_state
    assert torch.equal(loaded.lm_head(hidden), model(**processor(*args)).logits)
