"""Tiny models of every family with an encoder and a decoder that transformers has for text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from tests.encoding.checkpoints import VOCABULARY, reading_tokenizer

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_POSITIONS = 128
_LAYERS = {"encoder_layers": 3, "decoder_layers": 2}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    **_LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **_IDS,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 3,
    "pad_token_id": 3,
    "eos_token_id": 2,
}
_SPARSE = {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
_GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": _POSITIONS,
    "sliding_window": 16,
    **_IDS,
}
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": _POSITIONS,
    **_IDS,
}


def _bart(kind: str, **own: Any) -> PreTrainedConfig:
    given = {**_BART, "max_position_embeddings": _POSITIONS, **own}
    return getattr(transformers, f"{kind}Config")(**given)  # type: ignore[no-any-return]


def _t5(kind: str, **own: Any) -> PreTrainedConfig:
    return getattr(transformers, f"{kind}Config")(**_T5, **own)  # type: ignore[no-any-return]


def _t5gemma() -> PreTrainedConfig:
    parts = [T5GemmaModuleConfig(**_GEMMA) for _ in range(2)]
    return transformers.T5GemmaConfig(
        encoder=parts[0],
        decoder=parts[1],
        vocab_size=VOCABULARY,
        decoder_start_token_id=1,
        **_IDS,
    )


def _t5gemma2() -> PreTrainedConfig:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    encoder = {"text_config": dict(_GEMMA), "vision_config": vision, **tokens}
    return transformers.T5Gemma2Config(
        encoder=encoder, decoder=dict(_GEMMA), decoder_start_token_id=1, **_IDS
    )


def _composed(decoder: PreTrainedConfig) -> PreTrainedConfig:
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**_BERT), decoder
    )
    config.decoder_start_token_id, config.vocab_size = 1, VOCABULARY
    config.pad_token_id, config.eos_token_id = 3, 2
    return config


def _prophetnet() -> PreTrainedConfig:
    return transformers.ProphetNetConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        encoder_ffn_dim=64,
        num_encoder_layers=3,
        num_encoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_decoder_layers=2,
        num_decoder_attention_heads=4,
        max_position_embeddings=_POSITIONS,
        decoder_start_token_id=1,
        **{**_IDS, "pad_token_id": 0},
    )


_LED = {
    "max_encoder_position_embeddings": _POSITIONS,
    "max_decoder_position_embeddings": _POSITIONS,
    "attention_window": 8,
}
_FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "bart": lambda: _bart("Bart"),
    "bigbird_pegasus": lambda: _bart("BigBirdPegasus", attention_type="original_full"),
    "blenderbot": lambda: _bart("Blenderbot"),
    "blenderbot-small": lambda: _bart("BlenderbotSmall"),
    "bert to bert": lambda: _composed(transformers.BertConfig(**_BERT)),
    "bert to gpt2": lambda: _composed(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=_POSITIONS, **_IDS
        )
    ),
    "fsmt": lambda: transformers.FSMTConfig(
        langs=["en", "de"],
        src_vocab_size=VOCABULARY,
        tgt_vocab_size=VOCABULARY,
        max_position_embeddings=_POSITIONS,
        **{name: value for name, value in _BART.items() if name != "vocab_size"},
    ),
    "led": lambda: transformers.LEDConfig(**_BART, **_LED),
    "longt5 local": lambda: _t5("LongT5", encoder_attention_type="local", local_radius=7),
    "longt5 global": lambda: _t5(
        "LongT5", encoder_attention_type="transient-global", local_radius=7, global_block_size=4
    ),
    "m2m_100": lambda: _bart("M2M100"),
    "marian": lambda: _bart("Marian", bad_words_ids=None),
    "mbart": lambda: _bart("MBart"),
    "mt5": lambda: _t5("MT5"),
    "mvp": lambda: _bart("Mvp"),
    "nllb-moe": lambda: _bart(
        "NllbMoe", num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2
    ),
    "pegasus": lambda: _bart("Pegasus"),
    "pegasus_x": lambda: _bart("PegasusX", block_size=16, num_global_tokens=4),
    "plbart": lambda: _bart("PLBart"),
    "prophetnet": _prophetnet,
    "switch": lambda: _t5("SwitchTransformers", **_SPARSE),
    "switch with few places": lambda: _t5("SwitchTransformers", **_SPARSE, expert_capacity=2),
    "t5": lambda: _t5("T5"),
    "t5 gated": lambda: _t5("T5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5gemma": _t5gemma,
    "t5gemma2": _t5gemma2,
    "umt5": lambda: _t5("UMT5"),
}
FAMILIES = tuple(_FAMILIES)
"""The names of the families."""


def make_model(family: str) -> Any:
    """Return a seeded model of a family."""
    config = _FAMILIES[family]()
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                is_wide = any(part in name for part in ("lm_head", "shared", "embed"))
                parameter.normal_(std=0.1 if is_wide else 0.5)
    return model.eval()


def save(family: str, folder: Path) -> Path:
    """Write a model of a family and its tokenizer; return the folder."""
    make_model(family).save_pretrained(folder, max_shard_size="100KB")
    reading_tokenizer(with_ends=True).save_pretrained(folder)
    return folder
