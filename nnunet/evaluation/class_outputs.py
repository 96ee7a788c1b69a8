"""Predicted classes as the files that the challenge asks for and that its reference systems write."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.storage import atomic_file, write_json

SUBTYPE_TABLE = "subtype_results.csv"
SUBTYPE_COLUMNS = ("Names", "Subtype")
CASE_ENDING = "_classification.json"
SMALLEST_PROBABILITY = float(
    np.finfo(np.float64).eps
)  # keeps the logarithm of 0 finite, as scikit-learn does


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAnswer:
    """The class of one case as it was predicted; `class_probs` has one entry per class and sums to 1.

    `mask_ending` is that of the case's mask, which the table names.
    """

    case_id: str
    class_probs: tuple[float, ...]
    mask_ending: str = ".nii.gz"


def write_class_files(
    folder: Path,
    answers: Sequence[ClassAnswer],
    class_names: Sequence[str],
    *,
    table: str = SUBTYPE_TABLE,
) -> None:
    """Write <case>_classification.json of each answer, and the `table` over all of them."""
    for answer in answers:
        write_json(folder / f"{answer.case_id}{CASE_ENDING}", case_record(answer, class_names))
    with atomic_file(folder / table) as stream:
        stream.write(subtype_table(answers, class_names).encode())


def subtype_table(answers: Sequence[ClassAnswer], class_names: Sequence[str]) -> str:
    """The text of subtype_results.csv: each mask's name and its most probable class, sorted by name."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SUBTYPE_COLUMNS)
    for answer in sorted(answers, key=lambda item: item.case_id):
        name = class_names[int(np.argmax(answer.class_probs))]
        writer.writerow((f"{answer.case_id}{answer.mask_ending}", name))
    return text.getvalue()


def case_record(answer: ClassAnswer, class_names: Sequence[str]) -> dict[str, Any]:
    """The content of <case>_classification.json.

    `logits` are the logarithms of the probabilities: their softmax gives `probs`, also where these are
    means over windows or members.
    """
    probs = np.asarray(answer.class_probs, dtype=np.float64)
    predicted = int(probs.argmax())
    return {
        "logits": np.log(np.maximum(probs, SMALLEST_PROBABILITY)).tolist(),
        "probs": probs.tolist(),
        "pred": predicted,
        "num_classes": len(class_names),
        "class_name": class_names[predicted],
        "class_names": list(class_names),
    }
