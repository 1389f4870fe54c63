"""Real files as the output of a batch, whole and torn."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading

import pytest

from predictor.batch.input_file import InputLine
from predictor.batch.lines import LineResponse, encode_error, encode_response
from predictor.batch.order import LineShape
from predictor.batch.output_file import OutputFile, OutputHeld
from predictor.errors import ConfigurationError, LoadFailed, PredictorError

FIRST = encode_error(1, "00000001", "a", "x")
SECOND = encode_error(20, "c0ffee00", "b", "y")


def line(number, digest):
    return InputLine(number, 0, 10, digest, LineShape(1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "output.jsonl"


def opened(path, most=100):
    file = OutputFile(path)
    file.read_done(most=most)
    return file


def test_a_new_file_is_readable_by_its_owner_alone_and_has_nothing_done(path):
    file = opened(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert not file.has(line(1, "00000001"))
    assert not file.has(line(1000, "00000001"))


def test_what_is_appended_is_done_for_the_next_process(path):
    file = opened(path)
    file.append(FIRST)
    file.append(SECOND)
    file.close()
    again = opened(path)

    assert [again.has(line(n, d)) for n, d in ((1, "00000001"), (20, "c0ffee00"))] == [True, True]
    assert not again.has(line(2, "00000001"))
    again.append(FIRST)
    assert path.read_bytes() == FIRST + SECOND + FIRST


@pytest.mark.parametrize("kept", range(1, len(SECOND)))
def test_a_torn_last_line_is_taken_away_and_computed_again(path, kept):
    path.write_bytes(FIRST + SECOND[:kept])
    file = opened(path)

    assert file.has(line(1, "00000001"))
    assert not file.has(line(20, "c0ffee00"))
    assert path.read_bytes() == FIRST


@pytest.mark.parametrize("content", [b"{}\n", b"hello\n" + FIRST, FIRST + b"\n", b"\0" * 9 + b"\n"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path, content):
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"is no result of this input; name another"):
        opened(path)
    assert path.read_bytes() == content


def test_a_number_that_the_input_cannot_have_is_refused(path):
    path.write_bytes(encode_error(10**14, "00000001", None, "x"))

    with pytest.raises(ConfigurationError, match=r"Line 1 of .* is no result of this input"):
        opened(path)


def test_a_result_of_another_line_is_refused(path):
    path.write_bytes(FIRST)

    with pytest.raises(ConfigurationError, match="a result of another line 1 than the input's"):
        opened(path).has(line(1, "00000002"))


def test_one_process_at_a_time_writes(path):
    file = opened(path)

    with pytest.raises(OutputHeld, match="Another process writes the output") as raised:
        opened(path)
    assert raised.value.exit_code == 1  # the same command goes on later
    file.close()
    opened(path)


def test_a_process_that_is_about_to_end_is_waited_for(path):
    file = opened(path)
    file.append(FIRST)
    threading.Timer(0.2, file.close).start()
    again = OutputFile(path, lock_seconds=30)
    again.read_done(most=100)

    assert again.has(line(1, "00000001"))


def test_a_file_that_was_taken_away_meanwhile_is_not_written(path, monkeypatch):
    lock = fcntl.flock

    def taken_away(fd, how):
        path.unlink(missing_ok=True)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", taken_away)
    with pytest.raises(OutputHeld):
        OutputFile(path)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EIO, 1), (errno.ESTALE, 1), (errno.EDQUOT, 1), (errno.EACCES, 78), (errno.EROFS, 78)],
)
@pytest.mark.parametrize("where", ["open", "flock", "ftruncate"])
def test_a_volume_that_fails_for_a_while_is_no_wrong_configuration(
    path, monkeypatch, where, number, code
):
    def fails(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl if where == "flock" else os, where, fails)
    with pytest.raises(PredictorError, match=r"The output .* cannot be .*: no") as raised:
        opened(path)
    assert raised.value.exit_code == code


def test_what_is_done_is_counted(path):
    answer = encode_response(7, "00000007", "c", LineResponse(200, "r", b"{}"))
    path.write_bytes(FIRST + answer + SECOND)

    done = opened(path).done
    assert (done.answered, done.failed) == (1, 2)


def test_a_full_volume_leaves_whole_lines(path):
    file = opened(path)
    file.append(FIRST)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Part of the next line fits; Python ignores the signal of this limit.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(FIRST) + 10, limits[1]))
    try:
        with pytest.raises(LoadFailed, match="cannot be written: File too large"):
            file.append(SECOND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_bytes() == FIRST


def test_a_folder_that_is_not_there_is_a_sentence(path):
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        opened(path / "none")


def test_a_closed_file_can_be_opened_many_times(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        opened(path).close()

    assert len(os.listdir("/proc/self/fd")) == before
