"""Quantised checkpoints give what transformers gives with the weights unpacked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.startup import Prepared
from tests.grids import thinned
from tests.quantization.forms import FORMS, GPT_OSS, MERGED_FP8
from tests.quantization.models import NEW_TOKENS, PROMPTS, Quantised, make_quantised
from tests.serving import Up, blocks_on_disk, bring_up
from tests.weights.experts.serving import Way, served, tokens_together

DENSE = ("llama",)
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")

WITHOUT_EXPERTS = ("nf4", "fp4")
"""Formats whose tensors differ in size from expert to expert."""

Make = Callable[..., Quantised]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Returns quantised checkpoints, each of which is made once."""
    made: dict[tuple[str, str], Quantised] = {}

    def quantised(name: str, form: str) -> Quantised:
        if (name, form) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{form}")
            special = {"gpt-oss": GPT_OSS, "merged": MERGED_FP8}
            chosen = special.get(form) or FORMS[form]
            made[name, form] = make_quantised(folder, name, chosen, fused=form == "merged")
        return made[name, form]

    return quantised


LOCATIONS = ("resident", "on disk", "half in the store", "half in the checkpoint", "by module")


@contextlib.contextmanager
def placed(quantised: Quantised, place: str, offload: Path, **flags: Any) -> Iterator[Up]:
    """Gives a model that is served with its weights in a place, and stops it."""
    settings: dict[str, Any] = {"dtype": "float32", "offload_folder": str(offload), **flags}
    if place.startswith("half"):
        settings["device_map"] = blocks_on_disk(quantised.folder)
        settings["offload_store"] = "always" if place.endswith("store") else "never"
    elif place in ("on disk", "by module"):
        settings["device_map"] = "disk"
    if place == "by module":
        settings["change_placement"] = by_module
    up = bring_up(quantised.folder, **settings)
    try:
        yield up
    finally:
        stopped(up)


def by_module(prepared: Prepared) -> Any:
    return replace(prepared.placement, by_block=False)


def stopped(up: Up) -> None:
    up.task.engine.stop()
    assert up.task.engine.join(30)
    up.weights.release()
    if up.weights.experts is not None:
        up.weights.experts.close()


def check(up: Up, quantised: Quantised) -> None:
    """One user, then several at one time."""
    assert up.tokens(PROMPTS[0], max_new_tokens=NEW_TOKENS) == quantised.tokens[0]
    assert tokens_together(up, PROMPTS) == quantised.tokens


@pytest.mark.parametrize(("form", "place"), thinned(list(FORMS), LOCATIONS))
@pytest.mark.parametrize("name", DENSE)
def test_dense(make: Make, tmp_path: Path, name: str, form: str, place: str) -> None:
    quantised = make(name, form)
    with placed(quantised, place, tmp_path) as up:
        assert up.prepared.placement.quantization == quantised.form.title
        check(up, quantised)
        if place == "resident":
            with torch.inference_mode():
                logits = up.model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits
            torch.testing.assert_close(logits, quantised.logits, atol=1e-5, rtol=1e-5)


WAYS = [Way(None), Way(1, "checkpoint"), Way(3, "store"), Way(8, "store")]

OF_EXPERTS = [form for form in FORMS if form not in WITHOUT_EXPERTS]


def turns() -> list[Any]:
    """Each format with each mixture in each way; each format with one of both without the grid."""
    grid = [thinned(OF_EXPERTS, WAYS, MIXTURES), thinned(["gpt-oss"], WAYS, ["gpt_oss"])]
    return [*chain(*grid), *thinned(["merged"], WAYS[1:3], ["mixtral", "qwen3_moe"])]


@pytest.mark.parametrize(("form", "way", "name"), turns(), ids=str)
def test_mixtures(make: Make, tmp_path: Path, form: str, way: Way, name: str) -> None:
    quantised = make(name, form)
    with served(quantised.folder, way, tmp_path, dtype="float32") as up:
        check(up, quantised)
        if way.slots is None:
            with torch.inference_mode():
                logits = up.model(torch.tensor(PROMPTS[-1:]), use_cache=False).logits
            torch.testing.assert_close(logits, quantised.logits, atol=1e-5, rtol=1e-5)
