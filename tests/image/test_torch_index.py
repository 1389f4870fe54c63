"""The build argument that makes the image for CPUs.

PyTorch's index of CPU wheels cannot be had everywhere; a wheel that is empty but for what it
requires stands in for it, and shows which packages the image gets, not that torch works.
"""

from __future__ import annotations

import functools
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import docker, make_image

pytestmark = pytest.mark.timeout(1200)

VERSION = "2.13.0+cpu"
LIST = """
from importlib.metadata import distributions
print(*[f"{one.name}=={one.version}" for one in distributions()])
"""


def make_wheel(folder: Path) -> None:
    """Write torch's wheel for CPUs, without torch."""
    info = f"torch-{VERSION}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"torch-{VERSION}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """Return an index with only that wheel."""
    (tmp_path / "torch").mkdir()
    make_wheel(tmp_path / "torch")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_index_of_cpu_wheels_makes_an_image_without_nvidias_libraries(
    image: str, index: str
) -> None:
    tag = "accelerate-predictor:tests-cpu"
    make_image(tag, "--target=build", TORCH_INDEX_URL=index)
    try:
        installed = docker(
            "run", "--rm", "--entrypoint=/opt/venv/bin/python", tag, "-c", LIST
        ).split()
    finally:
        docker("rmi", tag)
    assert f"torch=={VERSION}" in installed
    assert [name for name in installed if name.startswith(("nvidia", "cuda", "triton"))] == []
    assert len(installed) > 50
