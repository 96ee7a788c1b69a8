"""A task's data folder from its name: for now the phantom, which is drawn rather than downloaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preprocessing.phantom import PhantomOptions, write_phantom
from utils.command import run_command
from utils.errors import UserError
from utils.options import parse

PHANTOM_TASK = "phantom"


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """Which task, and where to."""

    task: str = PHANTOM_TASK
    """Name of the task; phantom is the synthetic pancreas-lesion dataset."""
    results: Path = Path("/data")
    """Folder that will hold the dataset's folder."""
    phantom: PhantomOptions = field(default_factory=PhantomOptions)


def run(options: DownloadOptions) -> Path:
    """Make the raw dataset of a task and return its folder."""
    if options.task != PHANTOM_TASK:
        raise UserError(
            f"Task {options.task!r}: downloading the archives of the Medical Segmentation Decathlon is not "
            f"available yet, only {PHANTOM_TASK!r} is. Get the archive from medicaldecathlon.com, unpack "
            f"it so that {options.results}/TaskNN_Name/dataset.json exists, and run preprocess.py."
        )
    root = write_phantom(options.results, options.phantom)
    print(f"{root} is ready.")
    return root


def main() -> None:
    """Parse the command line and run."""
    run(parse(DownloadOptions, sys.argv[1:], program="download.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
