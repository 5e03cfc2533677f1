"""Tiny untrained models of every kind, saved and in vLLM's engine, in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from encoders.cnn import CnnConfig
from helpers import models, vllm_engine

tokenizer, make_ecg, make_pair = models.tokenizer, models.make_ecg, models.make_pair
config_of_others = models.encoder_config
vllm_here, engine = vllm_engine.vllm_here, vllm_engine.engine


@pytest.fixture(scope="session")
def encoder_config(config_of_others):
    """Those of helpers/models.py, and `"cnn"`."""

    def make(name: str = "patch", **settings):
        if name == "cnn":
            return CnnConfig(**{"conv_dim": [8, 8, 12], "conv_stride": [5, 5, 8]} | settings)
        return config_of_others(name, **settings)

    return make


@pytest.fixture(scope="session")
def text_config(tokenizer):
    """Sizes for which vLLM has attention on a CPU."""

    def make(**settings) -> LlamaConfig:
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return LlamaConfig(**sizes | settings)

    return make


SPLIT = """
import json, sys
from vllm import LLM, SamplingParams

folder, settings, chats, new = json.load(sys.stdin)
llm = LLM(folder, tensor_parallel_size=2, **settings)
assert llm.llm_engine.vllm_config.parallel_config.world_size == 2
params = SamplingParams(temperature=0, max_tokens=new, min_tokens=new)
print("SAID", json.dumps([list(reply.outputs[0].token_ids) for reply in llm.chat(chats, params, use_tqdm=False)]))
"""


@pytest.fixture
def split_in_two():
    """`split_in_two(folder, chats, new, **settings)`: greedy tokens of vLLM with a model over two processes."""

    def ask(folder: Path, chats: list, new: int, **settings) -> list[list[int]]:
        here = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
                "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
        sizes = {"max_model_len": 1024, "max_num_seqs": 8, "kv_cache_memory_bytes": 64 * 2**20}
        said = json.dumps([str(folder), {"dtype": "float32", "enforce_eager": True, **sizes, **settings}, chats, new])
        command = [sys.executable, "-c", SPLIT]
        run = subprocess.run(command, input=said, capture_output=True, text=True, env={**os.environ, **here})
        assert run.returncode == 0, run.stderr[-3000:]
        (line,) = (line for line in run.stdout.splitlines() if line.startswith("SAID "))
        return json.loads(line.removeprefix("SAID "))

    return ask
