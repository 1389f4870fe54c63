"""Alternatives side by side: the table, the JSON and the page."""

import base64
import hashlib
import re

from predictor.placement.comparison import (
    Alternative,
    comparison_json,
    comparison_page,
    placement_page,
    table,
)
from predictor.placement.estimate import Bandwidths, estimate_rates
from predictor.placement.picture import Drawing
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from tests.placement.small import MIB, footprint, pod

SPEEDS = Bandwidths(disk=10 * MIB, link=10 * MIB, gpu=10 * MIB, sources={"disk": "stated"})
PLACEMENT = plan(footprint(), pod(57, memory=14), PlacementOptions(headroom=0))
DRAWING = Drawing(PLACEMENT, "gpus=57MiB", estimate_rates(PLACEMENT, SPEEDS, 1))
FITS = Alternative("gpus=57MiB", DRAWING)
REFUSED = Alternative("gpus=<1>", refusal="Small does not fit: it lacks all.")


def test_the_table_has_a_line_for_each_and_says_that_rates_are_estimates():
    lines = table([FITS, REFUSED], SPEEDS).splitlines()

    assert lines[2].split() == [
        *("gpus=57MiB", "34.00", "MiB", "10.00", "MiB", "10.00", "MiB", "37", "%", "4"),
        *("0.19", "0.19", "(1)"),  # 54 MiB from the GPU's memory at 10 MiB/s
    ]
    assert lines[3].split() == ["gpus=<1>", "does", "not", "fit", *["-"] * 6]
    assert lines[4] == "gpus=<1>: Small does not fit: it lacks all."
    assert lines[5].startswith("The rates are an estimate and no measurement")
    assert "disk at 0.01 GB/s (stated), link to the GPU at 0.01 GB/s (assumed)" in lines[5]


def test_the_columns_count_what_the_model_does():
    estimate = estimate_rates(PLACEMENT, SPEEDS, 1, is_encoder=True)
    encoder = Alternative("gpus=57MiB", Drawing(PLACEMENT, "gpus=57MiB", estimate))

    assert "passes/s, 1 request" in table([encoder], SPEEDS).splitlines()[0]
    assert "passes/s, 1 request</th>" in comparison_page([encoder], SPEEDS)


def test_json_has_the_placement_and_the_estimate_or_the_refusal():
    fits, refused = comparison_json([FITS, REFUSED])["alternatives"]

    assert fits["placement"]["tiers"][0]["weights"] == 34 * MIB
    assert fits["estimate"]["single_request"]["limited_by"] == "gpu"
    assert (refused["placement"], refused["estimate"]) == (None, None)
    assert refused["refusal"] == REFUSED.refusal


def test_the_page_escapes_what_users_state_and_allows_its_own_style_alone():
    page = comparison_page([FITS, REFUSED], SPEEDS)

    assert "<td>gpus=&lt;1&gt;</td>" in page
    assert page.count("<svg") == 1
    (style,) = re.findall("<style>(.*)</style>", page)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page


def test_a_page_of_one_placement_has_its_picture_and_no_table():
    page = placement_page(DRAWING, SPEEDS)

    assert "<h1>Placement of Small</h1>" in page
    assert "<table>" not in page
    assert page.count("<svg") == 1


def test_a_page_on_which_nothing_fits_says_why():
    assert "it lacks all." in comparison_page([REFUSED], SPEEDS)
