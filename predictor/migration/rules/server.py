"""``config.properties``: TorchServe's own configuration, and a snapshot of it."""

from __future__ import annotations

from typing import Any

from predictor.migration.mapping import KeyMapping, Rule, always, changed, dropped, kept
from predictor.migration.rules.frontend import (
    STARTUP,
    WORKERS,
    gpu_phrase,
    gpus,
    queue_rule,
    timeout_rule,
)
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.quantity import format_bytes
from predictor.settings import Settings

_DEFAULT_MAX_BODY = Settings.model_fields["max_body_size"].default
"""Bytes. TorchServe's limits were meant for images; a decoded body takes many times its size."""


def _number(text: str) -> int | None:
    word = text.strip()
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else None


def _of_number(rule: Rule) -> Rule:
    def parse_and_map(value: Any, source: TorchServeArchive) -> KeyMapping:
        number = _number(value)
        return dropped("no number") if number is None else rule(number, source)

    return parse_and_map


def _number_of_gpu(value: int, source: TorchServeArchive) -> KeyMapping:
    phrase = gpu_phrase(source)
    if gpus(source) == value:
        return kept(phrase)
    return changed(f"{phrase}: other keys are stronger")


def _max_request_size(value: int, source: TorchServeArchive) -> KeyMapping:
    if value < 1:
        return dropped("no size of a request")
    if value > _DEFAULT_MAX_BODY:
        return changed(
            f"`max_body_size` stays {format_bytes(_DEFAULT_MAX_BODY)}: more than a text needs; say "
            "it yourself"
        )
    return kept("`max_body_size`", max_body_size=value)


def _models(value: Any, source: TorchServeArchive) -> KeyMapping:
    count = len(source.other_models)
    others = f"; import {count} more by themselves" if count else ""
    if source.entry:
        return kept(f"its entry of this model: see the rows{others}")
    return dropped(f"it has no entry of this model{others}")


_ADDRESS = changed("`--host` and `--http_port`: one server, 0.0.0.0:8080")
_METRICS_ADDRESS = changed("/metrics on the server's one port, 8080")
_MANAGEMENT = changed("one server, one model; Kubernetes makes, changes and removes it")
_GRPC = changed("`--grpc_port`: 8081, for V2")
_TLS = dropped("TLS ends at the cluster's gateway, or here with `--ssl_certfile`")
_NO_TOKENS = changed("no token is needed, unless `--api_key_file` is set")
_NO_CORS = dropped("no browser is let in, unless `--allowed_origins` is set")
_NO_JAVA = dropped("no Java runs here")
_ONE_MODEL = changed("one process serves one model, that of `--model_dir`")
_METRICS = changed("/metrics is always served for Prometheus; its names are other ones")
_NOTHING_RUNS = dropped("nothing is installed and no code of an archive runs")
_PROCESSOR = dropped("threads follow the processors that the pod is given")
_NO_WORKFLOWS = dropped("there are no workflows")
_ENVIRONMENT = changed("every setting is also an environment variable, PREDICTOR_NAME")

RULES: dict[str, Rule] = {
    "model_snapshot": _models,
    "models": _models,
    "job_queue_size": _of_number(queue_rule),
    "default_response_timeout": _of_number(timeout_rule),
    "default_startup_timeout": always(STARTUP),
    "unregister_model_timeout": always(_MANAGEMENT),
    "number_of_gpu": _of_number(_number_of_gpu),
    "default_workers_per_model": always(WORKERS),
    "NUM_WORKERS": always(WORKERS),
    "max_request_size": _of_number(_max_request_size),
    "max_response_size": always(changed("`max_model_len` bounds a reply, in tokens")),
    "limit_max_image_pixels": always(dropped("there are no images")),
    "inference_address": always(_ADDRESS),
    "management_address": always(_MANAGEMENT),
    "metrics_address": always(_METRICS_ADDRESS),
    "grpc_inference_address": always(_GRPC),
    "grpc_management_address": always(_MANAGEMENT),
    "grpc_inference_port": always(_GRPC),
    "grpc_management_port": always(_MANAGEMENT),
    "grpc_inference_max_connection_age_ms": always(_GRPC),
    "grpc_management_max_connection_age_ms": always(_MANAGEMENT),
    "enable_grpc_ssl": always(_TLS),
    "load_models": always(_ONE_MODEL),
    "model_store": always(_ONE_MODEL),
    "workflow_store": always(_NO_WORKFLOWS),
    "allowed_urls": always(_ONE_MODEL),
    "use_env_allowed_urls": always(_ONE_MODEL),
    "model_api_enabled": always(_MANAGEMENT),
    "enable_model_api": always(_MANAGEMENT),
    "install_py_dep_per_model": always(_NOTHING_RUNS),
    "plugins_path": always(_NOTHING_RUNS),
    "enable_envvars_config": always(_ENVIRONMENT),
    "blacklist_env_vars": always(dropped("no worker takes the server's environment over")),
    "enable_metrics_api": always(_METRICS),
    "metrics_mode": always(_METRICS),
    "metrics_format": always(_METRICS),
    "metrics_config": always(_METRICS),
    "metric_time_interval": always(_METRICS),
    "model_metrics_auto_detect": always(_METRICS),
    "disable_system_metrics": always(_METRICS),
    "disable_token_authorization": always(_NO_TOKENS),
    "token_expiration_min": always(_NO_TOKENS),
    "cors_allowed_origin": always(_NO_CORS),
    "cors_allowed_methods": always(_NO_CORS),
    "cors_allowed_headers": always(_NO_CORS),
    "keystore": always(_TLS),
    "keystore_pass": always(_TLS),
    "keystore_type": always(_TLS),
    "private_key_file": always(_TLS),
    "certificate_file": always(_TLS),
    "vmargs": always(_NO_JAVA),
    "number_of_netty_threads": always(_NO_JAVA),
    "netty_client_threads": always(_NO_JAVA),
    "prefer_direct_buffer": always(_NO_JAVA),
    "async_logging": always(changed("one line an event, on stderr; no prompt and no reply")),
    "decode_input_request": always(changed("requests are decoded as their API says")),
    "service_envelope": always(changed("V1 and V2 are both served, each whole")),
    "initial_worker_port": always(dropped("there are no workers to talk to")),
    "cpu_launcher_enable": always(_PROCESSOR),
    "cpu_launcher_args": always(_PROCESSOR),
    "ipex_enable": always(_PROCESSOR),
    "ipex_gpu_enable": always(_PROCESSOR),
    "system_metrics_cmd": always(_METRICS),
}
"""The rules for keys, all of whose values are text."""
