"""Files and batches as OpenAI's API shows them, and as they are kept on disk.

The source is OpenAI's API reference, "The file object" and "The Batch object".
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

Status = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
]

OVER: tuple[Status, ...] = ("completed", "failed", "expired", "cancelled")
"""States that a batch keeps."""

_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def new_id(kind: Literal["file-", "batch_"]) -> str:
    """Return an id that nobody can guess."""
    return kind + secrets.token_hex(12)


def _new_scope() -> str:
    return secrets.token_hex(32)


def id_of_results(batch_id: str, kind: str) -> str:
    """Return the id of the file with one kind of a batch's results, the same at every trial."""
    return "file-" + hashlib.sha256(f"{batch_id} {kind}".encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file.

    Attributes:
        id: Its id.
        bytes: Its size.
        created_at: Unix time.
        expires_at: Unix time after which it is removed.
        filename: The client's name of it.
        purpose: ``batch`` or ``batch_output``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str

    def document(self) -> dict[str, object]:
        """Return OpenAI's object."""
        return {**asdict(self), "object": "file", "status": "processed", "status_details": None}


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch.

    Attributes:
        id: Its id.
        endpoint: The URL of its lines.
        input_file_id: The file with its lines.
        created_at: Unix time.
        expires_at: Unix time after which it ends with what it has.
        scope: The scope of the request that created it, in the prefix cache: a digest in
            hexadecimal digits, or nothing. Clients do not see it. The record of an earlier build
            has none, and gets one that it shares with nobody.
        status: Its state.
        metadata: The client's own texts.
        total: Lines of the input; 0 until they are counted.
        completed: Lines that were answered.
        failed: Lines that have an error.
        output_file_id: The file with the answers; None until it is over, or without any.
        error_file_id: The file with the errors; None as well.
        times: Unix times at which it got into its states.
        error: Why it failed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    scope: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = field(default_factory=_new_scope)
    status: Status = "validating"
    metadata: Mapping[str, str] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether its state stays as it is."""
        return self.status in OVER

    def document(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        errors = None
        if self.error is not None:
            row = {"code": "batch_failed", "message": self.error, "line": None, "param": None}
            errors = {"object": "list", "data": [row]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.times.get(name) for name in _TIMES},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }
