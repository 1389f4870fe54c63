"""Send a request to a predictor over V1 and over V2, for `helm test`. A failure is a traceback."""

import json
import ssl
import sys
import time
import urllib.error
import urllib.request

PROMPT = "The weather"
PARAMETERS = {"max_new_tokens": 4}
DEADLINE = time.monotonic() + 840  # the Service may not exist yet, and the model may still load


def post(url, body):
    """Return the JSON response to a JSON body, after waiting until the model is ready."""
    # The certificate is not verified: it need not name the Service.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, json.dumps(body).encode())
    while True:
        try:
            with urllib.request.urlopen(request, timeout=600, context=context) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError) as error:
            if getattr(error, "code", 503) != 503 or time.monotonic() > DEADLINE:
                raise
            time.sleep(2)


url, model = sys.argv[1:]
v1 = post(f"{url}/v1/models/{model}:predict", {"instances": [PROMPT], "parameters": PARAMETERS})
print("V1:", v1["predictions"][0]["text"])
tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}
v2 = post(f"{url}/v2/models/{model}/infer", {"inputs": [tensor], "parameters": PARAMETERS})
print("V2:", {output["name"]: output["data"][0] for output in v2["outputs"]}["text"])
