"""Configs of GPTQ, AWQ and AutoRound."""

from __future__ import annotations

from predictor.errors import CheckpointError
from predictor.linear.formats.awq import Awq
from predictor.linear.formats.gptq import Gptq
from predictor.linear.published.config import Config
from predictor.linear.published.layer_names import Matcher, as_parts, begins_with, every_layer
from predictor.linear.scheme import Rule, Scheme

_BITS = (4, 8)
_GROUP = 128
_UNQUANTISED_BITS = 16

_DYNAMIC_LEAVES_OUT = "-:"
_DYNAMIC_CHANGES = "+:"


def gptq(config: Config) -> Scheme:
    """Return the scheme of method ``gptq``.

    Raises:
        CheckpointError: A value cannot be served.
    """
    layout = config.text("checkpoint_format", config.text("format", "gptq"))
    if layout not in ("gptq", "gptq_v2"):
        raise config.error("checkpoint_format", _not_served(layout, "gptq or gptq_v2"))
    if config.text("pack_dtype", "int32") != "int32":
        raise config.error("pack_dtype", _not_served(config.text("pack_dtype"), "int32"))
    usual = Gptq(
        config.one_of("bits", _BITS),
        config.group_size(default=_GROUP),
        symmetric=config.flag("sym", default=False),
        act_order=config.flag("desc_act", default=True),
        zeros_less_one=layout == "gptq",
    )
    rules = _dynamic_rules(config.mapping("dynamic"), usual)
    return Scheme((*rules, Rule(_quantised_modules(config), usual)))


def awq(config: Config) -> Scheme:
    """Return the scheme of method ``awq``.

    Raises:
        CheckpointError: A value cannot be served.
    """
    version = config.text("version", config.text("format", "gemm"))
    if version != "gemm":
        raise config.error("version", _not_served(version, "gemm"))
    config.one_of("w_bit" if "w_bit" in config else "bits", (4,))
    key = "q_group_size" if "q_group_size" in config else "group_size"
    left_out = as_parts(config.names("modules_to_not_convert"))
    return Scheme.uniform(Awq(config.group_size(key, _GROUP)), left_out)


def auto_round(config: Config) -> Scheme:
    """Return the scheme of method ``auto-round``, which packs as GPTQ or AWQ do.

    Raises:
        CheckpointError: A value cannot be served.
    """
    packing = config.text("packing_format", "auto_round:gptq").removeprefix("auto_round:")
    if packing.removeprefix("auto_") not in ("gptq", "awq"):
        message = _not_served(packing, "auto_round:auto_gptq or auto_round:auto_awq")
        raise config.error("packing_format", message)
    bits = config.one_of("bits", _BITS)
    group = config.group_size(default=_GROUP)
    usual: Awq | Gptq = Awq(group)
    if packing.endswith("gptq"):
        usual = Gptq(bits, group, symmetric=config.flag("sym", default=False))
    elif bits != 4:
        raise config.error("bits", "is 8, and AWQ has only 4")
    return Scheme((*_extra_rules(config.mapping("extra_config")), Rule(every_layer, usual)))


def _not_served(value: str, served: str) -> str:
    return f"is {value!r}, and only {served} can be served"


def _quantised_modules(config: Config) -> Matcher:
    """Return what matches the layers that GPTQ quantised: all, or those in a list of lists."""
    key = "modules_in_block_to_quantize"
    lists = config.values.get(key)
    if lists is None:
        return every_layer
    if not isinstance(lists, list):
        raise config.error(key, "is not a list")
    nested = Config({str(index): names for index, names in enumerate(lists)}, config.where)
    is_flat = all(isinstance(name, str) for name in lists)
    names = config.names(key) if is_flat else nested.names(*nested.values)
    ends = tuple(f".{name}" for name in names)
    return lambda name: f".{name}".endswith(ends)


def _dynamic_rules(dynamic: Config, usual: Gptq) -> list[Rule]:
    """Return the rules for layers that GPTQModel leaves out or quantises in another way."""
    rules = []
    for pattern in dynamic.values:
        matches = begins_with(
            pattern.removeprefix(_DYNAMIC_LEAVES_OUT).removeprefix(_DYNAMIC_CHANGES),
            dynamic.where,
        )
        if pattern.startswith(_DYNAMIC_LEAVES_OUT):
            rules.append(Rule(matches, None))
            continue
        changes = dynamic.mapping(pattern)
        group = usual.group
        other = Gptq(
            changes.one_of("bits", _BITS, usual.bits),
            changes.group_size() if "group_size" in changes else group,
            symmetric=changes.flag("sym", usual.symmetric),
            act_order=changes.flag("desc_act", usual.act_order),
            zeros_less_one=usual.zeros_less_one,
        )
        rules.append(Rule(matches, other))
    return rules


def _extra_rules(extra: Config) -> list[Rule]:
    """Return the rules for layers that AutoRound leaves out.

    Raises:
        CheckpointError: A layer is quantised in another way than the others.
    """
    rules = []
    for name in extra.values:
        layer = extra.mapping(name)
        if layer.values and layer.integer("bits", _UNQUANTISED_BITS) < _UNQUANTISED_BITS:
            raise CheckpointError(f"{layer.where}: layers with bits of their own cannot be served.")
        rules.append(Rule(begins_with(name + "$", extra.where), None))
    return rules
