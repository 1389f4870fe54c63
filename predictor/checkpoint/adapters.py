"""LoRA adapters in the format of PEFT: what their files hold, without reading a weight.

An adapter is a directory with ``adapter_config.json`` and ``adapter_model.safetensors``. For each
linear layer that it changes there are two matrices, A of shape (rank, in) and B of shape
(out, rank); the layer's outputs get ``scale * B A x`` added (``peft/tuners/lora``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.checkpoint.hub import Repository, Snapshot, split_reference
from predictor.checkpoint.safetensors_header import read_header
from predictor.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_MAX_LAYER_NAME = 256
"""Characters of a layer's name. Those of models have at most 100."""

_SIMPLE_PATTERN = re.compile(r"(?:[\w.^$|()\[\]-]|\\[.dw]|(?<!\))[*+]){1,256}")
"""Patterns that `re` matches in a time that does not explode: no group is repeated, and nothing
looks around or back."""

_MAX_REPETITIONS = 2
"""Repetitions in a pattern. Each multiplies the time to match by the length of a name."""

_PREFIX = "base_model.model."
_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")

_PLAIN = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "megatron_config": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "layer_replication": None,
}
"""Keys of the config that change what an adapter computes, and their values without an effect."""


_INITIALISATIONS = (True, False, None, "default", "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the weights of the base as they are."""


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """What an adapter adds to a linear layer.

    Attributes:
        a: The stored name of A.
        b: The stored name of B.
        rank: The rows of A.
        in_features: The columns of A.
        out_features: The rows of B.
        scale: What the product is multiplied by.
    """

    a: str
    b: str
    rank: int
    in_features: int
    out_features: int
    scale: float

    @property
    def elements(self) -> int:
        """The numbers in both matrices."""
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter, of which no weight is read.

    Attributes:
        name: The name under which requests pick it.
        file: The file of its weights.
        layers: What it adds, by the name of the layer in the model that it was trained on.
        base: The model that it was trained on, as its config names it.
    """

    name: str
    file: Path
    layers: Mapping[str, AdaptedLayer]
    base: str | None

    @property
    def widest(self) -> int:
        """The most inputs or outputs of a layer that it changes."""
        return max(max(each.in_features, each.out_features) for each in self.layers.values())


def locate_adapter(source: str) -> Path:
    """Return the directory of an adapter, after fetching it if it is on the hub.

    Args:
        source: A directory or, if there is no such directory, a repository on the hub as
            ``owner/name`` or ``owner/name@revision``.

    Raises:
        CheckpointError: The hub has no such adapter, or denies access.
        HubUnreachable: The hub cannot be reached, and the cache lacks the adapter.
    """
    if "\0" in source:
        raise CheckpointError("The path of an adapter has a NUL character.")
    reference = split_reference(source)
    if reference is None:
        return Path(source)
    repository = Repository(*reference, remedy="give a directory")
    snapshot = repository.open((CONFIG,), _missing_file)
    if WEIGHTS in snapshot.names and _missing_file(snapshot) == WEIGHTS:
        repository.fetch(snapshot.commit, (WEIGHTS,), WEIGHTS)
    missing = _missing_file(snapshot)
    if missing is not None:
        raise CheckpointError(
            f"The repository {repository.name} is no adapter: it lacks {missing}."
        )
    repository.remember(snapshot.commit)
    return snapshot.path


def read_adapter(name: str, path: Path) -> Adapter:
    """Return the adapter in a directory.

    Raises:
        CheckpointError: There is none, or it does more than add to linear layers.
    """
    config = _read_config(path)
    header = read_header(_weights_file(path))
    halves: dict[str, dict[str, str]] = {}
    for stored in header:
        match = _NAME.fullmatch(stored.removeprefix(_PREFIX))
        if match is None:
            raise CheckpointError(f"The adapter {path} has a tensor that is not served: {stored}.")
        if len(match["layer"]) > _MAX_LAYER_NAME:
            raise CheckpointError(f"The adapter {path} has a layer of more than 256 characters.")
        halves.setdefault(match["layer"], {})[match["half"]] = stored
    if not halves:
        raise CheckpointError(f"The adapter {path} changes no layer.")
    layers = {layer: _layer(path, config, layer, names, header) for layer, names in halves.items()}
    base = config.get("base_model_name_or_path")
    return Adapter(name, path / WEIGHTS, layers, base if isinstance(base, str) else None)


def base_of(path: Path) -> str | None:
    """Return the base of a directory that is an adapter and no model; None if it is none."""
    if (path / "config.json").exists() or not (path / CONFIG).is_file():
        return None
    return str(_read_config(path).get("base_model_name_or_path") or "its base model")


def _missing_file(snapshot: Snapshot) -> str | None:
    missing = (name for name in (CONFIG, WEIGHTS) if not (snapshot.path / name).is_file())
    return next(missing, None)


def _weights_file(path: Path) -> Path:
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(f"The adapter {path} has no {WEIGHTS}.")
    return path / WEIGHTS


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"There is no adapter in {path}: it has no {CONFIG}.") from None
    except OSError as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path / CONFIG} is no JSON.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"The adapter {path} is no LoRA: its peft_type is {kind!r}.")
    for key, plain in _PLAIN.items():
        if config.get(key, plain) not in (plain, None, [], {}):
            raise CheckpointError(f"The adapter {path} has {key} {config[key]!r}, not served.")
    if config.get("init_lora_weights") not in _INITIALISATIONS:
        how = config["init_lora_weights"]
        raise CheckpointError(
            f"The adapter {path} was trained on changed weights of its base (init_lora_weights "
            f"{how!r}); peft can convert it to a plain LoRA when it saves it."
        )
    return config


def _layer(
    path: Path,
    config: Mapping[str, Any],
    layer: str,
    names: Mapping[str, str],
    header: Mapping[str, Any],
) -> AdaptedLayer:
    shapes = [header[names[half]]["shape"] for half in sorted(names)]
    if len(names) < 2 or any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
        raise CheckpointError(f"The adapter {path} has no pair of matrices for {layer}.")
    (rank, in_features), (out_features, _) = shapes
    scale = _scale(path, config, layer, rank)
    return AdaptedLayer(names["A"], names["B"], rank, in_features, out_features, scale)


def _scale(path: Path, config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    try:
        if not all(map(_is_simple, patterns)):
            raise CheckpointError(f"The adapter {path} has an alpha_pattern that is too complex.")
        matching = (v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", layer))
        alpha = next(matching, alpha)
    except (re.error, AttributeError, TypeError):
        raise CheckpointError(f"The adapter {path} has no usable alpha_pattern.") from None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or rank < 1:
        raise CheckpointError(f"The adapter {path} has no usable lora_alpha for {layer}.")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _is_simple(pattern: str) -> bool:
    is_bounded = _SIMPLE_PATTERN.fullmatch(pattern) is not None
    return is_bounded and len(re.findall(r"[*+]", pattern)) <= _MAX_REPETITIONS
