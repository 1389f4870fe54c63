"""The import of a server of Text Generation Inference: a deployment, and a report on its flags."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictor.compatibility.flag import ABSENT
from predictor.compatibility.tgi_flags import TGI_FLAGS
from predictor.deployment.render import (
    MODEL_URI_PLACEHOLDER,
    helm_values,
    inference_service,
    to_yaml,
)
from predictor.deployment.sizing import PROCESSORS, SET_ELSEWHERE, Requirements, to_resource_name
from predictor.errors import ConfigurationError
from predictor.migration.deployment import GPU, UNKNOWN_CLAIM, UNKNOWN_MEMORY, plan_command
from predictor.migration.layout import HELM_VALUES, INFERENCE_SERVICE
from predictor.migration.mapping import KeyMapping, Row, changed, dropped, kept
from predictor.migration.report import Report
from predictor.migration.staging import staged, write_errors
from predictor.migration.tgi_launcher import Launch, Option, read_launch
from predictor.sentences import quote
from predictor.settings import Settings, explicit_settings, read_settings

REPORT = "tgi-report.md"

_TGI = "Text Generation Inference"
_COMMENT = f"From the flags of {_TGI}; {REPORT} says what became of each"
_SIZE = "Nothing is known here of the model's size: 16Gi and 64Gi stand for it, and"


def import_tgi(
    arguments: list[str], into: Path, *, env_file: Path | None = None, manifest: Path | None = None
) -> Report:
    """Write a deployment for what a server of TGI served; return the report on its flags.

    Args:
        arguments: The arguments of TGI's launcher.
        into: The directory to make.
        env_file: Variables, a line each.
        manifest: Kubernetes objects, one of which has a container of TGI.

    Raises:
        ConfigurationError: There is nothing to import, a value is none that can be served, or the
            directory cannot be written.
    """
    launch = read_launch(arguments, env_file=env_file, manifest=manifest)
    into = Path(os.path.realpath(into))
    translated = [(option, _mapping(option, launch)) for option in launch.options]
    given: dict[str, Any] = {"tgi_api": "true"}
    for _, mapping in translated:
        given |= mapping.settings
    if not given.keys() & {"model_id", "model_dir"}:
        raise ConfigurationError(_lack_of_model(launch))
    settings = read_settings(given, environ={})
    by_source = sorted(translated, key=lambda pair: pair[0].source)
    rows = tuple(mapping.row(each.source, each.name, each.value) for each, mapping in by_source)
    with write_errors(into), staged(into, last=REPORT) as folder:
        return _write(folder, into, rows, _requirements(settings, given, _gpus(launch)))


def _lack_of_model(launch: Launch) -> str:
    unknown = launch.unknown_in(launch.value("model_id") or "")
    if unknown is not None:
        return f"--model-id is the variable {quote(unknown)}, whose value is not in the manifest."
    return "No --model-id is given; TGI's default is a model for trials."


def _mapping(option: Option, launch: Launch) -> KeyMapping:
    """Return the outcome of a flag or variable; a flag wins over its variable."""
    flag = TGI_FLAGS.get(option.name)
    if flag is None:
        return dropped("not a flag that is known here")
    if option.value != launch.value(option.name):
        return dropped("another value of the same flag is stronger")
    value = option.value
    if (unknown := launch.unknown_in(value)) is not None:
        return dropped(f"the value of the variable {quote(unknown)} is not in the manifest")
    if option.name == "num_shard":
        return changed(flag.reason)
    if flag.is_switch and value.lower() in ("0", "false"):
        return dropped("it is off")
    if not flag.is_switch and value in ABSENT:
        return dropped("it has no value")
    try:
        settings = flag.apply(option.name, ("true" if flag.is_switch else value,))
    except ConfigurationError:
        return dropped(flag.instead)
    if not flag.settings:
        return dropped(flag.reason)
    if not settings:
        return kept("a quantised checkpoint is recognised by its config")
    names = " and ".join(f"`{name}`" for name in settings)
    make = changed if flag.reason else kept
    return make(f"{names}: {flag.reason}" if flag.reason else names, **settings)


def _gpus(launch: Launch) -> int:
    shards = launch.value("num_shard") or ""
    if shards.isdecimal():
        return int(shards)
    return 1 if launch.gpus is None else launch.gpus


def _requirements(settings: Settings, given: Mapping[str, Any], gpus: int) -> Requirements:
    explicit = explicit_settings(settings, given, {})
    return Requirements(
        resource_name=to_resource_name(settings.model_id or settings.model_dir.name),
        name=None,
        model_id=settings.model_id,
        model_revision=settings.model_revision if settings.model_id is not None else None,
        accelerators={GPU: gpus} if gpus else {},
        processors=PROCESSORS,
        memory=UNKNOWN_MEMORY,
        claim=UNKNOWN_CLAIM if settings.model_id else None,
        request_timeout=settings.request_timeout,
        grace_period=settings.grace_period,
        settings={name: value for name, value in explicit.items() if name not in SET_ELSEWHERE},
    )


def _write(folder: Path, into: Path, rows: tuple[Row, ...], requirements: Requirements) -> Report:
    gpus = requirements.accelerators.get(GPU, 0)
    plan = plan_command(requirements.model_id or "DIR", gpus)
    lines = [_COMMENT, _SIZE, f"{plan}, with what there is, tells"]
    (folder / HELM_VALUES).write_text(to_yaml(lines, helm_values(requirements)) + "\n")
    (folder / INFERENCE_SERVICE).write_text(to_yaml(lines, inference_service(requirements)) + "\n")
    directory = shlex.quote(str(into))
    install = f"helm install {requirements.resource_name} helm/ --values {directory}/{HELM_VALUES}"
    if requirements.model_id is None:
        install += f" --set model.uri={MODEL_URI_PLACEHOLDER}"
    name = requirements.model_id or requirements.resource_name
    report = Report(name, str(into), rows, (), (plan, install), origin=_TGI)
    (folder / REPORT).write_text(report.markdown())
    return report
