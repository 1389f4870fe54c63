"""The shape of the house: who imports whom, how long anything is, and how things are named."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "predictor").rglob("*.py"))


def test_every_contract_between_the_floors_is_kept():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_over_300_lines_and_no_function_over_50(module):
    text = module.read_text()
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in functions
        if node.end_lineno - node.lineno + 1 > 50
    }

    assert long == {}
    assert text.count("\n") <= 300


# Names

STANDARD_TERMS = {
    "asked": "requested, requests or required",
    "cohort": "LockstepBatch",
    "few_shapes": "bucket_shapes",
    "found": "the result by what it is: matches, placement, logits...",
    "fromdisk": "HostBlockLoader",
    "give_up": "release",
    "is_paired": "is_encoder_decoder",
    "known": "the known things: names, keys, known_tokens, warmup_cache...",
    "lane": "loader",
    "legacy": "TorchServeArchive or source",
    "paired": "encoder_decoder",
    "pass_tokens": "breakeven_tokens",
    "patience": "MAX_OVERTAKES",
    "places": "admission, permits or positions",
    "reading": "prefill, encoding or measurement",
    "readings": "measurements",
    "reads": "is_encoder for a flag, else what is read: read_bytes, requests...",
    "recipe": "params",
    "rewriting": "conversion or needs_conversion",
    "rewritten": "converted or needs_conversion",
    "said": "output, sentence, message or specified",
    "supply": "source or resolver",
    "todevice": "DeviceBlockLoader",
    "told": "specified, reported or progress",
    "unsaid": "defaults",
    "wish": "options, limit or device_map",
    "wishes": "options or limits",
}
"""Words that are no names, as whole identifiers in any case, with the terms to use instead."""

WORST = ("asked", "found", "said", "told", "unsaid", "wish", "wishes")
"""Words that no identifier begins or ends with either."""

EXCEPTIONS = {"not_found"}
"""The name of a status in HTTP and gRPC."""


def rooms():
    """Return the Python files of each folder."""
    folders = {}
    for root in ("predictor", "tests", "benchmarks", "docs"):
        for path in sorted((ROOT / root).rglob("*.py")):
            folders.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
    return [pytest.param(paths, id=room) for room, paths in folders.items()]


def identifiers(tree):
    """Yield each identifier of a module with its line; a test's name is a sentence and no name."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "arg", "name", "asname", "rest"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not name.startswith("test_"):
                yield line, name.rpartition(".")[2]


def word_of(name):
    """Return the word that makes an identifier no standard term; None if there is none."""
    plain = name.lower().strip("_")
    if plain in EXCEPTIONS:
        return None
    if plain in STANDARD_TERMS:
        return plain
    ends = (plain.partition("_")[0], plain.rpartition("_")[2])
    return next((word for word in WORST if word in ends), None)


@pytest.mark.parametrize("modules", rooms())
def test_identifiers_are_standard_terms(modules):
    named = {path: [(0, path.stem), *identifiers(ast.parse(path.read_text()))] for path in modules}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name} - say {STANDARD_TERMS[word]}"
        for path, names in named.items()
        for line, name in names
        if (word := word_of(name)) is not None
    ]

    assert not wrong, "\n".join(wrong)
