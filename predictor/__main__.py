"""Lets ``python -m predictor`` be the command."""

from predictor.cli import run

run()
