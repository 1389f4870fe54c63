"""The folders of the revisions of a source that lie on the offload volume."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

from predictor.weights.remote.source import Listing, Source
from predictor.weights.store.locks import SharedLock

logger = logging.getLogger(__name__)

_MANIFEST = ".source"


def base_name(source: Source) -> str:
    """Return what the names of all folders of a source begin with."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(source.name.encode()).hexdigest()[:8]}"


def beside(path: Path, suffix: str) -> Path:
    """Return a file beside a folder."""
    return path.with_name(f"{path.name}{suffix}")


def folders_of(base: Path) -> list[Path]:
    """Return the folders of all revisions, the newest last."""
    folders = [path for path in base.parent.glob(f"{base.name}-*") if path.is_dir()]
    return sorted(folders, key=lambda path: path.stat().st_mtime)


def read_manifest(path: Path, ref: str | None) -> Listing | None:
    """Return the files of the revision in a folder; None if it is of another branch or tag."""
    try:
        content = json.loads((path / _MANIFEST).read_bytes())
        return Listing.from_json(content) if content["ref"] == ref else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_manifest(path: Path, ref: str | None, listing: Listing) -> None:
    """Record the files of the revision in a folder.

    Raises:
        OSError: The volume cannot be written.
    """
    (path / _MANIFEST).write_text(json.dumps({"ref": ref, **listing.as_json()}))


def remove_others(base: Path, own: Path) -> None:
    """Remove the folders of other revisions that no process uses."""
    for path in folders_of(base):
        if path == own:
            continue
        with contextlib.suppress(OSError):
            use = SharedLock(beside(path, ".used"))
            with contextlib.closing(use):
                use.acquire()
                with use.try_exclusive() as is_alone:
                    if is_alone:
                        logger.info("Removing the weights of another revision in %s", path)
                        shutil.rmtree(path)
