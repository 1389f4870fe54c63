"""Write the help of the command as it prints it, without the list of settings.

`serve` and `plan` take every setting as a flag; the settings table has these.
"""

from __future__ import annotations

import argparse
import os
from unittest import mock

from predictor.command_line import parser as command_line

_WIDTH = "92"


def help_of(command: str = "") -> str:
    """Return the help of a subcommand, or of the program, as a fenced block."""
    with mock.patch.dict(os.environ, {"COLUMNS": _WIDTH}):
        parser = command_line()
        if command:
            parser = _subparsers(parser)[command]
            _fold_settings(parser)
        text = parser.format_help().strip()
    return f"```text\n{text}\n```"


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def _fold_settings(parser: argparse.ArgumentParser) -> None:
    """Replace the settings in usage and help by one placeholder."""
    for group in parser._action_groups:
        if group.title != "settings":
            continue
        for action in group._group_actions:
            parser._remove_action(action)
        group._group_actions.clear()
        group.add_argument("--SETTING", metavar="VALUE", help="any setting, see the settings table")
