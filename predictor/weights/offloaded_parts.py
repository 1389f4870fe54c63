"""Which modules are streamed: those of offloaded parts, each once, whatever weights they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from predictor.placement.plan import Placement


@dataclass(frozen=True, slots=True)
class Twin:
    """A module with the same weights as another one.

    Attributes:
        module: The other one.
        names: For each parameter of the other one, its name in this module.
    """

    module: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StreamedParts:
    """The modules that are streamed to the device where they compute.

    Attributes:
        modules: The modules, in the model's order, with the name of the offloaded part that each is
            of. No two of them have the same weights.
        twins: By name, modules with the same weights as one of these.
        parts: The names of all parts with such modules.
        on_disk: The modules that are streamed from disk, and not from main memory.
        of_blocks: The modules, twins among them, that are blocks or lie in one.
    """

    modules: Mapping[str, str]
    twins: Mapping[str, Twin]
    parts: frozenset[str]
    on_disk: tuple[str, ...]
    of_blocks: frozenset[str]

    @property
    def names_of_twins(self) -> frozenset[str]:
        """The names of the twins' parameters, which transformers loads by themselves."""
        return frozenset(name for twin in self.twins.values() for name in twin.names.values())

    @property
    def in_memory(self) -> tuple[str, ...]:
        """The modules that are streamed from main memory to an accelerator."""
        return tuple(name for name in self.modules if name not in self.on_disk)


def streamed_parts(
    placement: Placement,
    skeleton: PreTrainedModel,
    blocks: Sequence[str],
    *,
    without: Collection[str],
) -> StreamedParts:
    """Return the modules that are streamed.

    Args:
        placement: The plan.
        skeleton: The model on the meta device.
        blocks: The names of its blocks.
        without: Names of parameters that are not streamed.
    """
    modules: dict[str, str] = {}
    twins: dict[str, Twin] = {}
    first: dict[tuple[int, ...], tuple[str, tuple[str, ...]]] = {}
    members, parts = set(), set()
    for name, part in _modules_of(placement, skeleton, blocks):
        module = skeleton.get_submodule(name)
        named = dict(module.named_parameters(prefix=name, remove_duplicate=False))
        weights = {key: weight for key, weight in named.items() if key not in without}
        parts.add(part)
        if id(module) in members or not weights:
            continue  # one module may have several names
        members.add(id(module))
        identity = tuple(map(id, weights.values()))
        if identity in first:
            other, names = first[identity]
            twins[name] = Twin(other, dict(zip(names, weights, strict=True)))
        else:
            first[identity], modules[name] = (name, tuple(weights)), part
    on_disk = [name for name, part in modules.items() if placement.device_map[part] == "disk"]
    of_blocks = (name for name in (*modules, *twins) if _covering(name, blocks) is not None)
    return StreamedParts(modules, twins, frozenset(parts), tuple(on_disk), frozenset(of_blocks))


def _modules_of(
    placement: Placement, skeleton: PreTrainedModel, blocks: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield each module of each offloaded part with the part's name, in the model's order."""
    whole = set(_untied(skeleton, blocks)) if placement.by_block else set()
    parts = {
        module: part
        for part in placement.offloaded
        for module in ((part,) if part in whole else placement.modules.get(part, ()))
    }
    for name, _ in skeleton.named_modules(remove_duplicate=False):
        if name in parts:
            yield name, parts[name]


def kept_blocks(
    placement: Placement, skeleton: PreTrainedModel, blocks: Sequence[str]
) -> tuple[str, ...]:
    """Return the blocks that stay where they execute, each as a whole and without a tied weight."""
    whole = [name for name in blocks if name in placement.device_map]
    return _untied(skeleton, [name for name in whole if name not in placement.offloaded])


def count_bytes(skeleton: PreTrainedModel, modules: Iterable[str]) -> int:
    """Return the bytes of the parameters of modules, by name."""
    members = map(skeleton.get_submodule, modules)
    return sum(parameter.nbytes for module in members for parameter in module.parameters())


def _untied(skeleton: PreTrainedModel, blocks: Iterable[str]) -> tuple[str, ...]:
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name in blocks
        if all(owners[id(p)] == 1 for p in skeleton.get_submodule(name).parameters())
    )


def device_map(
    placement: Placement,
    skeleton: PreTrainedModel,
    parts: StreamedParts,
    kept: Sequence[str],
    *,
    in_store: bool,
) -> dict[str, int | str]:
    """Return the devices to load a model to.

    Args:
        placement: The plan.
        skeleton: The model on the meta device.
        parts: The modules that are streamed.
        kept: Blocks that stay in memory and are read from the store.
        in_store: Whether a store has all of these. Its weights are left on the meta device, and
            what is computed is on the device where it is used.
    """
    main, devices = placement.execution_device, dict(placement.device_map)
    devices |= dict.fromkeys(placement.offloaded - parts.parts, main)
    stored = [name for name in parts.parts if devices[name] == "disk"]
    used_on = dict.fromkeys(stored, main) | {name: devices[name] for name in kept}
    devices |= dict.fromkeys(used_on, "meta" if in_store else "disk")
    for name, device in used_on.items() if in_store else ():
        buffers = skeleton.get_submodule(name).named_buffers(prefix=name, remove_duplicate=False)
        devices |= {key: device for key, _ in buffers}
    fixed = [key for key in placement.fixed if _covering(key, parts.parts) is not None]
    return devices | dict.fromkeys(fixed, main)


def _covering(name: str, names: Collection[str]) -> str | None:
    """Return which of these is a name, or a module around it; None if none is."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name if name in names else None
