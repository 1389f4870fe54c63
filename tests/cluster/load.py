"""Asks a predictor without pause, and tells how many requests were answered, refused and lost.

A program for a pod, with the standard library alone: `load.py URL MODEL [SECONDS]`. It asks until
SIGTERM, or for so many seconds. A request is refused where no connection was made, or where the
answer is a 429, or a 503 that says that the model is not ready; it is asked again until it is
answered. It is lost where it ended in any other way: the predictor had accepted it.

A server that ends closes connections that it has not read a request from. No answer at once is
taken for that: what it accepted before SIGTERM has run for longer when it ends.
"""

import http.client
import json
import signal
import sys
import threading
import time
import urllib.parse

USERS = 8
TOKENS = 100
AT_ONCE = 0.2
"""Seconds; so many tokens of the demo take longer."""

LONGEST = 900.0
"""Seconds until it ends by itself."""

MAX_OVERTAKES = 300.0
"""Seconds beyond the end in which a request that was refused may still be answered."""


class Load:
    """What became of all requests so far."""

    def __init__(self, url, model, seconds):
        self.address = urllib.parse.urlsplit(url).netloc
        self.path = f"/v1/models/{model}:predict"
        self.end = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.answered = self.refused = self.unanswered = 0
        self.lost = []

    def run(self):
        """Asks as so many users at one time, and returns what became of it."""
        users = [threading.Thread(target=self._user) for _ in range(USERS)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        return {
            "answered": self.answered,
            "refused": self.refused,
            "unanswered": self.unanswered,
            "lost": self.lost,
        }

    def stop(self, *_):
        """Asks nothing new; what was refused is still asked again."""
        self.end = time.monotonic()

    def _user(self):
        while time.monotonic() < self.end:
            self._until_answered()

    def _until_answered(self):
        while time.monotonic() < self.end + MAX_OVERTAKES:
            outcome = ask(self.address, self.path)
            with self.lock:
                if outcome == "answered":
                    self.answered += 1
                    if self.answered == 1:
                        print("The first request is answered.", flush=True)
                    return
                if outcome != "refused":
                    self.lost.append(outcome)
                    return
                self.refused += 1
            time.sleep(0.2)
        with self.lock:
            self.unanswered += 1


def ask(address, path):
    """Returns "answered", "refused", or what else became of one request on its own connection."""
    body = {"instances": ["The weather"], "parameters": {"max_new_tokens": TOKENS}}
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.connect()
    except OSError:
        return "refused"
    began = time.monotonic()
    try:
        connection.request("POST", path, json.dumps(body), {"Connection": "close"})
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        lasted = time.monotonic() - began
        return "refused" if lasted < AT_ONCE else f"{type(error).__name__} after {lasted:.1f} s"
    finally:
        connection.close()
    if answer.status == 200:
        return "answered"
    if answer.status == 429 or (answer.status == 503 and "is not ready" in said):
        return "refused"
    return f"{answer.status}: {said[:200]}"


def main(url, model, seconds=LONGEST):
    """Asks, and prints what became of it."""
    load = Load(url, model, float(seconds))
    signal.signal(signal.SIGTERM, load.stop)
    print(json.dumps(load.run()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
