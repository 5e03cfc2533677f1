"""Models that a run begins with, on disk or on the hub: whether they are there is found before anything is trained."""

from pathlib import Path

from transformers import PreTrainedConfig
from trl import ModelConfig

from elm.saved.arguments import ElmArguments, as_mapping
from elm.training import tiny_encoder
from elm.training.dev import ENCODERS, LANGUAGE_MODELS
from encoders import load_encoder
from encoders.hub import check_overrides
from encoders.registry import find_config

TINY = "tiny"


def check_sources(arguments: ElmArguments, model_args: ModelConfig) -> None:
    """Refuse a run whose language model or encoder is not there, or whose encoder has no such setting.

    Else it would be found once the other part, a tiny one, has been trained.

    Raises:
        FileNotFoundError: There is no such model; names the setting, and says why.
        ValueError: The encoder has no setting of a name in `encoder_args`.
    """
    name, encoder = str(model_args.model_name_or_path), arguments.encoder
    settings = as_mapping("encoder_args", arguments.encoder_args)
    is_made_small = arguments.dev and name in LANGUAGE_MODELS  # `--dev` needs nothing of it
    if name != TINY and not is_made_small:
        check_model("model_name_or_path", name, model_args.model_revision)
    kind = tiny_encoder.ENCODERS.get(encoder)
    model_type = kind.config().model_type if kind is not None else encoder
    if find_config(model_type) is not None:
        if model_type != "ecg_byte":  # its settings are those of its tokenizer, too
            check_overrides(model_type, settings)
    elif name == TINY and not (arguments.dev and encoder in ENCODERS):
        load_encoder(encoder, **settings)


def check_model(setting: str, name: str, revision: str | None = None) -> None:
    """Refuse a model whose configuration is neither in a folder nor on the hub.

    Raises:
        FileNotFoundError: Names the setting, the model, and why it is not there.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise FileNotFoundError(f"{setting}: no model {name}{_at(revision)} is there: {why}") from error
    if not config:
        where = "the folder has no config.json" if Path(name).is_dir() else "it has no config.json"
        raise FileNotFoundError(f"{setting}: no model {name}{_at(revision)} is there: {where}")


def _at(revision: str | None) -> str:
    return "" if revision in (None, "main") else f" at revision {revision}"
