"""Write the same weights in other formats, for `quantised.py`, in a process of its own.

- ``fp8``: a checkpoint as DeepSeek-V3 and Qwen3-FP8 are published (``weight_scale_inv`` for each
  block of 128 x 128), by the Python that has torch.
- ``bf16``, ``q8_0``, ``q4_0``: a GGUF file, by a Python that has gguf. As llama.cpp's own
  quantisation does, norms stay in float32. Head and embeddings get 8 bits in both quantised files:
  for q4_0, llama.cpp would store 6.6 bits, a format that gguf cannot write.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import CannotMeasure, run
from mixture_peers import read_tensors

GGUF_FORMATS = ("bf16", "q8_0", "q4_0")
_BLOCK = 128

_LAYERS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_DENSE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_as(kind: str, model: Path, target: Path, python: Path | str = sys.executable) -> None:
    """Write a model in another format, in a process of its own.

    Raises:
        CannotMeasure: It cannot be written.
    """
    done = run([str(python), __file__, kind, str(model), str(target)])
    if done.returncode != 0:
        raise CannotMeasure(f"The model cannot be written as {kind}: {done.last_words}")


def main() -> None:
    """Write one file or checkpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("format", choices=["fp8", *GGUF_FORMATS])
    parser.add_argument("model", type=Path, help="a checkpoint of a Llama in bfloat16")
    parser.add_argument("target", type=Path, help="the folder, or the file, to write")
    flags = parser.parse_args()
    if flags.format == "fp8":
        write_fp8(flags.model, flags.target)
    else:
        write_gguf(flags.model, flags.target, flags.format)


def write_fp8(folder: Path, target: Path) -> None:
    """Write a checkpoint with the linear layers of all blocks in FP8, a file at a time."""
    import torch
    from safetensors.torch import load_file, save_file

    target.mkdir()
    names: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(file).items():
            if name.startswith("model.layers.") and tensor.dim() == 2:
                tensors[name], tensors[f"{name}_scale_inv"] = _fp8(tensor)
            else:
                tensors[name] = tensor
        save_file(tensors, target / file.name, {"format": "pt"})
        names |= dict.fromkeys(tensors, file.name)
    index = {"metadata": {}, "weight_map": names}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in folder.glob("tokenizer*.json"):
        shutil.copy(file, target)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [_BLOCK, _BLOCK],
        "modules_to_not_convert": ["lm_head"],
    }
    (target / "config.json").write_text(json.dumps(config))


def _fp8(weight: Any) -> tuple[Any, Any]:
    """Return a matrix in FP8 and its scales; its sides are multiples of the block's."""
    import torch

    rows, columns = weight.shape
    blocks = weight.float().view(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    eight = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return eight.view(rows, columns), scale


def write_gguf(folder: Path, target: Path, kind: str) -> None:
    """Write a GGUF file, a tensor at a time."""
    import gguf  # type: ignore[import-not-found]

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    _write_head(writer, config)
    for name, tensor, stored in _tensors(folder, config, kind):
        _add_info(writer, name, tensor, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor, stored in _tensors(folder, config, kind):
        writer.write_tensor_data(_stored(tensor, stored))
    writer.close()


def _add_info(writer: Any, name: str, tensor: Any, kind: Any) -> None:
    import gguf
    import numpy as np

    shape, dtype = tensor.shape, tensor.dtype
    values, size = gguf.GGML_QUANT_SIZES[kind]
    if values > 1:
        shape, dtype = gguf.quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8)
    writer.add_tensor_info(name, shape, dtype, tensor.size // values * size, raw_dtype=kind)


def _write_head(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    count = config["vocab_size"]
    writer.add_vocab_size(count)
    # Its server needs some tokenizer, although requests and replies are token ids.
    writer.add_tokenizer_model("llama")
    tokens = [f"w{index}" for index in range(count)]
    types = [int(gguf.TokenType.NORMAL)] * count
    for byte in range(256):
        tokens[3 + byte], types[3 + byte] = f"<0x{byte:02X}>", int(gguf.TokenType.BYTE)
    tokens[0], types[0] = "<unk>", int(gguf.TokenType.UNKNOWN)
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * count)
    writer.add_token_types(types)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _tensors(folder: Path, config: dict[str, Any], kind: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield llama.cpp's names with tensors and how to store them."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    blocks, others = {
        "bf16": (kinds.BF16, kinds.BF16),
        "q8_0": (kinds.Q8_0, kinds.Q8_0),
        "q4_0": (kinds.Q4_0, kinds.Q8_0),
    }[kind]
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_tensors(file).items():
            module = name.removesuffix(".weight")
            if module in _DENSE:
                new, stored = _DENSE[module], others
            else:
                _, _, layer, part = module.split(".", 3)
                new, stored = f"blk.{layer}.{_LAYERS[part]}", blocks
                if (head := heads.get(_LAYERS[part])) is not None:
                    tensor = _permuted(tensor, config[head])
            if tensor.ndim == 1:
                tensor, stored = _float32(tensor), kinds.F32
            yield f"{new}.weight", tensor, stored


def _permuted(tensor: Any, heads: int) -> Any:
    """Return rows in the order of llama.cpp, which rotates neighbours (`LlamaModel.permute`)."""
    rows, columns = tensor.shape
    halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _float32(tensor: Any) -> Any:
    import numpy as np

    return (tensor.astype(np.uint32) << 16).view(np.float32)


def _stored(tensor: Any, kind: Any) -> Any:
    import gguf
    import numpy as np

    if gguf.GGML_QUANT_SIZES[kind][0] == 1:
        return np.ascontiguousarray(tensor)
    return gguf.quants.quantize(_float32(tensor), kind)


if __name__ == "__main__":
    main()
