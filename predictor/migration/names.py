"""Which names and sizes an archive may declare, said before a byte of it is written."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from predictor.errors import ArchiveError
from predictor.quantity import format_bytes

MOST_MEMBERS = 100_000
"""Files and folders of an archive. A model has tens; each costs memory before it can be judged."""

MOST_NAME_BYTES = 16 * 1024**2
"""Bytes of all names together: 160 for each of the most members."""

MOST_BYTES = 4 * 1024**4
"""Bytes of all members together: more than any published model has."""

_LONGEST_PART, _LONGEST_PATH = 255, 1024
"""Bytes of a name (what Linux's file systems take) and of a path (well below Linux's 4096)."""

_MOST_SHOWN = 60
"""Characters of a name in a sentence."""

_DRIVE = re.compile(r"[A-Za-z]:")


def shown(name: str) -> str:
    """Returns a name for a sentence: quoted, on one line and of bounded length."""
    text = repr(name[:1024])
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[: _MOST_SHOWN - 23]}...{text[-20:]}"


class Listing:
    """The members of one archive, each checked as it is added.

    Attributes:
        files: Bytes of each file, by its path in the archive.
    """

    def __init__(self, where: str) -> None:
        """Takes the archive's name, for sentences."""
        self.files: dict[str, int] = {}
        self._where = where
        self._tree = _Folder()
        self._members = self._bytes = self._name_bytes = 0

    def add(self, name: str, size: int, *, is_folder: bool = False) -> str:
        """Adds a file or folder; returns its path, which is safe to join to a folder's.

        Args:
            name: What the archive calls it.
            size: Bytes that it is said to have.
            is_folder: Whether it is a folder.

        Raises:
            ArchiveError: The name or the size is not allowed, or collides with an earlier member.
        """
        self._count(name, size)
        path = name.removesuffix("/") if is_folder else name
        wrong = _wrong_in(path) or self._tree.add(path, is_folder=is_folder)
        if wrong:
            raise self.refusal(name, wrong)
        if not is_folder:
            self.files[path] = size
        return path

    def refusal(self, name: str, what: str) -> ArchiveError:
        """Returns the error that says what is wrong with a member."""
        return ArchiveError(f"{shown(name)} in {self._where} {what}.")

    @property
    def root(self) -> str:
        """The lone root folder, with its slash, or nothing where there is none.

        An archive of a manifest alone has none: ``MAR-INF`` is TorchServe's, whatever is beside it.
        """
        first = {path.split("/", 1)[0] for path in self.files}
        if len(first) != 1 or not all("/" in path for path in self.files):
            return ""
        (folder,) = first
        return "" if folder == "MAR-INF" else f"{folder}/"

    def _count(self, name: str, size: int) -> None:
        self._members += 1
        self._bytes += size
        self._name_bytes += len(name)
        if size < 0:
            raise self.refusal(name, f"is said to have {size} bytes")
        if self._bytes > MOST_BYTES:
            total = f"{format_bytes(self._bytes)} or more"
            raise ArchiveError(f"{self._where} says it holds {total}, which no model has.")
        if self._members > MOST_MEMBERS or self._name_bytes > MOST_NAME_BYTES:
            raise too_many(self._where)


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
