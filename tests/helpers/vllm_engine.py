"""vLLM in this process, with saved models."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def vllm_here():
    """vLLM in this process, and our plugin in it."""
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    os.environ.update(settings)  # until the end: vLLM reads some of them late
    module = pytest.importorskip("vllm", reason="vLLM is not installed")
    from serve.vllm_plugin import register

    register()
    return module


@pytest.fixture
def engine(vllm_here):
    """`engine(folder, **settings)`: vLLM with a saved model, float32. One at a time; gone after the test."""
    running = []

    def start(folder: Path, **settings):
        assert not running, "one engine at a time"
        defaults = {
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "kv_cache_memory_bytes": 64 * 2**20,
            "enforce_eager": True,
            "block_size": 32,
            "limit_mm_per_prompt": {"ecg": 2},
            "disable_log_stats": True,
        }
        running.append(vllm_here.LLM(str(folder), **defaults | settings))
        return running[0]

    yield start
    from vllm.distributed import cleanup_dist_env_and_memory

    for llm in running:
        llm.llm_engine.engine_core.shutdown()
    running.clear()
    gc.collect()
    cleanup_dist_env_and_memory()
    torch.set_num_threads(1)
