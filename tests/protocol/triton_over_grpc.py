"""Asks the echo model through Triton's gRPC client and prints what came back as JSON.

A program, not a test module: kserve and tritonclient both register protobuf messages of the package
`inference`, so one process cannot import both.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main(address: str) -> None:
    text = triton.InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(np.array(["one", "zweiß"], dtype=object))

    def refusal(model: str, **options: Any) -> str:
        try:
            client.infer(model, [text], **options)
        except InferenceServerException as error:
            return str(error.message())
        return "none"

    with triton.InferenceServerClient(address) as client:
        ready = [client.is_server_live(), client.is_server_ready(), client.is_model_ready("echo")]
        seen = {
            "health": ready,
            "nobody": refusal("nobody"),
            "fraction": refusal("echo", parameters={"top_p": 0.7}),
        }
        answer = client.infer("echo", [text], parameters={"top_k": 3}, request_id="7")
        seen["id"] = answer.get_response().id
        seen["text"] = [one.decode() for one in answer.as_numpy("text").tolist()]
        seen["completion_tokens"] = answer.as_numpy("completion_tokens").tolist()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
