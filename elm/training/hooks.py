"""Private parts of transformers, TRL and accelerate that a training relies on, all of them in one place.

None of these is documented: tests/elm/test_hooks.py fails when one of them moves. Read in transformers 5.19.0, TRL
1.16.0 and accelerate 1.15.0:

| private part | where | what for |
|---|---|---|
| `Trainer._get_train_sampler` | transformers, trainer.py | the order of rows |
| `Trainer._issue_warnings_after_load` | transformers, trainer.py | a checkpoint that lacks what is trained |
| `Trainer._load_from_checkpoint` | transformers, trainer.py | a finished stage is loaded, not trained again |
| `PreTrainedModel._keys_to_ignore_on_save` | transformers, modeling_utils.py | checkpoints without 4-bit weights |
| `forward` of an instance | TRL, `add_fused_lm_head` | taken off after a stage |
| `_original_forward`, `_is_accelerate_prepared` | accelerate, accelerator.py | taken off after a stage |
| `config._attn_implementation` | transformers, configuration_utils.py | the attention that a model runs with |
"""

from collections.abc import Collection

from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer
from trl import SFTTrainer

PATCHED = ("forward", "_original_forward", "_is_accelerate_prepared")


class HookedTrainer(SFTTrainer):
    """TRL's trainer with two of its private methods as public ones, which a subclass overrides."""

    def ordered(self, sampler: Sampler[int] | None) -> Sampler[int] | None:
        """The sampler of training rows in place of the stock one."""
        return sampler

    def check_loaded(self, missing: Collection[str]) -> None:
        """Called with the names of weights that a checkpoint does not hold."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        return self.ordered(super()._get_train_sampler(train_dataset))

    def _issue_warnings_after_load(self, load_result: nn.modules.module._IncompatibleKeys) -> None:
        self.check_loaded(load_result.missing_keys)


def load_checkpoint(trainer: Trainer, checkpoint: str) -> None:
    """Put the weights of a checkpoint into a trainer's model."""
    trainer._load_from_checkpoint(checkpoint)


def attention_of(model: PreTrainedModel) -> str:
    """Name of the attention that a model runs with."""
    return str(model.config._attn_implementation)


def save_without(model: PreTrainedModel, names: Collection[str]) -> None:
    """Leave weights out of the checkpoints of a model."""
    model._keys_to_ignore_on_save = set(names)


def restore(model: PreTrainedModel) -> None:
    """Undo what trainers did to a model object, so that it runs and is saved as its class says.

    TRL patched `forward` for its fused head, accelerate for autocast. With accelerate's mark left on, the model would
    be taken for prepared in the next stage: no autocast.
    """
    for name in PATCHED:
        model.__dict__.pop(name, None)
    model._keys_to_ignore_on_save = set()
