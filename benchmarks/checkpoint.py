"""Make a large random checkpoint quickly, and drop it from the page cache.

The model is a Llama. Its weights are written a block at a time with numpy, so that this process
holds neither torch nor the whole model.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import mmap
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from measuring import CannotMeasure
from tokenizers import Tokenizer, models, pre_tokenizers

_STORED = {"float32": "F32", "bfloat16": "BF16"}
_READ = 16 * 2**20
_PIECE = 4 * 2**20
"""Bytes of a direct read, a multiple of every device's blocks."""

_SCALE = 0.05
"""Standard deviation of the weights: large enough that the tokens vary."""

_MOST_CACHED = 0.01
"""The largest fraction of a checkpoint that may be in the page cache when a run starts."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a model.

    Attributes:
        hidden: Width; a multiple of ``head * heads_per_key``.
        blocks: The number of blocks.
        vocabulary: The number of tokens.
        dtype: ``"float32"`` or ``"bfloat16"``.
        head: Width of an attention head.
        heads_per_key: Query heads that share a key head.
        mlp: Width of the MLP; None for five halves of the model's.
        positions: Tokens of the longest sequence.
    """

    hidden: int
    blocks: int
    vocabulary: int
    dtype: str
    head: int = 128
    heads_per_key: int = 4
    mlp: int | None = None
    positions: int = 2048

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return self.mlp or self.hidden * 5 // 2


OFFLOADED = Size(2048, 10, 32000, "bfloat16", head=64, heads_per_key=8, mlp=5632)
"""1.1 GB, which benchmarks serve with most of its blocks on disk."""


def make(folder: Path, size: Size) -> int:
    """Write a checkpoint with a file for each block; return the bytes of its weights."""
    weight_map: dict[str, str] = {}
    total = 0
    random = np.random.default_rng(0)
    for index, shapes in enumerate(_files(size)):
        file = f"model-{index + 1:05d}-of-{size.blocks + 1:05d}.safetensors"
        tensors = {name: _tensor(random, shape, size.dtype) for name, shape in shapes.items()}
        write_safetensors(folder / file, tensors, size.dtype)
        weight_map |= dict.fromkeys(shapes, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
    (folder / "config.json").write_text(json.dumps(_config(size)))
    write_tokenizer(folder, size.vocabulary)
    return total


def _files(size: Size) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield names and shapes, file by file: one for each block, then the dense part."""
    hidden, keys, inner = size.hidden, size.hidden // size.heads_per_key, size.inner
    block = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for index in range(size.blocks):
        yield {f"model.layers.{index}.{name}.weight": shape for name, shape in block.items()}
    table = (size.vocabulary, hidden)
    yield {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (hidden,),
        "lm_head.weight": table,
    }


def make_bert(folder: Path, *, hidden: int, blocks: int, words: int = 100) -> None:
    """Write a BERT without a head, for embeddings, with weights in float32."""
    random, inner, most = np.random.default_rng(0), 2 * hidden, 64
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, hidden),
        "embeddings.position_embeddings.weight": (most, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    matrices = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for index in range(blocks):
        block = f"encoder.layer.{index}"
        for name, shape in matrices.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{block}.{name}.weight": (hidden,), f"{block}.{name}.bias": (hidden,)}
    tensors = {name: _tensor(random, shape, "float32") for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors, "float32")
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 32,
        "max_position_embeddings": most,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, words)


def _tensor(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return random weights; bfloat16, which numpy lacks, as the upper halves of float32."""
    values = random.standard_normal(shape, dtype=np.float32)
    values *= _SCALE
    if len(shape) == 1:
        values[...] = 1  # a norm's
    return bfloat16(values) if dtype == "bfloat16" else values


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers as bfloat16, which numpy knows only as integers of 16 bits."""
    return (values.astype(np.float32, copy=False).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write the format by hand: its length, a JSON header padded to 8 bytes, the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _STORED[dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor).data)


def _config(size: Size) -> dict[str, object]:
    heads = size.hidden // size.head
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // size.heads_per_key,
        "head_dim": size.head,
        "max_position_embeddings": size.positions,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": size.dtype,
    }


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer with a token for each of the words w1, w2, ..."""
    words = {"<unk>": 0} | {f"w{index}": index for index in range(1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def drop_from_cache(folder: Path, pattern: str = "*.safetensors") -> None:
    """Drop a checkpoint's pages from the page cache, and check that they are gone.

    Raises:
        CannotMeasure: They stay, as on a file system in memory.
    """
    files = sorted(folder.glob(pattern))
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # dirty pages cannot be dropped
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cached = sum(_cached_bytes(file) for file in files)
    size = sum(file.stat().st_size for file in files)
    if cached > _MOST_CACHED * size:
        raise CannotMeasure(
            f"{cached} of the checkpoint's {size} bytes stay in the page cache; "
            "put --workdir on a disk."
        )


def _cached_bytes(file: Path) -> int:
    """Return the bytes of a file in the page cache, from mincore(2)."""
    length = file.stat().st_size
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    view = np.memmap(file, mode="r")
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(length), pages)
    if failed:
        raise CannotMeasure(f"mincore failed on {file}: {os.strerror(ctypes.get_errno())}.")
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def read_speed(folder: Path) -> float:
    """Return the bytes per second of reading a checkpoint from disk once, front to back."""
    drop_from_cache(folder)
    buffer = bytearray(_READ)
    total, began = 0, time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                total += count
    return total / (time.perf_counter() - began)


def direct_read_speed(
    folder: Path, *, readers: int, most: int = 2**30, keep: bool = False
) -> float:
    """Return the bytes per second of direct reads by several threads, the device's own bandwidth.

    Args:
        folder: The checkpoint.
        readers: Threads, each of which reads every so manieth piece.
        most: Bytes to read.
        keep: Whether each piece gets memory of its own, as weights that stay do, in huge pages.

    Raises:
        CannotMeasure: The file system takes no direct reads.
    """
    pieces = [
        (file, at)
        for file in sorted(folder.glob("*.safetensors"))
        for at in range(0, file.stat().st_size - _PIECE, _PIECE)
    ][: most // _PIECE]
    if not pieces:
        raise CannotMeasure("The checkpoint is too small to time reads.")
    shares = [pieces[index::readers] for index in range(readers)]
    began = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        try:
            kept = list(pool.map(partial(_read_directly, keep=keep), shares))
        except OSError as error:
            raise CannotMeasure(f"Direct reads fail ({error.strerror}).") from None
    seconds = time.perf_counter() - began
    for buffer in itertools.chain.from_iterable(kept):
        buffer.close()
    return len(pieces) * _PIECE / seconds


def _read_directly(pieces: Sequence[tuple[Path, int]], *, keep: bool) -> list[mmap.mmap]:
    """Read pieces, each into memory of its own or all into the same, and return the memory."""
    kept = [_new_memory()]
    for file, at in pieces:
        if keep:
            kept.append(_new_memory())
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(descriptor, [kept[-1]], at)
        finally:
            os.close(descriptor)
    return kept


def _new_memory() -> mmap.mmap:
    memory = mmap.mmap(-1, _PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
