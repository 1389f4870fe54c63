"""Asks a predictor over V1 and over V2, as `helm test` does; a traceback where one fails."""

import json
import sys
import time
import urllib.error
import urllib.request

PROMPT = "The weather"
PARAMETERS = {"max_new_tokens": 4}
DEADLINE = time.monotonic() + 840  # for a Service that is not there yet, and a model that loads


def ask(url, question):
    """Returns the JSON that a question is answered with, after waiting for who answers."""
    request = urllib.request.Request(url, json.dumps(question).encode())
    while True:
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError) as error:
            if getattr(error, "code", 503) != 503 or time.monotonic() > DEADLINE:
                raise
            time.sleep(2)


url, model = sys.argv[1:]
v1 = ask(f"{url}/v1/models/{model}:predict", {"instances": [PROMPT], "parameters": PARAMETERS})
print("V1:", v1["predictions"][0]["text"])
tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}
v2 = ask(f"{url}/v2/models/{model}/infer", {"inputs": [tensor], "parameters": PARAMETERS})
print("V2:", {output["name"]: output["data"][0] for output in v2["outputs"]}["text"])
