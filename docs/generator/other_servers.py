"""Describe the flags and variables of other servers, from the tables that decide about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from predictor.compatibility.flag import Flag
from predictor.compatibility.kserve_flags import KSERVE_VARIABLES
from predictor.settings import names
from predictor.settings_sources import VARIABLES as SETTING_VARIABLES


def flag_rows(flags: Mapping[str, Flag]) -> Iterator[Sequence[str]]:
    """Yield the row of each flag that is not a setting of the same name."""
    for name, flag in flags.items():
        if name not in names():
            short = "".join(f", `-{each}`" for each in flag.short)
            yield f"`--{name}`{short}", _accepted(flag), _sentence(flag.instead)


def variable_rows() -> Iterator[Sequence[str]]:
    """Yield the row of each variable of KServe and vLLM."""
    for name, setting in SETTING_VARIABLES.items():
        yield f"`{name}`", f"sets `--{setting}`"
    for name, variable in KSERVE_VARIABLES.items():
        yield f"`{name}`", f"changes nothing: {variable.reason}"


def _accepted(flag: Flag) -> str:
    accepted = [f"`{value}`" for value in flag.accepted or ()]
    if flag.equal_to:
        accepted.append(f"the value of `--{flag.equal_to}`")
    if flag.accepted == () and not accepted:
        return ""
    values = ", ".join(accepted)
    words = f"{values}: " if values else ""
    if flag.settings:
        sets = " and ".join(f"`--{setting}`" for setting in flag.settings)
        return f"{words}sets {sets}" + (f"; {flag.reason}" if flag.reason else "")
    return f"{words}changes nothing: {flag.reason}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
