"""Send requests without pause, and print how many were answered, refused and lost.

A program for a pod, with the standard library alone: `load.py URL MODEL [SECONDS]`. It runs until
SIGTERM, or for the given seconds. A request is refused if there is no connection, or if the
response is a 429 or a 503 because the model is not ready. It is retried until it is answered. A
request that ends in any other way is lost: the predictor had accepted it.

A server that ends closes connections from which it has not read a request. An immediate close is
taken for that, because requests that were accepted before SIGTERM take longer.
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
IMMEDIATE_SECONDS = 0.2
"""Seconds until which a closed connection counts as refused. The demo's `TOKENS` take longer."""

MAX_SECONDS = 900.0
"""Seconds after which the program ends by itself."""

RETRY_SECONDS = 300.0
"""Seconds after the end in which refused requests are still retried."""


class Load:
    """A number of users that send requests, and the outcomes so far."""

    def __init__(self, url, model, seconds, retry_seconds=RETRY_SECONDS):
        self.address = urllib.parse.urlsplit(url).netloc
        self.path = f"/v1/models/{model}:predict"
        self.end = time.monotonic() + seconds
        self.retry_seconds = retry_seconds
        self.lock = threading.Lock()
        self.answered = self.refused = self.unanswered = 0
        self.lost = []

    def run(self):
        """Send requests as `USERS` users at the same time, and return the outcomes."""
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
        """Send no new requests. Refused ones are still retried."""
        self.end = time.monotonic()

    def _user(self):
        while time.monotonic() < self.end:
            self._until_answered()

    def _until_answered(self):
        while time.monotonic() < self.end + self.retry_seconds:
            outcome = send(self.address, self.path)
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


def send(address, path):
    """Return "answered", "refused", or the fault of one request on its own connection."""
    body = {"instances": ["The weather"], "parameters": {"max_new_tokens": TOKENS}}
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.connect()
    except OSError:
        return "refused"
    began = time.monotonic()
    try:
        connection.request("POST", path, json.dumps(body), {"Connection": "close"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        lasted = time.monotonic() - began
        return (
            "refused"
            if lasted < IMMEDIATE_SECONDS
            else f"{type(error).__name__} after {lasted:.1f} s"
        )
    finally:
        connection.close()
    if response.status == 200:
        return "answered"
    if response.status == 429 or (response.status == 503 and "is not ready" in text):
        return "refused"
    return f"{response.status}: {text[:200]}"


def main(url, model, seconds=MAX_SECONDS):
    """Send requests, and print the outcomes."""
    load = Load(url, model, float(seconds))
    signal.signal(signal.SIGTERM, load.stop)
    print(json.dumps(load.run()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
