"""Opens the checkpoint that the settings name, and decides what is kept of fetched weights.

Those are weights that the server itself fetches while it loads them, by `weights.remote`. Others
lie on local disk before they are loaded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from predictor.checkpoint.checkpoint import Checkpoint, is_cached, open_directory, open_hub
from predictor.errors import ConfigurationError
from predictor.prepared import Prepared
from predictor.quantity import format_bytes
from predictor.settings import Settings
from predictor.weights.progress import Progress
from predictor.weights.remote.hub_source import HubSource
from predictor.weights.remote.mirror import FOLDER, Mirror, open_mirror
from predictor.weights.remote.source import SMALL, NoWeights, Source
from predictor.weights.remote.uri_source import source_of
from predictor.weights.remote.volume import volume_demand

logger = logging.getLogger(__name__)


def open_checkpoint(settings: Settings, *, needs_weights: bool = True) -> Checkpoint:
    """Open the checkpoint that the settings name, on the hub or in a directory.

    Args:
        settings: The settings.
        needs_weights: Whether to refuse a bare ``config.json``, which is enough for a plan.

    Raises:
        CheckpointError: The checkpoint cannot be served.
        HubUnreachable: The checkpoint is on the hub, which cannot be reached.
    """
    rules: dict[str, Any] = {
        "task": settings.task,
        "allow_pickle": settings.allow_pickle,
        "trust_remote_code": settings.trust_remote_code,
    }
    remote = _open_remote(settings, rules, loads=needs_weights)
    if remote is not None:
        return remote
    if settings.model_id is not None:
        return open_hub(settings.model_id, settings.model_revision, **rules)
    return open_directory(settings.model_dir, needs_weights=needs_weights, **rules)


def _open_remote(settings: Settings, rules: dict[str, Any], *, loads: bool) -> Checkpoint | None:
    """Return a checkpoint whose weights are fetched while they are loaded; None if it is no such.

    Args:
        settings: The settings.
        rules: Arguments of `open_directory`.
        loads: Whether weights will be loaded, and not only planned.

    Raises:
        CheckpointError: The checkpoint cannot be served.
        HubUnreachable: The source cannot be reached, and nothing was fetched of it before.
        ConfigurationError: The folder cannot be written, or a library is not installed.
    """
    source = _source(settings, loads=loads)
    if source is None:
        return None
    root = settings.offload_folder if loads else None
    patterns = [*SMALL, *(("*.py",) if settings.trust_remote_code else ())]
    try:
        mirror = open_mirror(source, (root or Path(constants.HF_HOME)) / FOLDER, patterns)
    except NoWeights:
        if settings.model_uri is not None or settings.hub_cache == "never":
            raise
        return None
    checkpoint = open_directory(mirror.path, **rules)
    if checkpoint.stored is not None:
        mirror.keep(checkpoint.stored.files)
    return mirror.applied_to(checkpoint)


def begin(settings: Settings, prepared: Prepared, progress: Progress) -> None:
    """Decide what is kept on disk, and refuse a volume that is too small, before the download.

    Raises:
        ConfigurationError: The volume has too little space.
    """
    mirror = _mirror(prepared)
    if mirror is None:
        return
    mirror.fetched = lambda size: progress.fetched(size, mirror.missing_bytes)
    offload = prepared.offload
    if settings.offload_folder is None:
        mirror.keeps_resident = False
        return
    missing = mirror.missing_bytes
    demand = volume_demand(mirror, prepared.footprint, prepared.placement, offload)
    available = offload.free + offload.existing + mirror.held_bytes
    has_room = offload.is_disk and available >= demand.most
    mirror.keeps_resident = settings.resident_copy == "auto" and has_room
    logger.info(
        "%s of weights are fetched to %s; weights that stay in memory are %s there",
        *(format_bytes(missing), mirror.path, "kept" if mirror.keeps_resident else "not kept"),
    )
    if missing and available < demand.least:
        raise ConfigurationError(
            f"The offload volume has {format_bytes(available)} for weights, and needs "
            f"{format_bytes(demand.least)} while they are fetched and written to be streamed; give "
            "it more space."
        )


def settle(prepared: Prepared, *, has_store: bool) -> None:
    """Release what is not read again, and let other processes load from the folder."""
    mirror = _mirror(prepared)
    if mirror is not None:
        mirror.settle(has_store=has_store)


def _mirror(prepared: Prepared) -> Mirror | None:
    remote = prepared.checkpoint.remote
    return remote if isinstance(remote, Mirror) else None


def _source(settings: Settings, *, loads: bool) -> Source | None:
    if settings.model_uri is not None:
        return source_of(settings.model_uri)
    model_id, revision = settings.model_id, settings.model_revision
    if model_id is None or settings.hub_cache == "always":
        return None
    if settings.hub_cache == "auto" and (not loads or settings.offload_folder is None):
        return None
    if settings.hub_cache == "auto" and is_cached(
        model_id, revision, trust_remote_code=settings.trust_remote_code
    ):
        return None
    return HubSource(model_id, revision)
