"""The flags of Text Generation Inference's launcher, as of 3.3 (``launcher/src/main.rs``).

Each is an environment variable too, in capitals. ``serve`` does not take them, since some have
other meanings here; ``import-tgi`` translates them.
"""

from __future__ import annotations

from collections.abc import Mapping

from predictor.compatibility.flag import Flag, Values, model_or_directory, refused, same, unneeded

_ONE_PROCESS = "one process computes, over all accelerators of the pod"
_SCHEDULE = "passes are scheduled by what they cost here"
_PORT = "the deployment serves REST on port 8080 of every address"
_CACHE = "HF_HOME of the deployment lies on the offload volume"
_FIXED = "the limit of this server is fixed"
_WATERMARK = "replies are not marked"
_TUNNEL = "no tunnel is opened"
_TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME in the environment say it"
_FILES = "change it in the model's own files"
_PUBLISHED = ("awq", "gptq", "marlin", "compressed-tensors")
_QUANTISED = {
    "bitsandbytes": "int8",
    "eetq": "int8",
    "bitsandbytes_nf4": "int4",
    "bitsandbytes_fp4": "int4",
}


def _quantize(values: Values) -> dict[str, str]:
    """Return the setting that quantises; a checkpoint that is quantised already needs none."""
    method = values[-1].lower().replace("-", "_")
    return {"weights_dtype": _QUANTISED[method]} if method in _QUANTISED else {}


def _adapters(values: Values) -> dict[str, str]:
    """Return adapters by the last part of their names, which have no slash here."""
    pairs = [item.strip() for item in values[-1].split(",") if item.strip()]
    named = (pair if "=" in pair else f"{pair.rpartition('/')[2]}={pair}" for pair in pairs)
    return {"lora_modules": ",".join(named)}


TGI_FLAGS: Mapping[str, Flag] = {
    "model_id": Flag(("model_id", "model_dir"), model_or_directory),
    "revision": same("model_revision"),
    "dtype": same("dtype"),
    "trust_remote_code": same("trust_remote_code", is_switch=True),
    "max_total_tokens": same("max_model_len"),
    "max_concurrent_requests": same("max_requests"),
    "max_batch_size": same("max_batch_size"),
    "max_batch_prefill_tokens": same(
        "prefill_chunk", reason="a longer prompt is computed in several passes, and not refused"
    ),
    "quantize": Flag(
        ("weights_dtype",),
        _quantize,
        "quantises an unquantised checkpoint; a quantised one is recognised without it",
        accepted=(*_QUANTISED, *_PUBLISHED, *(name.replace("_", "-") for name in _QUANTISED)),
        instead="an FP8 checkpoint is recognised without the flag, and --weights_dtype int8 or "
        "int4 quantises an unquantised one; EXL2 is not read",
    ),
    "lora_adapters": Flag(
        ("lora_modules",), _adapters, "an adapter without a name has the last part of its path"
    ),
    "cuda_memory_fraction": same("gpu_fraction"),
    "payload_limit": same("max_body_size"),
    "graceful_termination_timeout": same("grace_period"),
    "cors_allow_origin": same("allowed_origins"),
    "json_output": Flag(("log_format",), lambda _: {"log_format": "json"}, is_switch=True),
    "api_key": refused(
        "keep it in a Secret, and set PREDICTOR_API_KEY from it or mount it for --api_key_file"
    ),
    "num_shard": unneeded("it is the number of GPUs of the deployment"),
    "sharded": unneeded(_ONE_PROCESS),
    "max_input_tokens": unneeded("--max_model_len bounds prompt and reply together"),
    "max_input_length": unneeded("--max_model_len bounds prompt and reply together"),
    "max_batch_total_tokens": unneeded(
        "the KV cache is as large as --max_model_len and --max_concurrency make it"
    ),
    "kv_cache_dtype": refused("the KV cache has the serving dtype (--dtype)"),
    "speculate": unneeded("greedy replies are the same without it"),
    "waiting_served_ratio": unneeded(_SCHEDULE),
    "max_waiting_tokens": unneeded(_SCHEDULE),
    "cuda_graphs": unneeded("passes are not captured"),
    "validation_workers": unneeded("requests are tokenised in the process that takes them"),
    "max_best_of": unneeded(_FIXED),
    "max_stop_sequences": unneeded(_FIXED),
    "max_top_n_tokens": unneeded(_FIXED),
    "max_client_batch_size": unneeded("a request of TGI's API has one prompt"),
    "disable_grammar_support": unneeded("--max_grammar_size bounds grammars", is_switch=True),
    "enable_prefill_logprobs": unneeded("a request says decoder_input_details", is_switch=True),
    "hostname": unneeded(_PORT),
    "port": unneeded(_PORT, short="p"),
    "prometheus_port": unneeded("metrics are at /metrics of the same port"),
    "shard_uds_path": unneeded(_ONE_PROCESS),
    "master_addr": unneeded(_ONE_PROCESS),
    "master_port": unneeded(_ONE_PROCESS),
    "huggingface_hub_cache": unneeded(_CACHE),
    "weights_cache_override": unneeded(_CACHE),
    "disable_custom_kernels": unneeded("the model's own implementation is used", is_switch=True),
    "rope_scaling": refused(_FILES),
    "rope_factor": refused(_FILES),
    "tokenizer_config_path": refused(_FILES),
    "otlp_endpoint": unneeded(_TRACES),
    "otlp_service_name": unneeded(_TRACES),
    "watermark_gamma": unneeded(_WATERMARK),
    "watermark_delta": unneeded(_WATERMARK),
    "ngrok": unneeded(_TUNNEL, is_switch=True),
    "ngrok_authtoken": unneeded(_TUNNEL),
    "ngrok_edge": unneeded(_TUNNEL),
    "usage_stats": unneeded("no statistics are sent"),
    "env": unneeded(
        "the log begins with the settings and the placement", is_switch=True, short="e"
    ),
}
"""The flags by name, with underscores."""
