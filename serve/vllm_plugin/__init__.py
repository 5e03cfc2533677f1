"""A saved ECG-language model in vLLM 0.32: `vllm serve FOLDER`, or `vllm.LLM(FOLDER)`.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). From then on it knows the folders
that `elm.save` writes: their language model runs as vLLM's own, the encoder, projector and feature extractor are those
of the folder, and a chat request becomes the very token ids that `ElmProcessor` gives. An ECG is sent as it was
recorded, as `data.wire` has it (`messages`).

Nothing is imported here: vLLM logs an entry point that fails to import and goes on without it, but not one that fails
when called.
"""

ARCHITECTURE = "ElmForConditionalGeneration"
MODE = "elm"  # the name under which vLLM finds our renderer
WORDS = "elm-words"  # and that for ECG-Byte models, whose ECGs are words (`words`)
_HOUSE = ("data", "encoders", "elm")


def register() -> None:
    """Make vLLM know our models. May be called any number of times, in any process.

    Raises:
        ImportError: vLLM is another version than was tested, or `data`, `encoders` or `elm` are somebody else's.
    """
    _put_house_first()
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
        from vllm.renderers.registry import RENDERER_REGISTRY
        from vllm.tokenizers.registry import TokenizerRegistry

        import elm.auto  # noqa: F401  (registers the Auto classes)
        from serve.vllm_plugin.settings import ElmSettings
    except ImportError as error:
        raise ImportError(
            f"the ecg-elm plugin of vLLM cannot be loaded: {error}. It is written for vLLM 0.32: pip install "
            '"ecg-elm[serve]", or see requirements/vllm-cpu.txt'
        ) from error

    if MODE in RENDERER_REGISTRY.renderers:
        return
    ModelRegistry.register_model(ARCHITECTURE, f"serve.vllm_plugin.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = ElmSettings
    for mode, module, renderer in ((MODE, "renderer", "ElmRenderer"), (WORDS, "words", "WordsRenderer")):
        TokenizerRegistry.register(mode, "vllm.tokenizers.hf", "CachedHfTokenizer")
        RENDERER_REGISTRY.register(mode, f"serve.vllm_plugin.{module}", renderer)


def _put_house_first() -> None:
    """See to it that `data` is ours, also in a working folder that has a package of that name.

    `python -m` puts the working folder before everything that is installed. Processes that vLLM spawns get this path.

    Raises:
        ImportError: Another package of that name was imported already.
    """
    import sys
    from importlib.util import find_spec
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    foreign = {}
    for name in _HOUSE:
        spec = find_spec(name)
        if spec is not None and (spec.origin is None or Path(spec.origin).resolve().parents[1] != root):
            foreign[name] = spec.origin or next(iter(spec.submodule_search_locations or ()), "?")
    for name, place in foreign.items():
        if name in sys.modules:
            raise ImportError(
                f"the ecg-elm plugin of vLLM needs its own package {name!r} in {root}, but another one was imported "
                f"from {place}: start in another folder, or take that one off PYTHONPATH"
            )
    if foreign:
        sys.path.insert(0, str(root))
