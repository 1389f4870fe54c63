"""TorchServe's frontend keys, in ``model-config.yaml`` and in a snapshot's entry.

The keys and their types are those of ``ModelConfig.java`` in TorchServe 0.12. TorchServe ignores a
value of another type with a warning, so it is ignored here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from predictor.migration.mapping import KeyMapping, Rule, always, changed, dropped, kept
from predictor.migration.torchserve_archive import TorchServeArchive
from predictor.settings import Settings

_DEVICE = re.compile(r"(cuda:)?[0-9]{1,3}")

_MAX_BATCH_SIZE = 1024
"""The largest value of the setting `max_batch_size`."""

_DEFAULT_BATCH_SIZE = Settings.model_fields["max_batch_size"].default
"""The default of the setting `max_batch_size`: sequences that run at once if memory allows it."""

FROM_PROPERTIES = {
    "default_response_timeout": "responseTimeout",
    "default_startup_timeout": "startupTimeout",
    "job_queue_size": "jobQueueSize",
    "default_workers_per_model": "minWorkers",
}
"""The server's defaults for frontend keys, by their names in ``config.properties``."""

WORKERS = changed(
    "one process and one copy of the weights serve all requests; more pods: `replicas`"
)
STARTUP = changed(
    "the startup probe gives a pod an hour to load: `startup.timeoutSeconds` of the chart"
)

_SEQUENCES = dropped("requests are not tied to a worker; nothing is kept between them")


def effective_keys(source: TorchServeArchive) -> dict[str, Any]:
    """Return the frontend keys in effect, in TorchServe's precedence and of the right type."""
    keys: dict[str, Any] = {}
    for name, key in FROM_PROPERTIES.items():
        text = source.properties.get(name, "").strip()
        if text.isascii() and text.isdecimal() and len(text) < 10:
            keys[key] = int(text)
    for section in (source.config, source.entry):
        keys |= {key: value for key, value in section.items() if key in RULES and fits(key, value)}
    return keys


def fits(key: str, value: Any) -> bool:
    """Return whether a value has the type that TorchServe expects for a frontend key."""
    kind = TYPES[key]
    if kind is int:
        return is_int(value) and value >= _LEAST.get(key, -(2**31))
    if key == "deviceIds":
        return isinstance(value, list) and all(map(is_int, value))
    return isinstance(value, kind)


def is_set(section: Mapping[str, Any], key: str) -> bool:
    """Return whether a section sets a frontend key to a value that TorchServe accepts."""
    return key in section and fits(key, section[key])


def is_int(value: Any) -> bool:
    """Return whether a value is a Java ``int``."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31


def queue_rule(value: int, source: TorchServeArchive) -> KeyMapping:
    """Map the length of TorchServe's queue."""
    if value < 1:
        return dropped("no queue can be so short")
    running = max(_concurrent_requests(source), _DEFAULT_BATCH_SIZE)
    return kept(
        f"`max_requests` {value + running}: the queue and the {running} that may run",
        max_requests=value + running,
    )


def timeout_rule(value: int, source: TorchServeArchive) -> KeyMapping:
    """Map the time limit of a worker's answer, in seconds."""
    if value < 1:
        return dropped("here a request has a time limit: `request_timeout`")
    return kept(
        f"`request_timeout` {value} s, and `kserve.timeout`; the request alone is given up (504), "
        "nothing is started again",
        request_timeout=value,
    )


def gpus(source: TorchServeArchive) -> int:
    """Return the number of GPUs that TorchServe gave the model, at least as many as it names."""
    return max(_gpu_count(source), *(number + 1 for number in _gpu_numbers(source)), 0)


def _gpu_count(source: TorchServeArchive) -> int:
    keys = effective_keys(source)
    if keys.get("deviceType", "gpu") != "gpu" or _setup(source, "device_map") in ("cpu", "disk"):
        return 0
    stated = (
        len(keys.get("deviceIds", ())),
        _positive(_torchrun(keys).get("nproc-per-node")),
        _positive(keys.get("parallelLevel")),
    )
    explicit = next((count for count in stated if count), None)
    if explicit is not None:
        return explicit
    # If there is a max_memory, Accelerate used only the devices that it names.
    count = 0 if isinstance(_setup(source, "max_memory"), dict) else _number_of_gpu(source)
    return max(count, 1) if "deviceType" in keys else count


def _gpu_numbers(source: TorchServeArchive) -> Iterator[int]:
    """Yield the numbers of the GPUs that settings name. A pod that lacks one is refused."""
    memory, device_map = _setup(source, "max_memory"), _setup(source, "device_map")
    devices = [*(memory if isinstance(memory, dict) else ())]
    devices += device_map.values() if isinstance(device_map, dict) else [device_map]
    for device in devices:
        if isinstance(device, str) and _DEVICE.fullmatch(device):
            yield int(device.removeprefix("cuda:"))
        elif is_int(device) and 0 <= device < 1000:
            yield device


def gpu_phrase(source: TorchServeArchive) -> str:
    """Return the number of GPUs that a deployment requests, as a phrase."""
    count = gpus(source)
    if not count:
        return "no accelerator is asked for"
    return f"{count} GPU{'s' if count > 1 else ''} asked for; Kubernetes chooses which"


def _number_of_gpu(source: TorchServeArchive) -> int:
    text = source.properties.get("number_of_gpu", "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 1


def _setup(source: TorchServeArchive, key: str) -> Any:
    setup = source.setup or {}
    return setup.get(key, source.section("handler").get(key))


def _torchrun(keys: Mapping[str, Any]) -> dict[str, Any]:
    section = keys.get("torchrun", {})
    return section if isinstance(section, dict) else {}


def _positive(value: Any) -> int:
    return int(value) if is_int(value) and value > 0 else 0


def _concurrent_requests(source: TorchServeArchive) -> int:
    """Return the requests that all workers processed at once, but no more than can run here."""
    keys = effective_keys(source)
    batch, *workers = (
        _positive(keys.get(key)) for key in ("batchSize", "minWorkers", "maxWorkers")
    )
    return min(max(batch, 1) * max(*workers, 1), _MAX_BATCH_SIZE)


def _batch(value: int, source: TorchServeArchive) -> KeyMapping:
    size = _concurrent_requests(source)
    if size <= _DEFAULT_BATCH_SIZE:
        return changed(
            f"requests join the running batch at every token, up to {_DEFAULT_BATCH_SIZE} as "
            "memory is planned for"
        )
    return kept(f"`max_batch_size` {size}: as many as all workers had in work", max_batch_size=size)


def _device_type(value: str, source: TorchServeArchive) -> KeyMapping:
    if value in ("cpu", "gpu"):
        return (kept if bool(gpus(source)) is (value == "gpu") else changed)(gpu_phrase(source))
    return dropped("models are served on GPUs and processors; no accelerator is asked for")


def _gpu_rule(value: Any, source: TorchServeArchive) -> KeyMapping:
    return kept(gpu_phrase(source)) if gpus(source) else changed(gpu_phrase(source))


_ONE_PROCESS = dropped("one process drives all GPUs of its pod")

RULES: dict[str, Rule] = {
    "minWorkers": always(WORKERS),
    "maxWorkers": always(WORKERS),
    "batchSize": _batch,
    "maxBatchDelay": always(
        changed("nobody waits for a batch to fill; requests join at every token")
    ),
    "responseTimeout": timeout_rule,
    "startupTimeout": always(STARTUP),
    "deviceType": _device_type,
    "deviceIds": _gpu_rule,
    "parallelLevel": _gpu_rule,
    "parallelType": always(
        changed(
            "`device_map` balanced: whole blocks on each GPU, one after the other",
            device_map="balanced",
        )
    ),
    "maxRetryTimeoutInSec": always(
        changed("Kubernetes starts a container again, with its own growing delay")
    ),
    "clientTimeoutInMills": always(
        changed("a request says its own limit: header `x-request-timeout`; it is answered (504)")
    ),
    "jobQueueSize": queue_rule,
    "useJobTicket": always(
        changed("when full a request is refused at once (429); `max_requests` says when")
    ),
    "continuousBatching": always(changed("always so")),
    "asyncCommunication": always(changed("always so; one process has no workers to talk to")),
    "useVenv": always(dropped("nothing is installed; the handler's code is not executed")),
    "sequenceBatching": always(_SEQUENCES),
    "sequenceMaxIdleMSec": always(_SEQUENCES),
    "sequenceTimeoutMSec": always(_SEQUENCES),
    "maxSequenceJobQueueSize": always(_SEQUENCES),
    "maxNumSequence": always(_SEQUENCES),
    "torchrun": always(_ONE_PROCESS),
}
"""The rules for keys with a value of the right type."""

TORCHRUN: dict[str, Rule] = {
    "nproc-per-node": _gpu_rule,
    "nnodes": always(dropped("one pod serves the model; what its GPUs do not hold is offloaded")),
    "OMP_NUMBER_THREADS": always(changed("threads follow the processors that the pod is given")),
}
"""The rules for keys in the section ``torchrun``. Others follow `RULES`."""

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
    "defaultVersion": always(changed("one version is served")),
    "marName": always(kept("this archive")),
    "runtime": always(changed("Python, in the predictor's own process")),
    "modelUrl": always(kept("this archive")),
}
"""The rules for keys that only a snapshot's entry has."""
