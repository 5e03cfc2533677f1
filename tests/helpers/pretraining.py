"""The recipes that pretrain encoders, with settings by which each stage trains in seconds."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import yaml
from safetensors.torch import load_file

from recipes import pretrain_heartlang, pretrain_melp

CONFIGS = Path(pretrain_melp.__file__).parent / "configs"
COHORT = {"patients": 30, "records_per_patient": 1}
SETTINGS = {
    "corpus": "synthetic", "corpus_args": COHORT, "held_out_folds": [9, 10], "per_device_train_batch_size": 4,
    "max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True,
    "disable_tqdm": True, "threads": 1, "jobs": 1, "save_total_limit": 3, "dataloader_pin_memory": False,
}  # fmt: skip
WORDS = {"hidden_size": 16, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 32}
VQHBR_ARGS = WORDS | {
    "max_words": 96, "num_hidden_layers": 1, "decoder_layers": 1, "codebook_size": 32, "code_dim": 8,
}  # fmt: skip
SENTENCE_ARGS = WORDS | {"num_hidden_layers": 2, "hide_masked_words": True}
MELP_ARGS = {
    "sampling_rate": 100, "conv_dim": [8] * 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "conv_pos_kernel": 8, "conv_pos_groups": 4, "shared_dim": 16, "caption_dim": 16,
    "pooler_heads": 2, "n_queries_contrast": 4, "n_queries_caption": 5,
}  # fmt: skip
TEXT_ARGS = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 120,
}  # fmt: skip
SIDE_ARGS = {"text_hidden_dim": 16, "decoder_layers": 1, "decoder_heads": 2}


@dataclass(frozen=True)
class Stage:
    """One stage of one recipe.

    Attributes:
        settings: Those of its config, beside SETTINGS.
        flags: What the command line says besides.
        still: Settings without dropout, so that two processes can be compared with one.
    """

    name: str
    recipe: ModuleType
    settings: dict
    still: dict
    flags: tuple[str, ...] = ()

    @property
    def configs(self) -> list[Path]:
        """The config files of the recipe."""
        return sorted(CONFIGS.glob("melp_*.yaml" if self.name == "melp" else "heartlang_*.yaml"))


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "vqhbr", pretrain_heartlang, {"per_device_eval_batch_size": 8, "encoder_args": VQHBR_ARGS}, {},
            ("--stage", "vqhbr"),
        ),
        Stage(
            "sentence", pretrain_heartlang, {"per_device_eval_batch_size": 8, "encoder_args": SENTENCE_ARGS},
            {"encoder_args": SENTENCE_ARGS | {"dropout": 0.0, "embedding_dropout": 0.0}}, ("--stage", "sentence"),
        ),
        Stage(
            "melp", pretrain_melp,
            {"per_device_eval_batch_size": 4, "encoder_args": MELP_ARGS, "text_model": "tiny", "text_args": TEXT_ARGS,
             "pretraining_args": SIDE_ARGS, "lead_mask": 0.5, "reports": ["english"]},
            {"encoder_args": MELP_ARGS | {"dropout": 0.0, "dropout_input": 0.0, "attention_dropout": 0.0},
             "text_args": TEXT_ARGS | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}},
        ),
    )
}  # fmt: skip


class Pretrain:
    """`pretrain("melp", folder, learning_rate=0.0)` runs a stage in this process.

    `words` are the same on a command line, `trained` an uninterrupted run, for tests that only read one.
    """

    def __init__(self, built_once):
        self.built_once = built_once
        self.configs = built_once("pretraining", self.write_configs)

    def write_configs(self, folder):
        folder.mkdir()
        for name, stage in STAGES.items():
            settings = SETTINGS | stage.settings | {"cache_dir": str(folder / "cache")}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))

    def words(self, name, folder, **changes):
        words = ["--config", self.configs / f"{name}.yaml", *STAGES[name].flags, "--output_dir", folder]
        if name == "sentence":
            changes = {"vqhbr": self.trained("vqhbr"), **changes}
        for key, value in changes.items():
            value = json.dumps(value) if isinstance(value, dict) else value
            words += [f"--{key}", *(value if isinstance(value, list) else [value])]
        return [str(word) for word in words]

    def __call__(self, name, folder, **changes):
        recipe = STAGES[name].recipe
        recipe.main(*recipe.parse(self.words(name, folder, **changes)))

    def trained(self, name) -> Path:
        return self.built_once(f"pretrained-{name}", lambda folder: self(name, folder))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one, other):
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def moved(folder, early, late):
    """Names of all weights, and of those that are not the same in two checkpoints."""
    before, after = (load_file(folder / "checkpoints" / f"checkpoint-{s}" / "model.safetensors") for s in (early, late))
    return set(after), {name for name, value in after.items() if not torch.equal(value, before[name])}
