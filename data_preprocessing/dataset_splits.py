"""The dataset's own folds in a prepared folder: copied there, and taken away again when the dataset's go."""

from __future__ import annotations

from pathlib import Path

from utils.prepared_folder import SPLITS
from utils.run_log import say
from utils.storage import file_hash, read_json, write_json


def bring_splits(root: Path, folder: Path, recorded: str | None) -> str | None:
    """The folds of the dataset in `root` as those of the prepared `folder`; the SHA-256 of the copy there.

    `recorded` is what the last run returned. None where the dataset brings no folds: a copy of that run is
    removed then, and a file that somebody wrote or changed there stays. The dataset's own folds win over
    such a file too. What happens to a file that was there is printed.
    """
    source, copy = root / SPLITS, folder / SPLITS
    present = file_hash(copy) if copy.is_file() else None
    if source.is_file():
        write_json(copy, read_json(source))
        written = file_hash(copy)
        if present not in (None, recorded, written):
            say(f"{copy} is replaced by {source}: the folds beside dataset.json win over others.")
        return written
    if present is None:
        return None
    if present != recorded:
        say(
            f"The folds of {copy} stay in force: they are no copy of the dataset's. Delete it to have others."
        )
        return None
    copy.unlink()
    say(f"{copy} is removed: it was a copy of {source}, which is gone. A training makes folds of its own.")
    return None
