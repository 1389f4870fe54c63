"""Parse the fenced blocks of a Markdown page. Pure text, nothing is run.

The block kinds that matter:

- ``console``: lines that begin with ``$ `` are commands, the lines below are their output.
- ``python``: a program; a ``text`` block that follows directly is its output.

The comment ``<!-- server: NAME -->`` names the server that the blocks below it talk to.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_CONSOLE = re.compile(r"```console\n(?P<body>.*?)```", re.DOTALL)
_SERVER = re.compile(r"<!-- server: (?P<server>[\w-]+) -->")
_PROGRAM = re.compile(
    r"(?P<head>```python\n(?P<program>.*?)```\n\n```text\n)(?P<output>.*?)```", re.DOTALL
)
_ANY = re.compile(
    "|".join(re.sub(r"\?P<\w+>", "?:", one.pattern) for one in (_SERVER, _PROGRAM, _CONSOLE)),
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page.

    Attributes:
        server: The name of the server that it talks to.
        text: The command line, or the source of a Python program.
        output: The output that the page shows; empty if it shows none.
        is_program: Whether it is a Python program.
    """

    server: str
    text: str
    output: str
    is_program: bool = False


def commands(page: str) -> Iterator[Command]:
    """Yield the commands of a page in order."""
    commands_of_block: list[Command] = []

    def collect(command: Command) -> str:
        commands_of_block.append(command)
        return command.output

    rewrite(page, collect)
    yield from commands_of_block


def rewrite(page: str, output_of: Callable[[Command], str]) -> str:
    """Return the page with the outputs that `output_of` returns for each command.

    Args:
        page: The Markdown text.
        output_of: Called with each command in order.
    """
    server = "demo"

    def replace(match: re.Match[str]) -> str:
        nonlocal server
        block = match[0]
        named = _SERVER.fullmatch(block)
        if named:
            server = named["server"]
            return block
        program = _PROGRAM.fullmatch(block)
        if program:
            command = Command(server, program["program"], program["output"].strip("\n"), True)
            return f"{program['head']}{_lines(output_of(command))}```"
        return _console(block, server, output_of)

    return _ANY.sub(replace, page)


def _console(block: str, server: str, output_of: Callable[[Command], str]) -> str:
    body = block.removeprefix("```console\n").removesuffix("```")
    entries = [entry for entry in re.split(r"^\$ ", body, flags=re.MULTILINE) if entry]
    made = []
    for entry in entries:
        text, _, output = entry.partition("\n")
        while output and not _is_complete(text):
            more, _, output = output.partition("\n")
            text += f"\n{more}"
        shown = output_of(Command(server, text, output.strip("\n")))
        made.append(f"$ {text}\n{_lines(shown)}")
    return f"```console\n{''.join(made)}```"


def _is_complete(text: str) -> bool:
    """Return whether a command ends here: no line continues, and every quote is closed."""
    if text.endswith("\\"):
        return False
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True


def _lines(output: str) -> str:
    return f"{output}\n" if output else ""
