"""Lets ``python -m predictor`` be the command."""

import sys

from predictor.cli import main

sys.exit(main())
