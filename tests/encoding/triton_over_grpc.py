"""Send a request to an encoder task through Triton's gRPC client, and print the response as JSON.

A program, not a test module: kserve and tritonclient both register protobuf messages of the package
`inference`, so one process cannot import both.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str, fields: dict[str, str]) -> None:
    inputs = []
    for name, text in fields.items():
        given = triton.InferInput(name, [2], "BYTES")
        given.set_data_from_numpy(np.array([text, text], dtype=np.object_))
        inputs.append(given)
    with triton.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata("echo", as_json=True)
        answer = client.infer("echo", inputs)
    seen = {}
    for output in metadata["outputs"]:
        values = answer.as_numpy(output["name"])
        if values is not None:
            data = [one.decode() if isinstance(one, bytes) else one for one in values.ravel()]
            numbers = [one if isinstance(one, str) else one.item() for one in data]
            seen[output["name"]] = {"dtype": str(values.dtype), "data": numbers}
    print(json.dumps({"outputs": metadata["outputs"], "seen": seen}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
