"""The command line: the commands and their flags.

Every setting is a flag of its name, with underscores or dashes, and so are the flags of KServe's
Hugging Face server and of vLLM (`predictor.compatibility`). Flags without a command are those of
``serve``. The last value of a repeated flag wins: KServe concatenates the arguments of a runtime
and of an InferenceService.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import predictor
from predictor.compatibility.apply import (
    FLAGS,
    OBJECTS,
    SERVERS,
    SWITCHES,
    add_flags,
    add_negation,
    without_others,
)
from predictor.compatibility.command_words import normalize
from predictor.compatibility.shared_flags import with_keys, without_absent
from predictor.errors import ConfigurationError
from predictor.placement.estimate import GB, Bandwidths, Resource
from predictor.settings import Settings, names
from predictor.settings_sources import ALIASES, check_known

_WITHOUT_COMMAND = ("-h", "--help", "--version")
_OUTPUTS = ("table", "json", "svg", "html", "helm-values", "inferenceservice")
_BANDWIDTHS = {
    "disk": "the offload volume, such as 2GB, or 'measured' to read 64 MiB of the model's files",
    "link": "copies from main memory to a GPU",
    "memory": "main memory",
    "gpu": "a GPU's memory",
}


def parse_arguments(
    arguments: Sequence[str], *, environ: Mapping[str, str] = os.environ
) -> tuple[str, dict[str, Any]]:
    """Return the command's name and its flags; an absent flag has no entry.

    Args:
        arguments: The command line without the program's name.
        environ: The environment, which may name the model.

    Raises:
        ConfigurationError: The command line is wrong.
    """
    words = _with_command(arguments)
    command_line = parser(words)
    parsed, unknown = command_line.parse_known_args(words)
    is_import = parsed.command.startswith("import")
    check_known(
        [word.partition("=")[0].removeprefix("--") for word in unknown if word.startswith("--")],
        "flag",
        Settings.model_fields,
        shown=lambda name: f"--{name}",
        others=() if is_import else FLAGS,
        advice="" if is_import else f" {SERVERS}",
    )
    if unknown:
        command_line.error(f"unexpected argument {unknown[0]!r}")
    flags = without_absent(vars(parsed))
    return flags.pop("command"), with_keys(without_others(flags), environ)


def _with_command(arguments: Sequence[str]) -> list[str]:
    """Return a command line whose flags have underscores, and that names a command."""
    words = normalize(arguments, _SWITCHES, _OBJECTS)
    is_flag = bool(words) and words[0].startswith("-")
    return ["serve", *words] if is_flag and words[0] not in _WITHOUT_COMMAND else words


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as the same error as any other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise ConfigurationError(f"{message[0].upper()}{message[1:]}.")


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of a command line.

    Args:
        words: The command line, which has the flags of other servers that the parser takes.
    """
    whole = _Parser(prog="predictor", description=predictor.__doc__)
    whole.add_argument("--version", action="version", version=predictor.__version__)
    commands = whole.add_subparsers(dest="command", required=True)
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
    _add_comparison(plan)
    plan.add_argument(
        "--replicas",
        type=_count,
        metavar="COUNT",
        help="show what so many replicas read from one claim, which --disk_bandwidth is of; 1 GB/s "
        "is assumed",
    )
    group = plan.add_argument_group(
        "resources that a deployment requests, in addition to the planned ones"
    )
    group.add_argument(
        "--cpus", dest="processors", type=_count, metavar="COUNT", help="processors to ask for"
    )
    group.add_argument(
        "--gpu_resource", default="nvidia.com/gpu", help="the cluster's resource name of a GPU"
    )
    _add_model(serve)
    for command in (serve, plan, _add_batch(commands), _add_doctor(commands)):
        _add_settings(command)
        add_flags(command, words)
    _add_import(commands)
    _add_import_tgi(commands)
    return whole


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        nargs="?",
        default=argparse.SUPPRESS,
        help="the same as --model_dir or, if there is no such directory, as --model_id",
    )


def _add_doctor(commands: Any) -> argparse.ArgumentParser:
    doctor: argparse.ArgumentParser = commands.add_parser(
        "doctor", allow_abbrev=False, help="check what usually goes wrong in a pod or on a node"
    )
    doctor.add_argument("--output", choices=("text", "json"), default="text")
    return doctor


def _add_comparison(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--compare",
        action="append",
        metavar="RESOURCES",
        help="stated resources to compare with those of other --compare, such as "
        "gpus=2x24GiB,memory=64GiB; --gpus, --memory and --disk state what all have in common",
    )
    group = plan.add_argument_group("bandwidths, in bytes/s, that tokens/s are estimated from")
    for resource, meaning in _BANDWIDTHS.items():
        speed = Bandwidths().of(cast("Resource", resource)) // GB
        group.add_argument(
            f"--{resource}_bandwidth", metavar="SPEED", help=f"of {meaning} (default: {speed}GB)"
        )


def _add_batch(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "batch",
        allow_abbrev=False,
        help="answer a file of requests in OpenAI's batch format, without a server",
    )
    _add_model(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        type=Path,
        help="requests, one in each line: custom_id, method, url and body",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        type=Path,
        help="results, one in each line; what it has already is not computed again",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="take line I + 1 and each N-th one after it, such as 0/4; each shard needs its own "
        "output",
    )
    return parser


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    is_whole = slash and index.isdecimal() and count.isdecimal()
    if not is_whole or int(index) >= int(count):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shard such as 0/4: a number from 0, and how many shards there are"
        )
    return int(index), int(count)


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


def _add_import_tgi(commands: Any) -> None:
    parser = commands.add_parser(
        "import-tgi",
        allow_abbrev=False,
        help="make a deployment of the flags of Text Generation Inference's launcher",
    )
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="the launcher's arguments, after --"
    )
    parser.add_argument(
        "--into", required=True, metavar="DIR", type=Path, help="the directory to make"
    )
    parser.add_argument(
        "--env_file", metavar="FILE", type=Path, help="the launcher's variables, a line each"
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        type=Path,
        help="Kubernetes objects, one of which has the launcher's container",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings", "also PREDICTOR_NAME in the environment")
    for name in names():
        field = Settings.model_fields[ALIASES.get(name, name)]
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if _is_switch(field) else {}
        if field.annotation == dict[str, str] or name == "api_key":  # as vLLM has them
            switch = {"nargs": "+"}
        text = (field.description or "").replace("%", "%%")
        group.add_argument(
            f"--{name}",
            dest=ALIASES.get(name, name),
            default=None,
            metavar="VALUE",
            help=f"the same as --{ALIASES[name]}" if name in ALIASES else text,
            **switch,
        )
        if _is_switch(field):
            add_negation(group, name)


def _is_switch(field: Any) -> bool:
    return field.annotation in (bool, bool | None)


_SWITCHES = SWITCHES | {
    f"--{name}" for name, field in Settings.model_fields.items() if _is_switch(field)
}

_OBJECTS = OBJECTS | {
    f"--{name}": f"--{name}" for name in ("max_memory", "override_generation_config")
}
"""Flags that take a JSON object, by their names; of `device_map`, module names have dots."""
