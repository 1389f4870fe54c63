"""The table of the flags of Text Generation Inference's launcher."""

from __future__ import annotations

from typing import Any

import pytest

from predictor.compatibility.apply import FLAGS
from predictor.compatibility.tgi_flags import TGI_FLAGS
from predictor.errors import ConfigurationError
from predictor.settings import Settings, read_settings

LAUNCHER = [
    *("model_id", "revision", "validation_workers", "sharded", "num_shard", "quantize"),
    *("speculate", "dtype", "kv_cache_dtype", "trust_remote_code", "max_concurrent_requests"),
    *("max_best_of", "max_stop_sequences", "max_top_n_tokens", "max_input_tokens"),
    *("max_input_length", "max_total_tokens", "waiting_served_ratio", "max_batch_prefill_tokens"),
    *("max_batch_total_tokens", "max_waiting_tokens", "max_batch_size", "cuda_graphs", "hostname"),
    *("port", "prometheus_port", "shard_uds_path", "master_addr", "master_port"),
    *("huggingface_hub_cache", "weights_cache_override", "disable_custom_kernels"),
    *("cuda_memory_fraction", "rope_scaling", "rope_factor", "json_output", "otlp_endpoint"),
    *("otlp_service_name", "cors_allow_origin", "api_key", "watermark_gamma", "watermark_delta"),
    *("ngrok", "ngrok_authtoken", "ngrok_edge", "tokenizer_config_path"),
    *("disable_grammar_support", "env", "max_client_batch_size", "lora_adapters", "usage_stats"),
    *("payload_limit", "enable_prefill_logprobs", "graceful_termination_timeout"),
]
"""The launcher's flags in version 3.3 (``docs/source/reference/launcher.md``)."""


def test_every_flag_of_the_launcher_is_in_the_table() -> None:
    assert set(TGI_FLAGS) == set(LAUNCHER)
    assert all(flag is not FLAGS.get(name) for name, flag in TGI_FLAGS.items())


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_flag_sets_settings_or_says_why_it_does_not(name: str) -> None:
    flag = TGI_FLAGS[name]
    assert set(flag.settings) <= set(Settings.model_fields)
    assert flag.settings or flag.reason
    assert (flag.accepted is None) == (not flag.instead)


@pytest.mark.parametrize(
    ("name", "value", "settings"),
    [
        ("model_id", "org/gpt", {"model_id": "org/gpt"}),
        ("model_id", "/data/gpt", {"model_dir": "/data/gpt"}),
        ("max_total_tokens", "2048", {"max_model_len": "2048"}),
        ("max_concurrent_requests", "9", {"max_requests": "9"}),
        ("max_batch_prefill_tokens", "99", {"prefill_chunk": "99"}),
        ("quantize", "bitsandbytes", {"weights_dtype": "int8"}),
        ("quantize", "eetq", {"weights_dtype": "int8"}),
        ("quantize", "bitsandbytes-nf4", {"weights_dtype": "int4"}),
        ("quantize", "bitsandbytes-fp4", {"weights_dtype": "int4"}),
        ("quantize", "gptq", {}),
        ("quantize", "compressed-tensors", {}),
        ("lora_adapters", "org/a,b=/x", {"lora_modules": "a=org/a,b=/x"}),
        ("json_output", "true", {"log_format": "json"}),
        ("cuda_memory_fraction", "0.5", {"gpu_fraction": "0.5"}),
        ("payload_limit", "2000000", {"max_body_size": "2000000"}),
        ("graceful_termination_timeout", "90", {"grace_period": "90"}),
        ("cors_allow_origin", "https://a.b", {"allowed_origins": "https://a.b"}),
        ("max_waiting_tokens", "20", {}),
    ],
)
def test_a_flag_becomes_settings_that_are_valid(
    name: str, value: str, settings: dict[str, Any]
) -> None:
    assert TGI_FLAGS[name].apply(name, (value,)) == settings
    read_settings({"model_id": "org/gpt", **settings} if settings else {}, environ={})


@pytest.mark.parametrize(("name", "value"), [("quantize", "exl2"), ("quantize", "fp8")])
def test_what_cannot_be_done_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match="is not supported: an FP8 checkpoint"):
        TGI_FLAGS[name].apply(name, (value,))
