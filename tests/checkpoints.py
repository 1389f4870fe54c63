"""Small real checkpoints: real architectures, seeded random weights, a byte-level tokenizer.

Random weights make tokens without sense, but each is the argmax of real logits, so a wrong or
missing weight changes the text.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY = 264
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


class Configs(UserDict[str, PreTrainedConfig]):
    """Configs by name. Everybody gets a copy, since to build or save a model sets its dtype."""

    def __getitem__(self, name: str) -> PreTrainedConfig:
        """Return a copy of a config."""
        return copy.deepcopy(super().__getitem__(name))


CONFIGS = Configs(
    {
        "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=6, n_head=4, **_IDS),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=6, n_head=4, n_positions=256, **_IDS
        ),
        "llama": LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            **_IDS,
        ),
        "llama-tied": LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            **_IDS,
        ),
        "opt": OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            max_position_embeddings=256,
            **_IDS,
        ),
        "mixtral": MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            max_position_embeddings=256,
            **_IDS,
        ),
    }
)

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    **_IDS,
}
_ROTARY = _SHAPE | {"intermediate_size": 128, "max_position_embeddings": 256}
_GROUPED = _ROTARY | {"num_key_value_heads": 2}
_GPTJ = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
_MPT = {"vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}

ALL_CONFIGS = CONFIGS | {
    "falcon": FalconConfig(**_SHAPE),
    "falcon-alibi": FalconConfig(**_SHAPE, alibi=True),
    "mpt": MptConfig(**_MPT, **_IDS),
    "gptj": GPTJConfig(**_GPTJ, rotary_dim=8, **_IDS),
    "gpt_neox": GPTNeoXConfig(**_ROTARY),
    "phi": PhiConfig(**_ROTARY),
    "qwen2": Qwen2Config(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **_GROUPED,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
"""With further ways to attend: ALiBi and rotary positions of several kinds, sliding windows."""


def big_llama(blocks: int) -> LlamaConfig:
    """A Llama with blocks of 4*1024*1024 + 3*1024*2816 parameters, 49 MiB each in fp32."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **_IDS,
    )


@contextlib.contextmanager
def big_checkpoint(folder: Path, blocks: int) -> Iterator[Path]:
    """Gives the folder of a `big_llama`, whose files go when nobody needs them any more."""
    make_checkpoint(folder, "llama", config=big_llama(blocks), shard_size="200MB")
    yield folder
    for file in folder.iterdir():
        file.unlink()


def make_checkpoint(
    folder: Path,
    architecture: str,
    *,
    dtype: torch.dtype = torch.float32,
    shards: bool = True,
    pickle: bool = False,
    config: PreTrainedConfig | None = None,
    shard_size: str = "200KB",
) -> Path:
    """Writes a model and its tokenizer; returns the folder.

    Args:
        folder: Where to write.
        architecture: A key of `ALL_CONFIGS`.
        dtype: What the weights are stored in.
        shards: Whether there are several files.
        pickle: Whether they are ``.bin`` files.
        config: Another config than the one of this name.
        shard_size: The most that a file holds where there are several.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or ALL_CONFIGS[architecture])
    for parameter in model.parameters():  # larger than the default, so that tokens vary
        torch.nn.init.normal_(parameter, std=0.15)
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard_size if shards else "10GB")
    if pickle:
        _as_pickle(folder, model)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _as_pickle(folder: Path, model: torch.nn.Module) -> None:
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each byte, after four special ones."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def write_over(folder: Path, **values: Any) -> None:
    """Changes keys of a model's generation config."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
