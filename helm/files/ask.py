"""Asks a predictor over V1 and over V2, as `helm test` does; a traceback where one fails."""

import json
import sys
import urllib.request

PROMPT = "The weather"
PARAMETERS = {"max_new_tokens": 4}


def ask(url, question):
    """Returns the JSON that a question is answered with."""
    request = urllib.request.Request(url, json.dumps(question).encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


url, model = sys.argv[1:]
v1 = ask(f"{url}/v1/models/{model}:predict", {"instances": [PROMPT], "parameters": PARAMETERS})
print("V1:", v1["predictions"][0]["text"])
tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}
v2 = ask(f"{url}/v2/models/{model}/infer", {"inputs": [tensor], "parameters": PARAMETERS})
print("V2:", {output["name"]: output["data"][0] for output in v2["outputs"]}["text"])
