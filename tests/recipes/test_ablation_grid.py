"""The grid: what is the same and what differs between its trainings, resuming, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.conversations.rows import dialogues
from elm.inputs.collator import EcgCollator
from elm.saved.arguments import TRAIN_CONDITIONS, ElmArguments
from elm.saved.run import questions_for
from elm.training.build import build
from elm.training.stages import as_dataset, under_condition
from eval.grids import cells
from eval.grids.numbers import INFER_CONDITIONS
from eval.scoring.lines import read
from helpers.processes import killed_while_saving
from recipes import ablation_grid

CONFIGS = Path(ablation_grid.__file__).parent / "configs"
SMALL = {"align_steps": 0, "max_steps": 4, "train_conditions": ["real", "none"], "seeds": [0, 1], "limit": 30}


@pytest.fixture
def run(flags):
    """Run a grid of two conditions and two seeds in this process."""

    def run(output_dir, **changes):
        words = flags(output_dir)
        for name, value in {**SMALL, **changes}.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        ablation_grid.main(*ablation_grid.parse(words))

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of an uninterrupted grid, and the words of every batch it was trained on, in order."""
    return tmp_path_factory.mktemp("grid") / "whole", []


@pytest.fixture
def done(whole, run, monkeypatch):
    folder, batches = whole
    if not folder.exists():
        collate = EcgCollator.__call__

        def note(self, rows):
            batches.append([[part["text"] for m in row["messages"] for part in m["content"] if part["type"] == "text"]
                            for row in rows])  # fmt: skip
            return collate(self, rows)

        monkeypatch.setattr(EcgCollator, "__call__", note)
        run(folder)
        monkeypatch.undo()
    return folder


def written(folder):
    return [(folder / name).read_bytes() for name in ("grid.json", "grid.md")]


@pytest.mark.slow
def test_numbers_are_those_of_the_answers(done):
    numbers = json.loads((done / "grid.json").read_text())
    assert numbers["train_conditions"] == ["real", "none"] and numbers["seeds"] == [0, 1]
    for train in ("real", "none"):
        for seed in ("0", "1"):
            lines = read(done / "cells" / f"{train}-{seed}" / "ablation" / "predictions.jsonl")
            for infer in INFER_CONDITIONS:
                right = [line.correct for line in lines if line.condition == infer and not line.control]
                cell = numbers["accuracy"][train][infer]
                assert cell["by_seed"][seed] == pytest.approx(np.mean(right), abs=1e-6)
                assert cell["n"][seed] == len(right) <= 30
    assert numbers["settings"]["model_name_or_path"] and numbers["dev"] is False and numbers["published"] == ""
    assert (done / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_only_the_ecgs_differ_between_the_trainings_of_a_seed(whole, done):
    _, batches = whole
    each = len(batches) // 4  # two conditions for either seed; a data loader collates ahead
    real, none, other_seed = (batches[i * each : (i + 1) * each] for i in range(3))
    assert each >= 4 and real == none and real != other_seed and len({str(batch) for batch in real}) == each
    settings = {}
    for name in ("real-0", "none-0", "real-1"):
        told = json.loads((done / "cells" / name / "training.json").read_text())
        settings[name] = {**told["arguments"], **told["trainer"], **told["lora"]}
    different = {k for k in settings["real-0"] if settings["real-0"][k] != settings["none-0"][k]}
    assert different <= {"train_condition", "output_dir", "run_name"} and "train_condition" in different
    assert settings["real-0"]["seed"] == 0 and settings["real-1"]["seed"] == 1
    assert settings["real-0"]["tiny_seed"] == settings["real-1"]["tiny_seed"], "tiny models belong to all seeds"
    weights = [load_file(done / "cells" / name / "model.safetensors") for name in ("real-0", "none-0", "real-1")]
    adapted = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[0][adapted], weights[1][adapted])
    assert not torch.equal(weights[0][adapted], weights[2][adapted])
    projector = "model.projector.layers.0.weight"
    assert not torch.equal(weights[0][projector], weights[1][projector])


def test_the_order_of_rows_is_that_of_all_conditions(parts):
    """Also where rows of like length are put together, and questions about two ECGs are among them."""
    dataset = {"patients": 60, "held_out_patients": 6, "questions": 40}
    questions = questions_for(ElmArguments(dataset_args=dataset, cache_dir=parts["cache_dir"]))
    rows = dialogues(questions.train, 3, 0)
    assert {len(row["ecgs"]) for row in rows} == {1, 2}
    lengths = [as_dataset(under_condition(rows, questions, name, 0))["length"] for name in TRAIN_CONDITIONS]
    assert all(list(length) == list(lengths[0]) for length in lengths)


@pytest.mark.slow
def test_a_finished_grid_started_again_trains_and_asks_nothing(done, run, monkeypatch):
    before = written(done)
    for name in ("Run", "audit"):
        monkeypatch.setattr(cells, name, None)
    run(done)
    assert written(done) == before


@pytest.mark.slow
def test_resume_after_kill_gives_the_same_bytes(done, run, tmp_path):
    """The child dies by SIGKILL in the second training, while it writes its last checkpoint; two processes go on."""
    folder = tmp_path / "killed"

    killed_while_saving(lambda: run(folder), run="none-0")
    cells = folder / "cells"
    assert (cells / "real-0" / "ablation" / "report.json").exists() and not (cells / "none-0" / "config.json").exists()
    kept = (cells / "real-0" / "model.safetensors").stat().st_mtime_ns
    run(folder, jobs=2)
    assert written(folder) == written(done)
    assert (cells / "real-0" / "model.safetensors").stat().st_mtime_ns == kept
    assert "going on from" in (cells / "none-0.log").read_text()


@pytest.mark.slow
def test_another_grid_does_not_go_on_in_this_folder(done, run):
    with pytest.raises(ValueError, match="limit 30 but now 20.*another output_dir, or --resume false"):
        run(done, limit=20)
    with pytest.raises(ValueError, match="max_steps 4 but now 5"):
        run(done, max_steps=5)


def test_settings_a_grid_cannot_have(run, tmp_path):
    with pytest.raises(ValueError, match="a grid sets train_condition itself: give --train_conditions"):
        run(tmp_path, train_condition="zero")
    with pytest.raises(ValueError, match="train_condition must be one of real, zero, none, shuffled, got 'zeros'"):
        run(tmp_path, train_conditions=["real", "zeros"])
    with pytest.raises(ValueError, match="published must be one of ecg_bench, got 'gem'"):
        run(tmp_path, published="gem")
    with pytest.raises(ValueError, match="simulated cohort has no training questions of type 'single-guess'"):
        run(tmp_path / "other", question_types=["single-verify", "single-guess"])


def test_processes_train_one_model_together_or_one_each(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_grid.SFTConfig, "world_size", property(lambda self: 4))
    with pytest.raises(ValueError, match="4 processes train one model together: give --jobs 1"):
        run(tmp_path, jobs=2)


@pytest.mark.slow
def test_an_error_in_a_process_of_its_own_is_told(run, tmp_path):
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        run(tmp_path / "out", jobs=2, limit=0, max_steps=1, train_conditions=["none"], seeds=[0])


def test_questions_of_some_types_only(parts):
    arguments = ElmArguments(dataset_args={"patients": 12, "held_out_patients": 6, "questions": 4},
                             cache_dir=parts["cache_dir"], question_types=["single-verify"])  # fmt: skip
    questions = questions_for(arguments)
    assert {row["question_type"] for row in (*questions.train, *questions.test)} == {"single-verify"}


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("grid_*.yaml")), ids=lambda path: path.stem)
def test_every_grid_config_parses_and_dev_makes_it_small(config):
    told = yaml.safe_load(config.read_text())
    cpu = ["--use_cpu", "true", "--bf16", "false"]
    grid_args, arguments, training_args, model_args = ablation_grid.parse(["--config", str(config), *cpu])
    assert len(grid_args.seeds) >= 3
    assert grid_args.train_conditions == (["real"] if "inputs" in told else list(TRAIN_CONDITIONS))
    assert grid_args.inputs == told.get("inputs", {})
    assert model_args.model_name_or_path == told["model_name_or_path"]
    words = ["--config", str(config), "--dev", "--max_steps", "3", *cpu]
    grid_args, small, training_args, same = ablation_grid.parse(words)
    assert small.dev and len(grid_args.seeds) == 1 and training_args.save_steps == 1
    assert training_args.max_steps == 3, "flags win over --dev"
    assert same == model_args and small.encoder == arguments.encoder, "small parts are of the kind of the config's own"


def test_ecg_benchs_input_is_one_token_of_the_samples(parts, flags):
    """The config's encoder and projector: minimum and maximum of the whole recording, then one linear layer."""
    _, arguments, _, _ = ablation_grid.parse(
        ["--config", str(CONFIGS / "grid_ecgbench.yaml"), "--use_cpu", "true", "--bf16", "false"]
    )
    _, _, _, small = ablation_grid.parse(flags("unused"))
    arguments.cache_dir = parts["cache_dir"]
    data = ElmArguments(
        dataset_args={"patients": 12, "held_out_patients": 6, "questions": 4}, cache_dir=parts["cache_dir"]
    )
    questions = questions_for(data)
    model, processor = build(arguments, small, questions, seed=0)
    record = questions.source[questions.train[0]["ecgs"][0]]
    features = processor.feature_extractor(record)
    with torch.no_grad():
        token = model.model.ecg_embeddings(**features).numpy()
    signal = record.resample(250).signal[:, :1250]
    flat = ((signal - signal.min()) / (np.ptp(signal) + 1e-6)).reshape(-1)
    layer = model.model.projector.layers[0]
    assert layer.weight.shape == (model.config.text_config.hidden_size, 12 * 1250)
    np.testing.assert_allclose(token[0], layer.weight.detach().numpy() @ flat + layer.bias.detach().numpy(), atol=1e-4)
    assert len(token) == 1 and len(model.model.projector.layers) == 1
    zeros = torch.zeros(1, 12, 1250)
    assert torch.equal(model.model.ecg_embeddings(ecg_values=zeros)[0], layer.bias)


# --- a grid of inputs -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_inputs(run, parts):
    """A grid of two inputs, of which one is trained in full, and two seeds."""
    compared = {
        "tokens": {"encoder": parts["encoder"], "encoder_args": {"output": "tokens"}},
        "patches": {
            "encoder": "ecg_patch", "train_encoder": True, "encoder_args": {"patch_size": 100, "hidden_size": 8},
        },
    }  # fmt: skip

    def go(folder, **changes):
        run(folder, **{"inputs": json.dumps(compared), "train_conditions": ["real"], "questions_per_row": 2, **changes})

    return go


@pytest.fixture(scope="module")
def whole_inputs(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs") / "whole"


@pytest.fixture
def done_inputs(whole_inputs, run_inputs):
    if not whole_inputs.exists():
        run_inputs(whole_inputs)
    return whole_inputs


@pytest.mark.slow
def test_a_row_per_input_with_its_answers_and_its_costs(done_inputs):
    numbers = json.loads((done_inputs / "inputs.json").read_text())
    assert list(numbers["inputs"]) == ["tokens", "patches"] and numbers["seeds"] == [0, 1]
    for name, tokens in (("tokens", 16), ("patches", 10)):
        found = numbers["inputs"][name]
        assert (found["fewest"], found["tokens"], found["most"]) == (tokens,) * 3
        for seed in ("0", "1"):
            folder = done_inputs / "cells" / f"{name}-{seed}"
            lines = read(folder / "ablation" / "predictions.jsonl")
            for infer in INFER_CONDITIONS:
                right = [line.correct for line in lines if line.condition == infer and not line.control]
                assert found["accuracy"][infer]["by_seed"][seed] == pytest.approx(np.mean(right), abs=1e-6)
            adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
            assert found["trained"] == sum(value.numel() for value in adapter.values())
            assert any("encoder" in key for key in adapter) == (name == "patches")
            assert 0 < found["seconds"][seed] < 60
        assert len(found["measured_on"]) == 1 and found["measured_on"][0].endswith("CPU, 1 thread")
    told = {name: json.loads((done_inputs / "cells" / f"{name}-1" / "training.json").read_text())
            for name in numbers["inputs"]}  # fmt: skip
    different = {k for k, v in told["tokens"]["arguments"].items() if told["patches"]["arguments"][k] != v}
    assert different == {"encoder", "encoder_args", "train_encoder"}
    assert told["tokens"]["lora"] == told["patches"]["lora"]
    assert "patches" in (done_inputs / "inputs.md").read_text() and not (done_inputs / "grid.md").exists()
    assert (done_inputs / "inputs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_finished_grid_of_inputs_started_again_trains_nothing(done_inputs, run_inputs, monkeypatch):
    before = [(done_inputs / f"inputs.{kind}").read_bytes() for kind in ("json", "md", "png")]
    for name in ("Run", "audit"):
        monkeypatch.setattr(cells, name, None)
    run_inputs(done_inputs)
    assert [(done_inputs / f"inputs.{kind}").read_bytes() for kind in ("json", "md", "png")] == before


@pytest.mark.slow
def test_an_interrupted_grid_of_inputs_ends_in_the_same_numbers_and_remembers_its_times(
    done_inputs, run_inputs, tmp_path
):
    folder = shutil.copytree(done_inputs, tmp_path / "again")
    cell = folder / "cells" / "patches-1"
    shutil.rmtree(cell / "ablation")
    (cell / "config.json").unlink()
    stage = cell / "checkpoints" / "sft"
    shutil.rmtree(stage / "checkpoint-4")
    # As one that was trained elsewhere.
    state = json.loads((stage / "checkpoint-2" / "trainer_state.json").read_text())
    (timed,) = (entry for entry in state["log_history"] if "seconds_per_step" in entry)
    timed |= {"measured_on": "elsewhere", "seconds_per_step": 99.0}
    (stage / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    run_inputs(folder)
    numbers, whole = (json.loads((where / "inputs.json").read_text()) for where in (folder, done_inputs))
    assert numbers["inputs"]["patches"]["seconds"]["1"] != whole["inputs"]["patches"]["seconds"]["1"]
    assert "elsewhere" in numbers["inputs"]["patches"]["measured_on"]
    for found in (numbers, whole):
        del found["inputs"]["patches"]["seconds"]["1"], found["inputs"]["patches"]["measured_on"]
    assert numbers == whole


@pytest.mark.slow
def test_another_grid_of_inputs_does_not_go_on_in_this_folder(done_inputs, run_inputs):
    with pytest.raises(ValueError, match="inputs .*patches.* but now .*another output_dir, or --resume false"):
        run_inputs(done_inputs, inputs=json.dumps({"tokens": {"encoder": "tiny"}}))


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        (
            {"melp": {"encode": "tiny"}},
            {},
            "inputs: 'melp' sets 'encode', but inputs may differ in encoder, ",
        ),
        ({"melp": {"learning_rate": 1}}, {}, "inputs: 'melp' sets 'learning_rate', but inputs may differ in encoder"),
        ({"melp": "tiny"}, {}, "inputs: 'melp' must be a mapping of settings, got 'tiny'"),
        ({"a/b": {}}, {}, "inputs: 'a/b' is to be the name of a folder"),
        ({"melp": {}}, {"train_conditions": ["real", "none"]}, "give --train_conditions real, not real none"),
        ({"melp": {}}, {"published": "ecg_bench"}, "give inputs or published, not both"),
        (["melp"], {}, r"inputs must be a mapping, got \['melp'\]"),
    ],
)
def test_inputs_that_cannot_be_compared(inputs, changes, message, run_inputs, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_inputs(tmp_path, inputs=json.dumps(inputs), **changes)
