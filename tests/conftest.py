"""What tests of several rooms share: one thread for torch, and small plans."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from utils.contracts import IntensityStats, Plan, Stage

# Small tensors gain nothing from threads, and sums in one order make runs comparable bit by bit. Set before
# anything imports torch, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"

STATS = IntensityStats(mean=0.0, std=1.0, median=0.0, min=-5.0, max=5.0, low=-3.0, high=3.0)
VOLUMETRIC = (
    Stage(channels=4, kernel=(1, 3, 3), stride=(1, 1, 1)),
    Stage(channels=6, kernel=(3, 3, 3), stride=(1, 2, 2)),
    Stage(channels=8, kernel=(3, 3, 3), stride=(2, 2, 2)),
)
FLAT = (
    Stage(channels=4, kernel=(1, 3, 3), stride=(1, 1, 1)),
    Stage(channels=6, kernel=(1, 3, 3), stride=(1, 2, 2)),
    Stage(channels=8, kernel=(1, 3, 3), stride=(1, 2, 2)),
)
PLAN = Plan(
    dataset="Dataset001_Tiny",
    configuration="3d_fullres",
    axis_order=(0, 1, 2),
    median_shape=(4, 16, 16),
    spacing_mm=(2.0, 1.0, 1.0),
    patch=(4, 16, 16),
    batch_size=2,
    stages=VOLUMETRIC,
    normalisers=("z_score",),
    uses_mask=(False,),
    intensity=(STATS,),
    channel_names=("MR",),
    label_names=("background", "organ", "lesion"),
    class_names=("benign", "malignant"),
    num_channels=1,
    num_labels=3,
    num_classes=2,
)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """A plan of three small stages with one channel, three labels and two classes; name what differs.

    With `flat=True` it is a plan of one slice, of the same depth.
    """

    def make(*, flat: bool = False, **changes: Any) -> Plan:
        base = replace(PLAN, configuration="2d", patch=(1, 16, 16), stages=FLAT) if flat else PLAN
        return replace(base, **changes)

    return make
