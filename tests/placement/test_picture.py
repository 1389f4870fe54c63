"""The picture: every number is in its shapes and in its texts, and it loads nothing."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from predictor.placement.estimate import Bandwidths, estimate_rates
from predictor.placement.picture import Drawing, draw
from predictor.placement.picture_shapes import STYLE, WIDTH
from predictor.placement.plan import ExpertSlots, PlacementOptions
from predictor.placement.planner import plan
from tests.placement.small import MIB, footprint, pod

SVG = "{http://www.w3.org/2000/svg}"
PLACEMENT = plan(footprint(), pod(57, memory=14), PlacementOptions(headroom=0))
"""GPU 0: weights 34, KV cache 16, staging 4, activations 3; cpu: 10 and 4; disk: 10."""


def drawn(placement=PLACEMENT, **given):
    return ElementTree.fromstring(draw([Drawing(placement)], **given))


def texts(picture):
    return [text.text for text in picture.iter(f"{SVG}text")]


def widths(picture, colour):
    return [
        float(shape.get("width"))
        for shape in picture.iter(f"{SVG}rect")
        if shape.get("class") == colour and shape.get("height") == "18"
    ]


def test_the_segments_of_a_tier_are_their_shares_of_its_budget():
    picture = drawn()

    assert widths(picture, "kind-weights")[0] == pytest.approx(WIDTH * 34 / 57, abs=0.01)
    assert widths(picture, "kind-kv") == [pytest.approx(WIDTH * 16 / 57, abs=0.01)]
    assert widths(picture, "kind-staging")[0] == pytest.approx(WIDTH * 4 / 57, abs=0.01)


def test_the_weights_are_divided_among_the_tiers():
    picture = drawn()

    assert widths(picture, "tier-gpu0") == [pytest.approx(WIDTH * 34 / 54, abs=0.01)]
    assert widths(picture, "tier-disk") == [pytest.approx(WIDTH * 10 / 54, abs=0.01)]


def test_every_colour_is_named_by_a_text():
    lines = texts(drawn())

    assert {"KV cache 16.00 MiB", "staging 4.00 MiB", "activations 3.00 MiB"} <= set(lines)
    assert "cpu, streamed 10.00 MiB" in lines
    assert "GPU 0: 57.00 MiB of 57.00 MiB (100 %)" in lines
    assert "disk: 10.00 MiB, read in place" in lines


def test_each_part_of_the_model_has_a_cell_in_the_colour_of_its_tier():
    cells = [shape for shape in drawn().iter(f"{SVG}rect") if shape.get("height") == "10"]
    named = [
        shape.find(f"{SVG}title").text for shape in cells if shape.find(f"{SVG}title") is not None
    ]

    assert named == [
        *("norm: GPU 0", "embeddings: GPU 0", "head: GPU 0", "blocks.0: disk"),
        *("blocks.1: GPU 0", "blocks.2: cpu", "blocks.3: GPU 0"),
    ]


def test_title_and_description_say_all_of_it_to_a_screen_reader():
    picture = drawn()

    assert picture.get("role") == "img"
    assert picture.find(f"{SVG}title").text == "Placement of Small in float32"
    description = picture.find(f"{SVG}desc").text
    assert "weights 34.00 MiB, KV cache 16.00 MiB" in description
    assert "Limited by main memory: 10.00 MiB (19 %) are streamed from disk" in description


def test_names_are_escaped():
    picture = drawn(replace(PLACEMENT, architecture='<script>"&'))

    assert picture.get("aria-label") == 'Placement of <script>"& in float32'
    assert picture.find(f".//{SVG}script") is None


def test_nothing_is_loaded_and_no_attribute_has_a_style():
    document = draw([Drawing(PLACEMENT)])

    assert re.findall(r"(?:href|src|url|style|on\w+)=|@import|url\(", document) == []
    assert document.count("http") == document.count('xmlns="http://www.w3.org/2000/svg"')


def test_every_class_has_a_colour_for_light_and_for_dark():
    light, dark = STYLE.split("@media (prefers-color-scheme:dark)")
    colours = {shape.get("class") for shape in drawn().iter(f"{SVG}rect")}

    assert "kind-kv" in colours
    for colour in colours:
        assert f".{colour}{{fill:" in light
        assert f".{colour}{{fill:" in dark


def test_a_page_that_has_the_style_gets_the_picture_without_it():
    assert drawn(styled=False).find(f"{SVG}style") is None


def test_several_placements_are_side_by_side_with_their_headings_and_estimates():
    estimate = estimate_rates(PLACEMENT, Bandwidths(), 1)
    pair = [Drawing(PLACEMENT, name, estimate) for name in ("gpus=57MiB", "gpus=none")]
    picture = ElementTree.fromstring(draw(pair))

    assert len(picture.findall(f"{SVG}g")) == 2
    assert {"gpus=57MiB", "gpus=none"} <= set(texts(picture))
    assert sum(text.startswith("estimate: ") for text in texts(picture)) == 2


def test_long_sentences_are_wrapped():
    picture = drawn(replace(PLACEMENT, limited_by="a word " * 40))

    assert max(map(len, texts(picture))) <= 76


def test_experts_are_described():
    layer = ExpertSlots("blocks.0.experts", 8, 2, MIB, 2, 2)

    lines = texts(drawn(replace(PLACEMENT, experts=(layer,))))

    assert any(line.startswith("Experts: 8 experts in each of 1 layers, 2 used") for line in lines)
