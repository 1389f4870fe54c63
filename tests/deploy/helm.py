"""Helm and Kustomize for tests: render the chart, build the kustomizations in manifests/.

If a program is missing, the test that needs it is skipped, or fails if REQUIRE_HELM=1.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.skips import skip_or_fail

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
MANIFESTS = ROOT / "manifests"

KUBERNETES = "1.34.0"
APIS = (
    "serving.kserve.io/v1beta1",
    "serving.kserve.io/v1alpha1",
    "serving.knative.dev/v1",
    "keda.sh/v1alpha1",
    "monitoring.coreos.com/v1",
)

Object = dict[str, Any]


def render(
    values: Mapping[str, Any], *, release: str = "demo", apis: tuple[str, ...] = APIS
) -> list[Object]:
    """Return the objects that the chart renders from values."""
    done = template(values, release=release, apis=apis)
    assert done.returncode == 0, done.stderr
    return loaded(done.stdout)


def template(
    values: Mapping[str, Any], *, release: str = "demo", apis: tuple[str, ...] = APIS
) -> subprocess.CompletedProcess[str]:
    """Run ``helm template`` with the values on its standard input."""
    offered = [f"--api-versions={api}" for api in apis]
    return helm("template", release, str(CHART), "--values=-", *offered, given=json.dumps(values))


def helm(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Helm for a fixed version of Kubernetes."""
    return _run("helm", *arguments, f"--kube-version={KUBERNETES}", given=given)


def kustomize(folder: Path) -> list[Object]:
    """Return the objects that a kustomization builds, by ``kustomize`` or ``kubectl``."""
    if shutil.which("kustomize"):
        done = _run("kustomize", "build", str(folder))
    else:
        done = _run("kubectl", "kustomize", str(folder))
    assert done.returncode == 0, done.stderr
    return loaded(done.stdout)


def read(file: Path) -> list[Object]:
    """Return the objects in a YAML file."""
    return loaded(file.read_text())


def loaded(text: str) -> list[Object]:
    """Return the objects in YAML text."""
    return [obj for obj in yaml.load_all(text, yaml.CSafeLoader) if obj]


def _run(
    program: str, *arguments: str, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    if shutil.which(program) is None:
        skip_or_fail(f"{program} is not installed", "REQUIRE_HELM")
    return subprocess.run(
        [program, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False
    )
