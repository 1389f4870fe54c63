"""The flags of vLLM's engine: placement, memory, schedule, kernels, drafts and what it measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from predictor.compatibility.flag import Flag, Values, all_unneeded, refused, same, unneeded
from predictor.errors import ConfigurationError

_PLACEMENT = (
    "blocks are placed over all accelerators of the pod, main memory and disk; `predictor plan` "
    "shows where"
)
_ONE_POD = "a model is served by one process of one pod"
_REPLICAS = "run more replicas (minReplicas)"
_ALONE = "replicas do not know each other"
_PROCESSORS = "the processors of the pod are used"
_GRAPHS = "passes are not captured or compiled"
_KERNELS = "the fastest implementation that the model supports is used"
_SCHEDULE = "passes are scheduled by what they cost here"
_KV = "the KV cache is as large as --max_model_len and --max_concurrency make it"
_KV_DTYPE = "the KV cache has the serving dtype (--dtype)"
_STATES = "states have the dtype and the layout of the model's own implementation"
_METRICS = "metrics and access lines have what this server measures"
_LOOKUPS = "lookups compare 2 to 5 tokens"
_DRAFTS = "as many tokens are drafted as save time"
_EXACT = "drafts change no reply"
_METHODS = f"`ngram`, whose {_LOOKUPS}, and `draft_model` are the methods here"
_OTHER_DRAFTS = (
    "drafts are looked up anyway, or made by the model of --draft_model_dir; leave out the flags "
    "of other drafts"
)

PLUGIN = "no code is loaded from elsewhere; leave the flag out"
"""What to do instead of a flag that names code."""

LOOKUP = ("ngram", "[ngram]")
"""vLLM's names of looking drafts up, which its older flags take in place of a draft model."""


def json_object(name: str, values: Values) -> dict[str, Any]:
    """Return the value of a flag that takes a JSON object.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        document = json.loads(values[-1])
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigurationError(f"--{name} is no JSON object.")
    return document


def _speculation(values: Values) -> dict[str, str]:
    """Return the drafts of vLLM's ``--speculative-config``.

    Raises:
        ConfigurationError: They are made by a method that is none here.
    """
    config = json_object("speculative_config", values)
    model, count = config.get("model"), config.get("num_speculative_tokens")
    is_lookup = model is None or model in LOOKUP
    method = str(config.get("method") or ("ngram" if is_lookup else "draft_model")).lower()
    if method in LOOKUP:
        return {} if count is None else {"prompt_lookup_num_tokens": str(count)}
    if method != "draft_model":
        raise ConfigurationError(
            f"--speculative_config with the method {method!r} is not supported: {_OTHER_DRAFTS}."
        )
    if is_lookup:
        raise ConfigurationError("--speculative_config with the method 'draft_model' has no model.")
    number = {} if count is None else {"draft_model_num_tokens": str(count)}
    return {"draft_model_dir": str(model)} | number


def _draft_model(values: Values) -> dict[str, str]:
    """Return the draft model of ``--spec-model`` and of the older ``--speculative-model``."""
    return {} if values[-1] in LOOKUP else {"draft_model_dir": values[-1]}


def _device(values: Values) -> dict[str, str]:
    """Return the devices of the older ``--device``; by default a GPU is used if there is one."""
    return {"device_map": "cpu"} if values[-1].lower() == "cpu" else {}


_PARALLEL: Mapping[str, Flag] = {
    "data_parallel_size": refused(
        _REPLICAS, unless=("1",), reason="one process answers all requests"
    ),
    "data_parallel_size_local": refused(
        _REPLICAS, unless=("0", "1"), reason="one process answers all requests"
    ),
    "api_server_count": refused(
        _REPLICAS, unless=("1",), reason="one process answers all requests"
    ),
    "nnodes": refused("a model is served by one pod", unless=("1",)),
    "node_rank": refused("a model is served by one pod", unless=("0",)),
    "headless": refused("a model is served by one pod", is_switch=True),
    "device": Flag(
        ("device_map",),
        _device,
        "a GPU is used if there is one",
        accepted=("auto", "cuda", "cpu"),
        instead="set --device_map",
    ),
    "device_ids": refused("set CUDA_VISIBLE_DEVICES in the environment"),
    "worker_cls": refused(PLUGIN, unless=("auto",)),
    "worker_extension_cls": refused(PLUGIN),
    **all_unneeded(
        _PLACEMENT,
        "tensor_parallel_size pipeline_parallel_size decode_context_parallel_size "
        "prefill_context_parallel_size dcp_comm_backend dcp_kv_cache_interleave_size "
        "cp_kv_cache_interleave_size distributed_executor_backend all2all_backend "
        "expert_placement_strategy eplb_config num_redundant_experts eplb_window_size "
        "eplb_step_interval cpu_offload_gb swap_space offload_backend offload_group_size "
        "offload_num_in_group offload_prefetch_step",
        switches="dcp_q_replicate enable_expert_parallel enable_ep_weight_filter enable_elastic_ep "
        "enable_eplb eplb_log_balancedness disable_custom_all_reduce enable_batch_sharded_sampling",
        lists="cpu_offload_params offload_params",
    ),
    **all_unneeded(
        _ALONE,
        "data_parallel_rank data_parallel_start_rank data_parallel_address data_parallel_rpc_port "
        "data_parallel_backend data_parallel_supervisor_port dp_supervisor_probe_interval_s "
        "dp_supervisor_probe_timeout_s dp_supervisor_probe_failure_threshold dp_sync_interval",
        switches="data_parallel_hybrid_lb data_parallel_external_lb "
        "data_parallel_multi_port_external_lb disable_nccl_for_dp_synchronization",
    ),
    **all_unneeded(
        _ONE_POD,
        "master_addr master_port distributed_timeout_seconds cpu_distributed_timeout_seconds "
        "fault_tolerance_config",
        switches="enable_fault_tolerance ray_workers_use_nsight enable_nccl_comm_suspend",
    ),
    **all_unneeded(_PROCESSORS, switches="numa_bind", lists="numa_bind_nodes numa_bind_cpus"),
    **all_unneeded("requests are tokenised while others are computed", "renderer_num_workers"),
}

_MEMORY: Mapping[str, Flag] = {
    "gpu_memory_utilization": same(
        "gpu_fraction", reason="`--memory_headroom` is kept free besides"
    ),
    "kv_cache_dtype": refused(_KV_DTYPE, unless=("auto",)),
    "kv_transfer_config": refused("keys and values are not sent to other servers"),
    "kv_events_config": refused("events of the KV cache are not published"),
    "enable_sleep_mode": refused(
        "memory is not released while nobody asks; scale to zero instead", is_switch=True
    ),
    "enable_prefix_caching": same("prefix_cache", is_switch=True),
    "prefix_caching_hash_algo": unneeded("prefixes are compared by SHA-256"),
    **all_unneeded(
        _KV,
        "block_size num_gpu_blocks_override kv_cache_memory_bytes kv_cache_memory watermark",
        switches="use_v2_block_manager disable_hybrid_kv_cache_manager enable_cumem_allocator "
        "scheduler_reserve_full_isl",
    ),
    **all_unneeded(_KV_DTYPE, switches="calculate_kv_scales", lists="kv_cache_dtype_skip_layers"),
    **all_unneeded(
        "prefixes stay while the KV cache has room",
        "prefix_cache_retention_interval prefix_match_unit",
    ),
    **all_unneeded(
        "keys and values that have no room are computed again",
        "kv_offloading_size kv_offloading_backend preemption_mode",
    ),
    **all_unneeded(
        _STATES,
        "mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size mamba_cache_mode "
        "mamba_cache_philox_rounds replayssm_buffer_len",
        switches="enable_mamba_cache_stochastic_rounding use_replayssm",
    ),
}

_SCHEDULING: Mapping[str, Flag] = {
    "max_num_seqs": same("max_batch_size"),
    "max_num_batched_tokens": same("prefill_chunk", "max_batch_tokens"),
    "scheduling_policy": refused("requests run in the order in which they come", unless=("fcfs",)),
    "scheduler_cls": refused(PLUGIN),
    "enable_chunked_prefill": unneeded("prompts are read in chunks anyway", is_switch=True),
    "max_num_queued_reqs": unneeded("--max_requests bounds the requests that run or wait"),
    "max_num_queued_tokens": unneeded(
        "--max_tokens_in_flight bounds the tokens of requests that run or wait"
    ),
    "stream_interval": unneeded("a stream has its tokens as soon as they are text"),
    **all_unneeded(
        _SCHEDULE,
        "max_num_scheduled_tokens max_num_partial_prefills max_long_partial_prefills "
        "long_prefill_token_threshold num_lookahead_slots num_scheduler_steps "
        "scheduler_delay_factor prefill_schedule_interval ubatch_size dbo_decode_token_threshold "
        "dbo_prefill_token_threshold performance_mode",
        switches="async_scheduling disable_async_output_proc multi_step_stream_outputs enable_dbo "
        "disable_chunked_mm_input kv_sharing_fast_prefill",
    ),
}

_COMPUTATION: Mapping[str, Flag] = {
    "enable_trace_replay": refused("requests are not replayed", is_switch=True),
    "watermark_config": refused("replies are not marked"),
    "diffusion_config": refused("models that write by diffusion are not served"),
    "weight_transfer_config": refused("weights are not changed while the model serves"),
    "override_neuron_config": refused("GPUs and processors are used", unless=("{}",)),
    "use_fp64_gumbel": unneeded("tokens are drawn without Gumbel noise", is_switch=True),
    **all_unneeded(
        _GRAPHS,
        "compilation_config optimization_level max_seq_len_to_capture max_cudagraph_capture_size "
        "jit_monitor_mode",
        switches="enforce_eager cudagraph_metrics jit_monitor_verbose",
        lists="cudagraph_capture_sizes cuda_graph_sizes",
    ),
    **all_unneeded(
        _KERNELS,
        "attention_backend attention_config override_attention_dtype kernel_config ir_op_priority "
        "moe_backend linear_backend mamba_backend mamba_ssu_algorithm gdn_prefill_backend "
        "kda_prefill_backend kda_decode_backend additional_config",
        switches="disable_cascade_attn enable_flashinfer_autotune enable_bf16x3_router_gemm",
    ),
    **all_unneeded(
        _METRICS,
        "show_hidden_metrics_for_version per_request_spec_decode_metrics kv_cache_metrics_sample "
        "profiler_config",
        switches="kv_cache_metrics enable_mfu_metrics enable_layerwise_nvtx_tracing "
        "enable_logging_iteration_details aggregate_engine_logging enable_per_request_metrics",
        lists="collect_detailed_traces",
    ),
    **all_unneeded(
        "unknown variables that begin with PREDICTOR_ are always refused",
        switches="fail_on_environ_validation",
    ),
}

_SPECULATION: Mapping[str, Flag] = {
    "speculative_config": Flag(
        ("prompt_lookup_num_tokens", "draft_model_dir", "draft_model_num_tokens"),
        _speculation,
        _METHODS,
    ),
    "speculative_model": Flag(
        ("draft_model_dir",), _draft_model, "with `[ngram]` drafts are looked up, as always"
    ),
    "spec_model": Flag(
        ("draft_model_dir",), _draft_model, "with `ngram` drafts are looked up, as always"
    ),
    "spec_method": refused(
        _OTHER_DRAFTS,
        unless=("ngram", "draft_model"),
        reason=_METHODS,
    ),
    "num_speculative_tokens": same("prompt_lookup_num_tokens", "draft_model_num_tokens"),
    "spec_tokens": same("prompt_lookup_num_tokens", "draft_model_num_tokens"),
    "spec_decoding_acceptance_method": refused(
        f"{_EXACT}; leave the flag out", unless=("rejection_sampler",), reason=_EXACT
    ),
    **all_unneeded(_LOOKUPS, "ngram_prompt_lookup_max ngram_prompt_lookup_min"),
    **all_unneeded(_DRAFTS, "speculative_disable_by_batch_size"),
    **all_unneeded(
        "the draft model's own files say it, and it stays in memory whole",
        "speculative_model_quantization speculative_draft_tensor_parallel_size "
        "speculative_max_model_len",
    ),
    **all_unneeded(
        _EXACT,
        "typical_acceptance_sampler_posterior_threshold typical_acceptance_sampler_posterior_alpha",
        switches="speculative_disable_mqa_scorer disable_logprobs_during_spec_decoding",
    ),
}

ENGINE_FLAGS: Mapping[str, Flag] = {
    **_PARALLEL,
    **_MEMORY,
    **_SCHEDULING,
    **_COMPUTATION,
    **_SPECULATION,
}
"""The engine's flags by name, with underscores."""
