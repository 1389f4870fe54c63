"""The one thread that runs a model: its mailbox, its forward passes, and its failures.

Requests are submitted and cancelled from any thread. Everything else happens in the model thread:
it takes in the requests that have arrived, asks its policy for the next forward passes, and runs
them. The policy knows the requests, batches them and calls their callbacks. This module leaves all
of that to the policy.

A request that makes a forward pass fail fails alone: the forward pass is run again in halves until
the row at fault stands by itself. Rows that cannot be run again at once are planned anew. If no row
succeeds, the policy probes the model with one harmless token. If the probe fails too, the model is
broken, because a device that failed an assertion does not recover within the process. Then all
requests end with `EngineBroken`, and so does the thread.

The thread notes in its `Heartbeat` what it does, so that another thread sees if it hangs.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack

from predictor.errors import EngineBroken, GenerationFailed
from predictor.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
RequestIn = TypeVar("RequestIn", contravariant=True)
Row = TypeVar("Row")


class Policy(Protocol[RequestIn, Row]):
    """Decides what the model computes next. Every method is called in the model thread.

    Attributes:
        noun: The word for a row in log lines.
    """

    noun: str

    def idle_seconds(self) -> float | None:
        """Return how long to wait for more requests; None until one arrives, 0 not at all."""
        ...

    def add(self, key: int, request: RequestIn) -> None:
        """Take in a request."""
        ...

    def remove(self, key: int) -> None:
        """Forget a request, if it is still there. Its callback is not called again."""
        ...

    def batches(self) -> Iterable[Sequence[Row]]:
        """Yield the forward passes of the next step; the last one is over when the step ends."""
        ...

    def count_tokens(self, rows: Sequence[Row]) -> int:
        """Return the tokens that a forward pass over these rows computes, padding included."""
        ...

    def compute(self, rows: Sequence[Row]) -> Any:
        """Run a forward pass and return its results, or let the model's error pass."""
        ...

    def deliver(self, rows: Sequence[Row], results: Any, seconds: float) -> None:
        """Note the results of a forward pass that took so many seconds, and tell the callbacks."""
        ...

    def recover(self, failed: Sequence[Row]) -> Sequence[Row]:
        """Return the rows of a failed forward pass to run again at once; plan the others anew."""
        ...

    def probe(self, failed: Sequence[Row]) -> None:
        """Compute one harmless token, or let the model's error pass.

        Args:
            failed: The rows that failed. Their memory may be all that there is.
        """
        ...

    def fail(self, row: Row, error: GenerationFailed) -> None:
        """End the request of a row that failed alone."""
        ...

    def fail_all(self, error: EngineBroken) -> None:
        """End all requests that have not ended."""
        ...


class PassObserver(Protocol):
    """Observes forward passes, in the model thread."""

    def before_pass(self, tokens: int) -> None:
        """Prepare for a forward pass that will compute so many tokens."""
        ...

    def after_pass(self, tokens: int, seconds: float) -> None:
        """Note a forward pass that has succeeded, and its seconds."""
        ...


class ThreadOptions(TypedDict, total=False):
    """What a model thread calls and notes, besides its policy.

    Attributes:
        heartbeat: Takes notes of what the thread does; None makes one.
        observer: Called in the model thread before and after each forward pass.
        on_broken: Called in the model thread, last of all, if the model is broken for good.
        after_step: Called in the model thread after each step, and before it waits.
    """

    heartbeat: Heartbeat | None
    observer: PassObserver | None
    on_broken: Callable[[EngineBroken], None] | None
    after_step: Callable[[], None] | None


class ModelThread(Generic[Request, Row]):
    """Runs the forward passes of one policy until it is stopped or the model is broken.

    An engine is a subclass with a policy and a `submit` of its own.

    Attributes:
        heartbeat: What the thread does, and whether that takes too long.
    """

    def __init__(
        self, policy: Policy[Request, Row], *, name: str, **options: Unpack[ThreadOptions]
    ) -> None:
        """Start the thread.

        Args:
            policy: Decides what is computed.
            name: The thread's name.
            options: See `ThreadOptions`.
        """
        self._policy = policy
        self.heartbeat = options.get("heartbeat") or Heartbeat()
        self._on_broken = options.get("on_broken")
        self._observer = options.get("observer")
        self._after_step = options.get("after_step") or _do_nothing
        self._keys = itertools.count()
        self._mailbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._arrived: dict[int, Request] = {}
        self._stopping = False
        self._broken: EngineBroken | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def new_request(self) -> int:
        """Return a number for a client's request, under which all that it submits is known."""
        return next(self._keys)

    def put(self, request: Request, key: int | None = None) -> int:
        """Hand in a request and return its key; do not wait.

        Args:
            request: The request.
            key: Its key, if the caller gives every request one; else a new one.

        Raises:
            EngineBroken: The thread has ended because the model is broken.
        """
        chosen = next(self._keys) if key is None else key
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._arrived[chosen] = request
            self.call(lambda: self._add(chosen))
        return chosen

    def cancel(self, key: int) -> None:
        """Forget a request after the current step. Its callback is not called again."""
        self._arrived.pop(key, None)  # its memory need not wait for the end of the step
        self.call(lambda: self._policy.remove(key))

    def stop(self) -> None:
        """End the thread after the current step. Requests that have not ended hear no more."""

        def stop() -> None:
            self._stopping = True

        self.call(stop)

    def call(self, action: Callable[[], None]) -> None:
        """Have an action called in the model thread, between two steps, in order of arrival."""
        self._mailbox.put(action)

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread; return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # Everything below runs in the model thread.

    def _loop(self) -> None:
        try:
            while not self._stopping:
                self._take_in()
                if not self._stopping:
                    self._step()
                    self._after_step()
                self.heartbeat.passes.rest()
        # Here is the border between the model and the process: any other error ends the engine.
        except Exception as error:
            self.heartbeat.passes.rest()
            self._break(error)

    def _take_in(self) -> None:
        """Empty the mailbox, and wait for more as long as the policy says."""
        while not self._stopping:
            seconds = self._policy.idle_seconds()
            if seconds != 0:
                self._after_step()
            try:
                action = self._mailbox.get(block=seconds != 0, timeout=seconds)
            except queue.Empty:
                return
            action()

    def _add(self, key: int) -> None:
        request = self._arrived.pop(key, None)
        if request is not None:  # else it was cancelled
            self._policy.add(key, request)

    def _step(self) -> None:
        self.heartbeat.passes.begin(0)
        for rows in self._policy.batches():
            failed = self._run(rows)
            if len(failed) == len(rows):
                self._policy.probe(failed)
            for row in failed:
                self._policy.fail(row, request_failed())

    def _run(self, rows: Sequence[Row]) -> list[Row]:
        """Run a forward pass, in halves if it fails; return the rows that fail alone."""
        began = time.monotonic()
        try:
            tokens = self._policy.count_tokens(rows)
            if self._observer is not None:
                self._observer.before_pass(tokens)
            self.heartbeat.begin_pass(tokens)
            results = self._policy.compute(rows)
        except EngineBroken:
            raise
        # Models raise errors of any type; here is the border between requests.
        except Exception as error:
            if len(rows) == 1:
                logger.error("The model failed on a %s", self._policy.noun, exc_info=error)
                return list(rows)
            failure, noun = type(error).__name__, self._policy.noun
            logger.warning("A pass of %d %ss failed (%s); halved", len(rows), noun, failure)
            # The traceback keeps the failed pass's tensors alive; its halves need the memory.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            again = self._policy.recover(rows)
            middle = len(again) // 2
            halves = (again[:middle], again[middle:])
            return [row for half in halves if half for row in self._run(half)]
        self.heartbeat.passes.end()
        self.heartbeat.passes.begin(0)
        seconds = time.monotonic() - began
        self._policy.deliver(rows, results, seconds)
        if self._observer is not None:
            self._observer.after_pass(tokens, seconds)
        return []

    def _break(self, error: Exception) -> None:
        logger.critical("The engine is broken", exc_info=error)
        broken = error if isinstance(error, EngineBroken) else _broken()
        with self._lock:
            self._broken = broken
        while not self._mailbox.empty():
            self._mailbox.get()()
        self._policy.fail_all(broken)
        self._after_step()
        if self._on_broken is not None:
            self._on_broken(broken)


def _do_nothing() -> None:
    pass


def _broken() -> EngineBroken:
    return EngineBroken("The model's engine has failed; the server's log has the cause.")


def request_failed() -> GenerationFailed:
    """Return the error of a request on which the model failed."""
    return GenerationFailed("The model failed on this request; the server's log has the cause.")
