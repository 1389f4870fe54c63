"""An archive's listing: each declared name and size is checked before a byte is written."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from predictor.errors import ArchiveError
from predictor.migration.display import quote_path
from predictor.quantity import format_bytes

MAX_MEMBERS = 100_000
"""Files and folders of an archive. A model has tens. Each costs memory before it is checked."""

MAX_NAME_BYTES = 16 * 1024**2
"""Bytes of all names together: 160 for each of the most members."""

MAX_BYTES = 4 * 1024**4
"""Bytes of all members together: more than any published model has."""

MAX_RATIO, RATIO_MATTERS_FROM = 200, 16 * 1024**2
"""The largest ratio of unpacked to packed bytes, and the unpacked bytes from which it is checked.
Weights deflate to half at best and JSON to a twentieth; a deflate bomb reaches 1032. A small file
may be all zeros, which does no harm."""

_MAX_PART, _MAX_PATH = 255, 1024
"""Bytes of a name (the limit of Linux's file systems) and of a path (well below Linux's 4096)."""

_DRIVE = re.compile(r"[A-Za-z]:")

Source = TypeVar("Source")
"""A format's own reference to a file."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive.

    Attributes:
        path: Its POSIX path below the archive's root folder.
        size: Its unpacked size in bytes.
    """

    path: str
    size: int


class Listing(Generic[Source]):
    """The members of one archive, each checked as it is added.

    Attributes:
        name: The archive's name, for error sentences.
        total_bytes: The declared size of all members together.
    """

    def __init__(self, name: str) -> None:
        """Start empty.

        Args:
            name: The archive's name, for error sentences.
        """
        self.name = name
        self.total_bytes = 0
        self._files: dict[str, tuple[int, Source]] = {}
        self._tree = _Folder()
        self._members = self._name_bytes = 0

    def add(self, name: str, size: int, source: Source | None) -> None:
        """Add a file or folder.

        Args:
            name: Its name in the archive.
            size: Its declared size in bytes.
            source: The format's own reference to it; None for a folder.

        Raises:
            ArchiveError: The name or the size is not allowed, or collides with an earlier member.
        """
        self._count(name, size)
        path = name.removesuffix("/") if source is None else name
        problem = _problem_of(path) or self._tree.add(path, is_folder=source is None)
        if problem:
            raise self.refusal(name, problem)
        if source is not None:
            self._files[path] = (size, source)

    def members(self) -> dict[str, Member]:
        """Return the files by path in the order of adding, without a common root folder."""
        root = self._root()
        paths = {path: path.removeprefix(root) for path in self._files}
        return {short: Member(short, self._files[path][0]) for path, short in paths.items()}

    def sources(self) -> dict[str, Source]:
        """Return the format's own reference to each of `members`, by path."""
        root = self._root()
        return {path.removeprefix(root): source for path, (_, source) in self._files.items()}

    def refusal(self, name: str, problem: str) -> ArchiveError:
        """Return the error for a member, given the sentence's predicate."""
        return ArchiveError(f"{quote_path(name)} in {self.name} {problem}.")

    def _root(self) -> str:
        """Return the common root folder with its slash; empty if there is none.

        ``MAR-INF`` is never the root: it is TorchServe's own folder, even if it stands alone.
        """
        first = {path.partition("/")[0] for path in self._files}
        if len(first) != 1 or "MAR-INF" in first or first & self._files.keys():
            return ""
        return f"{first.pop()}/"

    def _count(self, name: str, size: int) -> None:
        self._members += 1
        self.total_bytes += size
        self._name_bytes += len(name)
        if size < 0:
            raise self.refusal(name, f"is said to have {size} bytes")
        if self.total_bytes > MAX_BYTES:
            total = f"{format_bytes(self.total_bytes)} or more"
            raise ArchiveError(f"{self.name} says it holds {total}, which no model has.")
        if self._members > MAX_MEMBERS or self._name_bytes > MAX_NAME_BYTES:
            raise too_many(self.name)


def too_many(name: str) -> ArchiveError:
    """Return the error for an archive with too many members."""
    return ArchiveError(f"{name} holds too many members: at most {MAX_MEMBERS} are read.")


@dataclass(slots=True)
class _Folder:
    """A folder's names, compared as on the least able file systems: without case, in one form.

    Attributes:
        names: Each entry's spelling and, if it is a folder, its content, by the compared name.
    """

    names: dict[str, tuple[str, _Folder | None]] = field(default_factory=dict)

    def add(self, path: str, *, is_folder: bool) -> str:
        """Add a path with all its folders; return the problem with it, or an empty string."""
        *parents, last = path.split("/")
        folder = self
        for name in (*parents, last) if is_folder else parents:
            spelling, below = folder.names.setdefault(_normalized(name), (name, _Folder()))
            if spelling != name:
                return (
                    f"collides with {quote_path(spelling)}, which differs in case or Unicode form"
                )
            if below is None:
                return f"needs a folder {quote_path(name)}, which is a file too"
            folder = below
        return "" if is_folder else folder._add_file(last)

    def _add_file(self, name: str) -> str:
        key = _normalized(name)
        if key not in self.names:
            self.names[key] = (name, None)
            return ""
        spelling, below = self.names[key]
        if spelling != name:
            return f"collides with {quote_path(spelling)}, which differs in case or Unicode form"
        return "is there twice" if below is None else "is a file and a folder at once"


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _problem_of(path: str) -> str:
    """Return why a path must not be written; empty if it may be."""
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in path):
        return "has a name with control characters or bytes that are not UTF-8"
    if "\\" in path:
        return "has a name with a backslash"
    if path.startswith("/") or _DRIVE.match(path):
        return "has an absolute name"
    parts = path.split("/")
    if ".." in parts:
        return "leads outside the archive"
    if "" in parts or "." in parts:
        return "has a name with an empty part"
    if len(path.encode()) > _MAX_PATH or max(len(p.encode()) for p in parts) > _MAX_PART:
        return f"has a name of over {_MAX_PART} bytes, or {_MAX_PATH} with its folders"
    return ""
