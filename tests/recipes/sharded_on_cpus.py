"""Runs the recipe of its arguments with FSDP on CPUs: accelerate takes that for something only accelerators do.

accelerate launch --config_file recipes/accelerate/fsdp.yaml tests/recipes/sharded_on_cpus.py --use_cpu true ...
"""

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from elm.training import run
from recipes import sft_llava

begin = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = init
stage = run.train_stage


def train_stage(*args, **kwargs):
    trainer = stage(*args, **kwargs)
    assert trainer.is_fsdp_enabled and trainer.accelerator.num_processes == 2
    sharded = [m for m in trainer.model.modules() if isinstance(m, FSDPModule)]
    assert len(sharded) > 2 or kwargs.get("peft_config") is None, "the model was not taken apart"
    return trainer


run.train_stage = train_stage
sft_llava.main(*sft_llava.parse(sys.argv[1:]))
