"""The ten tasks of the Medical Segmentation Decathlon: names, default mirror, hashes of the archives."""

from __future__ import annotations

from dataclasses import dataclass

from utils.errors import UserError

DEFAULT_MIRROR = "https://msd-for-monai.s3-us-west-2.amazonaws.com"  # the public bucket of the MONAI project


@dataclass(frozen=True, slots=True, kw_only=True)
class DecathlonTask:
    """One task; `md5` is that of the archive in the default mirror, as the MONAI project publishes it."""

    number: int
    name: str
    md5: str

    @property
    def folder(self) -> str:
        """Name of the dataset's folder, such as Task04_Hippocampus."""
        return f"Task{self.number:02d}_{self.name}"

    @property
    def archive(self) -> str:
        """Name of the archive on every mirror."""
        return f"{self.folder}.tar"


TASKS = (
    DecathlonTask(number=1, name="BrainTumour", md5="240a19d752f0d9e9101544901065d872"),
    DecathlonTask(number=2, name="Heart", md5="06ee59366e1e5124267b774dbd654057"),
    DecathlonTask(number=3, name="Liver", md5="a90ec6c4aa7f6a3d087205e23d4e6397"),
    DecathlonTask(number=4, name="Hippocampus", md5="9d24dba78a72977dbd1d2e110310f31b"),
    DecathlonTask(number=5, name="Prostate", md5="35138f08b1efaef89d7424d2bcc928db"),
    DecathlonTask(number=6, name="Lung", md5="8afd997733c7fc0432f71255ba4e52dc"),
    DecathlonTask(number=7, name="Pancreas", md5="4f7080cfca169fa8066d17ce6eb061e4"),
    DecathlonTask(number=8, name="HepaticVessel", md5="641d79e80ec66453921d997fbf12a29c"),
    DecathlonTask(number=9, name="Spleen", md5="410d4a301da4e5b2f6f86ec3ddba524e"),
    DecathlonTask(number=10, name="Colon", md5="bad7a188931dc2f6acf72b08eb6202d0"),
)


def find_task(text: str) -> DecathlonTask:
    """The task called `text`: 4, 04 or Task04_Hippocampus; UserError with all names for anything else."""
    for task in TASKS:
        if text.lower() in (str(task.number), f"{task.number:02d}", task.folder.lower()):
            return task
    names = ", ".join(task.folder for task in TASKS)
    raise UserError(f"--task {text!r} is unknown. Known are phantom and, also by number, {names}.")
