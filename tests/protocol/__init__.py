"""Tests of the wire; importing `predictor.protocol` first keeps pytest's arguments from kserve."""

import predictor.protocol  # noqa: F401
