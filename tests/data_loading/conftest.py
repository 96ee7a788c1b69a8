"""A preprocessed folder small enough to check with a pencil, written by the code that prepares cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_loading.catalogue import Entry, build_catalogue
from data_preprocessing.foreground import foreground_table
from data_preprocessing.prepare import PreparedArrays, write_prepared
from utils.contracts import OUTSIDE_LABEL, Footprint, IntensityStats, Plan, PreprocessedCase, RawCase, Shape
from utils.prepared_folder import list_prepared

PATCH: Shape = (4, 6, 5)
STATS = IntensityStats(mean=0.0, std=1.0, median=0.0, min=-1.0, max=1.0, low=-1.0, high=1.0)


@dataclass(frozen=True)
class Prepared:
    """The folder, its plan and its cases, sorted by name."""

    folder: Path
    plan: Plan
    cases: tuple[PreprocessedCase, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What the loader reads."""
        return build_catalogue(self.cases, self.plan)


def make_plan(patch: Shape, num_channels: int) -> Plan:
    return Plan(
        dataset="Phantom",
        configuration="3d_fullres",
        axis_order=(0, 1, 2),
        median_shape=patch,
        spacing_mm=(1.0, 1.0, 1.0),
        patch=patch,
        batch_size=2,
        stages=(),
        normalisers=("identity",) * num_channels,
        uses_mask=(False,) * num_channels,
        intensity=(STATS,) * num_channels,
        channel_names=("CT",) * num_channels,
        label_names=("background", "organ", "lesion"),
        class_names=("benign", "malignant"),
        num_channels=num_channels,
        num_labels=3,
        num_classes=2,
    )


def make_footprint(shape: Shape) -> Footprint:
    return Footprint(
        native_shape=shape,
        native_spacing_mm=(1.0, 1.0, 1.0),
        orientation="RAS",
        axis_order=(0, 1, 2),
        oriented_shape=shape,
        oriented_spacing_mm=(1.0, 1.0, 1.0),
        crop_start=(0, 0, 0),
        crop_stop=shape,
        cropped_shape=shape,
        planned_shape=shape,
        padding_before=(0, 0, 0),
        padding_after=(0, 0, 0),
        qform_code=1,
        sform_code=1,
        affine=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    )


def make_label(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Two labels of two and one voxels; the first plane lies outside the non-zero mask."""
    label = np.zeros(shape, np.int16)
    label[:, :, 0] = OUTSIDE_LABEL
    inner = np.flatnonzero(label == 0)
    label.flat[random.choice(inner, 3, replace=False)] = (1, 1, 2)
    return label


def make_case(shape: Shape, place: int, num_channels: int) -> PreparedArrays:
    """Every voxel of every case has its own value, so that a patch betrays where it was cut."""
    voxels = int(np.prod(shape)) * num_channels
    image = (np.arange(voxels, dtype=np.float32) + 1 + 10_000 * place).reshape(num_channels, *shape)
    label = make_label(shape, np.random.default_rng(place))
    return PreparedArrays(
        image=image,
        label=label[None],
        original_label=None,
        foreground=foreground_table(label),
        has_mask=True,
        meta=None,
        footprint=make_footprint(shape),
    )


@pytest.fixture(scope="session")
def prepare_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Prepared]:
    """Writes one case per shape into a folder of its own and returns it."""

    def make(
        shapes: Sequence[Shape], *, num_channels: int = 1, patch: Shape = PATCH, dtype: str = "float32"
    ) -> Prepared:
        folder = tmp_path_factory.mktemp("04_3d")
        for place, shape in enumerate(shapes):
            name = f"case_{place:02d}"
            case = RawCase(
                case_id=name, patient_id=name, images=(), class_target=place % 2 if place else None
            )
            write_prepared(folder, case, make_case(shape, place, num_channels), dtype=dtype)
        return Prepared(folder, make_plan(patch, num_channels), list_prepared(folder))

    return make


@pytest.fixture(scope="session")
def prepared(prepare_folder: Callable[..., Prepared]) -> Prepared:
    """Five cases: larger than the patch, equal to it, and shorter along one axis and along all."""
    return prepare_folder([(7, 9, 8), (4, 6, 5), (3, 9, 8), (2, 4, 3), (6, 6, 6)])
