"""Every family of language models: what is learned, where ECGs stand, positions, generation, and the saved folder.

Models of a few thousand random weights, built by the recipe's own `build` from a folder with the family's special
tokens. Chat templates of instruction-tuned models are the published ones, as TRL carries them.
"""

import logging
from functools import cache

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig

import elm
from data.conversations.rows import assistant, question_row, user
from elm import EcgCollator
from elm.inputs.features import weights_hash
from elm.model import families
from elm.saved.arguments import ElmArguments
from elm.saved.folder import save, save_adapter
from elm.training import dev
from elm.training import plan as planning
from elm.training.build import build as build_model
from elm.training.build import lora
from elm.training.stages import stage_args, train_stage
from eval.answerers.model import ModelResponder
from helpers.families import EACH, KINDS, SIZES, Built, Kind, build, make_language, make_tokenizer, saved


@pytest.fixture(scope="session")
def one_of(tmp_path_factory):
    """One of each kind, made when it is first asked for. Not to be changed by a test."""

    @cache
    def make(name) -> Built:
        folder = saved(name, tmp_path_factory.mktemp(name))
        model, processor = build(folder)
        with torch.no_grad():  # a new projector is timid: its tokens would hardly be noticed
            for weight in model.model.projector.parameters():
                weight += 0.3 * torch.randn_like(weight)
        return Built(
            KINDS[name],
            folder,
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(),
            model.eval(),
            processor,
        )

    return make


@pytest.fixture(scope="session", params=EACH)
def built(request, one_of) -> Built:
    return one_of(request.param)


@pytest.fixture
def with_attention(built):
    """Another attention for the time of a test."""
    language = built.model.model.language_model
    before = language.config._attn_implementation
    yield language.set_attn_implementation
    language.set_attn_implementation(before)


def decode(processor, ids):
    return processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# --- tokens and templates ---------------------------------------------------------------------------------------------


def dialogue(first="yes", second="sinus rhythm"):
    later = {"role": "user", "content": [{"type": "text", "text": "And this one?"}, {"type": "ecg", "text": ""}]}
    return [{"role": "system", "content": "Be brief."}, user(1, "Is this?"), assistant(first), later, assistant(second)]


@pytest.mark.parametrize("said", [("yes", "no"), ("Rhythm: sinus.\n\nAxis:  normal.", "QT ≥ 440 ms – é <unused0>")])
def test_exactly_the_answers_and_their_ends_are_learned(built, make_ecg, said):
    processor, messages = built.processor, dialogue(*said)
    ecgs = [make_ecg(1), make_ecg(2, seconds=5)]
    batch = processor(messages, ecgs, return_labels=True)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    learned = labels != -100
    assert torch.equal(ids[learned], labels[learned]) and processor.ecg_token == built.kind.ecg
    assert decode(processor, labels[learned]) == "".join(processor.as_text(text) + built.kind.end for text in said)
    ends = [i for i in range(len(ids)) if learned[i] and not (i + 1 < len(ids) and learned[i + 1])]
    end_id = processor.tokenizer.convert_tokens_to_ids(built.kind.end)
    assert [int(ids[i]) for i in ends] == [end_id, end_id]
    starts = [i for i in range(1, len(ids)) if learned[i] and not learned[i - 1]]
    for start, turns, count in zip(starts, (messages[:2], messages[:4]), (1, 2), strict=True):
        prompt = processor(turns, ecgs[:count], add_generation_prompt=True)["input_ids"][0]
        assert torch.equal(prompt, ids[:start]) and decode(processor, prompt).endswith(built.kind.header)
    # All that was said stands there, the system prompt too, and only what the ECGs need of placeholders.
    text = decode(processor, ids)
    assert text.count("Be brief.") == 1 and text.count(built.kind.ecg) == 5
    assert text.index("Be brief.") < text.index("Is this?") < text.index("And this one?")


def test_the_vocabulary_keeps_its_rows(built):
    """No row more than needed; those beyond the tokens stay; head and embeddings are tied as they were."""
    published = built.language.get_input_embeddings().weight
    embeddings = built.model.get_input_embeddings().weight
    more = {"gpt2": 1, "mistral": 2}  # one; of an even number of rows, two
    assert len(embeddings) == len(published) + more.get(built.model.config.text_config.model_type, 0)
    assert torch.equal(embeddings[: len(published)], published)
    assert built.model.config.text_config.vocab_size == len(embeddings) == built.model.lm_head.out_features
    assert built.model.config.ecg_token_id < len(embeddings)
    tied = built.language.get_output_embeddings().weight is published
    assert (built.model.lm_head.weight is embeddings) is tied is built.model.config.tie_word_embeddings


@pytest.mark.parametrize(("rows", "wanted"), [(50, 52), (64, 128), (384, 512), (51, 52)])
def test_added_rows_keep_what_the_rows_were_a_multiple_of(one_of, rows, wanted):
    language = make_language(KINDS["gpt2"], one_of("gpt2").processor.tokenizer)
    language.resize_token_embeddings(rows)
    families.fit_vocabulary(language, rows)
    assert language.get_input_embeddings().num_embeddings == rows
    families.fit_vocabulary(language, rows + 1)
    assert language.get_input_embeddings().num_embeddings == language.config.vocab_size == wanted


def own_template(built, messages, **settings):
    tokenizer = make_tokenizer(built.kind)
    return tokenizer.apply_chat_template(messages, tokenize=False, **settings)


def test_our_templates_say_what_the_published_ones_say(one_of):
    """Where ours stands in for the published one: the same text, wherever that one has a text for it."""
    turns = [{"role": "user", "content": " Is it? "}, {"role": "assistant", "content": "yes"}]
    for name in ("gemma2", "gemma3", "qwen2.5"):
        tokenizer = one_of(name).processor.tokenizer
        template = families.family_of(one_of(name).model.config.text_config).template
        system = [{"role": "system", "content": "Be brief."}] if name != "gemma2" else []
        for messages, prompt in ((system + turns, False), (system + turns + turns[:1], True)):
            ours = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
            assert ours == own_template(one_of(name), messages, add_generation_prompt=prompt)
    # Qwen 3: a single turn without thoughts, and how it is told not to think.
    qwen, ours = one_of("qwen3"), one_of("qwen3").processor
    assert ours.render([user(0, "Is it?"), assistant("yes")], [])[0] == own_template(
        qwen, [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}]
    )
    asked = own_template(
        qwen, [{"role": "user", "content": "Is it?"}], add_generation_prompt=True, enable_thinking=False
    )
    assert ours.render([user(0, "Is it?")], [], add_generation_prompt=True)[0] == asked
    # Gemma 2 as Gemma 3 takes a system prompt.
    system = [{"role": "system", "content": "Be brief."}, user(0, "Is it?")]
    assert one_of("gemma2").processor.render(system, [])[0] == one_of("gemma3").processor.render(system, [])[0]


def test_which_template_is_taken_is_logged(caplog):
    wanted = dict.fromkeys(("llama-3.2", "qwen2.5", "gemma3", "mistral")) | {
        "gemma2": "its own refuses system prompts", "qwen3": "rewrites earlier turns", "gpt2": "it has none",
        "llama-3-base": "it has none",
    }  # fmt: skip
    for name, why in wanted.items():
        caplog.clear()
        tokenizer = make_tokenizer(KINDS[name])
        with caplog.at_level(logging.WARNING):
            language = make_language(KINDS[name], tokenizer)
            found = families.chat_template(tokenizer, families.family_of(language.config))
        assert (why in caplog.text) if why else not caplog.text
        assert why or found.endswith(tokenizer.chat_template)


def test_a_prompt_is_the_same_tomorrow(one_of, monkeypatch):
    """Llama 3.2's published template says today's date."""
    built, messages = one_of("llama-3.2"), [{"role": "user", "content": "Is it?"}]
    said = own_template(built, messages)
    assert "Today Date: " in said and "Today Date: 26 Jul 2024" not in said
    assert "Today Date: 26 Jul 2024" in built.processor.render([user(0, "Is it?")], [])[0]
    again = families.chat_template(built.processor.tokenizer, families.FAMILIES["llama"])
    assert again == built.processor.tokenizer.chat_template, "put on twice"


def test_a_vocabulary_without_the_familys_tokens_goes_without(caplog):
    """Llama 2 and others have Llama's architecture alone."""
    tokenizer = make_tokenizer(KINDS["opt"])
    family = families.FAMILIES["llama"]
    assert families.chat_template(tokenizer, family) == families.PLAIN
    assert families.ecg_token_of(tokenizer, family) == "<ecg>"
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no chat template and no eos_token to end an answer with"):
        families.chat_template(tokenizer, family)


def test_turn_marks_that_are_not_called_special_are_text_when_typed(make_ecg, tmp_path):
    kind = KINDS["gemma3"]
    marks = ("<start_of_turn>", "<end_of_turn>")
    special = tuple(token for token in kind.special if token not in marks)
    tokenizer = make_tokenizer(Kind(kind.config, (*special, "<start_of_turn>x"), kind.named, "", "", "", set(),
                                    kind.template, (*marks, *kind.plain), first=True))  # fmt: skip
    extractor = build(saved("gemma3", tmp_path))[1].feature_extractor
    processor = elm.ElmProcessor(extractor, tokenizer, ecg_token="<unused0>")
    typed = "yes<end_of_turn>\n\n<start_of_turn>model\nno"
    ids = processor([user(0, typed)])["input_ids"][0].tolist()
    for mark in marks:
        assert ids.count(tokenizer.convert_tokens_to_ids(mark)) == 1
    assert "\n\n" in processor.as_text(typed), "blank lines are no marks"


def test_what_a_template_refuses_is_named(one_of):
    processor = one_of("gemma3").processor
    with pytest.raises(ValueError, match="the chat template refuses a conversation of user, user: .*must alternate"):
        processor([user(0, "Is it?"), user(0, "Is it?")])


def test_an_answer_that_ends_with_no_token_is_refused(one_of):
    built = one_of("gpt2")
    processor = elm.ElmProcessor(built.processor.feature_extractor, built.processor.tokenizer, families.PLAIN)
    processor.chat_template = families.PLAIN.replace("eos_token", "' END'")
    with pytest.raises(ValueError, match="which is no special token: generation would not stop"):
        families.end_answers(built.model, processor.tokenizer, processor.answer_ids("yes")[-1])


# --- the forward pass -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_alone_is_the_language_models_own(built, side):
    batch = built.processor([[user(0, "What is the rhythm?")], [user(0, "yes")]], padding_side=side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    vocabulary = built.language.config.get_text_config().vocab_size
    theirs = built.language(**batch, position_ids=positions).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(built.model(**batch).logits[real][:, :vocabulary], theirs[real], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_projected_ecgs_reach_the_first_layer_as_they_are(built, make_ecg):
    """No embedding's scale is put on them (Gemma); what the architecture adds to every embedding is (GPT-2, OPT)."""
    model, language = built.model, built.model.model.language_model
    batch = built.processor([user(1, "Is it?")], [make_ecg(1)])
    blocks = next(m for m in language.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    seen = []
    hook = blocks[0].register_forward_pre_hook(lambda _, args, kwargs: seen.append([*args, *kwargs.values()][0]),
                                               with_kwargs=True)  # fmt: skip
    model(**batch)
    hook.remove()
    encoded = model.model.encoder(batch["ecg_values"], token_mask=batch["token_mask"])
    projected, kept = model.model.projector(encoded.last_hidden_state, encoded.mask)
    wanted = projected[kept]
    here = (batch["input_ids"][0] == model.config.ecg_token_id).nonzero()[:, 0]
    match model.config.text_config.model_type:
        case "gpt2":
            wanted = wanted + language.wpe.weight[here]
        case "opt":  # the table of positions begins with two rows that are no positions
            wanted = language.decoder.project_in(wanted) + language.decoder.embed_positions.weight[here + 2]
    torch.testing.assert_close(seen[0][0, here], wanted, atol=1e-6, rtol=1e-6)
    if model.config.text_config.model_type.startswith("gemma"):  # but on words
        words = batch["input_ids"][0] != model.config.ecg_token_id
        unscaled = built.language.get_input_embeddings().weight[batch["input_ids"][0]]
        torch.testing.assert_close(seen[0][0, words], unscaled[words] * 32**0.5)


def test_training_goes_on_from_a_saved_one(built, make_ecg, tmp_path):
    """With its attention, its token for an ECG and its template, whatever the family's are; 4 bits where it has any."""
    record = {"language_model": "x", "dataset_name": "x", "notes": [], "train_condition": "real", "arguments": {}}
    save(built.model, built.processor, tmp_path, training=record)
    again, processor = build_model(ElmArguments(), ModelConfig(model_name_or_path=str(tmp_path)), None, 0)
    attention, before = (one.model.language_model.config._attn_implementation for one in (again, built.model))
    assert attention == before and processor.chat_template == built.processor.chat_template
    batch = processor([user(1, "Is it?")], [make_ecg(1)])
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, built.model(**batch).logits, atol=0, rtol=0)
    if families.family_of(built.language.config).transposed:
        with pytest.raises(ValueError, match="nf4 does not know the layers of gpt2"):
            build_model(ElmArguments(quantization="nf4"), ModelConfig(model_name_or_path=str(tmp_path)), None, 0)


def three(make_ecg):
    messages = [
        [user(0, "What is the rhythm?"), assistant("no")],
        [user(1, "Is this a normal ECG?"), assistant("yes")],
        [user(2, "Compare the two ECGs."), assistant("sinus rhythm")],
    ]
    return messages, [[], [make_ecg(1)], [make_ecg(2, seconds=3), make_ecg(3, seconds=7)]]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_logits_of_its_rows(built, make_ecg, side, attention, with_attention):
    messages, ecgs = three(make_ecg)
    with_attention(attention)
    batch = built.processor(messages, ecgs, padding_side=side, return_labels=True)
    together = built.model(**batch).logits
    for row, (message, ecg) in enumerate(zip(messages, ecgs)):
        alone = built.model(**built.processor([message], [ecg])).logits[0]
        torch.testing.assert_close(together[row][batch["attention_mask"][row].bool()], alone, atol=2e-4, rtol=1e-4)


def test_more_tokens_than_positions_are_refused(built, make_ecg):
    model, processor = built.model, built.processor
    ecgs = [make_ecg(1)] * 60
    batch = processor([user(60, "Is it?")], ecgs)
    needed = batch["input_ids"].shape[1]
    assert needed > 160
    for ask in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
        with pytest.raises(ValueError, match=f"a conversation of {needed} tokens is longer than the 160 positions"):
            ask(**batch)
    # A batch or a row is not too long for what each conversation needs.
    short, padded = processor([user(1, "Is it?")], ecgs[:1]), 150
    inputs = {name: torch.nn.functional.pad(short[name], (padded, 0)) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        alone, there = model(**short).logits[0, -1], model(**{**short, **inputs}).logits[0, -1]
    torch.testing.assert_close(there, alone, atol=2e-4, rtol=1e-4)
    nearly = processor([user(10, "Is it?")], ecgs[:10])
    length = nearly["input_ids"].shape[1]
    with pytest.raises(ValueError, match="of 161 tokens is longer than the 160 positions"):
        model.generate(**nearly, max_new_tokens=170 - length, min_new_tokens=170 - length)


# --- generation and scores --------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(built, messages, ecgs, **settings):
    batch = built.processor(messages, ecgs, add_generation_prompt=True, padding_side="left")
    tokens = built.model.generate(**batch, max_new_tokens=6, do_sample=False, **settings)
    end = built.processor.tokenizer.convert_tokens_to_ids(built.kind.end)
    new = [row[batch["input_ids"].shape[1] :].tolist() for row in tokens]
    return [row[: row.index(end) + 1] if end in row else row for row in new]


def test_generation_in_batches_by_beams_and_without_a_cache(built, make_ecg):
    messages, ecgs = three(make_ecg)
    messages = [turns[:1] for turns in messages]
    greedy = answers(built, messages, ecgs)
    assert greedy == [row for m, e in zip(messages, ecgs) for row in answers(built, [m], [e])]
    assert greedy == answers(built, messages, ecgs, use_cache=False)
    beams = answers(built, messages, ecgs, num_beams=2)
    assert beams == [row for m, e in zip(messages, ecgs) for row in answers(built, [m], [e], num_beams=2)]
    others = [[make_ecg(50 + i, seconds=ecg.duration) for i, ecg in enumerate(row)] for row in ecgs]
    otherwise = answers(built, messages, others)
    assert otherwise[0] == greedy[0] and otherwise[1:] != greedy[1:], "or nothing here could tell one ECG from another"


@torch.no_grad()
def test_generation_stops_at_the_end_of_an_answer(built, make_ecg):
    model = built.model
    end = built.processor.tokenizer.convert_tokens_to_ids(built.kind.end)
    eos = model.generation_config.eos_token_id
    assert end in (eos if isinstance(eos, list) else [eos]) and model.generation_config.pad_token_id is not None
    bias = {"sequence_bias": [[[end], 1000.0]]}
    batch = built.processor([user(1, "Is it?")], [make_ecg(1)], add_generation_prompt=True)
    said = model.generate(**batch, max_new_tokens=5, do_sample=False, **bias)
    assert said.shape[1] == batch["input_ids"].shape[1] + 1


@torch.no_grad()
def test_scores_are_the_log_probabilities_of_whole_answers(built, make_ecg):
    """Read on from a cached prompt longer than Gemma's and Mistral's windows, and bounded where logits are."""
    source = {f"r{i}": make_ecg(i, seconds=10 - i) for i in range(4)}
    rows = [
        question_row(id=str(i), ecgs=ecgs, patient_ids=["p"] * len(ecgs), question_type="t", question=question,
                     answer=["yes"])
        for i, (ecgs, question) in enumerate(
            [(["r0"], "Is this a normal ECG? What is the rhythm?"), (["r1", "r2"], "Is it?"), ([], "What?")]
        )
    ]  # fmt: skip
    options = [["yes", "atrial fibrillation"], ["no"], ["sinus rhythm", "yes", "no"]]
    scores = ModelResponder(built.model, built.processor, source).score(rows, "real", options)
    for row, texts, found in zip(rows, options, scores):
        for text, score in zip(texts, found):
            messages = [*row["messages"][:1], assistant(text)]
            batch = built.processor(messages, [source[e] for e in row["ecgs"]], return_labels=True)
            logp = built.model(**batch).logits[0, :-1].log_softmax(-1)
            said = batch["labels"][0, 1:]
            wanted = sum(float(logp[i, t]) for i, t in enumerate(said) if t != -100)
            assert score == pytest.approx(wanted, abs=2e-3)
    assert scores[0][0] != pytest.approx(scores[1][0], abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_questions_that_share_a_prefix(built, make_ecg, attention, with_attention):
    model, processor = built.model, built.processor
    with_attention(attention)
    first = [user(1, "Is this a normal ECG? Compare."), assistant("yes")]
    others = [
        [user(1, "What is the rhythm?"), assistant("atrial fibrillation, sinus rhythm")],
        [user(1, "Is it?"), assistant("no")],
    ]
    batch = processor([first, others[1]], [[make_ecg(1)], [make_ecg(2)]], others=[others, []], return_labels=True)
    together = model(**batch).logits
    for number, messages in enumerate([first, *others], 1):
        questions = batch["question_ids"][0]
        here = batch["attention_mask"][0].bool() & ((questions == 0) | (questions == number))
        alone = processor(messages, [make_ecg(1)])
        assert torch.equal(batch["input_ids"][0][here], alone["input_ids"][0])
        torch.testing.assert_close(together[0][here], model(**alone).logits[0], atol=2e-4, rtol=1e-4)


# --- training and the folder ------------------------------------------------------------------------------------------


def tuned(built, **settings):
    """LoRA on a new copy, its weights moved as training would."""
    model, processor = build(built.folder)
    base = weights_hash(model)
    changed = get_peft_model(model, lora(ModelConfig(lora_r=4, **settings), model, train_encoder=False))
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in changed.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    return changed.eval(), processor, base


def test_lora_learns_on_the_familys_layers_and_is_saved_merged_and_alone(built, make_ecg, tmp_path):
    training_ = {"language_model": "x", "dataset_name": "x", "notes": [], "train_condition": "real"}
    plain, processor = build(built.folder)
    save(plain, processor, tmp_path / "base", training=training_)
    model, processor, base = tuned(built)
    adapted = {name.split(".")[-4] for name, weight in model.named_parameters() if "lora_A" in name}
    assert adapted == built.kind.targets
    assert all("language_model" in name for name, _ in model.named_parameters() if "lora_" in name)
    batch = EcgCollator(processor, {"r1": make_ecg(1)})(
        [question_row(id="q", ecgs=["r1"], patient_ids=["p"], question_type="t", question="Is it?", answer=["yes"])]
    )
    model(**batch).loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() and weight.grad.abs().sum() > 0
               for weight in model.parameters() if weight.requires_grad)  # fmt: skip
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        wanted = model(**inputs).logits
        assert (wanted - plain.eval()(**inputs).logits).abs().max() > 1e-2
        save_adapter(model, tmp_path / "model" / "adapter", base)
        save(model.merge_and_unload(), processor, tmp_path / "model", training=training_)
        for where, adapter in (("model", None), ("base", tmp_path / "model" / "adapter")):
            loaded, again = elm.load(tmp_path / where, adapter=adapter)
            torch.testing.assert_close(loaded(**inputs).logits, wanted, atol=2e-4, rtol=1e-3)
            assert again.ecg_token == built.kind.ecg and again.chat_template == processor.chat_template
    loaded, again = elm.load(tmp_path / "model")
    config = loaded.config.text_config
    attention = [one.model.language_model.config._attn_implementation for one in (loaded, built.model)]
    assert attention == ["eager" if config.model_type == "gemma2" else "sdpa"] * 2, "sdpa does not bound attention"
    assert config.vocab_size == built.model.config.text_config.vocab_size
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is built.model.config.tie_word_embeddings
    assert loaded.generation_config.eos_token_id == built.model.generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == processor.chat_template
    assert type(loaded.model.language_model) is type(built.model.model.language_model)
    assert torch.equal(again(**{"messages": [user(1, "Is it?")], "ecgs": [make_ecg(1)]})["input_ids"],
                       processor([user(1, "Is it?")], [make_ecg(1)])["input_ids"])  # fmt: skip


def test_the_loss_in_training_is_the_models_own(built, make_ecg, tmp_path):
    """TRL computes it from hidden states and head by itself: bounded logits and narrow heads must count there, too."""
    model, processor = build(built.folder)
    source = {f"r{i}": make_ecg(i) for i in range(2)}
    rows = [
        question_row(id=f"q{i}", ecgs=ecgs, patient_ids=["p"], question_type="t", question="Is it?", answer=[answer])
        for i, (ecgs, answer) in enumerate([(["r0"], "yes"), (["r1"], "atrial fibrillation, sinus rhythm")])
    ]
    collator = EcgCollator(processor, source)
    with torch.no_grad():
        wanted = float(model.eval()(**collator(rows)).loss)
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, learning_rate=1e-3, bf16=False,
        use_cpu=True, logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    config = lora(ModelConfig(lora_r=2, lora_dropout=0.0), model, train_encoder=False)
    trainer = train_stage(model, processor, rows, collator, stage_args(args, "sft"), resume=False, peft_config=config)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(wanted, abs=1e-4)


def test_lora_layers_can_be_chosen(one_of, caplog):
    language = one_of("gpt2").model.model.language_model
    others = {name: one_of(name).model.model.language_model for name in ("opt", "gpt-neox")}
    caplog.clear()
    assert families.lora_targets(language, "c_attn") == ["c_attn"]
    assert families.lora_targets(language, ["c_attn", "c_fc"]) == ["c_attn", "c_fc"]
    assert families.lora_targets(others["opt"], "all-linear") == [
        "fc1", "fc2", "k_proj", "out_proj", "project_in", "project_out", "q_proj", "v_proj",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="gpt2 has no linear layer 'q_proj', it has c_attn, c_fc, c_proj"):
        families.lora_targets(language, ["q_proj", "v_proj"])
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        families.lora_targets(others["gpt-neox"])
    assert "LoRA adapts all linear layers of gpt_neox: dense, dense_4h_to_h" in caplog.text


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("GraniteConfig", {"logits_scaling": 8.0}, "type 'granite' do something between their last hidden states"),
        ("PhiConfig", {}, "type 'phi' do not fit: lm_head.bias is one too many"),
    ],
)
def test_a_language_model_that_does_more_is_refused(tmp_path, config, settings, message):
    kind = KINDS["gpt-neox"]
    kind = Kind((config, SIZES | {"initializer_range": 0.3} | settings), *list(vars(kind).values())[1:])
    tokenizer = make_tokenizer(kind)
    make_language(kind, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


def test_4_bits_are_refused_where_they_could_not_be_merged(one_of):
    with pytest.raises(ValueError, match="quantization nf4 does not know the layers of gpt2"):
        build(one_of("gpt2").folder, quantization="nf4")


# --- small models and plans -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if name != "gemma3-multimodal"])
def test_a_small_model_of_the_same_kind(name):
    """What --dev trains: two layers, the same options."""
    config = make_language(KINDS[name], make_tokenizer(KINDS[name])).config
    small = dev.shrunk_language(config, vocab_size=300, pad_token_id=0)
    told = AutoModelForCausalLM.from_config(small)
    assert small.num_hidden_layers == 2 and small.hidden_size == 16 * small.num_attention_heads
    assert told.get_input_embeddings().weight.shape[0] == 300
    assert told(input_ids=torch.arange(5)[None]).logits.shape == (1, 5, 300)


def test_a_plan_says_which_blocks_it_knows(one_of):
    arguments = ElmArguments(encoder="ecg_patch")
    for name in ("qwen2.5", "qwen3", "gemma2", "gemma3-multimodal"):
        model_args = ModelConfig(model_name_or_path=str(one_of(name).folder), lora_r=4)
        empty = planning.skeleton(arguments, model_args)
        counted = planning.count(empty, arguments, model_args, torch.float32)
        published = one_of(name).model.model.language_model
        language = sum(p.numel() for p in published.parameters())
        assert sum(p.numel() for p in empty.model.language_model.parameters()) == language + counted.lora
        assert planning.activations_per_token(counted, 4, bf16=True, dropout=False) > 0
        assert planning.flops_per_token(counted, 10, checkpointing=False) > 0
    model_args = ModelConfig(model_name_or_path=str(one_of("opt").folder))
    with pytest.raises(ValueError, match="blocks like those of Llama, Qwen and Gemma, not of opt's"):
        planning.count(planning.skeleton(arguments, model_args), arguments, model_args, torch.float32)
