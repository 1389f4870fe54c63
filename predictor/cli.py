"""The `predictor` command: ``serve``, ``batch``, ``plan``, ``doctor`` and the imports.

Only here do errors become a sentence on stderr and in Kubernetes' termination log, and an exit
code. The flags are in `command_line`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from predictor import logs
from predictor.command_line import parse_arguments
from predictor.compatibility.apply import log_variables
from predictor.errors import (
    ConfigurationError,
    PredictorError,
    restart_may_help,
    unexpected,
)
from predictor.private import versions
from predictor.settings import Settings, read_settings

logger = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes' default file for a container's termination message."""

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
        may_help = command in ("serve", "batch") or restart_may_help(error)
        return (PredictorError if may_help else ConfigurationError).exit_code


def _serve(flags: dict[str, Any]) -> int:
    # Until the server handles signals: by default, PID 1 ignores them.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os._exit(128 + received))
    # oneDNN keeps 1,024 compiled kernels by default: too many MiB for the many shapes of batches.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    log_variables(os.environ)
    settings = _settings_of(flags)
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


def _batch(flags: dict[str, Any]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os._exit(128 + received))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    log_variables(os.environ)
    files = {name: flags.pop(name) for name in ("input", "output")}
    shard = flags.pop("shard", (0, 1))
    settings = _settings_of(flags)
    from predictor.pod.memory import check_process_fits

    check_process_fits()
    from predictor.batch.input_file import Shard
    from predictor.batch_command import Batch, BatchJob
    from predictor.engine_process import EngineProcess

    batch = Batch(settings, BatchJob(**files, shard=Shard(*shard)))
    if batch.is_done:
        batch.report()
        return 0
    engine = EngineProcess()
    try:
        return batch.run(engine)
    finally:
        engine.kill()


def _settings_of(flags: dict[str, Any]) -> Settings:
    """Return the settings; the flag ``--max_length`` is KServe's, but with TorchServe's defaults.

    KServe's is another name of `max_model_len`. In a ``setup_config.json`` the key is TorchServe's.
    """
    settings = read_settings(flags)
    is_ours = settings.torchserve_semantics or settings.max_model_len is not None
    if "max_length" not in flags or is_ours:
        return settings
    logger.info("--max_length sets --max_model_len, as in KServe's server")
    flags["max_model_len"] = flags.pop("max_length")
    return read_settings(flags)


def _plan(flags: dict[str, Any]) -> int:
    gc.disable()  # in this short process, collecting the objects of imports takes 1/4 of the time
    from predictor.plan_command import plan_text, take_request

    request = take_request(flags)
    text, code = plan_text(request, _settings_of(flags), flags)
    print(text)  # noqa: T201 - the command's output
    return code


def _import(flags: dict[str, Any]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        # Exit through all cleanup, unlike the default action of SIGTERM.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    from predictor.migration.importing import import_torchserve

    report = import_torchserve(flags["archive"], flags["into"], ts_config=flags.get("ts_config"))
    print(report.table())  # noqa: T201 - the command's output
    return 0


def _import_tgi(flags: dict[str, Any]) -> int:
    from predictor.migration.tgi_importing import import_tgi

    files = {name: flags.get(name) for name in ("env_file", "manifest")}
    print(import_tgi(flags["arguments"], flags["into"], **files).table())  # noqa: T201
    return 0


def _doctor(flags: dict[str, Any]) -> int:
    output = flags.pop("output")
    settings = _settings_of(flags)
    from predictor.doctor.check import Surroundings
    from predictor.doctor.examination import as_json, as_text, examine, has_failure

    checks = list(examine(settings, Surroundings()))
    print(as_json(checks) if output == "json" else as_text(checks))  # noqa: T201 - the output
    return ConfigurationError.exit_code if has_failure(checks) else 0


_COMMANDS = {
    "serve": _serve,
    "batch": _batch,
    "plan": _plan,
    "doctor": _doctor,
    "import-torchserve": _import,
    "import-tgi": _import_tgi,
}


def _report_end(sentence: str) -> None:
    """Write why the process ends to stderr and to Kubernetes' termination log."""
    sys.stderr.write(f"predictor: {sentence}\n")
    if TERMINATION_LOG.exists():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_bytes(sentence.encode()[:_TERMINATION_BYTES])
