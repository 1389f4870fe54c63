"""How offloaded parts are stored: what the settings, the pod and the model say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from predictor.checkpoint.remote_files import RemoteWeights


@dataclass(frozen=True, slots=True)
class OffloadConfig:
    """The properties of the settings, the pod and the model that concern parts on disk.

    Attributes:
        folder: The offload folder; None without one.
        free: Bytes that may be written there.
        existing: Bytes of the model's files there of earlier starts, which are used or replaced.
        store: ``"auto"``, ``"always"`` or ``"never"``.
        verify: Whether to check a store's blocks at every start.
        needs_conversion: Whether transformers writes parts on disk anew, see `converted`.
        is_disk: Whether the volume is on a disk, and not in memory.
        needs_cast: Whether the checkpoint is stored in another dtype than it is served in.
        remote: Fetches weights that are not on local disk; None if all are.
    """

    folder: Path | None = None
    free: int = 0
    existing: int = 0
    store: str = "auto"
    verify: bool = False
    needs_conversion: bool = False
    needs_cast: bool = False
    is_disk: bool = True
    remote: RemoteWeights | None = None

    @property
    def needs_store(self) -> bool:
        """Whether the checkpoint's bytes are not those that are served."""
        return self.needs_conversion or self.needs_cast
