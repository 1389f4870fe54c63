"""Everything that the two processes tell each other. All of it can be pickled, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.engine.generation.grammar import Vocabulary
from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.engine.generation.sampling_params import (
    CachedPrompt,
    FinishReason,
    Queued,
    SamplingParams,
    Token,
)
from predictor.errors import EngineBroken, PredictorError
from predictor.metric_updates import Update
from predictor.mixture.heat import LayerHeat
from predictor.placement.plan import Placement
from predictor.sequence_times import SequenceTimes

# To the engine process


@dataclass(frozen=True, slots=True)
class Start:
    """Load the model.

    Attributes:
        settings: The settings.
        goal: The `BatchGoal` that the placement is for; None for a server's.
    """

    settings: Any
    goal: Any = None


@dataclass(frozen=True, slots=True)
class Proceed:
    """Read the weights: what is needed to serve the model is there."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate a sequence; see `Engine.submit`.

    Attributes:
        timed: Whether its `SequenceTimes` come when it starts, and before each of its tokens.
    """

    key: int
    request: int | None
    prompt: Sequence[int]
    params: SamplingParams
    scope: bytes = b""
    timed: bool = False
    is_bulk: bool = False


@dataclass(frozen=True, slots=True)
class UseVocabulary:
    """Follow grammars with this vocabulary; see `Engine.use_vocabulary`."""

    vocabulary: Vocabulary
    most_bytes: int


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Load an adapter beside those that are loaded; `AdapterLoaded` answers.

    Attributes:
        key: The name under which sequences use it.
        source: A directory or a repository on the hub; see `locate_adapter`.
    """

    key: str
    source: str


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Forget an adapter, which no sequence uses.

    Attributes:
        key: The name under which it was loaded.
    """

    key: str


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode the texts of a request; see `EncoderEngine.submit`.

    Attributes:
        request: The request.
        texts: For each text its key, token ids, token types and positions.
        is_bulk: Whether it yields to texts that are not.
    """

    request: int | None
    texts: Sequence[tuple[int, tuple[int, ...], tuple[int, ...] | None, tuple[int, ...]]]
    is_bulk: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a sequence or a text."""

    key: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Release the offload volume and end."""


# From the engine process


@dataclass(frozen=True, slots=True)
class Loading:
    """The progress of loading, or of weights that arrive after `Ready`.

    Attributes:
        progress: JSON values by name.
    """

    progress: dict[str, object]


@dataclass(frozen=True, slots=True)
class Placed:
    """The placement is decided; `Proceed` is waited for.

    Attributes:
        placement: The placement.
        task: The task's name.
        path: The model's directory.
        facts: The `ModelFacts` of an encoder task; None for generation, whose facts come later.
    """

    placement: Placement
    task: str
    path: Path
    facts: Any


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and warm.

    Attributes:
        facts: The model's `ModelFacts`, which only the tasks know.
    """

    facts: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The model cannot be served."""

    error: PredictorError


@dataclass(frozen=True, slots=True)
class Results:
    """What a step of the model thread has given.

    Attributes:
        items: For each result the key of its sequence or text, and the result: a token, a finish
            reason, `Queued`, a `CachedPrompt`, `PromptTokens`, `SequenceTimes`, an array or an
            error. A token that has only an id is an `int`.
        updates: Changes of metrics.
    """

    items: Sequence[tuple[int, Any]]
    updates: Sequence[Update]


@dataclass(frozen=True, slots=True)
class ExpertsUsed:
    """The use of experts has changed.

    Attributes:
        layers: The heat of each layer, in execution order.
        updates: Changes of metrics.
    """

    layers: tuple[LayerHeat, ...]
    updates: Sequence[Update]


@dataclass(frozen=True, slots=True)
class AdapterLoaded:
    """The adapter of a `LoadAdapter` can be used, or was refused.

    Attributes:
        key: The name under which it was to be loaded.
        error: The reason against it; None if it is loaded.
    """

    key: str
    error: PredictorError | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The model has failed for good."""

    error: EngineBroken


def is_last(item: FinishReason | Any) -> bool:
    """Return whether the engine has forgotten a sequence after this result."""
    return not isinstance(item, (int, Token, Queued, CachedPrompt, PromptTokens, SequenceTimes))
