"""A repository on the hub, and the copy of it in the local cache.

A start needs the hub for files that the cache lacks, and to resolve a branch or a tag. If the hub
cannot be asked, the commit that the cache has for the branch or the tag is served. A pinned commit
never changes, so the hub is not asked for it once every file is in the cache. An answer of the hub
that denies access is an error, not an outage. Which files make a model is decided in `checkpoint`.

The cache's layout is that of https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from predictor.checkpoint.hub_answers import answered_within, hub_errors
from predictor.errors import HubUnreachable

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REFERENCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s@]+))?")

_SECONDS_TO_ANSWER = 20.0
"""Seconds in which the hub has to answer. Without a limit a silent network would hang the start."""

_SECONDS_BEFORE_THE_CACHE = 5.0
"""The same if the cache can be served instead: a hub that works answers in a fraction of one."""

_SECONDS_FOR_SMALL_FILES = 30.0
"""Seconds to fetch the small files of a new commit if the cache has a commit to serve instead."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one commit in the cache.

    Attributes:
        path: The folder.
        commit: The commit.
        names: All files of the commit; those in the cache if the hub's list of them is unknown.
        is_listed: Whether the hub's list is known.
    """

    path: Path
    commit: str
    names: tuple[str, ...]
    is_listed: bool


class Repository:
    """A repository of a model or an adapter at a branch, a tag or a commit.

    Attributes:
        model_id: The repository's name.
        ref: The branch or tag; None for a pinned commit.
    """

    def __init__(
        self,
        model_id: str,
        revision: str | None,
        *,
        remedy: str = "mount the model and give --model_dir",
    ) -> None:
        """Ask and read nothing yet.

        Args:
            model_id: The repository's name.
            revision: Branch, tag or commit; None is the default branch.
            remedy: What a user can do without the hub, as an imperative phrase.
        """
        self.model_id = model_id
        self._remedy = remedy
        self._revision = revision
        self._pinned = revision if revision and _COMMIT.fullmatch(revision) else None
        self.ref = None if self._pinned else revision or constants.DEFAULT_REVISION

    @property
    def name(self) -> str:
        """The name, and the revision if one is set, for people."""
        return f"{self.model_id} (revision {self._revision})" if self._revision else self.model_id

    def open(self, patterns: Sequence[str], lacking: Callable[[Snapshot], str | None]) -> Snapshot:
        """Return a commit, with its small files in the cache.

        Args:
            patterns: Patterns of the small files' names.
            lacking: Returns the files that a snapshot lacks, as a phrase; None if it is complete.

        Raises:
            HubUnreachable: The hub cannot be asked, and the cache has no complete commit.
            CheckpointError: The hub has no such repository or revision, or denies access.
        """
        cached = self.cached()
        lacks = f"{self.model_id}" if cached is None else lacking(cached)
        if self._pinned and cached is not None and lacks is None and cached.is_listed:
            logger.info("%s is served from the cache; the hub is not asked", self.name)
            return cached
        try:
            return self._fetch_small(patterns, has_cached=lacks is None)
        except HubUnreachable as error:
            if cached is None or lacks is not None:
                raise HubUnreachable(self._unreachable(str(error), lacks)) from None
            logger.warning(
                "The hub at %s cannot be asked (%s): %s is served from the cache at commit %s",
                constants.ENDPOINT,
                error,
                self.name,
                cached.commit,
            )
            return cached

    def fetch(self, commit: str, patterns: Sequence[str], lacks: str) -> Path:
        """Return the folder of a commit, after fetching files that the cache lacks.

        Args:
            commit: The commit.
            patterns: Patterns of the files' names.
            lacks: The files that the cache lacks, as a phrase.

        Raises:
            HubUnreachable: The hub cannot be reached.
            CheckpointError: The hub denies access.
        """
        try:
            return self._download(commit, patterns)
        except HubUnreachable as error:
            raise HubUnreachable(self._unreachable(str(error), lacks)) from None

    def remember(self, commit: str) -> None:
        """Record in the cache the commit that the branch or tag was resolved to.

        This is done when all files are there. A start without the hub then finds a complete commit,
        whatever a later start had begun to fetch.
        """
        if self.ref is None:
            return
        file = self._folder / "refs" / self.ref
        with contextlib.suppress(OSError):  # a cache that cannot be written
            if file.is_file() and file.read_text() == commit:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=self._folder, prefix=".ref-")
            with os.fdopen(descriptor, "w") as stream:
                stream.write(commit)
            Path(partial).chmod(0o644)
            Path(partial).rename(file)

    @property
    def _folder(self) -> Path:
        return Path(constants.HF_HUB_CACHE) / f"models--{self.model_id.replace('/', '--')}"

    def cached(self) -> Snapshot | None:
        """Return the commit in the cache; None if it has none for this revision."""
        commit = self._pinned
        if commit is None:
            with contextlib.suppress(OSError):
                commit = (self._folder / "refs" / str(self.ref)).read_text().strip()
        if commit is None or not _COMMIT.fullmatch(commit):
            return None
        return self._snapshot(commit)

    def _snapshot(self, commit: str) -> Snapshot | None:
        path = self._folder / "snapshots" / commit
        if not path.is_dir():
            return None
        try:
            listed = get_cached_repo_tree(self.model_id, revision=commit)
        except CachedRepoTreeNotFoundError:
            present = (file for file in path.rglob("*") if file.is_file())
            names = tuple(str(file.relative_to(path)) for file in present)
            return Snapshot(path, commit, names, is_listed=False)
        return Snapshot(path, commit, tuple(file.path for file in listed), is_listed=True)

    def _fetch_small(self, patterns: Sequence[str], *, has_cached: bool) -> Snapshot:
        seconds = _SECONDS_BEFORE_THE_CACHE if has_cached else _SECONDS_TO_ANSWER
        info = answered_within(seconds, lambda: self._ask(seconds))
        commit = str(info.sha)
        seconds_to_fetch = _SECONDS_FOR_SMALL_FILES if has_cached else None
        path = answered_within(seconds_to_fetch, lambda: self._download(commit, patterns))
        names = tuple(str(sibling.rfilename) for sibling in info.siblings or ())
        return Snapshot(path, commit, names, is_listed=True)

    def _ask(self, seconds: float) -> Any:
        with hub_errors(self.name):
            return HfApi().model_info(self.model_id, revision=self._revision, timeout=seconds)

    def _download(self, commit: str, patterns: Sequence[str]) -> Path:
        with hub_errors(self.name):
            folder = snapshot_download(
                self.model_id, revision=commit, allow_patterns=list(patterns)
            )
        return Path(folder)

    def _unreachable(self, reason: str, lacks: str | None) -> str:
        return (
            f"{self.name} must come from the hub at {constants.ENDPOINT}, which cannot be reached "
            f"({reason}), since the cache in {constants.HF_HUB_CACHE} lacks {lacks}; "
            f"{self._remedy}, or let this pod reach the hub."
        )


def split_reference(source: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision that a source names; None if it is a path.

    Args:
        source: A path or, if nothing is there, ``owner/name`` or ``owner/name@revision``.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None or os.path.exists(source):  # `Path.exists` raises for long names
        return None
    return match["name"], match["revision"]


def missing_files(snapshot: Snapshot, patterns: Sequence[str]) -> str | None:
    """Return the listed files of these patterns that the cache lacks, as a phrase; None without."""
    wanted = {"config.json"}
    for pattern in patterns:
        wanted.update(fnmatch.filter(snapshot.names, pattern))
    missing = sorted(name for name in wanted if not (snapshot.path / name).is_file())
    if not missing:
        return None
    return missing[0] + (f" and {len(missing) - 1} more files" if len(missing) > 1 else "")
