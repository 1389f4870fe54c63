"""Real files as the input of a batch."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from predictor.batch import input_file
from predictor.batch.input_file import InputFile, Shard
from predictor.errors import ConfigurationError


def text_of(prompt, **body):
    return json.dumps({"custom_id": prompt[:9], "body": {"prompt": prompt, **body}})


@pytest.fixture
def write(tmp_path):
    """Writes a file and opens it."""
    with ExitStack() as opened:

        def write(content, **options):
            path = tmp_path / "input.jsonl"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            file = InputFile(path, **{"longest": 1000} | options)
            opened.callback(file.close)
            return file

        yield write


def all_lines(file, is_done=lambda line: False):
    return [line for window in file.windows(is_done) for line in window]


def numbers(lines):
    return [line.number for line in lines]


def test_lines_are_read_again_at_their_places(write):
    texts = [text_of("Grüße"), text_of("x" * 50), text_of("y")]
    file = write("\n".join(texts))

    assert {line.number: file.read(line).decode().strip() for line in all_lines(file)} == dict(
        enumerate(texts, 1)
    )


def test_the_longest_goes_first(write):
    assert numbers(all_lines(write("\n".join(map(text_of, ["a", "b" * 40, "c" * 20]))))) == [
        2,
        3,
        1,
    ]


def test_blank_lines_count_but_are_no_requests(write):
    file = write(f"\n  \r\n{text_of('a')}\r\n\n{text_of('b')}\n\n")

    assert sorted(numbers(all_lines(file))) == [3, 5]


def test_a_byte_order_mark_is_no_part_of_a_line(write):
    file = write(b"\xef\xbb\xbf" + text_of("a").encode() + b"\n" + text_of("b").encode())

    assert {file.read(line)[:1] for line in all_lines(file)} == {b"{"}


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_has_a_place_and_its_neighbours_are_whole(write, end, monkeypatch):
    monkeypatch.setattr(input_file, "_PIECE", 100)  # so that it is skipped in several pieces
    short = text_of("a").encode()
    file = write(short + b"\n" + short + b"\n" + b"x" * 5000 + end + (short if end else b""))
    lines = sorted(all_lines(file), key=lambda line: line.number)

    assert [line.size > file.longest for line in lines] == [
        False,
        False,
        True,
        *([False] if end else []),
    ]
    assert [file.read(line).strip() for line in lines if line.size <= 1000] == [short] * (
        3 if end else 2
    )


def test_a_line_of_the_longest_size_is_taken(write):
    text = text_of("a" * 100)
    file = write(f"{text}\n{text}", longest=len(text) + 1)

    assert [line.size <= file.longest for line in all_lines(file)] == [True, True]


def test_shards_share_out_all_lines(write):
    content = "\n".join(text_of(str(number)) for number in range(10))
    shards = [numbers(all_lines(write(content, shard=Shard(index, 3)))) for index in range(3)]

    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert sorted(number for shard in shards for number in shard) == list(range(1, 11))


def test_windows_are_ordered_by_themselves(write, monkeypatch):
    monkeypatch.setattr(input_file, "WINDOW", 2)
    file = write("\n".join(text_of("x" * length) for length in (1, 20, 30, 40, 5)))

    assert [numbers(window) for window in file.windows(lambda line: False)] == [[2, 1], [4, 3], [5]]


def test_lines_that_are_done_are_left_out_and_do_not_fill_a_window(write, monkeypatch):
    monkeypatch.setattr(input_file, "WINDOW", 2)
    file = write("\n".join(text_of("x") for _ in range(5)))

    assert [numbers(window) for window in file.windows(lambda line: line.number in (1, 3))] == [
        [2, 4],
        [5],
    ]


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match=r"input .*none cannot be read: No such file"):
        InputFile(tmp_path / "none", longest=10)
