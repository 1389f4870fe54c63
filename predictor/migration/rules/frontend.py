"""TorchServe's frontend keys: of ``model-config.yaml``, and of a snapshot's entry.

The keys and their types are those of ``ModelConfig.java`` in TorchServe 0.12. A value of another
type was ignored there, with a warning, and is ignored here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from predictor.migration.mapping import KeyMapping, Rule, always, nothing, otherwise, taken
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.settings import Settings

_DEVICE = re.compile(r"(cuda:)?[0-9]{1,3}")
_MOST_BATCHED = 1024
"""The most that `max_batch_size` takes."""

_BATCHED = Settings.model_fields["max_batch_size"].default
"""How many sequences run where nothing says it, if memory is there for them."""

FROM_PROPERTIES = {
    "default_response_timeout": "responseTimeout",
    "default_startup_timeout": "startupTimeout",
    "job_queue_size": "jobQueueSize",
    "default_workers_per_model": "minWorkers",
}
"""What the server's configuration says for models that do not say it."""

WORKERS = otherwise(
    "one process and one copy of the weights serve all requests; more pods: `replicas`"
)
STARTUP = otherwise(
    "the startup probe gives a pod an hour to load: `startup.timeoutSeconds` of the chart"
)

_SEQUENCES = nothing("requests are not tied to a worker; nothing is kept between them")


def merged(legacy: TorchServeArchive) -> dict[str, Any]:
    """Returns the frontend keys that count: TorchServe's order of strength, right types only."""
    found: dict[str, Any] = {}
    for name, key in FROM_PROPERTIES.items():
        text = legacy.properties.get(name, "").strip()
        if text.isascii() and text.isdecimal() and len(text) < 10:
            found[key] = int(text)
    for said in (legacy.config, legacy.entry):
        found |= {key: value for key, value in said.items() if key in RULES and fits(key, value)}
    return found


def fits(key: str, value: Any) -> bool:
    """Returns whether a value has the type that TorchServe takes for a frontend key."""
    kind = TYPES[key]
    if kind is int:
        return is_int(value) and value >= _LEAST.get(key, -(2**31))
    if key == "deviceIds":
        return isinstance(value, list) and all(map(is_int, value))
    return isinstance(value, kind)


def says(said: Mapping[str, Any], key: str) -> bool:
    """Returns whether something says a frontend key, and TorchServe would have taken it."""
    return key in said and fits(key, said[key])


def is_int(value: Any) -> bool:
    """Returns whether a value is one of Java's integers."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31


def queue_rule(value: int, legacy: TorchServeArchive) -> KeyMapping:
    """Returns what becomes of the length of TorchServe's queue."""
    if value < 1:
        return nothing("no queue can be so short")
    running = max(_at_once(legacy), _BATCHED)
    return taken(
        f"`max_requests` {value + running}: the queue and the {running} that may run",
        max_requests=value + running,
    )


def timeout_rule(value: int, legacy: TorchServeArchive) -> KeyMapping:
    """Returns what becomes of the time in which a worker had to answer."""
    if value < 1:
        return nothing("here a request has a time limit: `request_timeout`")
    return taken(
        f"`request_timeout` {value} s, and `kserve.timeout`; the request alone is given up (504), "
        "nothing is started again",
        request_timeout=value,
    )


def gpus(legacy: TorchServeArchive) -> int:
    """Returns how many GPUs the old files gave the model, and no fewer than they name."""
    return max(_given(legacy), *(number + 1 for number in _named(legacy)), 0)


def _given(legacy: TorchServeArchive) -> int:
    keys = merged(legacy)
    if keys.get("deviceType", "gpu") != "gpu" or _setup(legacy, "device_map") in ("cpu", "disk"):
        return 0
    stated = (
        len(keys.get("deviceIds", ())),
        _positive(_torchrun(keys).get("nproc-per-node")),
        _positive(keys.get("parallelLevel")),
    )
    found = next((count for count in stated if count), None)
    if found is not None:
        return found
    # Of a max_memory Accelerate used those only that it names.
    count = 0 if isinstance(_setup(legacy, "max_memory"), dict) else _number_of_gpu(legacy)
    return max(count, 1) if "deviceType" in keys else count


def _named(legacy: TorchServeArchive) -> Iterator[int]:
    """The numbers of the GPUs that settings name; a pod that lacks one is refused."""
    memory, placed = _setup(legacy, "max_memory"), _setup(legacy, "device_map")
    devices = [*(memory if isinstance(memory, dict) else ())]
    devices += placed.values() if isinstance(placed, dict) else [placed]
    for device in devices:
        if isinstance(device, str) and _DEVICE.fullmatch(device):
            yield int(device.removeprefix("cuda:"))
        elif is_int(device) and 0 <= device < 1000:
            yield device


def asked_for(legacy: TorchServeArchive) -> str:
    """Returns how many GPUs a deployment asks for, as a phrase."""
    count = gpus(legacy)
    if not count:
        return "no accelerator is asked for"
    return f"{count} GPU{'s' if count > 1 else ''} asked for; Kubernetes chooses which"


def _number_of_gpu(legacy: TorchServeArchive) -> int:
    text = legacy.properties.get("number_of_gpu", "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 1


def _setup(legacy: TorchServeArchive, key: str) -> Any:
    said = legacy.setup or {}
    return said.get(key, legacy.section("handler").get(key))


def _torchrun(keys: Mapping[str, Any]) -> dict[str, Any]:
    found = keys.get("torchrun", {})
    return found if isinstance(found, dict) else {}


def _positive(value: Any) -> int:
    return int(value) if is_int(value) and value > 0 else 0


def _at_once(legacy: TorchServeArchive) -> int:
    """How many requests all workers together had in work, and no more than can run here."""
    keys = merged(legacy)
    batch, *workers = (
        _positive(keys.get(key)) for key in ("batchSize", "minWorkers", "maxWorkers")
    )
    return min(max(batch, 1) * max(*workers, 1), _MOST_BATCHED)


def _batch(value: int, legacy: TorchServeArchive) -> KeyMapping:
    size = _at_once(legacy)
    if size <= _BATCHED:
        return otherwise(
            f"requests join the running batch at every token, up to {_BATCHED} as memory is "
            "planned for"
        )
    return taken(
        f"`max_batch_size` {size}: as many as all workers had in work", max_batch_size=size
    )


def _device_type(value: str, legacy: TorchServeArchive) -> KeyMapping:
    if value in ("cpu", "gpu"):
        return (taken if bool(gpus(legacy)) is (value == "gpu") else otherwise)(asked_for(legacy))
    return nothing("models are served on GPUs and processors; no accelerator is asked for")


def _gpu_count(value: Any, legacy: TorchServeArchive) -> KeyMapping:
    return taken(asked_for(legacy)) if gpus(legacy) else otherwise(asked_for(legacy))


_ONE_PROCESS = nothing("one process drives all GPUs of its pod")

RULES: dict[str, Rule] = {
    "minWorkers": always(WORKERS),
    "maxWorkers": always(WORKERS),
    "batchSize": _batch,
    "maxBatchDelay": always(
        otherwise("nobody waits for a batch to fill; requests join at every token")
    ),
    "responseTimeout": timeout_rule,
    "startupTimeout": always(STARTUP),
    "deviceType": _device_type,
    "deviceIds": _gpu_count,
    "parallelLevel": _gpu_count,
    "parallelType": always(
        otherwise(
            "`device_map` balanced: whole blocks on each GPU, one after the other",
            device_map="balanced",
        )
    ),
    "maxRetryTimeoutInSec": always(
        otherwise("Kubernetes starts a container again, with its own growing delay")
    ),
    "clientTimeoutInMills": always(
        otherwise("a request says its own limit: header `x-request-timeout`; it is answered (504)")
    ),
    "jobQueueSize": queue_rule,
    "useJobTicket": always(
        otherwise("when full a request is refused at once (429); `max_requests` says when")
    ),
    "continuousBatching": always(otherwise("always so")),
    "asyncCommunication": always(otherwise("always so; one process has no workers to talk to")),
    "useVenv": always(nothing("nothing is installed; the handler's code is not executed")),
    "sequenceBatching": always(_SEQUENCES),
    "sequenceMaxIdleMSec": always(_SEQUENCES),
    "sequenceTimeoutMSec": always(_SEQUENCES),
    "maxSequenceJobQueueSize": always(_SEQUENCES),
    "maxNumSequence": always(_SEQUENCES),
    "torchrun": always(_ONE_PROCESS),
}
"""How a key of the right type is judged."""

TORCHRUN: dict[str, Rule] = {
    "nproc-per-node": _gpu_count,
    "nnodes": always(nothing("one pod serves the model; what its GPUs do not hold is offloaded")),
    "OMP_NUMBER_THREADS": always(otherwise("threads follow the processors that the pod is given")),
}
"""How a key of the section ``torchrun`` is judged; `RULES` says it of others."""

TYPES: dict[str, type] = dict.fromkeys(RULES, int) | {
    "deviceType": str,
    "parallelType": str,
    "deviceIds": list,
    "torchrun": dict,
    **dict.fromkeys(("useJobTicket", "continuousBatching", "sequenceBatching"), bool),
    **dict.fromkeys(("asyncCommunication", "useVenv"), bool),
}

_LEAST = {"minWorkers": 1, "batchSize": 1}

ENTRY: dict[str, Rule] = {
    "defaultVersion": always(otherwise("one version is served")),
    "marName": always(taken("this archive")),
    "runtime": always(otherwise("Python, in the predictor's own process")),
    "modelUrl": always(taken("this archive")),
}
"""Keys that only a snapshot's entry has."""
