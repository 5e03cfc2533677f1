"""ECG-language models. Importing this package registers its classes with transformers' Auto classes."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# `python -m elm.ask --help` imports this package on its way to the command; while Python looks for a module, argv says
# "-m". The command then finds torch and transformers, which take seconds, by the names below when it needs them.
if TYPE_CHECKING or sys.argv[:1] != ["-m"]:
    from elm.auto import EcgCollator, ElmConfig, ElmForConditionalGeneration, ElmModel, ElmProcessor, load

__all__ = ["EcgCollator", "ElmConfig", "ElmForConditionalGeneration", "ElmModel", "ElmProcessor", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("elm.auto"), name)
