"""The files of a source of weights, and how they are read."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from predictor.errors import CheckpointError, HubUnreachable, LoadFailed

SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""Patterns of the files beside the weights."""

WEIGHTS = "*.safetensors"
"""The pattern of files with weights. They lie in the folder itself, and in none below it."""


class NoWeights(CheckpointError):
    """A source without safetensors files."""


class RateLimited(HubUnreachable):
    """The source answers no more requests for a while.

    Attributes:
        seconds: After how many seconds it answers again, as it states.
    """

    def __init__(self, sentence: str, seconds: int) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a source.

    Attributes:
        name: Its path within the source.
        size: Bytes.
        etag: What the source says to tell versions of it apart; None if it says nothing.
        sha256: Its SHA-256 in hexadecimal; None if the source does not know it.
    """

    name: str
    size: int
    etag: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source at one moment.

    Attributes:
        revision: The commit on the hub, or a digest of all names, sizes and ETags.
        files: The files.
    """

    revision: str
    files: tuple[RemoteFile, ...]

    @classmethod
    def of(cls, files: Iterable[RemoteFile]) -> Self:
        """Return the listing of files without a commit; of those alone that a model may have."""
        patterns = (*SMALL, "*.py")
        used = (f for f in files if _has_weights(f.name) or _is_small(f.name, patterns))
        listed = tuple(sorted(used, key=lambda file: file.name))
        content = json.dumps([asdict(file) for file in listed]).encode()
        return cls(hashlib.sha256(content).hexdigest()[:40], listed)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the listing from `as_json`.

        Raises:
            TypeError, KeyError: The value is no such object.
        """
        return cls(str(value["revision"]), tuple(RemoteFile(**file) for file in value["files"]))

    def as_json(self) -> dict[str, Any]:
        """Return the listing as a JSON object."""
        return {"revision": self.revision, "files": [asdict(file) for file in self.files]}

    def small(self, patterns: Iterable[str]) -> tuple[RemoteFile, ...]:
        """Return the files beside the weights that match one of these patterns."""
        listed = list(patterns)
        return tuple(file for file in self.files if _is_small(file.name, listed))

    @property
    def weights(self) -> tuple[RemoteFile, ...]:
        """The files with weights."""
        return tuple(file for file in self.files if _has_weights(file.name))


class Source(Protocol):
    """A repository, a bucket or a web server with the files of one model.

    Attributes:
        name: The name of the source, without secrets.
        ref: The branch or tag that is resolved to a commit; None without one.
    """

    name: str
    ref: str | None

    def listing(self) -> Listing:
        """Return the files.

        Raises:
            HubUnreachable: The source cannot be reached.
            CheckpointError: It has no such model, or denies access.
        """

    def pin(self, revision: str) -> None:
        """Read files of this revision, which an earlier start has listed."""

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file from an offset up to another one.

        Raises:
            HubUnreachable: The source cannot be reached; another attempt may succeed.
            CheckpointError: It denies access.
            LoadFailed: It has another file than it listed.
        """


def _has_weights(name: str) -> bool:
    return fnmatch.fnmatch(name, WEIGHTS) and "/" not in name


def _is_small(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a file matches a pattern, and is not of another model in a folder below."""
    *folders, _ = name.split("/")
    is_near = len(folders) <= 1 and not name.startswith("checkpoint-")
    is_own = is_near or name.endswith(".py")
    return is_own and any(fnmatch.fnmatch(name, each) for each in patterns)


def changed(source: str, file: RemoteFile) -> LoadFailed:
    """Return the error of a file that is another one than was listed."""
    return LoadFailed(
        f"{file.name} of {source} was changed while it was fetched; start again to serve the new "
        "version."
    )
