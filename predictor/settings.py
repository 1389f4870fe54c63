"""All settings, from flags, the environment and a ``setup_config.json``, as one frozen value.

Precedence: flag, ``PREDICTOR_*`` environment variable, ``setup_config.json`` in the model directory
(the predecessor's file, which may hold any setting by its name), default. This
module knows names, types and defaults; `placement` and the rim decide what they mean for a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from predictor.errors import ConfigurationError
from predictor.settings_sources import (
    ALIASES,
    PREFIX,
    SetupConfig,
    by_field,
    check_known,
    own_variables,
)
from predictor.settings_types import Bytes, DeviceMap, Dtype, MemoryByDevice, Task


class Settings(BaseSettings):
    """The settings: sizes in bytes (written ``40Gi``, ``10GiB`` or ``500M``), times in seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    model_name: str = Field("model", min_length=1, pattern=r"^[^/:\s]+$")
    """The name in every URL."""

    model_version: str = Field("1", min_length=1, pattern=r"^[^/\s]+$")
    """The one version that V2's versioned paths and metadata name."""

    model_dir: Path = Path("/mnt/models")
    """Where the model lies; KServe mounts it at the default."""

    model_id: str | None = Field(None, min_length=1)
    """A repository on the Hugging Face hub; then `model_dir` is not read."""

    model_revision: str | None = None
    """Branch, tag or commit of `model_id`. The predecessor's `revision`."""

    task: Task = None
    """What the model is served for: `text_generation`, `text2text_generation`,
    `sequence_classification`, `token_classification`, `question_answering`, `fill_mask`,
    `text_embedding` or `rerank`. Default: what it was made for, by its files."""

    dtype: Dtype = "auto"
    """The serving dtype; `auto` is the checkpoint's own. The predecessor's `torch_dtype`."""

    max_model_len: int | None = Field(None, ge=2)
    """Most tokens of prompt and reply together; the KV cache is planned for it.

    Default: the model's own context length, but at most 8192, so that a context that nobody asked
    for does not push weights to a slower tier.
    """

    max_length: int | None = Field(None, ge=1)
    """The predecessor's key: prompts of up to so many tokens and, unless a request says otherwise,
    replies of up to as many. Sets `max_model_len` to twice this where that is not given."""

    max_concurrency: int | None = Field(None, ge=1)
    """How many requests of `max_model_len` tokens the KV cache is planned for; shorter ones share
    it, so more of them run. Default: one, and as many more, up to `max_batch_size`, as memory is
    left for without moving a weight."""

    prefill_chunk: int = Field(512, ge=1)
    """Prompt tokens in one forward pass; bounds the memory of activations. With 512 rows matrix
    products are large, and the activations still small beside a block."""

    device_map: DeviceMap = "auto"
    """`auto` (the same as `balanced`), `balanced`, `balanced_low_0`, `sequential`, one device
    (`cpu`, `disk`, `cuda:0`, `0`), or an object from module names to devices."""

    max_memory: MemoryByDevice = None
    """Most bytes of each device for weights, KV cache, staging and activations together, such as
    `{"0": "10GiB", "cpu": "30GiB"}`. A wish above what the pod owns is cut to that."""

    memory_headroom: float = Field(0.05, ge=0, lt=1)
    """The fraction of each tier that is never planned, for what no plan sees: allocator
    fragments, libraries' workspaces."""

    memory_reserve: Bytes = 128 * 1024**2
    """Bytes of main memory kept free besides: requests and replies in flight, thread arenas."""

    pinned_memory_fraction: float = Field(1.0, ge=0, le=1)
    """The most of main memory, as a fraction, that is page-locked, to be copied to a GPU at the
    link's full speed. No more is than blocks and buffers take; less is for nodes whose driver
    refuses as much."""

    gpu_fraction: float | None = Field(None, gt=0, le=1)
    """This pod's share of a time-sliced GPU's memory, such as 0.25 for one of four replicas."""

    offload_folder: Path | None = None
    """A folder on the offload volume, for the store of blocks that do not fit, and for weights that
    transformers rewrites to stream them. In `setup_config.json` it is relative to the model."""

    offload_store: Literal["auto", "always", "never"] = "auto"
    """Whether blocks that do not fit are copied to `offload_folder` to be read at its speed: `auto`
    does where the checkpoint is not stored as it is served, or its volume is slower; `always` or
    not at all; `never`."""

    verify_store: bool = False
    """Whether every block of the offload store is held against its checksum at the start, which
    takes as long as reading it. It is done in any case after a process that used it was killed."""

    low_cpu_mem_usage: bool | None = None
    """Accepted from the predecessor; models are always built without their weights first."""

    offload_state_dict: bool | None = None
    """Accepted from the predecessor; weights are never gathered in memory while loading."""

    allow_pickle: bool = False
    """Whether `.bin` checkpoints, which can run code when read, are accepted."""

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
    """Seconds that running requests get to finish after SIGTERM; below the 30 s after which
    Kubernetes kills a pod by default."""

    max_body_size: Bytes = 1024**2
    """Bytes of one request, REST or gRPC. A megabyte is a hundred thousand tokens and more; what is
    much larger takes so long to decode that health answers wait."""

    max_batch_size: int = Field(64, ge=1, le=1024)
    """Most sequences that run in one batch. Beyond some dozens a processor or a link to a GPU is
    busy and more only wait together."""

    max_batch_tokens: int = Field(4096, ge=1)
    """Most tokens, padding included, in one pass of a model that classifies, embeds, ranks or
    fills; bounds the memory of activations. At least `max_model_len`."""

    max_batch_delay: float = Field(0.0, ge=0, le=10)
    """Seconds that such a model waits for more texts before it begins a pass that is not full. 0:
    those that come while a pass runs are the next one, and nobody waits without need."""

    return_probabilities: bool = False
    """Whether classification answers with the probabilities of all labels."""

    return_raw_logits: bool = False
    """Whether classification answers with the logits of all labels."""

    return_offsets_mapping: bool = False
    """Whether token classification answers with every token's label and place, and not with the
    entities that tokens make up."""

    max_requests: int = Field(128, ge=1)
    """Requests that run or wait at one time; one more is refused (429, RESOURCE_EXHAUSTED), so
    that those who wait take bounded memory. Twice `max_batch_size`: one batch waits for another."""

    request_timeout: float = Field(600.0, gt=0, allow_inf_nan=False)
    """Seconds after which a request is given up (504, DEADLINE_EXCEEDED), unless it says less in
    the header `x-request-timeout`, the parameter `timeout` or its gRPC deadline. Ten minutes: what
    an offloaded model may take for a long reply, and no proxy waits longer."""

    enable_load_unload: bool = False
    """Whether KServe's unauthenticated route that unloads the model is served. What was unloaded
    stays so until the process starts again."""

    torchserve_api: bool = False
    """Whether TorchServe's routes are served too, for clients that call them: `/predictions`,
    `/ping` and, to read, `/models`."""

    torchserve_semantics: bool = False
    """Whether V1, V2 and `/predictions` do what TorchServe's handler did where a request says
    nothing: the prompt cut at `max_length` tokens, as many new ones, sampled with `top_p` 0.95 and
    `top_k` 60, after the prompt in the reply; V1's predictions are strings then."""

    @model_validator(mode="after")
    def _check_semantics(self) -> Self:
        if self.torchserve_semantics and self.max_length is None:
            raise ValueError("torchserve_semantics needs max_length, the tokens that it cuts at")
        return self

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
    """Return what flags and environment set, as JSON values; `SetupConfig` goes with the model."""
    named = by_field({**own_variables(environ), **flags})
    return whole.model_dump(mode="json", include=set(named))


def names() -> tuple[str, ...]:
    """Return the names of all settings and their aliases."""
    return (*Settings.model_fields, *ALIASES)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # settings contradict each other
        return f"{reason}."
    place = str(first["loc"][0])
    return f"{place}: {reason} (given: {str(first['input'])[:64]!r})."
