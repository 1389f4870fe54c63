"""A folder on a web server, given by its URL or by that of the index of its weights.

A web server lists no files. So those of the weights are taken from the index, and of the others
each name is tried that models have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

import httpx

from predictor.checkpoint.weight_files import stays_within
from predictor.errors import CheckpointError, HubUnreachable, reason_of
from predictor.sentences import MAX_NAME, quote, shorten
from predictor.weights.remote.source import Listing, RemoteFile
from predictor.weights.remote.web_reader import (
    SECONDS_TO_READ,
    refuse_status,
    stream_range,
    total_size,
    version_of,
    without_ranges,
)

AUTHORIZATION = "MODEL_URI_AUTHORIZATION"
"""The environment variable with the header ``Authorization`` of all requests."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
    *("chat_template.json", "preprocessor_config.json", "processor_config.json"),
    *("quantize_config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
    *("config_sentence_transformers.json", "tiktoken.model"),
)
_MOST_INDEX = 64 * 1024**2

_FAILURES = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)
"""What a request raises. The last is of a header, or of a redirect to a host that is no name."""


class WebSource:
    """A folder on a web server that supports ranges.

    Attributes:
        name: The folder's URL, without a query and without a user.
        ref: None: a folder has no branches.
    """

    def __init__(self, url: str, *, seconds: float = SECONDS_TO_READ) -> None:
        """Ask nothing yet.

        Args:
            url: The URL of the folder, or of the index or the file of its weights. A query is part
                of each request, since it may sign them.
            seconds: Seconds to connect, and for an answer, of each request of a listing.
        """
        parts = urlsplit(url)
        last = parts.path.rpartition("/")[2]
        folder = (
            parts.path.removesuffix(last)
            if last.endswith((".json", ".safetensors"))
            else (f"{parts.path.rstrip('/')}/")
        )
        host = parts.netloc.rpartition("@")[2]
        self.name = urlunsplit((parts.scheme, host, folder, "", ""))
        self.ref: str | None = None
        self._parts = parts._replace(path=folder, fragment="")
        self._headers = {}
        if value := os.environ.get(AUTHORIZATION):
            self._headers["Authorization"] = value
        self._client = httpx.Client(timeout=seconds, follow_redirects=True)

    def listing(self) -> Listing:
        """Return the files of weights that the index names, and those others that there are."""
        index = self._look_up(_INDEX)
        names = [_SINGLE] if index is None else self._shards(index)
        with ThreadPoolExecutor(8, "listing") as pool:
            weights = list(pool.map(self._look_up, names))
            others = list(pool.map(self._look_up, _OTHERS))
        missing = [name for name, file in zip(names, weights, strict=True) if file is None]
        if missing:
            raise CheckpointError(f"{self.name} has no {missing[0]}.")
        return Listing.of(file for file in (index, *weights, *others) if file is not None)

    def close(self) -> None:
        """Close all connections. Whatever another thread is still about to request fails."""
        self._client.close()

    def pin(self, revision: str) -> None:
        """Do nothing: the ETag of each file is that which was listed."""

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file."""
        try:
            yield from stream_range(
                *(self._client, self._url(file.name), file, begin, end),
                source=self.name,
                headers=self._headers,
                checks_etag=True,
            )
        except _FAILURES as error:
            raise HubUnreachable(reason_of(error, most=120).rstrip(".")) from None

    def _url(self, name: str) -> str:
        url = urlunsplit(self._parts._replace(path=self._parts.path + name))
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            folder = shorten(self.name, MAX_NAME)
            raise CheckpointError(f"{quote(name)} has no valid URL in {folder} ({error})") from None
        return url

    def _look_up(self, name: str) -> RemoteFile | None:
        """Return a file by its first byte; None if the server has none of this name."""
        headers = {**self._headers, "Range": "bytes=0-0", "Accept-Encoding": "identity"}
        try:
            with self._client.stream("GET", self._url(name), headers=headers) as response:
                if response.status_code in (403, 404, 410):  # 403 of a bucket that lists nothing
                    return None
                if response.status_code == 416:  # it is empty, and so has no first byte
                    return RemoteFile(name, 0, version_of(response))
                refuse_status(response, f"{name} of {self.name}")
                size = total_size(response)
                etag = version_of(response)
        except _FAILURES as error:
            raise self._unreachable(reason_of(error, most=120).rstrip(".")) from None
        except HubUnreachable as error:
            raise self._unreachable(str(error)) from None
        if size is None:
            raise without_ranges(self.name, name)
        return RemoteFile(name, size, etag)

    def _unreachable(self, reason: str) -> HubUnreachable:
        return HubUnreachable(f"{self.name} cannot be reached ({reason}).")

    def _shards(self, index: RemoteFile) -> list[str]:
        text = b"".join(self.read(index, 0, min(index.size, _MOST_INDEX)))
        try:
            names = sorted({str(name) for name in json.loads(text)["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{_INDEX} of {self.name} is no index of weights.") from None
        if not all(map(stays_within, names)):
            raise CheckpointError(f"{_INDEX} of {self.name} names a file outside of its folder.")
        return names
