"""The sentence of a batch's progress."""

from __future__ import annotations

from predictor.batch.progress import Progress


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rates_and_the_time_left_count_what_this_run_has_done() -> None:
    clock = Clock()
    progress = Progress(1000, clock=clock)
    for _ in range(4):
        progress.skip(50)
    progress.start()
    clock.now += 20
    progress.count(150, is_ok=True)
    progress.count(50, is_ok=False)

    # 200 of 1000 bytes in 20 s, after 200 of an earlier run: the other 600 take 60 s
    assert progress.sentence(4000, 500) == (
        "6 lines are done (40 %), 1 with an error; 0.1 lines/s, 200 prompt tokens/s, "
        "25 reply tokens/s; 0:01:00 is left"
    )


def test_the_time_left_may_be_hours() -> None:
    clock = Clock()
    progress = Progress(10_000, clock=clock)
    progress.start()
    clock.now += 10
    progress.count(10, is_ok=True)

    assert progress.sentence(0, 0).endswith("; 2:46:30 is left")


def test_before_the_first_line_the_time_left_is_unknown() -> None:
    clock = Clock()
    progress = Progress(100, clock=clock)
    progress.skip(60)
    progress.start()
    clock.now += 5

    sentence = progress.sentence(0, 0)
    assert sentence.startswith("1 lines are done (60 %), 0 with an error; 0 lines/s, ")
    assert sentence.endswith("; an unknown time is left")


def test_at_the_end_nothing_is_left_although_some_bytes_were_no_lines() -> None:
    clock = Clock()
    progress = Progress(100, clock=clock)
    progress.start()
    clock.now += 5
    progress.count(80, is_ok=True)
    assert "(80 %)" in progress.sentence(0, 0)
    progress.end()

    assert "1 lines are done (100 %)" in progress.sentence(0, 0)
    assert progress.sentence(0, 0).endswith("; 0:00:00 is left")
