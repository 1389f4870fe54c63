"""All settings, from flags, the environment and a ``setup_config.json``, as one frozen value.

Precedence: flag, ``PREDICTOR_*`` environment variable, ``setup_config.json`` in the model directory
(the predecessor's file, which may hold any setting by its name), default. This module knows names,
types and defaults; `placement` and the rim decide what they mean for a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from predictor.admission import AdmissionLimits
from predictor.errors import ConfigurationError
from predictor.settings_chat import ChatSettings
from predictor.settings_generation import GenerationSettings
from predictor.settings_limits import LimitSettings
from predictor.settings_protocols import ProtocolSettings
from predictor.settings_sources import (
    ALIASES,
    PREFIX,
    SetupConfig,
    by_field,
    check_known,
    own_variables,
)
from predictor.settings_types import (
    Bytes,
    DeviceMap,
    Dtype,
    MaxModelLen,
    MemoryByDevice,
    ModelDir,
    ModelName,
    Task,
    Tokens,
)
from predictor.settings_weights import WeightSettings


class Settings(ProtocolSettings, LimitSettings, ChatSettings, GenerationSettings, WeightSettings):
    """The settings: sizes in bytes (written ``40Gi``, ``10GiB`` or ``500M``), times in seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    model_name: ModelName = Field("model", min_length=1, pattern=r"^[^/:\s]+$")
    """The model's name in every URL."""

    model_version: str = Field("1", min_length=1, pattern=r"^[^/\s]+$")
    """The only version in V2's versioned paths and metadata."""

    model_dir: ModelDir = Path("/mnt/models")
    """The model directory; KServe mounts the model at the default."""

    model_id: str | None = Field(None, min_length=1)
    """A repository on the Hugging Face hub. If it is set, `model_dir` is not read."""

    model_revision: str | None = None
    """Branch, tag or commit of `model_id`. The predecessor's `revision`."""

    task: Task = None
    """The task of the model: `text_generation`, `text2text_generation`, `sequence_classification`,
    `token_classification`, `question_answering`, `fill_mask`, `text_embedding` or `rerank`.
    Default: detected from the model's files. `pooling` detects it too, and refuses a model that
    generates text or fills masks."""

    dtype: Dtype = "auto"
    """The serving dtype; `auto` is the checkpoint's own. The predecessor's `torch_dtype`."""

    weights_dtype: Literal["auto", "int8", "int4"] = "auto"
    """How linear layers and experts are kept, in memory and on disk; `dtype` is what they compute
    in. `auto` keeps them as the checkpoint does. `int8` and `int4` quantise an unquantised one
    while it is loaded; replies then differ."""

    max_model_len: MaxModelLen = Field(None, ge=2)
    """Most tokens of prompt and reply, together or, with an encoder, of each; sizes the KV cache.

    Default: the model's own context length, but at most 8192, so that the KV cache of a long
    context does not move weights to a slower tier.
    """

    max_length: int | None = Field(None, ge=1)
    """The predecessor's key: most tokens of a prompt and, unless a request sets another number, of
    a reply. If `max_model_len` is not set, it is twice this."""

    max_concurrency: int | None = Field(None, ge=1)
    """Requests of `max_model_len` tokens that the KV cache is planned for; more run if they are
    shorter. Default: one, and as many more, up to `max_batch_size`, as fit without moving a weight
    to a slower tier."""

    prefill_chunk: Tokens = Field(512, ge=1)
    """Most prompt tokens in one forward pass; bounds the memory of activations. With 512 rows
    matrix products are efficient, and activations are still small compared with a block."""

    device_map: DeviceMap = "auto"
    """`auto` (the same as `balanced`), `balanced`, `balanced_low_0`, `sequential`, one device
    (`cpu`, `disk`, `cuda:0`, `0`), or an object from module names to devices."""

    max_memory: MemoryByDevice = None
    """Most bytes of each device for weights, KV cache, staging and activations together, such as
    `{"0": "10GiB", "cpu": "30GiB"}`. A value above the resources of the pod is lowered to them."""

    memory_headroom: float = Field(0.05, ge=0, lt=1)
    """The fraction of each tier that is never planned. It is for memory outside of the plan:
    allocator fragments and libraries' workspaces."""

    memory_reserve: Bytes = 128 * 1024**2
    """Further bytes of main memory that are never planned, for requests and replies in flight and
    for thread arenas. It is at least 20 times `max_bytes_in_flight`, so 200Mi by default. Models
    that generate have `grammar_memory` and their vocabulary for grammars besides, and
    connections with TLS 160 KiB each."""

    pinned_memory_fraction: float = Field(1.0, ge=0, le=1)
    """The largest fraction of main memory that is page-locked, so that it is copied to a GPU at the
    link's full speed. Only blocks and buffers are page-locked. Lower it on nodes whose driver
    refuses as much."""

    gpu_fraction: float | None = Field(None, gt=0, le=1)
    """This pod's share of a time-sliced GPU's memory, such as 0.25 for one of four replicas."""

    offload_folder: Path | None = None
    """A folder on the offload volume, for the store of offloaded blocks and for weights that
    transformers converts before they are streamed. In `setup_config.json` it is relative to the
    model directory."""

    offload_store: Literal["auto", "always", "never"] = "auto"
    """Whether offloaded blocks are copied to `offload_folder` and read from there. `auto` copies
    them if the checkpoint's dtype or layout is not the served one, or if its volume is slower.
    `always` refuses to start without the copy; `never` reads the checkpoint."""

    expert_slots: Literal["auto", "never"] = "auto"
    """Whether experts of a mixture that does not fit are read one by one, as tokens are routed to
    them. `auto` keeps as many in memory as there is room for; `never` streams blocks whole."""

    verify_store: bool = False
    """Whether every block of the store is compared with its checksum at the start, which takes as
    long as reading it. After a process that used it was killed, this is always done."""

    fill_before_ready: bool = False
    """Whether the model is ready only once all weights that stay in main memory are there."""

    allow_pickle: bool = False
    """Whether `.bin` checkpoints are accepted; reading one can run code."""

    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    host: str = "0.0.0.0"  # noqa: S104 - a pod's server is reached through the pod's address
    """The address to listen on."""

    http_port: int = Field(8080, ge=0, le=65535)
    """REST port; 0 takes a free one."""

    grpc_port: int = Field(8081, ge=0, le=65535)
    """gRPC port; 0 takes a free one."""

    enable_grpc: bool = True
    """Whether gRPC is served."""

    grace_period: float = Field(25.0, ge=0, allow_inf_nan=False)
    """Seconds for running requests to finish after SIGTERM. The default is below the 30 s after
    which Kubernetes kills a pod by default."""

    stall_timeout: float = Field(20.0, gt=0, allow_inf_nan=False)
    """Seconds without an end of a forward pass, or of a read of a streamed block, after which the
    model is not ready. It is ready again when the work goes on. If measured passes or reads are
    slow, the bound is ten times what they take. With the default, a busy node or a short failure of
    a network volume goes by unnoticed."""

    hang_timeout: float = Field(300.0, gt=0, allow_inf_nan=False)
    """Seconds after which the process ends with exit code 1 instead, or thirty times what measured
    passes or reads take. A thread that hangs in a driver or a file system cannot be stopped. The
    default outlasts the failover of most network volumes."""

    max_body_size: Bytes = Field(8 * 1024**2, ge=1)
    """Most bytes of one request, REST or gRPC. As many hold 2,048 texts of 4 KiB for embeddings;
    KServe's gRPC has the same bound."""

    max_batch_size: int = Field(64, ge=1, le=1024)
    """Most sequences in one batch. A processor or a link to a GPU is saturated by some dozens, and
    more sequences only slow each other down."""

    max_batch_tokens: Tokens = Field(4096, ge=1)
    """Most tokens, padding included, in one forward pass of an encoder task (classification,
    embedding, ranking, fill-mask); bounds the memory of activations. At least `max_model_len`."""

    max_batch_delay: float = Field(0.0, ge=0, le=10)
    """Seconds that an encoder task waits for more texts before a forward pass that is not full.
    With 0, the texts that arrive during a forward pass are the next batch, and none waits longer
    than that."""

    max_requests: int = Field(128, ge=1)
    """Most requests that run or wait at one time. One more is refused (429, RESOURCE_EXHAUSTED), so
    that waiting requests take bounded memory. The default is twice `max_batch_size`: one batch runs
    and one waits."""

    request_timeout: float = Field(600.0, gt=0, allow_inf_nan=False)
    """Seconds after which a request is cancelled (504, DEADLINE_EXCEEDED). A request may set fewer
    with the header `x-request-timeout`, the parameter `timeout` or its gRPC deadline. The default
    is 10 minutes: enough for a long reply of an offloaded model, and no proxy waits longer."""

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile are set together or not at all")
        return self

    @model_validator(mode="after")
    def _check_semantics(self) -> Self:
        if self.torchserve_semantics and self.max_length is None:
            raise ValueError("torchserve_semantics needs max_length, the tokens that it cuts at")
        return self

    def admission_limits(self) -> AdmissionLimits:
        """Return what may be in flight."""
        return AdmissionLimits(
            requests=self.max_requests,
            body_bytes=max(self.max_bytes_in_flight, self.max_body_size * 5 // 4),
            sequences=self.max_sequences_in_flight,
            tokens=self.max_tokens_in_flight,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence; `read_settings` adds the environment."""
        return init_settings, SetupConfig(settings_cls)


def read_settings(flags: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of flags, environment and ``setup_config.json`` together.

    Args:
        flags: Values from the command line, by the names of the settings or their aliases.
        environ: The environment.

    Raises:
        ConfigurationError: A key is unknown (the sentence names the nearest known one), or a
            value is invalid.
    """
    variables = own_variables(environ)
    check_known(flags, "flag", Settings.model_fields, shown=lambda name: f"--{name}")
    check_known(
        variables,
        "environment variable",
        Settings.model_fields,
        shown=lambda name: PREFIX + name.upper(),
    )
    try:
        return Settings(**(by_field(variables) | by_field(flags)))
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None


def explicit_settings(
    whole: Settings, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings of flags and environment as JSON values, without `SetupConfig`'s."""
    named = by_field({**own_variables(environ), **flags})
    return whole.model_dump(mode="json", include=set(named))


def names() -> tuple[str, ...]:
    """Return the names of all settings and their aliases."""
    return (*own_names(), *ALIASES)


def own_names() -> tuple[str, ...]:
    """Return the names of all settings, those of the protocols and limits last."""
    last = (*ProtocolSettings.model_fields, *LimitSettings.model_fields)
    return (*(name for name in Settings.model_fields if name not in last), *last)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # settings contradict each other
        return f"{reason}."
    name = str(first["loc"][0])
    is_secret = name in Settings.model_fields and not Settings.model_fields[name].repr
    given = "" if is_secret else f" (given: {str(first['input'])[:64]!r})"
    return f"{name}: {reason}{given}."
