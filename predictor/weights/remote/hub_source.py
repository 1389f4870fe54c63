"""A repository on the Hugging Face hub, whose files are read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session

from predictor.checkpoint.hub_answers import answered_within, hub_errors
from predictor.weights.remote.source import Listing, RemoteFile
from predictor.weights.remote.web_reader import stream_range

_SECONDS_TO_ANSWER = 20.0
"""Seconds in which the hub has to list a repository."""


class HubSource:
    """A repository at a branch, a tag or a commit.

    ``HF_ENDPOINT`` is the hub, and ``HF_TOKEN`` the token.

    Attributes:
        name: The repository's name.
        ref: The branch, tag or commit.
    """

    def __init__(self, model_id: str, revision: str | None) -> None:
        """Ask nothing yet."""
        self.name = model_id
        self.ref: str | None = revision or constants.DEFAULT_REVISION
        self._commit: str | None = None
        self._stored: dict[str, str] = {}

    def listing(self) -> Listing:
        """Return the files of the commit that the revision is resolved to."""
        info = answered_within(_SECONDS_TO_ANSWER, self._ask)
        self._commit = str(info.sha)
        return Listing(self._commit, tuple(self._file(each) for each in info.siblings or ()))

    def pin(self, revision: str) -> None:
        """Read files of this commit."""
        self._commit = revision

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file. The commit and the SHA-256 say which file it is.

        The hub bounds how often it says where a file is stored. So the file is read there, without
        the token, until that is refused: after an hour or so.
        """
        with hub_errors(self.name):
            stored = self._stored.get(file.name)
            if stored is not None:
                parts = self._stream(stored, {}, file, begin, end)
                try:
                    first = next(parts)
                # Whatever it is, the hub says it again, or where the file is now.
                except Exception:
                    self._stored.pop(file.name, None)
                else:
                    yield first
                    yield from parts
                    return
            url = hf_hub_url(self.name, file.name, revision=self._commit)
            yield from self._stream(url, build_hf_headers(), file, begin, end)

    def _stream(
        self, url: str, headers: dict[str, str], file: RemoteFile, begin: int, end: int
    ) -> Iterator[bytes]:
        return stream_range(
            *(get_session(), url, file, begin, end),
            source=self.name,
            headers=headers,
            checks_etag=False,
            on_redirect=partial(self._stored.__setitem__, file.name),
        )

    def _ask(self) -> Any:
        with hub_errors(self.name):
            return HfApi().model_info(
                self.name, revision=self.ref, timeout=_SECONDS_TO_ANSWER, files_metadata=True
            )

    def _file(self, sibling: Any) -> RemoteFile:
        name, size = str(sibling.rfilename), sibling.size
        digest = None if sibling.lfs is None else sibling.lfs.sha256
        if size is None:  # a mirror of the hub that lists names alone
            with hub_errors(self.name):
                size = get_hf_file_metadata(hf_hub_url(self.name, name, revision=self._commit)).size
        return RemoteFile(name, int(size or 0), sha256=digest)
