"""The flags of vLLM's server of early 2025 to 2026 (``vllm serve --help=all``).

Flags with the name and the meaning of one of our settings are not listed. `vllm_model_flags` has
those of the model, and `vllm_engine_flags` those of placement, memory, schedule and drafts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from predictor.compatibility.flag import Flag, Values, all_unneeded, refused, same, unneeded
from predictor.compatibility.vllm_engine_flags import ENGINE_FLAGS, PLUGIN, json_object
from predictor.compatibility.vllm_model_flags import MODEL_FLAGS
from predictor.errors import ConfigurationError

VERSIONS = "early 2025 to 2026"
"""The releases of vLLM whose flags are in the tables."""

_LOG = "the log has one line for each event, and neither prompts nor replies"
_TEMPLATE = "put it into the model directory as chat_template.jinja"
_REPLIES = "replies have no such part; leave the flag out"
_CLIENT_CERTIFICATES = "clients' certificates are the gateway's to check"
_GATEWAY = "use a gateway"
_COHERE = "Cohere's chats are not served"
_GRAMMARS = "llguidance follows schemas and grammars"


def _access_log(values: Values) -> dict[str, str]:
    return {"access_log": "false" if values[-1] == "true" else "true"}


def _structured_outputs(values: Values) -> dict[str, str]:
    """Return the parser of reasoning; the rest of ``--structured-outputs-config`` is fixed here."""
    config = json_object("structured_outputs_config", values)
    for name in ("disable_additional_properties", "enable_in_reasoning"):
        if config.get(name):
            raise ConfigurationError(
                f"--structured_outputs_config with {name!r} is not supported: schemas are followed "
                "as they are, and by the reply after the reasoning alone."
            )
    parser = config.get("reasoning_parser")
    return {"reasoning_parser": str(parser)} if parser else {}


_REPLY: Mapping[str, Flag] = {
    "chat_template": refused(_TEMPLATE),
    "trust_request_chat_template": refused(_TEMPLATE, is_switch=True),
    "default_chat_template_kwargs": refused(
        "set them in chat_template_kwargs of requests, or as defaults in chat_template.jinja",
        unless=("{}",),
    ),
    "chat_template_content_format": unneeded("it is detected in the model's chat template"),
    "response_role": refused("a reply has the role 'assistant'", unless=("assistant",)),
    "tool_parser_plugin": refused(f"{PLUGIN}, and set --tool_call_parser"),
    "reasoning_parser_plugin": refused(f"{PLUGIN}, and set --reasoning_parser"),
    "reasoning_config": refused("set --reasoning_parser", unless=("{}",)),
    "tool_server": refused("clients run the tools that a model calls"),
    "structured_outputs_config": Flag(
        ("reasoning_parser",), _structured_outputs, f"{_GRAMMARS}, and JSON has one line"
    ),
    "guided_decoding_disable_additional_properties": refused(
        "say additionalProperties in the schema", is_switch=True
    ),
    "logits_processors": refused("a request sets logit_bias", count="+"),
    "logits_processor_pattern": refused("a request sets logit_bias"),
    "logprobs_mode": refused(
        "log probabilities are those of the model, before the sampling parameters",
        unless=("raw_logprobs",),
    ),
    "max_logprobs": unneeded("a request may have 20"),
    "return_tokens_as_token_ids": refused("POST /tokenize returns token ids", is_switch=True),
    "enable_return_routed_experts": refused(_REPLIES, is_switch=True),
    "return_sampling_mask": refused(_REPLIES, is_switch=True),
    "enable_prompt_embeds": refused("a prompt is text or tokens", is_switch=True),
    "enable_force_include_usage": refused(
        "a stream has its usage if the request sets stream_options.include_usage", is_switch=True
    ),
    "enable_prompt_tokens_details": unneeded("replies have the counts of tokens", is_switch=True),
    **all_unneeded(
        "nothing needs to be turned on", switches="enable_auto_tool_choice enable_reasoning"
    ),
    **all_unneeded(
        "tools are left out of the prompt anyway", switches="exclude_tools_when_tool_choice_none"
    ),
    **all_unneeded(
        _GRAMMARS, "guided_decoding_backend", switches="guided_decoding_disable_fallback"
    ),
    **all_unneeded(
        "JSON is written on one line anyway", switches="guided_decoding_disable_any_whitespace"
    ),
    **all_unneeded("replies have no system_fingerprint", "fingerprint_mode fingerprint_value"),
    **all_unneeded(_COHERE, "cohere_format", switches="cohere_is_reasoning_model"),
}

_SERVER: Mapping[str, Flag] = {
    "port": same("http_port"),
    "uds": refused("the server listens on --host and --http_port"),
    "grpc": refused("gRPC has V2's protocol, beside REST (--enable_grpc)", is_switch=True),
    "shutdown_timeout": same("grace_period"),
    "h11_max_incomplete_event_size": same("max_header_size", reason="of a request's headers"),
    "h11_max_header_count": same("max_header_count"),
    "config": refused("put settings into the model directory's setup_config.json"),
    "ssl_ca_certs": refused(_CLIENT_CERTIFICATES),
    "ssl_cert_reqs": refused(_CLIENT_CERTIFICATES, unless=("0",)),
    "ssl_ciphers": refused("OpenSSL's defaults are used; a gateway may have others"),
    "enable_ssl_refresh": unneeded(
        "REST uses a renewed certificate from the next connection on", is_switch=True
    ),
    "allow_credentials": refused("send API keys as a header", is_switch=True),
    "allowed_methods": unneeded("all methods of a route are allowed"),
    "allowed_headers": unneeded("all headers are allowed"),
    "middleware": refused(_GATEWAY),
    "root_path": unneeded("routes do not depend on the path of a proxy"),
    "tokens_only": refused(f"{_GATEWAY} that closes the other routes", is_switch=True),
    "enable_tokenizer_info_endpoint": refused(
        "read the tokenizer's files of the model", is_switch=True
    ),
    "disable_uvicorn_access_log": Flag(("access_log",), _access_log, is_switch=True),
    "disable_access_log_for_endpoints": unneeded("only requests to the model have access lines"),
    "enable_request_id_headers": unneeded("replies have a request id anyway", is_switch=True),
    "otlp_traces_endpoint": unneeded(
        "OTEL_EXPORTER_OTLP_ENDPOINT in the environment turns traces on"
    ),
    "enable_server_load_tracking": unneeded("the load is in the metrics", is_switch=True),
    **all_unneeded(
        "--enable_docs_url turns /docs on, which loads scripts from the internet",
        switches="disable_fastapi_docs enable_offline_docs",
    ),
    **all_unneeded(
        "the model runs in a process of its own", switches="disable_frontend_multiprocessing"
    ),
    **all_unneeded(
        "documents are ranked by a model of pairs", switches="enable_flash_late_interaction"
    ),
    **all_unneeded(
        _LOG,
        "uvicorn_log_level",
        switches="enable_log_requests disable_log_stats enable_log_outputs enable_log_deltas",
    ),
    **all_unneeded("unexpected errors have their stack in the log", switches="log_error_stack"),
}

_SHORT: Mapping[str, tuple[str, ...]] = {
    "quantization": ("q",),
    "tensor_parallel_size": ("tp",),
    "pipeline_parallel_size": ("pp",),
    "decode_context_parallel_size": ("dcp",),
    "prefill_context_parallel_size": ("pcp",),
    "data_parallel_size": ("dp",),
    "data_parallel_rank": ("dpn",),
    "data_parallel_start_rank": ("dpr",),
    "data_parallel_size_local": ("dpl",),
    "data_parallel_address": ("dpa",),
    "data_parallel_rpc_port": ("dpp",),
    "data_parallel_backend": ("dpb",),
    "data_parallel_hybrid_lb": ("dph",),
    "data_parallel_external_lb": ("dpe",),
    "data_parallel_multi_port_external_lb": ("dpm",),
    "enable_expert_parallel": ("ep",),
    "api_server_count": ("asc",),
    "nnodes": ("n",),
    "node_rank": ("r",),
    "speculative_config": ("sc",),
    "speculative_draft_tensor_parallel_size": ("spec-draft-tp",),
    "diffusion_config": ("dc",),
    "attention_config": ("ac",),
    "compilation_config": ("O", "cc"),
}

_OBJECTS = """
additional_config attention_config compilation_config default_chat_template_kwargs default_mm_loras
diffusion_config ec_manager_config ec_transfer_config eplb_config fault_tolerance_config
hf_overrides ir_op_priority kernel_config kv_events_config kv_transfer_config limit_mm_per_prompt
media_io_kwargs mm_processor_kwargs model_class_overrides model_loader_extra_config
override_neuron_config override_pooler_config pooler_config profiler_config quantization_config
reasoning_config rope_scaling speculative_config structured_outputs_config
tokenizer_pool_extra_config watermark_config weight_transfer_config
"""
"""Flags that take a JSON object, with spaces between them."""

_ALL = {**MODEL_FLAGS, **ENGINE_FLAGS, **_REPLY, **_SERVER}

VLLM_FLAGS: Mapping[str, Flag] = {
    name: replace(flag, short=_SHORT.get(name, ()), is_object=name in _OBJECTS.split())
    for name, flag in _ALL.items()
}
"""vLLM's flags by name, with underscores."""
