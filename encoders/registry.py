"""Which types of encoder there are: ours, and those of other installed packages (docs/extending.md).

transformers' Auto classes hold the list, so that `from_pretrained`, the model, its processor and a server all find an
encoder by the `model_type` in its config.json. An installed package declares the module that registers its encoder:

    [project.entry-points."ecg_elm.encoders"]
    ecg_mine = "my_package.modeling"

The module calls `register` itself, rather than name its classes here: then the order of imports does not matter. A
module that subclasses `EcgEncoder` imports this package in its first lines, before any class of its own exists.
"""

import logging
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import EntryPoint

from transformers import CONFIG_MAPPING, AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name

from data.support import plugins
from encoders.base import EcgEncoder, EcgEncoderConfig, EcgFeatureExtractor

logger = logging.getLogger(__name__)

GROUP = "ecg_elm.encoders"
WHAT = "encoder type"


def register(model: type[EcgEncoder], extractor: type[EcgFeatureExtractor]) -> None:
    """Make the Auto classes know an encoder, its configuration (`model.config_class`) and its feature extractor.

    Raises:
        TypeError: A class does not derive from its base in `encoders.base`.
        ValueError: The `model_type`, or the name of the extractor's class, is taken: saved folders refer to both.
    """
    config = model.config_class
    for part, base in ((model, EcgEncoder), (config, EcgEncoderConfig), (extractor, EcgFeatureExtractor)):
        if not (isinstance(part, type) and issubclass(part, base)):
            raise TypeError(f"encoder {model.__name__}: {part!r} does not derive from encoders.base.{base.__name__}")
    if config.model_type in CONFIG_MAPPING:
        raise ValueError(f"encoder {model.__name__}: the model_type {config.model_type!r} is taken, choose another")
    if feature_extractor_class_from_name(extractor.__name__) not in (None, extractor):
        raise ValueError(
            f"encoder {model.__name__}: there is another feature extractor class named {extractor.__name__}; "
            "a saved folder knows it by that name, so choose another"
        )
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoFeatureExtractor.register(config, extractor)


def register_installed(ours: Collection[str]) -> None:
    """Import what installed packages declare beside our own types. One that fails is a warning, until it is needed.

    Raises:
        ValueError: Two packages provide one type; names both.
    """
    for name, entries in plugins.providers(GROUP).items():
        begun = entries[0].module.partition(".")[0] in sys.modules
        try:
            _import(name, entries, ours=name in ours)
        except ImportError as error:
            # A package whose import is under way may be the one that imports us: what it lacks now, it will register.
            if not begun:
                logger.warning("%s", error)


def find_config(model_type: str) -> type[EcgEncoderConfig] | None:
    """The configuration class of an encoder type, or `None` where there is no such type.

    Raises:
        ImportError: An installed package declares the type, but cannot be imported; names the package.
    """
    if model_type not in CONFIG_MAPPING and (entries := plugins.providers(GROUP).get(model_type)):
        _import(model_type, entries)
    if model_type not in CONFIG_MAPPING:
        return None
    config: type = CONFIG_MAPPING[model_type]  # one of transformers' own, it may be
    return config if issubclass(config, EcgEncoderConfig) else None


def config_class(model_type: str) -> type[EcgEncoderConfig]:
    """The configuration class of an encoder type; raises as `find_config`, and `ValueError` where there is none."""
    config = find_config(model_type)
    if config is None:
        raise ValueError(f"unknown encoder type {model_type!r}: is the package that provides it installed?")
    return config


def _import(name: str, entries: Sequence[EntryPoint], *, ours: bool = False) -> None:
    """Import the module that declares an encoder type, which then must be there."""
    plugins.refuse_several(WHAT, name, entries, ours=ours)
    plugins.load(WHAT, entries[0])
    if name not in CONFIG_MAPPING:
        raise ImportError(
            f"{WHAT} {name!r}: {entries[0].value} was imported and registered no encoder of that model_type; "
            "it must call encoders.registry.register"
        )
