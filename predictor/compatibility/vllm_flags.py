"""The common flags of vLLM's server, as of 0.24 (``vllm serve --help=all``).

Flags with the name and the meaning of one of our settings are not listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from predictor.compatibility.flag import Flag, Values, model_or_directory, refused, same, unneeded
from predictor.errors import ConfigurationError

_ADAPTERS = "all of --lora_modules stay in memory, whatever their ranks, and share forward passes"
_PLACEMENT = (
    "blocks are placed over all accelerators of the pod, main memory and disk; `predictor plan` "
    "shows where"
)
_REPLICAS = "run more replicas (minReplicas)"
_FILES = "change it in the model's own files"
_GRAPHS = "passes are not captured or compiled"
_SCHEDULE = "passes are scheduled by what they cost here"
_LOG = "the log has one line for each event, and prompts are never logged"
_KV = "the KV cache is as large as --max_model_len and --max_concurrency make it"
_MEDIA = "a model's text alone is served"
_DOWNLOAD = "the hub's variables say it: HF_HOME, HF_TOKEN, HF_ENDPOINT"
_PUBLISHED = (
    *("awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "modelopt"),
    *("modelopt_fp4", "mxfp4", "quark", "fbgemm_fp8"),
)


_LOOKUP = ("ngram", "[ngram]")
"""vLLM's names of looking drafts up, which its older flags take in place of a draft model."""


def _names(values: Values) -> dict[str, str]:
    """Return the model's name, and the other names that OpenAI's clients may use."""
    plain = next((name for name in values if "/" not in name), values[0].rpartition("/")[2])
    others = ",".join(name for name in values if name != plain)
    return {"model_name": plain} | ({"model_aliases": others} if others else {})


def _model(values: Values) -> dict[str, str]:
    """Return the setting of a model, which vLLM may stream from a bucket."""
    is_uri = "://" in values[-1]
    return {"model_uri": values[-1]} if is_uri else model_or_directory(values)


def _speculation(values: Values) -> dict[str, str]:
    """Return the drafts of vLLM's ``--speculative-config``, a JSON object.

    Raises:
        ConfigurationError: It is no JSON object.
    """
    try:
        config = json.loads(values[-1])
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ConfigurationError("--speculative_config is no JSON object.")
    model, count = config.get("model"), config.get("num_speculative_tokens")
    is_lookup = model is None or model in _LOOKUP
    method = config.get("method") or ("ngram" if is_lookup else "draft_model")
    if method in _LOOKUP:
        return {} if count is None else {"prompt_lookup_num_tokens": str(count)}
    if method != "draft_model" or model is None:
        return {}
    number = {} if count is None else {"draft_model_num_tokens": str(count)}
    return {"draft_model_dir": str(model)} | number


def _draft_model(values: Values) -> dict[str, str]:
    """Return the draft model of vLLM's older ``--speculative-model``."""
    return {} if values[-1] in _LOOKUP else {"draft_model_dir": values[-1]}


VLLM_FLAGS: Mapping[str, Flag] = {
    "model": Flag(
        ("model_dir", "model_id", "model_uri"),
        _model,
        "a path, a repository on the hub or a URI",
    ),
    "served_model_name": Flag(
        ("model_name", "model_aliases"),
        _names,
        "the first name without a slash is in URLs; the others are for OpenAI's clients",
    ),
    "port": same("http_port"),
    "max_num_seqs": same("max_batch_size"),
    "max_num_batched_tokens": same("prefill_chunk", "max_batch_tokens"),
    "gpu_memory_utilization": same(
        "gpu_fraction", reason="`--memory_headroom` is kept free besides"
    ),
    "code_revision": refused("code is the one of the model's revision; set --model_revision"),
    "tokenizer": refused("put the tokenizer's files into the model directory (--model_dir)"),
    "tokenizer_mode": refused("the tokenizer is transformers' own", unless=("auto", "hf")),
    "config_format": refused("the config is config.json", unless=("auto", "hf")),
    "hf_config_path": refused("put config.json into the model directory (--model_dir)"),
    "hf_overrides": refused(_FILES, unless=("{}",)),
    "hf_token": refused("set HF_TOKEN in the environment, which no list of processes shows"),
    "download_dir": refused("set HF_HOME in the environment"),
    "rope_scaling": refused(_FILES),
    "rope_theta": refused(_FILES),
    "generation_config": refused(
        "the model's generation_config.json is followed; set --override_generation_config",
        unless=("auto",),
    ),
    "chat_template": refused("put it into the model directory as chat_template.jinja"),
    "chat_template_content_format": unneeded("it is detected in the model's chat template"),
    "load_format": refused(
        "safetensors are read, and .bin files with --allow_pickle",
        unless=("auto", "hf", "safetensors", "fastsafetensors", "runai_streamer"),
        reason="weights are read at the speed of the device anyway",
    ),
    "quantization": refused(
        "--weights_dtype int8 or int4 quantises a model that is not quantised, and a quantised "
        "checkpoint is recognised without the flag",
        unless=_PUBLISHED,
        reason="a quantised checkpoint is recognised by its config",
        short="q",
    ),
    "kv_cache_dtype": refused("the KV cache has the serving dtype (--dtype)", unless=("auto",)),
    "runner": unneeded("the task is detected, or set with --task"),
    "convert": unneeded("the task is detected, or set with --task"),
    "model_impl": unneeded("the model's own implementation of transformers is used"),
    "tensor_parallel_size": unneeded(_PLACEMENT, short="tp"),
    "pipeline_parallel_size": unneeded(_PLACEMENT, short="pp"),
    "data_parallel_size": refused(
        _REPLICAS, unless=("1",), reason="one process answers all requests", short="dp"
    ),
    "api_server_count": refused(
        _REPLICAS, unless=("1",), reason="one process answers all requests"
    ),
    "nnodes": refused("a model is served by one pod", unless=("1",)),
    "enable_expert_parallel": unneeded(_PLACEMENT, is_switch=True),
    "distributed_executor_backend": unneeded(_PLACEMENT),
    "disable_custom_all_reduce": unneeded(_PLACEMENT, is_switch=True),
    "device": refused("set --device_map", unless=("auto",)),
    "cpu_offload_gb": unneeded(_PLACEMENT),
    "swap_space": unneeded(_PLACEMENT),
    "block_size": unneeded(_KV),
    "num_gpu_blocks_override": unneeded(_KV),
    "kv_cache_memory_bytes": unneeded(_KV),
    "kv_cache_memory": unneeded(_KV),
    "kv_transfer_config": refused("keys and values are not sent to other servers"),
    "enable_prefix_caching": same("prefix_cache", is_switch=True),
    "prefix_caching_hash_algo": unneeded("prefixes are compared by SHA-256"),
    "enable_chunked_prefill": unneeded("prompts are read in chunks anyway", is_switch=True),
    "max_num_partial_prefills": unneeded(_SCHEDULE),
    "max_long_partial_prefills": unneeded(_SCHEDULE),
    "long_prefill_token_threshold": unneeded(_SCHEDULE),
    "scheduling_policy": refused("requests run in the order in which they come", unless=("fcfs",)),
    "async_scheduling": unneeded(_SCHEDULE, is_switch=True),
    "num_scheduler_steps": unneeded(_SCHEDULE),
    "enforce_eager": unneeded(_GRAPHS, is_switch=True),
    "compilation_config": unneeded(_GRAPHS, short="O"),
    "max_seq_len_to_capture": unneeded(_GRAPHS),
    "attention_backend": unneeded("the fastest one that the model supports is used"),
    "seed": unneeded("each request may have a seed of its own"),
    "max_logprobs": unneeded("a request may have 20"),
    "speculative_config": Flag(
        ("prompt_lookup_num_tokens", "draft_model_dir", "draft_model_num_tokens"),
        _speculation,
        "`ngram`, whose lookups compare 2 to 5 tokens, and `draft_model` are the methods here",
    ),
    "speculative_model": Flag(
        ("draft_model_dir",), _draft_model, "with `[ngram]` drafts are looked up, as always"
    ),
    "num_speculative_tokens": same("prompt_lookup_num_tokens", "draft_model_num_tokens"),
    "enable_lora": unneeded(_ADAPTERS, is_switch=True),
    "max_loras": unneeded(_ADAPTERS),
    "max_lora_rank": unneeded(_ADAPTERS),
    "max_cpu_loras": unneeded(_ADAPTERS),
    "enable_auto_tool_choice": unneeded("nothing needs to be turned on", is_switch=True),
    "reasoning_parser": unneeded("nothing needs to be turned on"),
    "limit_mm_per_prompt": unneeded(_MEDIA),
    "allowed_local_media_path": unneeded(_MEDIA),
    "mm_processor_kwargs": unneeded(_MEDIA),
    "enable_log_requests": unneeded(_LOG, is_switch=True),
    "disable_log_stats": unneeded(_LOG, is_switch=True),
    "disable_uvicorn_access_log": unneeded(_LOG, is_switch=True),
    "uvicorn_log_level": unneeded(_LOG),
    "enable_prompt_tokens_details": unneeded("replies have the counts of tokens", is_switch=True),
    "enable_request_id_headers": unneeded("replies have a request id anyway", is_switch=True),
    "root_path": unneeded("routes do not depend on the path of a proxy"),
    "ssl_ca_certs": refused("clients' certificates are the gateway's to check"),
    "allowed_methods": unneeded("all methods of a route are allowed"),
    "allowed_headers": unneeded("all headers are allowed"),
    "allow_credentials": refused("send API keys as a header", is_switch=True),
    "middleware": refused("use a gateway"),
    "headless": refused("a model is served by one pod", is_switch=True),
    "config": refused("put settings into the model directory's setup_config.json"),
    "otlp_traces_endpoint": unneeded(
        "OTEL_EXPORTER_OTLP_ENDPOINT in the environment turns traces on"
    ),
    "max_parallel_loading_workers": unneeded("weights are read at the speed of the device"),
    "use_tqdm_on_load": unneeded("the log shows the progress of loading", is_switch=True),
    "disable_fastapi_docs": unneeded("they are off", is_switch=True),
    "enable_server_load_tracking": unneeded("the load is in the metrics", is_switch=True),
}
"""vLLM's flags by name, with underscores."""
