"""Get the raw data folder of a task: python download.py --task phantom --results data."""

import sys

from scripts.download import main
from utils.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
