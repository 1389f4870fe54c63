"""All settings, from flags, the environment and a ``setup_config.json``, as one frozen value.

Strength: flag, then ``PREDICTOR_*`` environment variable, then ``setup_config.json`` in the model
directory (the predecessor's file; it may hold any setting by its name), then the default. This
module knows names, types and defaults; what a wish means is decided in `placement` and above.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from predictor.errors import ConfigurationError
from predictor.setting_types import Bytes, DeviceMap, Dtype, MemoryByDevice

ALIASES = {"revision": "model_revision", "torch_dtype": "dtype"}
"""The predecessor's names for settings that KServe's Hugging Face server names otherwise."""

PREFIX = "PREDICTOR_"
_SETUP_CONFIG = "setup_config.json"
_SERVICE_LINK = re.compile(
    r"PREDICTOR_(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=\d|PORT(_\d+_\w+)?=\w+://"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=).*"
)
"""``NAME=value`` of what Kubernetes sets for Services named ``predictor`` or ``predictor-...``."""


class Settings(BaseSettings):
    """What the predictor was told: bytes (written ``40Gi``, ``10GiB`` or ``500M``) and seconds."""

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
        """Returns the sources in order of strength; `read_settings` adds the environment."""
        return init_settings, SetupConfig(settings_cls)


class SetupConfig(PydanticBaseSettingsSource):
    """The predecessor's ``setup_config.json``, read from the model directory where there is one."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` reads the whole file."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Returns the file's keys by the names of the settings."""
        if self.current_state.get("model_id"):
            return {}
        path = Path(self.current_state.get("model_dir", "/mnt/models")) / _SETUP_CONFIG
        try:
            keys = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):  # a bare config.json can be planned for
            return {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read as JSON: {error}.") from None
        if not isinstance(keys, dict):
            raise ConfigurationError(f"{path} must hold one JSON object.")
        check_known(keys, f"key in {path}")
        told = _by_field({key: value for key, value in keys.items() if value is not None})
        if isinstance(told.get("offload_folder"), str):
            # The predecessor ran in the model's directory; this process may run anywhere.
            told["offload_folder"] = path.parent / told["offload_folder"]
        # pydantic would merge objects; what a stronger source says is the whole value.
        return {name: value for name, value in told.items() if name not in self.current_state}


def read_settings(flags: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Returns the settings that flags, environment and ``setup_config.json`` make together.

    Args:
        flags: Values as given on the command line, by the names of the settings or their aliases.
        environ: The environment.

    Raises:
        ConfigurationError: A key is unknown (the sentence names the nearest known one) or a value
            is not what its setting takes.
    """
    variables = _own_variables(environ)
    check_known(flags, "flag", shown=lambda name: f"--{name}")
    check_known(variables, "environment variable", shown=lambda name: PREFIX + name.upper())
    try:
        return Settings(**(_by_field(variables) | _by_field(flags)))
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None


def told(whole: Settings, flags: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns what flags and environment set, as JSON values; `SetupConfig` goes with the model."""
    named = _by_field({**_own_variables(environ), **flags})
    return whole.model_dump(mode="json", include=set(named))


def names() -> tuple[str, ...]:
    """Returns the names of all settings and their aliases."""
    return (*Settings.model_fields, *ALIASES)


def check_known(given: Iterable[str], kind: str, *, shown: Callable[[str], str] = str) -> None:
    """Refuses names that are no setting.

    Raises:
        ConfigurationError: Names the first unknown name and the nearest known one.
    """
    for name in given:
        if name not in names():
            near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
            hint = f"; did you mean {shown(near[0])}?" if near else "."
            raise ConfigurationError(f"Unknown {kind} {shown(name)}{hint}")


def _by_field(given: Mapping[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(name, name): value for name, value in given.items()}


def _own_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Our variables; what Kubernetes sets for Services whose names begin like ours is not."""
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not _SERVICE_LINK.fullmatch(f"{name}={value}")
    }


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # of settings that do not go together
        return f"{reason}."
    place = str(first["loc"][0])
    return f"{place}: {reason} (given: {str(first['input'])[:64]!r})."
