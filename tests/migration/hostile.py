"""Archives that must be refused.

`HOSTILE` maps a name to a function that makes the archive in a folder, and to a phrase of the
refusal. All except those of `DAMAGED` are refused before a byte is written.
"""

from __future__ import annotations

import gzip
import os
import socket
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.migration.archives import (
    MODEL,
    Entry,
    damaged,
    files,
    folder,
    named,
    raw_zip,
    tar_of,
    tarred,
    with_zip64_end,
    zipped,
)

Make = Callable[[Path], Path]

GIB, TIB = 1024**3, 1024**4

NAMES = {
    "an absolute name": ("/etc/passwd", "absolute name"),
    "a drive letter": ("C:/evil", "absolute name"),
    "a name that leads outside": ("../evil", "leads outside"),
    "a name that leads outside from within": ("a/b/../../../evil", "leads outside"),
    "a backslash": ("..\\evil", "a backslash"),
    "a line break in a name": ("config.json\nAll is well.", "control characters"),
    "an escape sequence in a name": ("\x1b[2Jconfig.json", "control characters"),
    "a folder without a name": ("a//b", "an empty part"),
    "a dot for a folder": ("a/./b", "an empty part"),
    "a name of 256 bytes": ("é" * 128, "over 255 bytes"),
    "a path of over 1024 bytes": ("folder/" * 150 + "a", "1024 with its folders"),
}

PAIRS = {
    "the same name twice": (("a/b", "a/b"), "is there twice"),
    "names that differ in case": (("Config.json", "config.json"), "differs in case"),
    "names that differ in Unicode form": (("caf\xe9", "cafe\u0301"), "Unicode form"),
    "names that differ in the case of a sharp s": (("STRASSE", "straße"), "differs in case"),
    "folders that differ in case": (("Model/a", "model/b"), "differs in case"),
    "a file where a folder is needed": (("a", "a/b"), "needs a folder 'a'"),
    "a folder where a file is": (("a/b", "a"), "a file and a folder at once"),
}

SMALL = Entry(b"config.json")
ZEROS = bytes(64 * 1024**2)

ENTRIES: dict[str, tuple[tuple[Entry, ...], str]] = {
    "no name at all": ((Entry(b""),), "an empty part"),
    "a NUL in a name": ((Entry(b"config.json\0.txt"),), "control characters"),
    "a name that is not UTF-8": ((Entry(b"\xff\xfe"),), "cannot be read"),
    "a symbolic link": ((Entry(b"a", b"/etc", kind=stat.S_IFLNK | 0o777),), "a link, a device"),
    "a named pipe": ((Entry(b"a", kind=stat.S_IFIFO),), "a link, a device"),
    "a device": ((Entry(b"a", kind=stat.S_IFBLK),), "a link, a device"),
    "a folder that is named like a file": ((Entry(b"a", kind=stat.S_IFDIR),), "neither a file"),
    "an encrypted member": ((Entry(b"a", flags=0x1),), "is encrypted"),
    "a strongly encrypted member": ((Entry(b"a", flags=0x41),), "is encrypted"),
    "a patch of another file": ((Entry(b"a", flags=0x20),), "method that is not read"),
    "a method that nobody knows": ((Entry(b"a", method=77),), "method that is not read"),
    "a bomb in one member": ((Entry(b"a", ZEROS),), "would unpack to 200 times"),
    "a size that no archive of its length has": (
        (Entry(b"a", size=GIB),),
        "would unpack to 200 times",
    ),
    "a stored member of two sizes": ((Entry(b"a", method=0, size=9),), "with another size"),
    "sizes that no model has": (
        (Entry(b"a", size=5 * TIB, packed_size=TIB),),
        "5.00 TiB or more, which no model has",
    ),
    "sizes that only together no model has": (
        tuple(Entry(bytes([name]), size=TIB, packed_size=TIB) for name in b"abcde"),
        "which no model has",
    ),
    "two members in one place": ((SMALL, Entry(b"a", offset=0)), "overlaps"),
    "a member whose data are the next members": (
        (Entry(b"a", packed_size=60, size=8), Entry(b"b"), Entry(b"c")),
        "overlaps",
    ),
    "a member that lies in the directory": ((Entry(b"a", packed_size=40),), "overlaps"),
    "a member that lies after the end": ((Entry(b"a", offset=10_000),), "overlaps"),
}


def _file(data: Callable[[], bytes]) -> Make:
    def make(place: Path) -> Path:
        (place / "bloom.mar").write_bytes(data())
        return place / "bloom.mar"

    return make


def _utf8(name: str) -> Entry:
    return Entry(name.encode())


def _tar(*infos: tarfile.TarInfo, mode: str = "w:gz") -> Make:
    return _file(lambda: tar_of([(info, b"") for info in infos], mode))


def overlapping_bomb() -> bytes:
    """Return a zip bomb after David Fifield's: 500 members that all unpack one kernel of zeros."""
    kernel = Entry(b"0", bytes(15 * 1024**2))
    size, packed = len(kernel.data), len(kernel.packed)
    others = [
        Entry(b"%d" % number, b"", size=size, packed_size=packed, offset=0)
        for number in range(1, 500)
    ]
    return raw_zip(kernel, *others)


def tar_bomb() -> bytes:
    """Return 10 GiB of zeros in a few MiB: gzip files may be joined."""
    header = named("zeros")
    header.size = 10 * GIB
    step = gzip.compress(ZEROS)
    return gzip.compress(header.tobuf()) + step * (10 * GIB // len(ZEROS))


def header_bomb() -> bytes:
    """Return a tar archive with a name of 1 GiB, which `tarfile` would read into memory."""
    header = named("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = GIB
    return gzip.compress(header.tobuf()) + gzip.compress(ZEROS) * (GIB // len(ZEROS))


def sparse(pieces: int) -> bytes:
    """Return a tar archive with a PAX sparse file, whose map has so many pieces."""
    header = named("zeros")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    sparse = b"%d\n" % pieces + b"1\n" * (2 * pieces)
    sparse += bytes(-len(sparse) % 512)
    header.size = len(sparse)
    return gzip.compress(header.tobuf(tarfile.PAX_FORMAT) + sparse + bytes(1024), 1)


def sized(size: int) -> bytes:
    """Return a tar archive whose member declares the given size in bytes."""
    header = bytearray(named("weights").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else _base_256(size)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def _base_256(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def _many() -> bytes:
    return raw_zip(*(Entry(b"%d" % number, b"", method=0) for number in range(100_001)))


def _many_in_a_tar() -> bytes:
    header = named("000000").tobuf(tarfile.USTAR_FORMAT)
    checksum = int(header[148:154], 8)
    archive = bytearray(header * 100_001)
    for number in range(100_001):
        name = b"%06d" % number
        archive[512 * number : 512 * number + 6] = name
        declared = checksum + sum(name) - sum(b"000000")
        archive[512 * number + 148 : 512 * number + 154] = b"%06o" % declared
    return bytes(archive) + bytes(1024)


def _long_names() -> bytes:
    return raw_zip(
        *(Entry(b"/".join([b"%0200d" % number] * 5), b"", method=0) for number in range(17_000))
    )


def _link(target: str, name: str = "model.safetensors") -> Make:
    def make(place: Path) -> Path:
        (place / "outside").mkdir()
        (place / "secret").write_bytes(b"secret")
        path = folder(place / "bloom", {"folder/config.json": b"{}"})
        (path / name).symlink_to(target)
        return path

    return make


def _special(make_special: Callable[[Path], None]) -> Make:
    def make(place: Path) -> Path:
        path = folder(place / "bloom", files())
        make_special(path)
        return path

    return make


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path)  # the path of a socket may have 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
    os.chdir(before)


def _pipe(place: Path) -> Path:
    os.mkfifo(place / "bloom.mar")
    return place / "bloom.mar"


def _loop(place: Path) -> Path:
    (place / "bloom.mar").symlink_to("bloom.mar")
    return place / "bloom.mar"


WHOLE_ZIP = zipped(files())
WHOLE_TGZ = tarred(files())
WHOLE_TAR = tarred(files(), "w")
UNPACKED_END = len(WHOLE_TAR.rstrip(b"\0"))

HOSTILE: dict[str, tuple[Make, str]] = {
    "nothing at all": (lambda place: place / "bloom.mar", "No such file"),
    "an empty file": (_file(bytes), "is empty"),
    "a text": (_file(lambda: b"This is no archive. " * 100), "none of what TorchServe packs"),
    "a named pipe for an archive": (_pipe, "neither a file nor a directory"),
    "a link to itself": (_loop, "Too many levels of symbolic links"),
    "an archive of another kind": (
        _file(lambda: tarred(files(), "w:xz")),
        "none of what TorchServe packs",
    ),
    "a zip archive that is cut off at its end": (_file(lambda: WHOLE_ZIP[:-1]), "cut short"),
    "half a zip archive": (_file(lambda: WHOLE_ZIP[: len(WHOLE_ZIP) // 2]), "cut short"),
    "the first bytes of a zip archive": (_file(lambda: WHOLE_ZIP[:4]), "cut short"),
    "a zip archive with something after it": (_file(lambda: WHOLE_ZIP + b"1"), "appended"),
    "two zip archives in one file": (_file(lambda: WHOLE_ZIP * 2), "not where it says"),
    "a zip archive without its beginning": (
        _file(lambda: WHOLE_ZIP[WHOLE_ZIP.index(b"PK\3\4", 4) :]),
        "not where it says",
    ),
    "a directory with an entry that is none": (
        _file(lambda: damaged(WHOLE_ZIP, b"PK\1\2")),
        "an entry that is none",
    ),
    "a Zip64 end that is not where it says": (
        _file(lambda: with_zip64_end(WHOLE_ZIP, lie=1)),
        "its Zip64 end",
    ),
    "too many members": (_file(_many), "too many members"),
    "too many members in a tar archive": (_file(_many_in_a_tar), "too many members"),
    "names that are too long together": (_file(_long_names), "too many members"),
    "bombs that only together are one": (
        _file(lambda: raw_zip(*(Entry(bytes([name]), ZEROS[: 8 * 1024**2]) for name in b"abcde"))),
        "would unpack to 200 times",
    ),
    "a bomb of members that overlap": (_file(overlapping_bomb), "overlaps"),
    "bzip2 in a zip archive": (
        _file(lambda: zipped(MODEL, zipfile.ZIP_BZIP2)),
        "method that is not read",
    ),
    "lzma in a zip archive": (
        _file(lambda: zipped(MODEL, zipfile.ZIP_LZMA)),
        "method that is not read",
    ),
    "gzip without a tar archive in it": (_file(lambda: gzip.compress(b"1" * 5000)), "cannot be"),
    "a .tar.gz that is cut off at its end": (_file(lambda: WHOLE_TGZ[:-1]), "it is cut short"),
    "half a .tar.gz": (_file(lambda: WHOLE_TGZ[: len(WHOLE_TGZ) // 2]), "it is cut short"),
    "a .tar.gz with a wrong checksum": (
        _file(lambda: WHOLE_TGZ[:-8] + bytes(4) + WHOLE_TGZ[-4:]),
        "CRC check failed",
    ),
    "a .tar.gz with something after it": (_file(lambda: WHOLE_TGZ + b"1"), "cannot be read"),
    "two .tar.gz in one file": (_file(lambda: WHOLE_TGZ * 2), "appended"),
    "half a .tar": (_file(lambda: WHOLE_TAR[: UNPACKED_END // 2]), "unexpected end of data"),
    "a .tar without its end": (
        _file(lambda: WHOLE_TAR[: -(-UNPACKED_END // 512) * 512]),
        "has no end",
    ),
    "a damaged header in the middle of a .tar": (
        _file(lambda: damaged(WHOLE_TAR, b"bloom/model.zip")),
        "is broken",
    ),
    "a .tar.gz bomb": (_file(tar_bomb), "would unpack to 200 times"),
    "a header of a GiB": (_file(header_bomb), "more than 1 MiB of headers"),
    "a sparse file's endless map": (_file(lambda: sparse(8_000_000)), "more than 1 MiB of headers"),
    "a tar member of less than nothing": (_file(lambda: sized(-512)), "said to have -512 bytes"),
    "a tar member that no model has": (_file(lambda: sized(5 * TIB)), "which no model has"),
    "a tar member that is longer than its archive": (_file(lambda: sized(GIB)), "unexpected end"),
    "a symbolic link in a tar archive": (
        _tar(named("a", tarfile.SYMTYPE, linkname="/etc/passwd")),
        "is a link",
    ),
    "a hard link in a tar archive": (
        _tar(named("b"), named("a", tarfile.LNKTYPE, linkname="b"), mode="w"),
        "is a link",
    ),
    "a named pipe in a tar archive": (_tar(named("a", tarfile.FIFOTYPE)), "a device or the like"),
    "a device in a tar archive": (_tar(named("a", tarfile.BLKTYPE)), "a device or the like"),
    "a sparse file in a tar archive": (_tar(named("a", tarfile.GNUTYPE_SPARSE)), "a sparse file"),
    "a sparse file in a tar archive of PAX": (_file(lambda: sparse(1)), "a sparse file"),
    "a name in a tar archive that is not UTF-8": (
        _file(lambda: tarred({"\udcff": b""})),
        "bytes that are not UTF-8",
    ),
    "a link out of a directory": (_link("../secret"), "leads outside"),
    "a link to a folder outside": (_link("../outside"), "leads outside"),
    "a link to a file of the system": (_link("/etc/passwd"), "leads outside"),
    "a link that leads nowhere": (_link("../gone"), "leads nowhere"),
    "a link to itself in a directory": (_link("model.safetensors"), "leads nowhere"),
    "a link to a folder": (_link("folder"), "neither a file nor a link to one"),
    "a named pipe in a directory": (
        _special(lambda path: os.mkfifo(path / "pipe")),
        "neither a file nor a link to one",
    ),
    "a socket in a directory": (_special(_socket), "neither a file nor a link to one"),
    "a line break in a directory's name": (_link("folder/config.json", "a\nb"), "control"),
    "names in a directory that differ in case": (
        _special(lambda path: (path / "MODEL.ZIP").write_bytes(b"")),
        "differs in case",
    ),
}

for _name, (_path, _phrase) in NAMES.items():
    HOSTILE[f"{_name} in a zip archive"] = (
        _file(lambda path=_path: raw_zip(SMALL, _utf8(path))),
        _phrase,
    )
    HOSTILE[f"{_name} in a tar archive"] = (_tar(named("config.json"), named(_path)), _phrase)

for _name, (_paths, _phrase) in PAIRS.items():
    HOSTILE[f"{_name} in a zip archive"] = (
        _file(lambda paths=_paths: raw_zip(*map(_utf8, paths))),
        _phrase,
    )
    HOSTILE[f"{_name} in a tar archive"] = (_tar(*map(named, _paths)), _phrase)

for _name, (_entries, _phrase) in ENTRIES.items():
    HOSTILE[f"{_name} in a zip archive"] = (
        _file(lambda entries=_entries: raw_zip(*entries)),
        _phrase,
    )

INNER: dict[str, tuple[Callable[[], bytes], str]] = {
    "a name that leads outside": (lambda: raw_zip(SMALL, Entry(b"../evil")), "leads outside"),
    "a symbolic link": (lambda: raw_zip(Entry(b"a", kind=stat.S_IFLNK)), "a link, a device"),
    "a bomb": (overlapping_bomb, "overlaps"),
    "half an archive": (lambda: zipped(MODEL)[:500], "cut short"),
    "no archive": (lambda: b"weights", "is no zip archive"),
    "nothing": (bytes, "is no zip archive"),
    "a .tar.gz": (lambda: WHOLE_TGZ, "is no zip archive"),
}

for _name, (_data, _phrase) in INNER.items():
    HOSTILE[f"{_name} for the model.zip of a .mar"] = (
        _file(lambda data=_data: zipped(files(data()))),
        _phrase,
    )
    HOSTILE[f"{_name} for the model.zip of a .tar.gz"] = (
        _file(lambda data=_data: tarred(files(data()))),
        _phrase,
    )
    HOSTILE[f"{_name} for the model.zip of a directory"] = (
        lambda place, data=_data: folder(place / "bloom", files(data())),
        _phrase,
    )

FIRST = "first.bin"
DATA = bytes(range(256)) * 40

DAMAGED: dict[str, tuple[Make, str]] = {
    "a wrong checksum": (
        _file(lambda: damaged(zipped({FIRST: DATA}, zipfile.ZIP_STORED), DATA)),
        "Bad CRC-32",
    ),
    "bytes that do not unpack": (
        _file(lambda: damaged(zipped({FIRST: os.urandom(999)}), b"\xe7\x03\x18\xfc")),
        "invalid stored block lengths",
    ),
    "more bytes than its size says": (
        _file(lambda: raw_zip(Entry(FIRST.encode(), DATA, size=len(DATA) - 1))),
        "Bad CRC-32",
    ),
    "fewer bytes than its size says": (
        _file(lambda: raw_zip(Entry(FIRST.encode(), DATA, size=len(DATA) + 1))),
        "1 of its 10241 bytes are missing",
    ),
    "another name where it lies": (
        _file(lambda: raw_zip(Entry(FIRST.encode(), local_name=b"other.bin"))),
        "differ",
    ),
    "something else where it lies": (
        _file(
            lambda: raw_zip(
                Entry(b"a", method=0),
                Entry(FIRST.encode(), b"data", method=0, size=3, packed_size=3, offset=36),
            )
        ),
        "Bad magic number",
    ),
}
"""Archives with members whose damage shows only on reading."""
