"""Which names and sizes an archive may declare, said before a byte of it is written."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from predictor.errors import ArchiveError
from predictor.quantity import format_bytes

MOST_MEMBERS = 100_000
"""Files and folders of an archive. A model has tens; each costs memory before it can be judged."""

MOST_NAME_BYTES = 16 * 1024**2
"""Bytes of all names together: 160 for each of the most members."""

MOST_BYTES = 4 * 1024**4
"""Bytes of all members together: more than any published model has."""

MOST_RATIO, RATIO_MATTERS_FROM = 200, 16 * 1024**2
"""How many times larger what is unpacked may be, and from how many bytes on that matters. Weights
deflate to no less than half and JSON to a twentieth; deflate's bombs reach 1032. What is small may
be all zeros and does no harm."""

_LONGEST_PART, _LONGEST_PATH = 255, 1024
"""Bytes of a name (what Linux's file systems take) and of a path (well below Linux's 4096)."""

_MOST_SHOWN = 50
"""Characters of a name in a sentence."""

_DRIVE = re.compile(r"[A-Za-z]:")

Source = TypeVar("Source")
"""What a format knows a file by."""


def shown(name: str) -> str:
    """Returns a name for a sentence: quoted, on one line and of bounded length."""
    text = repr(name[:1024])
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[: _MOST_SHOWN - 23]}...{text[-20:]}"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive.

    Attributes:
        path: Where it is, as a POSIX path below the archive's root folder.
        size: Bytes that it has once unpacked.
    """

    path: str
    size: int


class Listing(Generic[Source]):
    """The members of one archive, each checked as it is added.

    Attributes:
        where: The archive's name, for sentences.
        bytes: What all of them are said to have.
    """

    def __init__(self, where: str) -> None:
        """Takes the archive's name, for sentences."""
        self.where = where
        self.bytes = 0
        self._files: dict[str, tuple[int, Source]] = {}
        self._tree = _Folder()
        self._members = self._name_bytes = 0

    def add(self, name: str, size: int, source: Source | None) -> None:
        """Adds a file or folder.

        Args:
            name: What the archive calls it.
            size: Bytes that it is said to have.
            source: What the format knows it by; nothing for a folder.

        Raises:
            ArchiveError: The name or the size is not allowed, or collides with an earlier member.
        """
        self._count(name, size)
        path = name.removesuffix("/") if source is None else name
        wrong = _wrong_in(path) or self._tree.add(path, is_folder=source is None)
        if wrong:
            raise self.refusal(name, wrong)
        if source is not None:
            self._files[path] = (size, source)

    def members(self) -> dict[str, Member]:
        """Returns the files by path in the order in which they were added, without a lone root."""
        root = self._root()
        paths = {path: path.removeprefix(root) for path in self._files}
        return {short: Member(short, self._files[path][0]) for path, short in paths.items()}

    def sources(self) -> dict[str, Source]:
        """Returns what the format knows each of `members` by."""
        root = self._root()
        return {path.removeprefix(root): source for path, (_, source) in self._files.items()}

    def refusal(self, name: str, what: str) -> ArchiveError:
        """Returns the error that says what is wrong with a member."""
        return ArchiveError(f"{shown(name)} in {self.where} {what}.")

    def _root(self) -> str:
        """Returns the lone root folder with its slash, or nothing where there is none.

        An archive of a manifest alone has none: ``MAR-INF`` is TorchServe's, whatever is beside it.
        """
        first = {path.partition("/")[0] for path in self._files}
        if len(first) != 1 or "MAR-INF" in first or first & self._files.keys():
            return ""
        return f"{first.pop()}/"

    def _count(self, name: str, size: int) -> None:
        self._members += 1
        self.bytes += size
        self._name_bytes += len(name)
        if size < 0:
            raise self.refusal(name, f"is said to have {size} bytes")
        if self.bytes > MOST_BYTES:
            total = f"{format_bytes(self.bytes)} or more"
            raise ArchiveError(f"{self.where} says it holds {total}, which no model has.")
        if self._members > MOST_MEMBERS or self._name_bytes > MOST_NAME_BYTES:
            raise too_many(self.where)


def too_many(where: str) -> ArchiveError:
    """Returns the error of an archive with more members than may be."""
    return ArchiveError(f"{where} holds too many members: at most {MOST_MEMBERS} are read.")


@dataclass(slots=True)
class _Folder:
    """A folder's names as the least able file systems compare them: without case, in one form.

    Attributes:
        names: The spelling of each, and its own names where it is a folder.
    """

    names: dict[str, tuple[str, _Folder | None]] = field(default_factory=dict)

    def add(self, path: str, *, is_folder: bool) -> str:
        """Adds a path with all its folders; returns what is wrong, or nothing."""
        *parents, last = path.split("/")
        folder = self
        for name in (*parents, last) if is_folder else parents:
            spelling, below = folder.names.setdefault(_compared(name), (name, _Folder()))
            if spelling != name:
                return f"collides with {shown(spelling)}, which differs in case or Unicode form"
            if below is None:
                return f"needs a folder {shown(name)}, which is a file too"
            folder = below
        return "" if is_folder else folder._add_file(last)

    def _add_file(self, name: str) -> str:
        key = _compared(name)
        if key not in self.names:
            self.names[key] = (name, None)
            return ""
        spelling, below = self.names[key]
        if spelling != name:
            return f"collides with {shown(spelling)}, which differs in case or Unicode form"
        return "is there twice" if below is None else "is a file and a folder at once"


def _compared(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _wrong_in(path: str) -> str:
    """Returns why a path must not be written, or nothing."""
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
    if len(path.encode()) > _LONGEST_PATH or max(len(p.encode()) for p in parts) > _LONGEST_PART:
        return f"has a name of over {_LONGEST_PART} bytes, or {_LONGEST_PATH} with its folders"
    return ""
