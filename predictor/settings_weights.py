"""The settings of how weights are fetched and loaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from predictor.settings_types import URI_SCHEMES


def _uri(value: Any) -> Any:
    scheme, colon, rest = str(value).partition("://")
    if scheme == "hf":
        raise ValueError(f"is a bucket or a web server; a repository on the hub is model_id={rest}")
    if not colon or scheme not in URI_SCHEMES or not rest.strip("/"):
        raise ValueError("must be s3://bucket/folder or https://server/folder")
    if scheme != "s3" and not _has_server(str(value)):
        raise ValueError("names no server and port; must be as https://server/folder")
    return str(value)


def _has_server(url: str) -> bool:
    """Return whether a URL names a server and is valid for the client, and for the resolver."""
    import httpx

    try:
        parts, _ = httpx.URL(url), urlsplit(url).port
        name = parts.host and parts.raw_host.decode().encode("idna")
    except (httpx.InvalidURL, ValueError):
        return False
    return bool(name) and url.isprintable()


class WeightSettings(BaseSettings):
    """Where weights are fetched from, and what of them is kept."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    model_uri: Annotated[str, BeforeValidator(_uri)] | None = Field(None, repr=False)
    """A folder with safetensors files: `s3://bucket/folder`, or the `https://` URL of a folder or
    of the index of its weights. If it is set, neither `model_dir` nor `model_id` is read. Weights
    are fetched file by file while they are loaded, and resumed by the next start."""

    hub_cache: Literal["auto", "always", "never"] = "auto"
    """Whether the weights of `model_id` are fetched into the hub's cache as a whole. With `auto`
    they are if they are complete there, or without an `offload_folder`. Otherwise they are fetched
    file by file while they are loaded, so that no second copy of them is on disk."""

    resident_copy: Literal["auto", "never"] = "auto"
    """Whether fetched weights that stay in memory are kept in `offload_folder` too, so that a
    restart fetches nothing. With `auto` they are if the volume is a disk with room for them. With
    `never` the next start fetches their files again."""

    low_cpu_mem_usage: bool | None = None
    """Accepted from the predecessor; models are always built without their weights first."""

    offload_state_dict: bool | None = None
    """Accepted from the predecessor; weights are never gathered in memory while loading."""
