"""The servers, one for each model; all models are small, seeded and served in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.encoding.checkpoints import make_encoder, make_encoder_decoder

_DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.content == 'refuse' %}{{ raise_exception('not this') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}assistant:"
)
_COMMON = ("--dtype=float32", "--max_model_len=128", "--prefill_chunk=16", "--max_body_size=64KiB")


@dataclass(frozen=True, slots=True)
class Server:
    """A model and how it is served.

    Attributes:
        make: Writes the model to a folder.
        flags: The server's, besides those that all servers share.
    """

    make: Callable[[Path], object]
    flags: tuple[str, ...]

    @property
    def all_flags(self) -> tuple[str, ...]:
        """All flags of the server."""
        return (*_COMMON, *self.flags)


def _demo(folder: Path) -> None:
    shutil.copytree(_DEMO, folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)


def _handler(folder: Path) -> None:
    shutil.copytree(_DEMO, folder)
    document = {"max_length": 24, "offload_folder": "offload"}
    (folder / "setup_config.json").write_text(json.dumps(document))


def _make_encoder(folder: Path, task: str, labels: int = 3) -> None:
    make_encoder(folder, "bert", task, labels=labels)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.endswith("LayerNorm.weight"):  # so that answers vary with the input
                tensor.fill_(1.0)
        save_file(tensors, file, metadata={"format": "pt"})


def _embedder(folder: Path) -> None:
    _make_encoder(folder, "text_embedding")
    config = json.loads((folder / "config.json").read_text())
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    documents = {
        folder / "config.json": {**config, "matryoshka_dimensions": [64, 16, 8]},
        folder / "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"models.{kind}"}
            for number, (kind, path) in enumerate(kinds.items())
        ],
        pooling / "config.json": {"pooling_mode_mean_tokens": True},
        folder / "config_sentence_transformers.json": {"prompts": {"query": "query: "}},
    }
    for file, document in documents.items():
        file.write_text(json.dumps(document))


def _encoder(task: str, labels: int = 3) -> Server:
    return Server(
        lambda folder: _make_encoder(folder, task, labels),
        (f"--task={task}", "--torchserve_api"),
    )


SERVERS: dict[str, Server] = {
    "demo": Server(
        _demo,
        ("--torchserve_api", "--max_requests=1", "--max_concurrency=8", "--grace_period=120"),
    ),
    "handler": Server(
        _handler,
        (
            "--torchserve_api",
            "--torchserve_semantics",
            "--enable_load_unload",
            '--max_memory={"cpu": "12MiB"}',
        ),
    ),
    "t5": Server(
        lambda folder: make_encoder_decoder(folder, "t5"),
        ("--torchserve_api", "--max_concurrency=8"),
    ),
    "classifier": _encoder("sequence_classification"),
    "tagger": _encoder("token_classification"),
    "answerer": _encoder("question_answering", labels=2),
    "filler": _encoder("fill_mask"),
    "embedder": Server(_embedder, ("--task=text_embedding", "--torchserve_api")),
    "reranker": _encoder("rerank", labels=1),
}
"""Servers by name, which is also the name of the model."""
