"""Raw dataset -> preprocessed folder; see `python preprocess.py --help`."""

import sys

from scripts.preprocess import main
from utils.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
