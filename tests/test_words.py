"""Identifiers use the field's terms: a private word has a standard one, which the failure names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("predictor", "tests", "benchmarks", "docs", "helm")
    for path in (ROOT / folder).rglob("*.py")
)

STANDARD = {
    "Alike": "BlockDeduplicator",
    "Cohort": "LockstepBatch",
    "Exchange": "DecodedCall",
    "FromDisk": "HostBlockLoader",
    "Head": "the task's own name",
    "Known": "WarmupCache",
    "Lane": "BlockLoader",
    "Legacy": "TorchServeArchive",
    "Link": "CopyStream",
    "Listener": "SequenceCallback or EncoderCallback",
    "PATIENCE": "MAX_OVERTAKES",
    "Place": "Permit",
    "Places": "AdmissionController",
    "Reader": "EncoderEngine",
    "Reading": "EncoderTask",
    "Ring": "PrefetchRing",
    "STAGE": "bounce buffer",
    "STAGES": "bounce buffers",
    "Staged": "BounceBuffer",
    "Style": "ResponseStyle",
    "Supply": "BlockSourceResolver",
    "ToDevice": "DeviceBlockLoader",
    "UNSAID": "DEFAULT_PARAMETERS",
    "Unsaid": "defaults",
    "Verdict": "KeyMapping",
    "Wishes": "PlacementOptions",
    "asked": "requested",
    "few_shapes": "bucket_shapes",
    "found": "what was found: matches, result, ids...",
    "give_up": "release",
    "is_paired": "is_encoder_decoder",
    "lane": "loader",
    "paired": "encoder_decoder",
    "pass_tokens": "breakeven_tokens",
    "places": "permits, pages or positions",
    "recipe": "params",
    "said": "specified",
    "supply": "resolver",
    "taken_over": "kept",
    "told": "reported",
    "unsaid": "defaults",
    "wish": "option",
    "wishes": "options",
}
"""Whole identifiers that are not used, with the term that is."""

PARTS = {"asked", "paired", "said", "told", "unsaid", "wishes"}
"""Words that no identifier begins or ends with either: ``asked_for``, ``is_paired``."""


def identifiers(tree: ast.AST) -> set[str]:
    """Every name that a module gives or uses: definitions, variables, parameters, attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        for field in ("name", "id", "arg", "attr", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                names.update(value.split("."))
    return names


def private_words(names: set[str]) -> dict[str, str]:
    """The private words among some names, with the standard terms."""
    words = {name: STANDARD[name.strip("_")] for name in names if name.strip("_") in STANDARD}
    for name in names:
        parts = name.strip("_").split("_")
        for part in {parts[0], parts[-1]} & PARTS:
            words[name] = STANDARD.get(part, part)
    return words


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_are_standard_terms(file):
    names = identifiers(ast.parse(file.read_text())) | {file.stem}
    if file == Path(__file__):
        names -= {"private_words"}

    assert private_words(names) == {}


def test_a_private_word_is_reported_with_its_standard_term():
    tree = ast.parse("def wishes(unsaid): return lm_head.found + a.asked_for")

    assert set(private_words(identifiers(tree))) == {"wishes", "unsaid", "found", "asked_for"}
