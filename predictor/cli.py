"""The `predictor` command: ``serve``, ``plan`` and ``import-torchserve``.

Every setting is a flag of its name, with underscores or dashes. The last value of a repeated flag
wins: KServe concatenates the arguments of a runtime and of an InferenceService. Only here do errors
become a sentence on stderr and in Kubernetes' termination log, and an exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import predictor
from predictor import logs
from predictor.errors import (
    ConfigurationError,
    PredictorError,
    restart_may_help,
    unexpected,
)
from predictor.private import versions
from predictor.settings import Settings, explicit_settings, names, read_settings
from predictor.settings_sources import ALIASES, check_known

logger = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes' default file for a container's termination message."""

_OUTPUTS = ("table", "json", "helm-values", "inferenceservice")
_TERMINATION_BYTES = 4096


def run() -> NoReturn:
    """Run the command as a process, and exit without unloading torch, which takes a second."""
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: The command line without the program's name; None for that of `sys.argv`.
    """
    logs.configure()
    command = ""
    try:
        command, flags = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        return _COMMANDS[command](flags)
    except PredictorError as error:
        _report_end(str(error))
        return error.exit_code
    except ImportError as error:
        _report_end(str(versions.lacking(error)))
        return ConfigurationError.exit_code
    except Exception as error:
        logger.exception("The predictor ends because of an error that nobody expected")
        _report_end(unexpected(error))
        # What has served for a while may do so again.
        may_help = command == "serve" or restart_may_help(error)
        return (PredictorError if may_help else ConfigurationError).exit_code


def parse_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the command's name and its flags; an absent flag has no entry.

    Args:
        arguments: The command line without the program's name.

    Raises:
        ConfigurationError: The command line is wrong.
    """
    parser = _parser()
    parsed, unknown = parser.parse_known_args([_underscored(word) for word in arguments])
    check_known(
        [word.partition("=")[0].removeprefix("--") for word in unknown if word.startswith("--")],
        "flag",
        Settings.model_fields,
        shown=lambda name: f"--{name}",
    )
    if unknown:
        parser.error(f"unexpected argument {unknown[0]!r}")
    flags = {name: value for name, value in vars(parsed).items() if value is not None}
    return flags.pop("command"), flags


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as the same error as any other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise ConfigurationError(f"{message[0].upper()}{message[1:]}.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="predictor", description=predictor.__doc__)
    parser.add_argument("--version", action="version", version=predictor.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", allow_abbrev=False, help="serve a model")
    plan = commands.add_parser(
        "plan", allow_abbrev=False, help="print where a model would go, without reading a weight"
    )
    plan.add_argument(
        "model_dir",
        nargs="?",
        default=argparse.SUPPRESS,  # a default would override the flag of the same name
        help="a model directory or a bare config.json",
    )
    plan.add_argument("--gpus", help="stated GPUs, such as 2x24GiB, instead of this pod's")
    plan.add_argument("--memory", help="stated memory limit of the container, such as 32GiB")
    plan.add_argument("--disk", help="stated space on the offload volume, such as 200GiB")
    plan.add_argument("--output", choices=_OUTPUTS, default="table")
    group = plan.add_argument_group(
        "resources that a deployment requests, in addition to the planned ones"
    )
    group.add_argument(
        "--cpus", dest="processors", type=_count, metavar="COUNT", help="processors to ask for"
    )
    group.add_argument(
        "--gpu_resource", default="nvidia.com/gpu", help="the cluster's resource name of a GPU"
    )
    for command in (serve, plan):
        _add_settings(command)
    _add_import(commands)
    return parser


def _add_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import-torchserve",
        allow_abbrev=False,
        help="make a model directory of an archive of TorchServe's",
    )
    parser.add_argument(
        "archive", metavar="ARCHIVE", type=Path, help="a .mar, a .tar.gz or a directory that is one"
    )
    parser.add_argument(
        "--into", required=True, metavar="DIR", type=Path, help="the model directory to make"
    )
    parser.add_argument(
        "--ts_config",
        metavar="FILE",
        type=Path,
        help="TorchServe's own config.properties, or a snapshot of it",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings", "also PREDICTOR_NAME in the environment")
    for name in names():
        field = Settings.model_fields[ALIASES.get(name, name)]
        switch = {"nargs": "?", "const": "true"} if _is_switch(field) else {}
        text = (field.description or "").replace("%", "%%")
        group.add_argument(
            f"--{name}",
            dest=ALIASES.get(name, name),
            default=None,
            metavar="VALUE",
            help=f"the same as --{ALIASES[name]}" if name in ALIASES else text,
            **switch,  # type: ignore[arg-type]
        )


def _is_switch(field: Any) -> bool:
    return field.annotation in (bool, bool | None)


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _serve(flags: dict[str, Any]) -> int:
    # Until the server handles signals: by default, PID 1 ignores them.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os._exit(128 + received))
    # oneDNN keeps 1,024 compiled kernels by default: too many MiB for the many shapes of batches.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    settings = read_settings(flags)
    from predictor.pod.memory import check_process_fits

    check_process_fits()
    from predictor.engine_process import EngineProcess

    engine = EngineProcess()  # first, since it imports torch meanwhile
    try:
        from predictor.protocol.http.codec import CodecProcess
        from predictor.server import Server

        codec = CodecProcess()  # a fork: before any thread, and after the imports that it shares
        codec.start()
        Server(settings, engine, codec).run()
    finally:
        engine.kill()
    return 0


def _plan(flags: dict[str, Any]) -> int:
    gc.disable()  # in this short process, collecting the objects of imports takes 1/4 of the time
    stated = {name: flags.pop(name, None) for name in ("gpus", "memory", "disk")}
    requests = {name: flags.pop(name, None) for name in ("processors", "gpu_resource")}
    output = flags.pop("output")
    settings = read_settings(flags)
    from predictor import pod, startup
    from predictor.deployment import render
    from predictor.deployment.sizing import size_deployment
    from predictor.placement import report
    from predictor.pod.stated import stated_resources
    from predictor.tasks.loading import open_checked_tokenizer

    if any(stated.values()):
        resources = stated_resources(**stated)
    else:
        resources = pod.read_resources(settings.offload_folder, gpu_fraction=settings.gpu_fraction)
    checkpoint = startup.open_checkpoint(settings, needs_weights=False)
    prepared = startup.prepare(settings, checkpoint, resources)
    if checkpoint.has_weights:
        open_checked_tokenizer(
            checkpoint.path,
            startup.encoder_facts_of(prepared),
            trust_remote_code=settings.trust_remote_code,
        )
    placement = prepared.placement
    if output == "table":
        text = report.table(placement)
    elif output == "json":
        text = json.dumps(report.as_json(placement), indent=2)
    else:
        explicit = explicit_settings(settings, flags, os.environ)
        requirements = size_deployment(
            placement, resources, settings, explicit, stored_dtype=checkpoint.dtype, **requests
        )
        text = render.to_yaml(render.summary(placement), render.RENDERERS[output](requirements))
    print(text)  # noqa: T201 - the command's output
    return 0


def _import(flags: dict[str, Any]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        # Exit through all cleanup, unlike the default action of SIGTERM.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    from predictor.migration.importing import import_torchserve

    report = import_torchserve(flags["archive"], flags["into"], ts_config=flags.get("ts_config"))
    print(report.table())  # noqa: T201 - the command's output
    return 0


_COMMANDS = {"serve": _serve, "plan": _plan, "import-torchserve": _import}


def _report_end(sentence: str) -> None:
    """Write why the process ends to stderr and to Kubernetes' termination log."""
    sys.stderr.write(f"predictor: {sentence}\n")
    if TERMINATION_LOG.exists():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_bytes(sentence.encode()[:_TERMINATION_BYTES])
