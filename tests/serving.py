"""Brings a model up in this process the way the server does, without the server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from predictor import startup
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.prompt_tokens import PromptToken, PromptTokens
from predictor.engine.generation.sampling_params import CachedPrompt, Queued, SamplingParams, Token
from predictor.placement.plan import Placement
from predictor.pod.resources import Memory, PodResources, Volume
from predictor.settings import Settings, read_settings
from predictor.startup import Prepared, Started
from predictor.tasks.loading import TaskOptions, open_task, open_tokenizer
from predictor.weights.loaded import Loaded
from predictor.weights.progress import Progress

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Up:
    """A model that is up."""

    task: Any
    prepared: Prepared
    progress: Progress
    weights: Loaded

    @property
    def model(self) -> Any:
        return self.task.engine.runner.model

    @property
    def sources(self) -> set[str]:
        """Where its blocks are streamed from; empty where Accelerate does it, or nobody."""
        streaming: Any = self.weights.streaming
        return set() if streaming is None else {block.source for block in streaming.loader.blocks}

    def tokens(self, ids: list[int], **params: Any) -> list[int]:
        """Tokens that follow a prompt; `params` are those of `SamplingParams`."""
        return Collected.of(self.task.engine, ids, **params).tokens


class Collected:
    """A callback that collects the tokens and the end of one sequence."""

    def __init__(self, on_token: Any = None) -> None:
        self.tokens: list[int] = []
        self.scored: list[Token] = []
        self.outcome: Any = None
        self.cached = 0
        self.prompt_tokens: list[PromptToken] = []
        self._on_token = on_token
        self.ended = threading.Event()

    @classmethod
    def of(cls, engine: Engine, ids: list[int], **params: Any) -> Collected:
        """Runs one sequence to its end; raises what the engine ends it with."""
        collected = cls()
        engine.submit(ids, SamplingParams(**params), collected)
        return collected.wait()

    def on_queued(self, queued: Queued) -> None:
        """Do nothing: the engine is in this process."""

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        self.cached = cached.tokens

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        self.prompt_tokens += tokens

    def on_token(self, token: Token) -> bool:
        self.tokens.append(token.id)
        self.scored.append(token)
        return bool(self._on_token and self._on_token(token))

    def on_finish(self, outcome: Any) -> None:
        self.outcome = outcome
        self.ended.set()

    def wait(self) -> Collected:
        """Waits for the end; raises the error that it may be."""
        assert self.ended.wait(60), "the engine did not end this sequence"
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self


def metric(name: str, model: str, **labels: str) -> float:
    """The value of a metric of one model; 0 before its first sample."""
    return REGISTRY.get_sample_value(name, {"model_name": model, **labels}) or 0.0


def resources(memory: int = GIB, folder: Path | None = None, free: int = 10 * GIB) -> PodResources:
    volume = None if folder is None else Volume(folder, free, True, "ext4", None)
    return PodResources((), Memory(memory, memory, "stated by a test"), volume)


def bring_up(
    folder: Path,
    *,
    memory: int = GIB,
    free: int = 10 * GIB,
    left: int | None = None,
    pod: PodResources | None = None,
    change_placement: Callable[[Prepared], Placement] | None = None,
    **flags: Any,
) -> Up:
    """Returns a served model.

    Args:
        folder: The model's.
        memory: Main memory of the pod, in bytes.
        free: What may be written on the offload volume.
        left: What is left of that when a store is written; None for all.
        pod: What the pod owns, instead of these.
        change_placement: Returns another placement than the plan's.
        flags: Settings.
    """
    settings = read_settings(
        {"model_dir": str(folder), "max_model_len": 128, "prefill_chunk": 16, **flags}, environ={}
    )
    prepared = startup.prepare(
        settings,
        startup.open_checkpoint(settings),
        pod or resources(memory, settings.offload_folder, free),
    )
    if left is not None:
        prepared = replace(prepared, offload=replace(prepared.offload, free=left))
    if change_placement is not None:
        prepared = replace(prepared, placement=change_placement(prepared))
    progress = Progress()
    started = startup.bring_up(settings, prepared, progress)
    return Up(task_of(started, settings), prepared, progress, started.weights)


def task_of(started: Started, settings: Settings) -> Any:
    """Opens the task of a model whose engine is in this process."""
    return open_task(
        started.facts,
        started.engine,
        options=TaskOptions.of(settings),
        tokenizer=open_tokenizer(started.facts.path, trust_remote_code=settings.trust_remote_code),
    )


def blocks_on_disk(folder: Path, task: str = "text_generation") -> dict[str, str]:
    """A map with every second block on disk and the rest in main memory."""
    from predictor.checkpoint.checkpoint import read_config
    from predictor.profiling.footprint import build_on_meta, measure_footprint

    skeleton = build_on_meta(read_config(folder), "float32", task)
    return _halved(skeleton, measure_footprint(skeleton, max_model_len=16, prefill_chunk=16))


def on_disk(up: Up) -> dict[str, str]:
    """The same of a model that is up."""
    return _halved(up.prepared.skeleton, up.prepared.footprint)


def _halved(skeleton: Any, footprint: Any) -> dict[str, str]:
    from predictor.profiling.blocks import find_blocks

    blocks = find_blocks(skeleton)
    names = [name for unit in footprint.units for name in unit.names]
    return {name: "disk" if name in blocks[::2] else "cpu" for name in names}


def is_reply(text: str, whole: str) -> bool:
    """Whether a text is that of a reply, without a character at its end of which bytes are missing.

    Args:
        text: The text.
        whole: The decoded tokens, in which each missing byte may be a replacement character.
    """
    return whole.startswith(text) and whole[len(text) :] in ("", *("\ufffd" * n for n in (1, 2, 3)))
