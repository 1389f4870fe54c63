"""Print the image's contents as JSON. Runs inside the image, as root."""

import importlib.util
import json
import os
import struct
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

OURS = Path("/opt")
CODE = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/opt/predictor")


def compiles(source: Path) -> bool:
    try:
        compile(source.read_bytes(), source, "exec")
    except SyntaxError:  # for another version of Python
        return False
    return True


def has_bytecode(source: Path) -> bool:
    """Return whether Python would use the compiled file, which holds its source's time and size."""
    cached = Path(importlib.util.cache_from_source(source))
    if not cached.exists():
        return False
    kind, *named = struct.unpack("<III", cached.read_bytes()[4:16])
    status = source.stat()
    return kind == 0 and named == [int(status.st_mtime), status.st_size]


def sources() -> list[Path]:
    """Return all modules except those of the base image's own pip."""
    paths = [path for place in CODE for path in Path(place).rglob("*.py")]
    return [path for path in paths if path.is_relative_to(OURS) or "packages" not in str(path)]


def may_be_written(path: Path) -> bool:
    """Return whether users other than root may write it."""
    status = path.lstat()
    return not path.is_symlink() and bool(status.st_uid or status.st_mode & 0o022)


print(
    json.dumps(
        {
            "modules": len(sources()),
            "without bytecode": [
                str(path) for path in sources() if not has_bytecode(path) and compiles(path)
            ],
            "writable": [str(path) for path in OURS.rglob("*") if may_be_written(path)],
            "installed": sorted(one.name for one in distributions(path=[*CODE[1:]])),
            "in /opt": sorted(os.listdir("/opt")),
            "in /opt/predictor": sorted(os.listdir("/opt/predictor")),
            "in /tmp and root's caches": [
                str(path) for place in ("/tmp", "/root/.cache") for path in Path(place).rglob("*")
            ],
        }
    )
)
