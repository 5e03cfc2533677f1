"""A saved ECG-Byte model is a plain language model: vLLM without any plugin says what transformers says."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from data.conversations.rows import assistant, user
from data.synthetic import SyntheticCohort
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.model import vocabulary
from elm.saved.folder import save
from encoders.ecg_byte import EcgByteEncoder, EcgByteSettings, EcgByteTokenizer

pytestmark = pytest.mark.serve
TRAINING = {"language_model": "tiny", "dataset_name": "synthetic", "notes": [], "train_condition": "real"}
NEW = 12
# Nothing of ours is on its path: it is given a folder and ids.
ENGINE = """
import json, sys
from vllm import LLM, SamplingParams

folder, new, words = json.loads(sys.argv[1])
sizes = {"max_model_len": 1024, "max_num_seqs": 8, "kv_cache_memory_bytes": 64 * 2**20}
llm = LLM(folder, dtype="float32", enforce_eager=True, **sizes)
prompts = [{"prompt_token_ids": ids} for ids in json.load(sys.stdin)]
found = []
for allowed in (None, words):
    settings = SamplingParams(temperature=0, max_tokens=new, allowed_token_ids=allowed)
    found.append([list(out.outputs[0].token_ids) for out in llm.generate(prompts, settings, use_tqdm=False)])
assert not {"elm", "encoders", "serve"} & sys.modules.keys(), "a plugin was loaded"
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def saved(request, tokenizer, text_config, tmp_path_factory):
    cohort = SyntheticCohort(8, records_per_patient=1, fs=100)
    settings = EcgByteSettings(sampling_rate=50, seconds=4, leads=("I", "II", "V2"), max_tokens=400)
    byte = EcgByteTokenizer.train([cohort[r] for r in cohort.records], 300, settings, progress=False)
    torch.manual_seed(0)
    language = LlamaForCausalLM(text_config(tie_word_embeddings=request.param)).eval()
    tokenizer = copy.deepcopy(tokenizer)
    encoder, extractor = EcgByteEncoder.for_tokenizer(byte, lead_tokens=True)
    start = vocabulary.extend(language, tokenizer, extractor)
    config = ElmConfig(text_config=language.config, encoder_config=encoder.config, projector_type="vocabulary",
                       ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>"), vocabulary_start=start)  # fmt: skip
    model = ElmForConditionalGeneration.from_parts(config, encoder, language)
    processor = ElmProcessor(extractor, tokenizer)
    return save(model, processor, tmp_path_factory.mktemp("model"), training=TRAINING), processor, cohort, start


def test_its_greedy_tokens_are_those_of_transformers(saved, tmp_path):
    folder, processor, cohort, start = saved
    pytest.importorskip("vllm", reason="vLLM is not installed")
    ecgs = [cohort[record] for record in cohort.records]
    second = {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "ecg"}]}
    prompts = [
        processor.token_ids([user(1, "Is this a normal ECG?")], ecgs[:1]),
        processor.token_ids([user(1, "Is this a normal ECG?")], ecgs[1:2]),
        processor.token_ids([user(2, "Compare the two ECGs.")], ecgs[2:4]),
        processor.token_ids([user(1, "What is it?"), assistant("yes"), second], ecgs[4:6]),
        processor.token_ids([user(0, "What is the rhythm?")]),
    ]
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    placeholder = processor.ecg_token_id
    words = [token for token in range(start) if token != placeholder]
    wanted = []
    for settings in ({"suppress_tokens": None}, {}):
        answers = []
        for ids in prompts:
            said = plain.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, **settings)
            answers.append(said[0, len(ids) :].tolist())
        wanted.append(answers)
    environment = os.environ | {
        "VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    told = json.dumps([str(folder), NEW, words])
    done = subprocess.run([sys.executable, "-c", ENGINE, told], input=json.dumps(prompts), cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    free, of_words = json.loads(line.removeprefix("FOUND "))
    assert free == wanted[0] and of_words == wanted[1]
    assert len({tuple(answer) for answer in of_words}) > 3, "or nothing here could tell one ECG from another"
    assert all(token < start for answer in of_words for token in answer)
