"""Archives as users have them, packed by TorchServe's own archiver as in its examples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYOUTS = ("default", "zip-store", "tgz", "no-archive")

SEED: dict[str, Any] = {
    "revision": "main",
    "max_memory": {"0": "10GB", "cpu": "10GB"},
    "low_cpu_mem_usage": True,
    "device_map": "auto",
    "offload_folder": "offload",
    "offload_state_dict": True,
    "torch_dtype": "float32",
    "max_length": "80",
}
"""The keys of the Accelerate example. Its dtype is changed to one that is fast on processors."""

HANDLER = """
from transformers import BloomForCausalLM
from ts.torch_handler.base_handler import BaseHandler

open({mark!r}, "w").close()  # what must never happen


class Handler(BaseHandler, ABC):
    def __init__(self):
        self.model = None

    def initialize(self, ctx):
        self.model = BloomForCausalLM.from_pretrained("model", trust_remote_code=True)

    def preprocess(self, requests):
        return requests

    def inference(self, batch):
        return self.model.generate(batch)

    def postprocess(self, output):
        return output
"""


def zip_model(model: Path, file: Path) -> Path:
    """Pack a model's files as ``zip -r model.zip *`` does."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in sorted(model.iterdir()):
            archive.write(one, one.name)
    return file


def pack(
    folder: Path,
    extra: Mapping[str, Path | Mapping[str, Any]],
    *,
    layout: str = "default",
    name: str = "bloom",
    config: str | None = None,
) -> Path:
    """Run torch-model-archiver; return the archive.

    Args:
        folder: The working folder.
        extra: The extra files, or JSON objects to write to such files, by name.
        layout: One of `LAYOUTS`.
        name: The model's name.
        config: The content of ``model-config.yaml``; None to leave it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "custom_handler.py").write_text(HANDLER.format(mark=str(folder / "executed")))
    (folder / "requirements.txt").write_text("transformers\naccelerate\n")
    for file, content in extra.items():
        if isinstance(content, Path):
            if content != folder / file:
                shutil.copyfile(content, folder / file)
        else:
            (folder / file).write_text(json.dumps(content))
    store = folder / "model-store"
    store.mkdir()
    flags = ["--extra-files", ",".join(extra)] if extra else []
    if config is not None:
        (folder / "model-config.yaml").write_text(config)
        flags += ["--config-file", "model-config.yaml"]
    archiver = Path(sys.executable).with_name("torch-model-archiver")
    work = folder / "work"  # else all archivers of one name would copy to one folder in /tmp
    work.mkdir()
    subprocess.run(
        [
            *(str(archiver), "--model-name", name, "--version", "1.0"),
            *("--handler", "custom_handler.py", "-r", "requirements.txt"),
            *("--export-path", str(store), "--archive-format", layout, *flags),
        ],
        cwd=folder,
        check=True,
        env={**os.environ, "TMPDIR": str(work)},
    )
    (made,) = store.iterdir()
    return made


def seed(folder: Path, model: Path, *, layout: str = "default", **changes: Any) -> Path:
    """Pack the Accelerate example with a model and changes to its ``setup_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {
        "model.zip": zip_model(model, folder / "model.zip"),
        "setup_config.json": {**SEED, **changes},
    }
    return pack(folder, extra, layout=layout)


def hollow_model(folder: Path, size: int, config: Path) -> Path:
    """Make a model whose weights are a hole of so many bytes; return its folder.

    Args:
        folder: Where to make it.
        size: Bytes of the one tensor in 32 bits.
        config: What its ``config.json`` is; the tokenizer beside it is taken too.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(config, folder / "config.json")
    for tokenizer in config.parent.glob("tokenizer*"):
        shutil.copy(tokenizer, folder)
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"w": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
    return folder


def store(file: Path, content: Mapping[str, bytes | Path | Any]) -> Path:
    """Write an uncompressed archive of bytes, files and JSON objects."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, one in content.items():
            if isinstance(one, Path):
                archive.write(one, name)
            else:
                archive.writestr(name, one if isinstance(one, bytes) else json.dumps(one))
    return file


MANIFEST = "MAR-INF/MANIFEST.json"


def manifest(**model: Any) -> dict[str, Any]:
    """Return a manifest with changes to its model."""
    named = {"modelName": "bloom", "modelVersion": "1.0", "handler": "custom_handler.py"}
    return {"runtime": "python", "model": {**named, **model}}
