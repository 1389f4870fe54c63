"""The sections of ``model-config.yaml`` for the handler, which have no fixed schema.

The keys are those of TorchServe's own examples. If the handler passed ``max_new_tokens`` to
``generate`` as ``max_length``, it was the length of prompt and reply together. The handlers for
PiPPy, DeepSpeed and Llama did so.
"""

from __future__ import annotations

from typing import Any

from predictor.checkpoint.weight_files import stays_within
from predictor.dtypes import HANDLER_NAMES, name_of
from predictor.migration.mapping import KeyMapping, Rule, always, changed, dropped, kept
from predictor.migration.rules import task
from predictor.migration.rules.frontend import is_int
from predictor.migration.torchserve_archive import TorchServeArchive

QUANTISED = dropped("weights are served in `dtype`, not quantised, and offloaded if need be")

OUTSIDE = changed(
    "`--offload_folder`: an archive does not say where outside of the model something is written"
)

_DEFAULT = "the default of requests, in `override_generation_config`"

_DTYPES = HANDLER_NAMES | {"auto": "auto"}


def length_limits(source: TorchServeArchive) -> tuple[int | None, int | None]:
    """Return the most tokens of a prompt and of a reply; None for an unset limit."""
    section = source.section("handler")
    prompt, reply = (count(section.get(key)) for key in ("max_length", "max_new_tokens"))
    return prompt, reply


def is_total(source: TorchServeArchive) -> bool:
    """Return whether ``max_new_tokens`` was the length of prompt and reply together."""
    return bool(
        source.handler.limits_total or source.section("pippy") or source.section("deepspeed")
    )


def count(value: Any) -> int | None:
    """Return a number of tokens, which may be text or 80.0; None for any other value."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if is_int(value) and value > 0 else None


def _max_length(value: Any, source: TorchServeArchive) -> KeyMapping:
    prompt, reply = length_limits(source)
    if prompt is None:
        return dropped("no number of tokens")
    if reply is None:
        return kept(f"`max_length` {prompt}", max_length=prompt)
    if is_total(source):
        return changed(f"prompt and reply share the {reply} tokens of `max_new_tokens`")
    return changed(
        f"with `max_new_tokens` it is `max_model_len` {prompt + reply}; a prompt that is longer is "
        "refused, not cut",
        max_model_len=max(prompt + reply, 2),
    )


def _max_new_tokens(value: Any, source: TorchServeArchive) -> KeyMapping:
    _, reply = length_limits(source)
    if reply is None:
        return dropped("no number of tokens")
    generation = {"max_new_tokens": reply}
    if is_total(source):
        return KeyMapping(
            "done otherwise",
            f"`max_model_len` {reply}: the handler gave it to generate() as max_length, so it was "
            "the total length of prompt and reply",
            {"max_model_len": max(reply, 2)},
            generation,
        )
    return KeyMapping("taken over", _DEFAULT, {}, generation)


def _temperature(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not _is_number(value) or not 0 <= value <= 100:
        return dropped("no temperature")
    if value == 0:
        return KeyMapping(
            "taken over",
            "greedy: do_sample false in `override_generation_config`",
            {},
            {"do_sample": False},
        )
    return _default(source, temperature=float(value), do_sample=True)


def _top_p(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not _is_number(value) or not 0 < value <= 1:
        return dropped("no probability")
    return _default(source, top_p=float(value), do_sample=True)


def _top_k(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not is_int(value) or value < 0:
        return dropped("no number of tokens")
    return _default(source, top_k=value, do_sample=True)


def _do_sample(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not isinstance(value, bool):
        return dropped("neither true nor false")
    if value and not _samples(source):
        return changed("a temperature of 0 is greedy")
    return _default(source, do_sample=value)


def _repetition_penalty(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not _is_number(value) or not 0 < value <= 100:
        return dropped("no penalty")
    return _default(source, repetition_penalty=float(value))


def _default(source: TorchServeArchive, **generation: Any) -> KeyMapping:
    if "do_sample" in generation:
        generation["do_sample"] = _samples(source)
    return KeyMapping("taken over", _DEFAULT, {}, generation)


def _samples(source: TorchServeArchive) -> bool:
    """Return whether the section samples tokens. Any sampling parameter implies it."""
    section = source.section("handler")
    if _is_number(section.get("temperature")) and section["temperature"] == 0:
        return False
    return section.get("do_sample") is not False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dtype(value: Any, source: TorchServeArchive) -> KeyMapping:
    name = _DTYPES.get(name_of(value)) if isinstance(value, str) else None
    if name is None:
        return dropped("weights are served in float64, float32, float16 or bfloat16")
    return kept(f"`dtype` {name}", dtype=name)


def _quantization(value: Any, source: TorchServeArchive) -> KeyMapping:
    if not value:
        return kept("weights are not quantised unless `weights_dtype` says so")
    return QUANTISED


def _setting(name: str) -> Rule:
    return lambda value, source: kept(f"`{name}`", **{name: value})


def is_below(folder: Any) -> bool:
    """Return whether a value names a folder below the model's."""
    return isinstance(folder, str) and stays_within(folder)


def _offload_folder(value: Any, source: TorchServeArchive) -> KeyMapping:
    return kept("`offload_folder`", offload_folder=value) if is_below(value) else OUTSIDE


_FOLDER = changed("the model is in the folder of its config.json: this one if it is there")
_TUNED = dropped("tuning of another engine")
_PARALLEL = changed("`device_map`: whole blocks on each GPU")

RULES: dict[str, Rule] = {
    "model_name": always(
        changed("the model is that in this directory; its URLs have the manifest's name")
    ),
    "model_path": always(_FOLDER),
    "model_dir": always(_FOLDER),
    "max_length": _max_length,
    "max_new_tokens": _max_new_tokens,
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "do_sample": _do_sample,
    "repetition_penalty": _repetition_penalty,
    "manual_seed": always(changed("a request says `seed`; others are sampled anew")),
    "seed": always(changed("a request says `seed`; others are sampled anew")),
    "dtype": _dtype,
    "torch_dtype": _dtype,
    "quantization": _quantization,
    "return_full_text": always(
        changed(
            "a request says `return_full_text`; the prompt is in other replies with "
            "`torchserve_semantics` only"
        )
    ),
    "trust_remote_code": always(
        dropped("say `--trust_remote_code` yourself if you trust the model's author")
    ),
    "batch_size": always(
        changed("requests join the running batch at every token; `max_batch_size` bounds it")
    ),
    **task.RULES,
    "tensor_parallel": always(_PARALLEL),
    "tp_size": always(_PARALLEL),
    "index_filename": always(changed("the index of the weights is found by its usual name")),
    "tokenizer_dir": always(changed("the tokenizer is that beside the model")),
    "engine_dir": always(dropped("compiled engines are not read; the model's own weights are")),
    "kv_cache_config": always(changed("the KV cache is planned; `max_model_len`, `max_memory`")),
    "vllm_engine_config": always(dropped("another engine's arguments")),
    "adapters": always(dropped("adapters are not loaded; merge them into the weights")),
    "chat_template": always(dropped("the chat template is that in the model's tokenizer")),
    "compile": always(_TUNED),
    "fast_kernels": always(_TUNED),
    **{
        name: _setting(name)
        for name in (
            *("device_map", "max_memory", "offload_state_dict", "low_cpu_mem_usage", "revision"),
        )
    },
    "offload_folder": _offload_folder,
}
"""The rules for keys in the section ``handler``."""

SECTIONS: dict[str, KeyMapping] = {
    "pippy": changed("the plan puts whole blocks on each GPU; nothing is cut into chunks"),
    "deepspeed": changed("the plan puts whole blocks on each GPU; the checkpoint is read as is"),
    "micro_batching": changed("prompts are read in chunks of `prefill_chunk`, amid running ones"),
    "pt2": dropped("models are not compiled"),
}
"""The mapping of all keys in any other section."""
