"""A made dataset of three small cases, and `preprocess.py` on it."""

import json
from pathlib import Path

import numpy as np

from data_preprocessing.volume_io import write_volume
from scripts.preprocess import PreprocessOptions, run
from utils.options import parse


def write_case(root: Path, name: str, seed: int, *, folder: str = "Tr") -> None:
    generator = np.random.default_rng(seed)
    image = generator.normal(100, 20, (20, 22, 18)).astype(np.float32)
    label = np.zeros(image.shape, np.int16)
    label[6:12, 6:12, 6:12] = 1
    image[label == 1] += 100
    geometry = {"affine": np.eye(4), "qform_code": 1, "sform_code": 1, "spacing_mm": (1.0, 1.0, 1.0)}
    write_volume(root / f"images{folder}" / f"{name}_0000.nii.gz", image, **geometry)
    if folder == "Tr":
        write_volume(root / f"labels{folder}" / f"{name}.nii.gz", label, **geometry)


def write_dataset(folder: Path) -> Path:
    """Dataset007_Made with one test case; the folder that holds it."""
    root = folder / "data" / "Dataset007_Made"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (root / name).mkdir(parents=True)
    for seed in range(3):
        write_case(root, f"case_{seed}", seed)
    write_case(root, "unseen", 9, folder="Ts")
    describe(root, 3)
    return folder / "data"


def describe(root: Path, count: int, *, channel: str = "MR") -> None:
    description = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, "organ": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))


def prepare(data: Path, *flags: str) -> Path:
    words = ["--data", str(data), "--results", str(data.parent / "results"), "--task", "7", "--n_jobs", "1"]
    return run(parse(PreprocessOptions, [*words, *flags], program="preprocess.py", description=""))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("case_*_x.npy")}
