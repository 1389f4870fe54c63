"""Amounts of memory, from text to bytes and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.quantity import as_quantity, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40Gi", 40 * 1024**3),
        ("500M", 500_000_000),
        ("10GiB", 10 * 1024**3),
        ("10GB", 10_000_000_000),
        ("128974848000m", 128_974_848),  # Kubernetes writes thousandths of a byte
        ("1e9", 1_000_000_000),
        ("129e6", 129_000_000),
        ("1E", 10**18),
        ("2Ei", 2 * 1024**6),
        ("64k", 64_000),
        ("64Ki", 65_536),
        ("1.5 GiB", 3 * 512 * 1024**2),
        (".5Ki", 512),
        (" 7 ", 7),
        ("7B", 7),
        ("80", 80),
        (80, 80),
        (0, 0),
    ],
)
def test_an_amount_is_read_as_kubernetes_and_accelerate_write_it(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "10Gx", "-1Gi", "1,5Gi", "10iB", "ten", "nan", "1e999999", True, None]
)
def test_what_is_no_amount_is_refused_with_an_example_of_one(text):
    with pytest.raises(ValueError, match="write it like 40Gi, 10GiB or 500M"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["10Gb", "10gb", "8b"])
def test_a_small_b_which_accelerate_takes_for_bits_is_refused(text):
    with pytest.raises(ValueError, match="no amount of memory"):
        parse_bytes(text)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="-1 bytes is negative"):
        parse_bytes(-1)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 * 1024**2, "1.50 GiB"),
        (10 * 1024**4, "10.00 TiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_are_written_in_the_largest_unit_that_leaves_a_number_of_at_least_one(
    count, expected
):
    assert format_bytes(count) == expected


@given(st.integers(0, 1024**6))
def test_what_is_written_rounded_up_never_means_less(count):
    read = parse_bytes(format_bytes(count, round_up=True))

    assert count <= read <= count * 1.01 + 1


@given(st.integers(0, 1024**7))
def test_a_bare_number_is_bytes(count):
    assert parse_bytes(str(count)) == count


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (128 * 1024**3, "128Gi"),
        (1536 * 1024**2, "1536Mi"),
        (100 * 10**9, "100G"),
        (64_000, "64k"),
        (1024, "1Ki"),
        (1023, "1023"),
        (0, "0"),
    ],
)
def test_a_quantity_is_the_shortest_that_is_exact(count, expected):
    assert as_quantity(count) == expected


@given(st.integers(min_value=0, max_value=2**63))
def test_a_quantity_is_read_as_the_bytes_it_was_made_of(count):
    assert parse_bytes(as_quantity(count)) == count
