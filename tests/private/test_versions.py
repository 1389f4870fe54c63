"""The check of private interfaces: of a made-up library, of those installed, and at a start."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from predictor.errors import ConfigurationError
from predictor.private import accelerate, tokenizers, torch, transformers
from predictor.private.versions import Interface, Library, check, uncalled
from predictor.protocol import sdk
from predictor.protocol.http import lingering_protocol

ROOT = Path(__file__).parents[2]
ENGINE = Library("engine-lib", "1.2", "1.3")

SOURCE = """
class Base:
    declared: int

class Motor(Base):
    def __init__(self, fuel, *, power=1):
        self._fuel = fuel

    def start(self, key, gear=0):
        pass

def open_motor(fuel, power=1):
    pass
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Returns a function that installs the made-up library, with other source than `SOURCE`."""

    def install(old="", new="", *, version="1.4.0"):
        (tmp_path / "engine_lib.py").write_text(SOURCE.replace(old, new) if old else SOURCE)
        folder = tmp_path / f"engine_lib-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: engine-lib\nVersion: {version}\n"
        )

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "engine_lib", raising=False)
    yield install
    sys.modules.pop("engine_lib", None)


def fault_of(*interfaces):
    with pytest.raises(ConfigurationError) as caught:
        check(ENGINE, *interfaces)
    return str(caught.value)


# A made-up library


def test_everything_that_is_there_passes(library):
    library()

    check(
        ENGINE,
        Interface("engine_lib", "Motor", ("fuel", "power")),
        Interface("engine_lib", "Motor.start", ("key",)),
        Interface("engine_lib", "open_motor", ("fuel",)),
        *uncalled("engine_lib", "_fuel", "declared", "start", of="Motor"),
    )


def test_a_version_out_of_bounds_with_everything_there_passes(library):
    library(version="7.0")

    check(ENGINE, Interface("engine_lib", "open_motor", ("fuel",)))


def test_a_missing_method_is_one_sentence_with_both_versions(library):
    library("def start", "def begin")

    assert fault_of(Interface("engine_lib", "Motor.start", ("key",))) == (
        "This predictor was written for engine-lib 1.2 and needs engine_lib.Motor.start(key); "
        "engine-lib 1.4.0 is installed and has none; install engine-lib>=1.2,<1.3."
    )


def test_an_attribute_that_the_constructor_no_longer_sets_is_missing(library):
    library("self._fuel", "self._tank")

    fault = fault_of(*uncalled("engine_lib", "_fuel", of="Motor"))

    assert "needs engine_lib.Motor._fuel; engine-lib 1.4.0 is installed and has none;" in fault


def test_a_missing_module_is_missing(library):
    library()

    fault = fault_of(*uncalled("engine_lib.parts", "Wheel"))

    assert "needs engine_lib.parts.Wheel; engine-lib 1.4.0 is installed and has none;" in fault


@pytest.mark.parametrize(
    "parameters", ["key, oil, gear=0", "gear=0, *, lock", "gear=0", "gear, key"]
)
def test_other_parameters_are_another_signature(library, parameters):
    library("key, gear=0", parameters)

    fault = fault_of(Interface("engine_lib", "Motor.start", ("key", "gear")))

    shown = re.sub(r"=0|\*, ", "", parameters)
    assert f"is installed and has one with other parameters, ({shown}); install" in fault


def test_a_new_optional_parameter_is_the_same_signature(library):
    library("key, gear=0", "key, oil=None, gear=0, **others")

    check(ENGINE, Interface("engine_lib", "Motor.start", ("key", "gear")))


def test_a_library_that_is_not_installed_is_said_to_be_so():
    fault = fault_of(*uncalled("engine_lib", "open_motor"))

    assert "needs engine_lib.open_motor; engine-lib is not installed; install engine" in fault


def test_a_library_whose_own_import_fails_says_why(library):
    library("class Base:", "import no_such_library\nclass Base:")

    fault = fault_of(*uncalled("engine_lib", "open_motor"))

    assert "cannot be imported (No module named 'no_such_library'); install engine-lib" in fault


# Those installed

DECLARED = {
    "accelerate": (accelerate.ACCELERATE, accelerate.INTERFACES),
    "kserve": (sdk.KSERVE, sdk.INTERFACES),
    "torch": (torch.TORCH, torch.INTERFACES),
    "transformers": (
        transformers.TRANSFORMERS,
        (*tokenizers.TOKENIZERS, *transformers.ENTITIES, *transformers.MODELS),
    ),
    "uvicorn": (lingering_protocol.UVICORN, lingering_protocol.INTERFACES),
}


@pytest.mark.parametrize("name", DECLARED)
def test_every_declared_interface_is_in_the_installed_library(name):
    library, interfaces = DECLARED[name]

    check(library, *interfaces)


@pytest.mark.parametrize("name", DECLARED)
def test_the_bounds_are_those_of_the_package(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert DECLARED[name][0].requirement in project["dependencies"]


@pytest.mark.parametrize(
    ("owner", "name", "interfaces"),
    [
        (sdk.RESTServer, "_register_endpoints", (sdk.KSERVE, sdk.INTERFACES)),
        (lingering_protocol.HttpToolsProtocol, "on_body", DECLARED["uvicorn"]),
        (accelerate.ModelHook, "pre_forward", DECLARED["accelerate"]),
    ],
)
def test_an_interface_that_a_library_loses_is_missed(monkeypatch, owner, name, interfaces):
    monkeypatch.delattr(owner, name)

    with pytest.raises(ConfigurationError, match=rf"needs {owner.__module__}.*{name}.* has none;"):
        check(interfaces[0], *interfaces[1])


# A start

WITHOUT_UVICORNS = """
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
del HttpToolsProtocol.on_body
"""

WITHOUT_TORCHS = """
import sys
if "predictor.engine_start" in sys.orig_argv:
    import torch
    del torch._grouped_mm
"""

WITHOUT_TRANSFORMERS = """
import sys
if "predictor.engine_start" in sys.orig_argv:
    from transformers import cache_utils
    del cache_utils.get_layer_types_and_kwargs
"""


def start(folder, model):
    """Starts a server with a folder before all others to import from, and returns its end."""
    return subprocess.run(
        [sys.executable, "-m", "predictor", "serve", "--model_dir", model, "--http_port", "0"]
        + ["--enable_grpc", "false", "--max_model_len", "64"],
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


WITHOUT_A_PUBLIC_NAME = """
import sys
if "predictor.engine_start" in sys.orig_argv:
    from torch import overrides
    del overrides.TorchFunctionMode
"""


def test_a_start_without_a_public_name_ends_with_78_and_a_sentence(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_A_PUBLIC_NAME)

    done = start(tmp_path, ROOT / "examples/demo-model")

    assert done.returncode == 78, done.stderr
    assert re.search(
        r"^predictor: An import failed \(cannot import name 'TorchFunctionMode' from "
        r"'torch.overrides' .*\); torch \S+ is installed; install the versions that this "
        r"predictor was written for\.$",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "needs"),
    [
        (WITHOUT_UVICORNS, "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_body(body)"),
        (WITHOUT_TORCHS, "torch._grouped_mm"),
        (WITHOUT_TRANSFORMERS, "transformers.cache_utils.get_layer_types_and_kwargs(config)"),
    ],
    ids=["uvicorn", "torch", "transformers"],
)
def test_a_start_without_an_interface_ends_with_78_and_the_sentence(tmp_path, code, needs):
    (tmp_path / "sitecustomize.py").write_text(code)

    done = start(tmp_path, ROOT / "examples/demo-model")

    library = needs.partition(".")[0]
    assert done.returncode == 78, done.stderr
    assert re.search(
        rf"^predictor: This predictor was written for {library} [\d.]+ and needs "
        rf"{re.escape(needs)}; {library} \S+ is installed and has none; install {library}>=\S+\.$",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_with_another_kserve_ends_with_78_and_the_sentence(tmp_path):
    (tmp_path / "kserve").mkdir()
    (tmp_path / "kserve/__init__.py").write_text("")
    (tmp_path / "kserve-0.23.0.dist-info").mkdir()
    (tmp_path / "kserve-0.23.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: kserve\nVersion: 0.23.0\n"
    )

    done = start(tmp_path, ROOT / "examples/demo-model")

    assert done.returncode == 78, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "predictor: This predictor was written for kserve 0.21 and needs "
        "kserve.metrics.get_labels(model_name); kserve 0.23.0 is installed and has none; "
        "install kserve>=0.21,<0.22."
    )
    assert "Traceback" not in done.stderr
