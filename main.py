"""Train, evaluate or predict: parse, dispatch, nothing else."""

import sys

from scripts.run_options import RunOptions
from utils.command import run_command
from utils.options import parse

DESCRIPTION = "Multi-task nnU-Net on DALI: train a fold, evaluate a checkpoint, predict scans."


def main() -> None:
    """Run what --exec_mode asks for."""
    options = parse(RunOptions, sys.argv[1:], program="main.py", description=DESCRIPTION)
    if options.exec_mode == "train":
        from scripts import train

        train.run(options)
    elif options.exec_mode == "evaluate":
        from scripts import inference

        inference.evaluate(options)
    else:
        from scripts import inference

        inference.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
