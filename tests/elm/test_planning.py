"""What `--plan` says: parameters as published, memory and FLOPs as they are measured on a small run."""

import contextlib
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from trl import ModelConfig, SFTConfig

import recipes
from data.conversations import load_questions
from data.conversations.rows import dialogues
from elm.model.modeling import ElmForConditionalGeneration
from elm.saved.arguments import ElmArguments
from elm.training import plan as planning
from elm.training.build import lora
from elm.training.dev import LANGUAGE_MODELS, language_config
from elm.training.plan import PlanArguments
from recipes import sft_llava

CONFIGS = Path(recipes.__file__).parent / "configs"
PUBLISHED = {"Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824, "Llama-3.1-8B": 8_030_261_248}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_parameters_are_those_published(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(language_config(name))
    wanted = PUBLISHED[name.removeprefix("meta-llama/").removesuffix("-Instruct")]
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.fixture
def small(text_config, encoder_config):
    """A model of two layers with storage, the arguments of a run of it, and what is counted on its shapes."""

    def make(dtype=torch.float32, layers=2, quantization=None, **changes):
        settings = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": layers, "num_attention_heads": 8}
        config = planning.ElmConfig(
            text_config=text_config(**settings), encoder_config=encoder_config("patch"), ecg_token_id=4
        )
        arguments = ElmArguments(quantization=quantization)
        model_args = ModelConfig(**{"lora_r": 4, "lora_dropout": 0.0} | changes)
        with torch.device("meta"):
            empty = ElmForConditionalGeneration(config).requires_grad_(False)
        counted = planning.count(empty, arguments, model_args, dtype)
        model = ElmForConditionalGeneration(config).requires_grad_(False)
        for part in (model.model.language_model, model.lm_head):
            part.to(dtype)
        return model, arguments, model_args, counted

    return make


def settings(tmp_path, **changes):
    return SFTConfig(str(tmp_path), use_cpu=True, **{"bf16": False, "gradient_checkpointing": False} | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_gradients_and_optimizer_are_those_of_a_step(small, dtype, tmp_path):
    model, _, model_args, counted = small(dtype)
    assert counted.total == sum(p.numel() for p in model.parameters())
    tuned = get_peft_model(model, lora(model_args, model, train_encoder=False))
    trained = [p for p in tuned.parameters() if p.requires_grad]
    assert counted.trained == sum(p.numel() for p in trained)
    assert counted.lora < counted.trained and counted.quantized == 0
    needs = planning.memory(counted, settings(tmp_path), model_args, length=10)
    assert needs.weights == sum(p.nbytes for p in tuned.parameters())
    optimizer = torch.optim.AdamW(trained)
    sum(p.float().square().sum() for p in trained).backward()
    optimizer.step()
    assert needs.gradients == sum(p.grad.nbytes for p in trained)
    moments = [v for state in optimizer.state.values() for name, v in state.items() if name != "step"]
    assert needs.optimizer == sum(v.nbytes for v in moments)


def test_4_bit_weights_take_what_is_planned(small):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    model, _, _, counted = small(torch.bfloat16, quantization="nf4")
    _, _, _, plain = small(torch.bfloat16)
    linear = sum(m.weight.numel() for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear))
    assert counted.quantized == linear and counted.trained == plain.trained
    weight = torch.randn(1024, 1024)
    layer = bitsandbytes.nn.Params4bit(weight, quant_type="nf4", compress_statistics=True).to("cpu")
    state = layer.quant_state
    held = layer.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert plain.weight_bytes - counted.weight_bytes == pytest.approx((2 - held / weight.numel()) * linear, rel=1e-3)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]], ids=["all", "q and v"])
def test_activations_are_what_autograd_keeps(small, bf16, targets, tmp_path):
    """Of one block: a model of three less a model of two. Casts of LoRA's own weights do not grow with the batch."""
    dtype, batch, length = torch.bfloat16 if bf16 else torch.float32, 8, 128
    kept = {}
    for layers in (2, 3):
        model, _, model_args, counted = small(dtype, layers=layers, lora_target_modules=targets)
        tuned = get_peft_model(model, lora(model_args, model, train_encoder=False)).train()
        own = {p.untyped_storage().data_ptr() for p in tuned.parameters()}
        seen = {}

        def pack(tensor, own=own, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: no other takes its place
            return tensor

        embeds = torch.randn(batch, length, 64, dtype=dtype, requires_grad=True)
        cast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
            model.model.language_model(inputs_embeds=embeds, use_cache=False)
        kept[layers] = sum(size for size, _ in seen.values())
    planned = planning.activations_per_token(counted, model_args.lora_r, bf16, dropout=False)
    assert planned * batch * length == pytest.approx(kept[3] - kept[2], rel=0.02)


def test_checkpointing_keeps_the_inputs_of_blocks(small, tmp_path):
    _, _, model_args, counted = small(torch.bfloat16)
    kept = {
        on: planning.memory(counted, settings(tmp_path, bf16=True, gradient_checkpointing=on), model_args, 100)
        for on in (False, True)
    }
    tokens, block = 8 * 100, planning.activations_per_token(counted, model_args.lora_r, bf16=True, dropout=False)
    assert kept[False].activations == 2 * block * tokens
    assert kept[True].activations == (block + 2 * 2 * 64) * tokens
    assert kept[True].total < kept[False].total


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_counted(small, checkpointing):
    model, _, model_args, counted = small()
    tuned = get_peft_model(model, lora(model_args, model, train_encoder=False)).train()
    model.model.language_model.set_attn_implementation("eager")  # the counter does not know the CPU's fused attention
    if checkpointing:
        model.model.language_model.gradient_checkpointing_enable()
    batch, length = 4, 96
    embeds = torch.randn(batch, length, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        tuned.base_model.model.model.language_model(inputs_embeds=embeds, use_cache=False)[0].sum().backward()
    planned = batch * length * planning.flops_per_token(counted, length, checkpointing)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_rows_and_recordings_are_those_of_the_questions(tmp_path):
    questions = load_questions("synthetic", patients=12, held_out_patients=6, questions=4, cache=tmp_path)
    data = planning.measured(ElmArguments(turns=2), questions, tokens_per_ecg=16, seed=0)
    assert data.questions == len(questions.train) > data.rows >= len(questions.train) / 2
    assert data.recordings == len({e for row in (*questions.train, *questions.test) for e in row["ecgs"]}
                                  | {e for row in questions.reports for e in row["ecgs"]})  # fmt: skip
    assert 16 < data.tokens <= data.longest
    without = planning.measured(ElmArguments(turns=2), questions, tokens_per_ecg=0, seed=0)
    rows = dialogues(questions.train, 2)
    assert data.tokens - without.tokens == pytest.approx(16 * sum(len(row["ecgs"]) for row in rows) / len(rows))


def planned(*words):
    *run, plan_args = sft_llava.parse([*words, "--plan"])
    return planning.plan(*run, plan_args)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "in_4_bits"),
    [("ecg_qa_llama_1b", 0), ("ecg_qa_llama_3b", 0), ("ecg_qa_llama_8b_qlora", 6_979_321_856)],
)
def test_a_published_config_is_planned_without_hub_or_corpus(config, in_4_bits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = CONFIGS / f"{config}.yaml"
    lines = planned("--config", str(path))
    (parameters,) = (line for line in lines if line.startswith("Parameters: "))
    assert f"{in_4_bits:,} held in 4 bits" in parameters
    assert any("there is no data-root, so ECG-QA on PTB-XL as published" in line for line in lines)
    (in_all,) = (line for line in lines if line.startswith("  in all "))
    memory = in_all.removeprefix("  in all ").partition(":")[0]
    assert f"# About {memory} of GPU memory" in path.read_text(), f"its head must say what --plan says: {memory}"


def test_time_follows_from_the_device(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / "ecg_qa_llama_1b.yaml")

    def hours(*words):
        (line,) = (line for line in planned("--config", config, *words) if line.startswith("Time: "))
        return float(line.split()[1])

    half = hours("--plan_tflops", "79", "--plan_utilization", "0.2")
    assert hours("--plan_tflops", "79", "--plan_utilization", "0.4") == pytest.approx(half / 2, rel=0.05)


def test_what_cannot_be_planned(tmp_path):
    with pytest.raises(ValueError, match="plan_utilization between 0 and 1, got 790.0 and 1.5"):
        PlanArguments(plan_utilization=1.5)
    arguments = ElmArguments(dataset="ecg_qa", dataset_args={"root": "nowhere", "source": "mimic-iv-ecg"})
    with pytest.raises(ValueError, match="there is no nowhere, and the size of ecg_qa is not known without it"):
        planning.as_published(arguments, 64)
    with pytest.raises(ValueError, match="the vocabulary of a tiny language model is made of the questions"):
        planning.skeleton(arguments, ModelConfig(model_name_or_path="tiny"))
