"""Train, evaluate or predict: parse, dispatch, nothing else."""

import sys

from utils.command import run_command

DESCRIPTION = (
    "Multi-task nnU-Net on DALI: train a fold, evaluate a checkpoint, predict scans. "
    "`main.py info [--json] [--full]` shows versions, devices and capabilities instead."
)


def main() -> None:
    """Run what --exec_mode asks for, or `info` where that is the first word."""
    if sys.argv[1:2] == ["info"]:
        from scripts import info

        info.start(sys.argv[2:])
        return
    # Imported here: `info` answers before NumPy is loaded.
    from scripts.run_recipes import read_command

    command = read_command(sys.argv[1:], program="main.py", description=DESCRIPTION)
    if command.options.benchmark:
        from scripts import run_benchmark

        run_benchmark.run(command.options)
        return
    from scripts.results_folders import own_results

    options = own_results(command)
    if options.exec_mode == "train":
        from scripts import train

        train.run(options, command.origins)
    elif options.exec_mode == "evaluate":
        from scripts import inference

        inference.evaluate(options)
    else:
        from scripts import inference

        inference.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
