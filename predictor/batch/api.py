"""HTTP endpoints of OpenAI's files and batches.

The source is OpenAI's API reference as its Python client has it (``openai.types``). A client sees
what belongs to its API key alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from predictor.batch.queue import BatchQueue
from predictor.batch.records import BatchRecord, FileRecord
from predictor.batch.store import BatchStore, OwnedStore
from predictor.batch.volume import FileThreads
from predictor.cache_scope import current_scope
from predictor.errors import RequestError
from predictor.protocol.app import route
from predictor.protocol.http.json_body import (
    JSONAnswer,
    check_keys,
    require_type,
)
from predictor.protocol.http.requests import read_document
from predictor.sentences import quote

_MAX_PAGE = 100
_THREADS = 4
"""Threads that use the directory: while one copies a file, others read records."""

_BATCH_KEYS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
)
_MAX_METADATA = 16
_MAX_TEXT = 512


class BatchApi:
    """The endpoints of files and batches."""

    def __init__(self, store: BatchStore, queue: BatchQueue) -> None:
        """Serve a store, whose batches a queue runs."""
        self._store, self._queue = store, queue
        self._files = FileThreads("files", _THREADS)

    def routes(self, prefixes: Iterable[str]) -> Iterator[Route]:
        """Yield the routes below each of the prefixes of OpenAI's paths."""
        for prefix in prefixes:
            files, batches = f"{prefix}/v1/files", f"{prefix}/v1/batches"
            yield route(files, self.upload, "POST")
            yield route(files, self.list_files, "GET")
            yield route(f"{files}/{{file_id}}", self.file, "GET")
            yield route(f"{files}/{{file_id}}", self.delete_file, "DELETE")
            yield route(f"{files}/{{file_id}}/content", self.content, "GET")
            yield route(batches, self.create_batch, "POST")
            yield route(batches, self.list_batches, "GET")
            yield route(f"{batches}/{{batch_id}}", self.batch, "GET")
            yield route(f"{batches}/{{batch_id}}/cancel", self.cancel, "POST")

    async def upload(self, request: Request) -> Response:
        """``POST /v1/files``: keeps a file for a batch."""
        async with request.form(max_files=1, max_fields=8, max_part_size=1024) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise RequestError("The form has no 'file'.")
            if purpose != "batch":
                raise RequestError("purpose must be 'batch'.")
            name = (file.filename or "input.jsonl")[:_MAX_TEXT]
            owned = self._owned(request)
            record = await self._files.run(owned.add_file, file.file, name, "batch")
        return JSONAnswer(record.document())

    async def list_files(self, request: Request) -> Response:
        """``GET /v1/files``: the files, the newest first."""
        return _page(await self._files.run(self._owned(request).files), request)

    async def file(self, request: Request) -> Response:
        """``GET /v1/files/{id}``: one file."""
        record = await self._files.run(self._owned(request).file, _file_id(request))
        return JSONAnswer(record.document())

    async def delete_file(self, request: Request) -> Response:
        """``DELETE /v1/files/{id}``: removes a file."""
        file_id = _file_id(request)
        await self._files.run(self._owned(request).delete_file, file_id)
        return JSONAnswer({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """``GET /v1/files/{id}/content``: the content of a file."""
        path = await self._files.run(self._owned(request).content, _file_id(request))
        return FileResponse(path, media_type="application/jsonl")

    async def create_batch(self, request: Request) -> Response:
        """``POST /v1/batches``: begins a batch."""
        document, _ = await read_document(request)
        check_keys(document, _BATCH_KEYS, "the body")
        for name in ("input_file_id", "endpoint", "completion_window"):
            if name not in document:
                raise RequestError(f"The body has no {name!r}.")
        endpoint = require_type(document["endpoint"], str, "endpoint")
        if endpoint not in self._queue.endpoints:
            raise RequestError(
                f"There is no endpoint {quote(endpoint)} for batches; there are "
                f"{', '.join(self._queue.endpoints)}."
            )
        if document["completion_window"] != "24h":
            raise RequestError("completion_window must be '24h'.")
        source = require_type(document["input_file_id"], str, "input_file_id")
        add = self._owned(request).add_batch
        scope = current_scope()
        record = await self._files.run(add, endpoint, source, scope, _metadata(document))
        self._queue.wake()
        return JSONAnswer(record.document())

    async def list_batches(self, request: Request) -> Response:
        """``GET /v1/batches``: the batches, the newest first."""
        return _page(await self._files.run(self._owned(request).batches), request)

    async def batch(self, request: Request) -> Response:
        """``GET /v1/batches/{id}``: one batch."""
        record = await self._files.run(self._owned(request).batch, _batch_id(request))
        return JSONAnswer(record.document())

    async def cancel(self, request: Request) -> Response:
        """``POST /v1/batches/{id}/cancel``: ends a batch with the results that it has."""
        record = await self._files.run(self._owned(request).cancel, _batch_id(request))
        self._queue.wake()
        return JSONAnswer(record.document())

    def _owned(self, request: Request) -> OwnedStore:
        return self._store.of(request.headers.get("authorization", ""))


def _file_id(request: Request) -> str:
    return str(request.path_params["file_id"])


def _batch_id(request: Request) -> str:
    return str(request.path_params["batch_id"])


def _page(records: list[FileRecord] | list[BatchRecord], request: Request) -> Response:
    """Return the part of a list that a client's `after` and `limit` name."""
    limit = _number(request.query_params.get("limit"), _MAX_PAGE)
    ids = [record.id for record in records]
    after = request.query_params.get("after")
    start = ids.index(after) + 1 if after in ids else 0
    page = records[start : start + limit]
    return JSONAnswer(
        {
            "object": "list",
            "data": [record.document() for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": start + limit < len(records),
        }
    )


def _number(text: str | None, most: int) -> int:
    if text is None:
        return most
    if not text.isdecimal() or not 1 <= int(text[:9]) <= 10_000:
        raise RequestError("limit must be a whole number from 1 to 10000.")
    return min(int(text), most)


def _metadata(document: dict[str, object]) -> dict[str, str] | None:
    if "metadata" not in document:
        return None
    metadata = require_type(document["metadata"], dict, "metadata")
    if len(metadata) > _MAX_METADATA:
        raise RequestError(f"metadata has at most {_MAX_METADATA} keys.")
    for name, value in metadata.items():
        text = require_type(value, str, "A value of metadata")
        if max(len(name), len(text)) > _MAX_TEXT:
            raise RequestError(f"Keys and values of metadata have at most {_MAX_TEXT} characters.")
    return metadata
