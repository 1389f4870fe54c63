"""A peer of `experts.py`, run as its own process inside a memory cgroup. Prints one JSON object.

- ``accelerate``: transformers with ``device_map="auto"``, a ``max_memory`` of the limit less the
  process, and a folder for what does not fit.
- ``llama.cpp``: through cyllama, whose wheels on PyPI hold it built, run by the Python of an
  environment with cyllama and gguf. Its file is mapped, so the page cache decides what stays.
  ``convert`` writes that file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from contestants import Generate, Meter

_BATCH = 512
"""Tokens of a pass of llama.cpp."""


def main() -> None:
    """Run one peer at each number of users and print its cost, or convert a model for one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=[*PEERS, "convert"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--users", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=0, help="tokens of the long prompt")
    parser.add_argument("--vocabulary", type=int, default=0)
    flags = parser.parse_args()
    if flags.peer == "convert":
        convert(flags.model)
        return
    generate = PEERS[flags.peer](flags)
    levels = {users: _level(generate, users, flags) for users in flags.users}
    result = {"group": Path("/proc/self/cgroup").read_text(), "levels": levels}
    if flags.prompt:
        meter = Meter()
        meter.mark()
        generate(
            [[1 + (7 * at) % (flags.vocabulary - 1) for at in range(flags.prompt)]], 1, _ignore
        )
        meter.mark()
        (cost,) = meter.per_token()
        result["prefill"] = {"seconds": cost["seconds"], "read_bytes": cost["read_bytes"]}
    print("\n" + json.dumps(result))


def _ignore() -> None:
    """Do nothing after a token."""


def _level(generate: Generate, users: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of a pass with so many users, who begin apart on the model's walk."""
    meter = Meter()
    apart = flags.vocabulary // users
    prompts = [[1 + apart * user] for user in range(users)]
    replies = generate(prompts, flags.tokens, meter.mark)
    costs = meter.per_token()
    return {
        "replies": [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)],
        "seconds": statistics.median(cost["seconds"] for cost in costs),
        "read_bytes": statistics.median(cost["read_bytes"] for cost in costs),
    }


def _accelerate(flags: argparse.Namespace) -> Generate:
    from contestants import accelerate_model, memory_left, transformers_generates

    limits: dict[Any, Any] = dict(memory_left(flags.limit)) if flags.limit else {}
    return transformers_generates(
        accelerate_model(flags.model, device_map="auto", max_memory=limits or None)
    )


def _llama_cpp(flags: argparse.Namespace) -> Generate:
    from cyllama.llama import llama_cpp as llama  # type: ignore[import-not-found]

    llama.disable_logging()
    llama.ggml_backend_load_all()
    model_params, params = llama.LlamaModelParams(), llama.LlamaContextParams()
    model_params.use_mmap, model_params.n_gpu_layers = True, 0
    most = max(flags.users)
    params.n_seq_max, params.n_batch = most, _BATCH
    params.n_ctx = most * (flags.tokens + 8) + flags.prompt
    params.kv_unified = True
    model = llama.LlamaModel(str(flags.model), model_params)
    context = llama.LlamaContext(model, params)
    sampler = llama.LlamaSampler(llama.LlamaSamplerChainParams())
    sampler.add_greedy()

    def generate(
        prompts: Sequence[Sequence[int]], count: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        context.kv_cache_clear()
        batch = llama.LlamaBatch(n_tokens=_BATCH, embd=0, n_seq_max=most)
        texts = [list(prompt) for prompt in prompts]
        done = [0] * len(texts)
        for _ in range(count):
            entries = _entries(texts, done)
            for start in range(0, len(entries), _BATCH):
                piece = entries[start : start + _BATCH]
                batch.clear()
                for token, position, row, is_last in piece:
                    batch.add(token, position, [row], is_last)
                context.decode(batch)
            done = [len(text) for text in texts]
            ends = [index for index, (*_, is_last) in enumerate(piece) if is_last]
            for index, text in zip(ends, texts, strict=True):
                text.append(sampler.sample(context, index))
            mark()
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    return generate


def _entries(texts: Sequence[Sequence[int]], done: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return each new token with its position, its row, and whether it is the row's last."""
    return [
        (text[position], position, row, position == len(text) - 1)
        for row, (text, begin) in enumerate(zip(texts, done, strict=True))
        for position in range(begin, len(text))
    ]


PEERS = {"accelerate": _accelerate, "llama.cpp": _llama_cpp}


def convert(folder: Path) -> None:
    """Write ``model.gguf`` from a checkpoint of `mixtures`, in bfloat16."""
    import gguf  # type: ignore[import-not-found]

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3moe")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    kinds = gguf.GGMLQuantizationType
    for name, tensor in _tensors(folder, config):
        kind = kinds.BF16 if tensor.itemsize == 2 else kinds.F32
        writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in _tensors(folder, config):  # one at a time, since all do not fit in memory
        writer.write_tensor_data(tensor)
    writer.close()


_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield llama.cpp's names with tensors: bfloat16 as uint16, or float32 where it wants that."""
    import numpy as np

    dense = read_tensors(folder / "dense.safetensors")
    names = dict(_NAMES)
    for layer in range(config["num_hidden_layers"]):
        names |= {
            f"model.layers.{layer}.{old}": f"blk.{layer}.{new}" for old, new in _BLOCK_NAMES.items()
        }
    for old, new in names.items():
        tensor = dense[f"{old}.weight"]
        if tensor.ndim == 1 or new.endswith("ffn_gate_inp"):
            tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
        yield f"{new}.weight", tensor
    for layer in range(config["num_hidden_layers"]):
        experts = read_tensors(folder / f"experts-{layer:05d}.safetensors")
        prefix = f"model.layers.{layer}.mlp.experts"
        for part in ("gate", "up", "down"):
            each = (f"{prefix}.{index}.{part}_proj" for index in range(config["num_experts"]))
            stacked = np.stack([experts[f"{name}.weight"] for name in each])
            yield f"blk.{layer}.ffn_{part}_exps.weight", stacked


def read_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a file in bfloat16, as integers of 16 bits."""
    import numpy as np

    data = np.memmap(file, mode="r")
    length = int(data[:8].view(np.uint64)[0])
    header = json.loads(bytes(data[8 : 8 + length]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        tensors[name] = data[begin:end].view(np.uint16).reshape(entry["shape"])
    return tensors


if __name__ == "__main__":
    main()
