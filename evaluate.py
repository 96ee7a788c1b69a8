"""Predictions and references -> tables and a report: parse, dispatch."""

import sys

from scripts.evaluate import main
from utils.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
