"""The flags of vLLM's server that are about the model, its files, its adapters and its media."""

from __future__ import annotations

from collections.abc import Mapping

from predictor.compatibility.flag import (
    Flag,
    Values,
    all_unneeded,
    model_or_directory,
    refused,
    unneeded,
)
from predictor.compatibility.vllm_engine_flags import PLUGIN

_ADAPTERS = "all of --lora_modules stay in memory, whatever their ranks, and share forward passes"
_ADAPTER_FILES = "adapters are applied as their own config says"
_FILES = "change it in the model's own files"
_MEDIA = "a model's text alone is served"
_DETECTED = "the task is detected, or set with --task"
_LOADING = "weights are read at the speed of the device"
_POOLING = "the model's own modules.json says it"
_PUBLISHED = (
    *("awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "modelopt"),
    *("modelopt_fp4", "mxfp4", "quark", "fbgemm_fp8", "auto-round"),
)
_CONVERTED = {"embed": "text_embedding", "classify": "sequence_classification"}


def _names(values: Values) -> dict[str, str]:
    """Return the model's name, and the other names that OpenAI's clients may use."""
    plain = next((name for name in values if "/" not in name), values[0].rpartition("/")[2])
    others = ",".join(name for name in values if name != plain)
    return {"model_name": plain} | ({"model_aliases": others} if others else {})


def _model(values: Values) -> dict[str, str]:
    """Return the setting of a model, which vLLM may stream from a bucket."""
    is_uri = "://" in values[-1]
    return {"model_uri": values[-1]} if is_uri else model_or_directory(values)


def _task(values: Values) -> dict[str, str]:
    """Return the task that a model is converted to."""
    task = _CONVERTED.get(values[-1].lower())
    return {"task": task} if task else {}


def _runner(values: Values) -> dict[str, str]:
    """Return the task that excludes models that generate."""
    return {"task": "pooling"} if values[-1].lower() == "pooling" else {}


_MODEL: Mapping[str, Flag] = {
    "model": Flag(
        ("model_dir", "model_id", "model_uri"),
        _model,
        "a path, a repository on the hub or a URI",
    ),
    "served_model_name": Flag(
        ("model_name", "model_aliases"),
        _names,
        "the first name without a slash is in URLs; the others are for OpenAI's clients",
        count="+",
    ),
    "code_revision": refused(
        "code is the one of the model's revision; set --model_revision",
        equal_to="model_revision",
    ),
    "tokenizer": refused("put the tokenizer's files into the model directory (--model_dir)"),
    "tokenizer_mode": refused("the tokenizer is transformers' own", unless=("auto", "hf")),
    "skip_tokenizer_init": refused("the tokenizer is needed", is_switch=True),
    "config_format": refused("the config is config.json", unless=("auto", "hf")),
    "hf_config_path": refused("put config.json into the model directory (--model_dir)"),
    "hf_overrides": refused(_FILES, unless=("{}",)),
    "hf_token": refused(
        "set HF_TOKEN in the environment, which no list of processes shows",
        unless=("true",),
        reason="the token of HF_TOKEN or of the hub's own login is used",
        count="?",
        is_secret=True,
    ),
    "download_dir": refused("set HF_HOME in the environment"),
    "rope_scaling": refused(_FILES),
    "rope_theta": refused(_FILES),
    "disable_sliding_window": refused("set --max_model_len to the model's window", is_switch=True),
    "model_class_overrides": refused("the class is the one of config.json", unless=("{}",)),
    "generation_config": refused(
        "the model's generation_config.json is followed; set --override_generation_config",
        unless=("auto",),
    ),
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
    ),
    "quantization_config": refused(
        "--weights_dtype int8 or int4 quantises a model that is not quantised", unless=("{}",)
    ),
    "allow_deprecated_quantization": unneeded(
        "a quantised checkpoint is recognised by its config", is_switch=True
    ),
    "runner": Flag(
        ("task",),
        _runner,
        _DETECTED,
        accepted=("auto", "generate", "pooling"),
        instead="a draft model is --draft_model_dir",
    ),
    "convert": Flag(
        ("task",),
        _task,
        _DETECTED,
        accepted=("auto", "none", *_CONVERTED),
        instead="models of rewards are not served",
    ),
    "model_impl": unneeded("the model's own implementation of transformers is used"),
    "pooler_config": refused(_POOLING, unless=("{}",), reason=_POOLING),
    "override_pooler_config": refused(_POOLING, unless=("{}",), reason=_POOLING),
    "io_processor_plugin": refused(PLUGIN),
    "seed": unneeded("each request may have a seed of its own"),
    **all_unneeded(
        _LOADING,
        "safetensors_load_strategy safetensors_prefetch_num_threads "
        "safetensors_prefetch_block_size model_loader_extra_config max_parallel_loading_workers",
    ),
    **all_unneeded("files that are not needed are not read", lists="ignore_patterns"),
    **all_unneeded("weights go where the plan puts them", "pt_load_map_location"),
    **all_unneeded("the log shows the progress of loading", switches="use_tqdm_on_load"),
    **all_unneeded(
        "tokens are counted and decoded by the tokenizer's own code",
        "tokenizer_pool_size tokenizer_pool_type tokenizer_pool_extra_config "
        "intial_incremental_detokenization_offset",
    ),
}

_LORA: Mapping[str, Flag] = {
    "lora_target_modules": refused(_ADAPTER_FILES, count="+"),
    "long_lora_scaling_factors": refused(_ADAPTER_FILES),
    "default_mm_loras": refused("a request picks an adapter by its name", unless=("{}",)),
    "qlora_adapter_name_or_path": refused("set --lora_modules"),
    "enable_prompt_adapter": refused("adapters of prompts are not served", is_switch=True),
    "prompt_adapters": refused("adapters of prompts are not served", count="+"),
    **all_unneeded(
        "adapters of prompts are not served", "max_prompt_adapters max_prompt_adapter_token"
    ),
    **all_unneeded(
        _ADAPTERS,
        "max_loras max_lora_rank max_cpu_loras",
        switches="enable_lora fully_sharded_loras specialize_active_lora "
        "enable_mixed_moe_lora_format enable_moe_shared_loras",
    ),
    **all_unneeded(
        "adapters have the dtype and the vocabulary of the model",
        "lora_dtype lora_extra_vocab_size",
    ),
    **all_unneeded("an adapter with a bias is refused", switches="enable_lora_bias"),
}

_MEDIA_FLAGS: Mapping[str, Flag] = {
    "mm_encoder_only": refused(_MEDIA, is_switch=True),
    "ec_transfer_config": refused(_MEDIA),
    **all_unneeded(
        _MEDIA,
        "limit_mm_per_prompt allowed_local_media_path media_io_kwargs mm_processor_kwargs "
        "mm_processor_cache_gb mm_processor_cache_type mm_hasher_algorithm "
        "mm_shm_cache_max_object_size_mb mm_encoder_tp_mode mm_encoder_attn_backend "
        "mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path "
        "mm_encoder_fp8_scale_save_margin video_pruning_rate video_pruning_method mm_tensor_ipc "
        "mm_processor_device mm_ipc_gpu_memory_gb ec_manager_config",
        switches="language_model_only enable_mm_embeds disable_mm_preprocessor_cache "
        "interleave_mm_strings skip_mm_profiling mm_device_do_normalize "
        "enable_multimodal_encoder_data_parallel enable_tower_connector_lora",
        lists="allowed_media_domains",
    ),
}

MODEL_FLAGS: Mapping[str, Flag] = {**_MODEL, **_LORA, **_MEDIA_FLAGS}
"""The flags by name, with underscores."""
