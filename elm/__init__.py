"""ECG-language models.

Names are imported when they are first used, so that `python -m elm.ask --help` need not wait for torch. They come from
`elm.auto`, which makes transformers' Auto classes know ours. Where transformers is imported already, it is at once.
"""

import importlib
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "transformers" in sys.modules:
    from elm.auto import EcgCollator, ElmConfig, ElmForConditionalGeneration, ElmModel, ElmProcessor, load

# It warns at its import of a 4-bit kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = ["EcgCollator", "ElmConfig", "ElmForConditionalGeneration", "ElmModel", "ElmProcessor", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("elm.auto"), name)
