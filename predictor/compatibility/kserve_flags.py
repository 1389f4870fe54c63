"""The flags of KServe's ``ModelServer`` and of its Hugging Face server, and their variables.

Read in kserve 0.21 (``kserve/model_server.py``) and in huggingfaceserver 0.20 (``__main__.py``).
Flags with the name and the meaning of one of our settings are not listed.
"""

from __future__ import annotations

from collections.abc import Mapping

from predictor.compatibility.flag import Flag, refused, same, unneeded

_NO_PROMPTS = "prompts are never logged"
_TRANSFORMER = "it is for transformers, which call a predictor; this server is the predictor"
_LOOP = "one event loop answers requests, and the model runs in a process of its own"
_LOG = "the log has one line for each event; --log_format and --access_log choose its form"
_OWN_FILES = "the tokenizer's own files say it"

KSERVE_FLAGS: Mapping[str, Flag] = {
    "backend": refused(
        "this server has one backend, its own; leave the flag out, or use KServe's runtime for "
        "vLLM or Triton if the model fits the accelerator",
        unless=("huggingface", "auto"),
        reason="this server has one backend, its own",
    ),
    "tokenizer_revision": refused(
        "the tokenizer is the one of the model's revision; set --model_revision, or serve a "
        "directory that holds the files of both with --model_dir",
        equal_to="model_revision",
    ),
    "disable_lower_case": unneeded(_OWN_FILES, is_switch=True),
    "tensor_input_names": unneeded("the model's code names its inputs"),
    "return_token_type_ids": unneeded("the model's code says if it takes them", is_switch=True),
    "disable_log_requests": unneeded(_NO_PROMPTS, is_switch=True),
    "max_log_len": unneeded(_NO_PROMPTS),
    "workers": refused(
        "each worker would hold the model once more; run more replicas (minReplicas)",
        unless=("1",),
        reason="one process answers all requests",
    ),
    "grpc_max_receive_message_length": same(
        "max_body_size", reason="REST bodies have the same limit"
    ),
    "grpc_max_send_message_length": unneeded(
        "an answer may be as large as a request (--max_body_size)"
    ),
    "configure_logging": unneeded(_LOG, is_switch=True),
    "log_config_file": unneeded(_LOG),
    "access_log_format": unneeded(_LOG),
    "enable_latency_logging": unneeded(
        "access lines (--access_log) and metrics have them", is_switch=True
    ),
    "max_threads": unneeded(_LOOP),
    "max_asyncio_workers": unneeded(_LOOP),
    "event_loop": unneeded(_LOOP),
    "predictor_host": refused(_TRANSFORMER),
    "predictor_protocol": refused(
        _TRANSFORMER, unless=("v1", "v2", "grpc-v2"), reason=_TRANSFORMER
    ),
    "protocol": refused(_TRANSFORMER, unless=("v1", "v2", "grpc-v2"), reason=_TRANSFORMER),
    "predictor_use_ssl": refused(_TRANSFORMER, reason=_TRANSFORMER, is_switch=True),
    "predictor_request_timeout_seconds": refused(
        _TRANSFORMER, unless=("600",), reason=_TRANSFORMER
    ),
    "predictor_request_retries": refused(_TRANSFORMER, unless=("0",), reason=_TRANSFORMER),
    "enable_predictor_health_check": refused(_TRANSFORMER, reason=_TRANSFORMER, is_switch=True),
}
"""KServe's flags by name, with underscores."""

KSERVE_VARIABLES: Mapping[str, Flag] = {
    "ALLOW_LONG_MAX_MODEL_LEN": unneeded(
        "--max_model_len beyond the context that the model was made for is refused"
    ),
    "CE_MERGE": unneeded("cloud events are answered as JSON"),
    "CE_SOURCE": unneeded("cloud events are answered as JSON"),
    "CE_TYPE": unneeded("cloud events are answered as JSON"),
}
"""KServe's variables that change nothing; those that set a setting are in `settings_sources`."""
