"""Archives for tests: as TorchServe's archiver lays them out, and zip archives byte by byte."""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from predictor.migration.archive import Archive
from predictor.migration.archive_formats import open_archive

MANIFEST = "MAR-INF/MANIFEST.json"
MODEL = {"config.json": b'{"model_type": "bloom"}', "model.safetensors": bytes(range(256)) * 5000}
"""The content of the small model.zip. Its weights are over 1 MiB, so they are read in chunks."""


def files(model_zip: bytes | None = None) -> dict[str, bytes]:
    """Return the content of an example archive's root."""
    return {
        MANIFEST: b'{"runtime": "python", "model": {"modelName": "bloom"}}',
        "custom_handler.py": b"class Handler: ...\n",
        "empty.txt": b"",
        "model.zip": zipped(MODEL) if model_zip is None else model_zip,
        "setup_config.json": b'{"max_length": "80"}',
    }


def zipped(contents: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive as `zipfile` writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(contents: Mapping[str, bytes], mode: str = "w:gz", root: str = "bloom/") -> bytes:
    """Return a tar archive with a root folder."""
    members = [(named(f"{root}{name}"), data) for name, data in contents.items()]
    return tar_of(members, mode)


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> bytes:
    """Return a tar archive of members of any kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, **attributes: str) -> tarfile.TarInfo:
    """Return the header of a tar member."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def folder(path: Path, contents: Mapping[str, bytes]) -> Path:
    """Write files below a new folder."""
    path.mkdir()
    for name, data in contents.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def unpack(path: Path, into: Path) -> None:
    """Copy all of an archive and of its model.zip, after all checks, as an import does."""
    with contextlib.ExitStack() as stack:
        archives: list[Archive] = [stack.enter_context(open_archive(path))]
        if "model.zip" in archives[0].members:
            archives.append(stack.enter_context(archives[0].inner("model.zip")))
        for archive in archives:
            for name in archive.members:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                archive.copy(name, into / name, lambda done: None)


@dataclass(frozen=True)
class Entry:
    """A member of a zip archive, whose headers may declare untrue values.

    Attributes:
        name: Its name's bytes.
        data: Its unpacked content.
        method: The declared compression method. The real one is 8, or 0 if 0 is declared.
        flags: Its general purpose bits.
        kind: Its file type and mode, as in ``st_mode``.
        size: The declared unpacked size in bytes; None for the real one.
        packed_size: The declared packed size in bytes; None for the real one.
        offset: The declared offset in the central directory; None for the real one.
        local_name: The name in the local header; None for the same one.
    """

    name: bytes
    data: bytes = b"data"
    method: int = 8
    flags: int = 0x800
    kind: int = 0
    size: int | None = None
    packed_size: int | None = None
    offset: int | None = None
    local_name: bytes | None = None

    @property
    def packed(self) -> bytes:
        if self.method == 0:
            return self.data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()


def raw_zip(*entries: Entry) -> bytes:
    """Return a zip archive with the headers that its members declare."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        offset = len(body) if entry.offset is None else entry.offset
        packed = entry.packed
        fields, extra = _fields(entry, len(packed))
        name = entry.name if entry.local_name is None else entry.local_name
        body += b"PK\3\4" + struct.pack("<H", 20) + fields
        body += struct.pack("<2H", len(name), len(extra)) + name + extra + packed
        directory += b"PK\1\2" + struct.pack("<2H", 3 << 8 | 20, 20) + fields
        directory += struct.pack("<3H", len(entry.name), len(extra), 0)
        directory += struct.pack("<2H2L", 0, 0, entry.kind << 16, offset) + entry.name + extra
    count = min(len(entries), 0xFFFF)
    tail = struct.pack("<4H2LH", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory) + b"PK\5\6" + tail


def _fields(entry: Entry, packed_size: int) -> tuple[bytes, bytes]:
    """Return the fields of both headers, and the extra field if a size is over 4 GiB."""
    size = len(entry.data) if entry.size is None else entry.size
    packed_size = packed_size if entry.packed_size is None else entry.packed_size
    extra = b""
    if max(size, packed_size) > 0xFFFFFFFE:
        extra = struct.pack("<2H2Q", 1, 16, size, packed_size)
        size = packed_size = 0xFFFFFFFF
    checksum = zlib.crc32(entry.data)
    fields = struct.pack("<4H3L", entry.flags, entry.method, 0, 33, checksum, packed_size, size)
    return fields, extra


def with_zip64_end(archive: bytes, *, lie: int = 0) -> bytes:
    """Return a zip archive with a Zip64 end, whose declared offset is wrong by `lie` bytes."""
    at = len(archive) - 22
    count, size, start = struct.unpack_from("<H2L", archive, at + 10)
    end = b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, at + lie, 1)
    return archive[:at] + end + locator + archive[at:]


def damaged(archive: bytes, data: bytes) -> bytes:
    """Return an archive with one bit flipped in the given bytes."""
    at = archive.index(data)
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]
