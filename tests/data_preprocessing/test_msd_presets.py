"""NVIDIA's published settings: the values, the network they give, and which datasets get them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_preprocessing.cases import load_case
from data_preprocessing.dataset import read_dataset
from data_preprocessing.geometry import to_planned_axes
from data_preprocessing.msd_presets import published_task
from data_preprocessing.plan_check import validate_plan
from data_preprocessing.planners import PlannerOptions
from data_preprocessing.planning import plan_experiment
from data_preprocessing.prepare import crop_case
from data_preprocessing.topology import total_stride
from nnunet.network import Architecture, MultiTaskUNet
from tests.data_preprocessing.test_topology import NVIDIA
from utils.contracts import Fingerprint, IntensityStats, Plan, Shape, Spacing
from utils.errors import UserError

MEASURED = IntensityStats(mean=80.0, std=30.0, median=79.0, min=-20.0, max=300.0, low=-10.0, high=200.0)
NUM_CASES = 200  # enough for batches larger than 2 where a patch is small
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "Task04_Hippocampus"
MR4, MR2, MR, CT = ("FLAIR", "T1w", "T1gd", "T2w"), ("T2", "ADC"), ("MRI",), ("CT",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the published table, and the size of its networks in millions of parameters."""

    folder: str
    channels: tuple[str, ...]
    num_labels: int
    patch: Shape
    spacing_mm: Spacing
    millions: float
    plane: tuple[int, int] | None = (512, 512)
    flat_millions: float = 20.61
    window: tuple[float, ...] | None = None  # clip from, clip to, mean, deviation


ROWS = {
    row.folder[4:6]: row
    for row in (
        Row(
            folder="Task01_BrainTumour",
            channels=MR4,
            num_labels=4,
            patch=(128, 128, 128),
            spacing_mm=(1, 1, 1),
            millions=31.19,
            plane=(192, 160),
        ),
        Row(
            folder="Task02_Heart",
            channels=MR,
            num_labels=2,
            patch=(80, 192, 160),
            spacing_mm=(1.37, 1.25, 1.25),
            millions=30.78,
            plane=(320, 256),
        ),
        Row(
            folder="Task03_Liver",
            channels=CT,
            num_labels=3,
            patch=(128, 128, 128),
            spacing_mm=(1, 0.7676, 0.7676),
            millions=31.19,
            window=(-17, 201, 99.4, 39.36),
        ),
        Row(
            folder="Task04_Hippocampus",
            channels=MR,
            num_labels=3,
            patch=(40, 56, 40),
            spacing_mm=(1, 1, 1),
            millions=5.60,
            plane=(56, 40),
            flat_millions=1.93,
        ),
        Row(
            folder="Task05_Prostate",
            channels=MR2,
            num_labels=3,
            patch=(20, 320, 256),
            spacing_mm=(3.6, 0.62, 0.62),
            millions=30.56,
            plane=(320, 320),
        ),
        Row(
            folder="Task06_Lung",
            channels=CT,
            num_labels=2,
            patch=(80, 192, 160),
            spacing_mm=(1.24, 0.79, 0.79),
            millions=30.78,
            window=(-1024, 325, -158.58, 324.7),
        ),
        Row(
            folder="Task07_Pancreas",
            channels=CT,
            num_labels=3,
            patch=(40, 224, 224),
            spacing_mm=(2.5, 0.8, 0.8),
            millions=30.75,
            window=(-96, 215, 77.9, 75.4),
        ),
        Row(
            folder="Task08_HepaticVessel",
            channels=CT,
            num_labels=3,
            patch=(64, 192, 192),
            spacing_mm=(1.5, 0.8, 0.8),
            millions=30.78,
            window=(-3, 243, 104.37, 52.62),
        ),
        Row(
            folder="Task09_Spleen",
            channels=CT,
            num_labels=2,
            patch=(64, 192, 160),
            spacing_mm=(1.6, 0.79, 0.79),
            millions=31.16,
            window=(-41, 176, 99.29, 39.47),
        ),
        Row(
            folder="Task10_Colon",
            channels=CT,
            num_labels=2,
            patch=(56, 192, 160),
            spacing_mm=(3, 0.78, 0.78),
            millions=30.75,
            window=(-30, 165.82, 62.18, 32.65),
        ),
        Row(
            folder="Task11_BraTS2021_train",
            channels=MR4,
            num_labels=4,
            patch=(128, 128, 128),
            spacing_mm=(1, 1, 1),
            millions=31.19,
            plane=None,
        ),
        Row(
            folder="Task12_BraTS2021_val",
            channels=MR4,
            num_labels=4,
            patch=(128, 128, 128),
            spacing_mm=(1, 1, 1),
            millions=31.19,
            plane=None,
        ),
    )
}
FLAT_ROWS = [number for number, row in ROWS.items() if row.plane]


def measured(row: Row, *, folder: str = "", spacing_mm: Spacing | None = None) -> Fingerprint:
    """A dataset whose own values are none of the published ones."""
    depth, height, width = row.patch
    z_mm, y_mm, x_mm = (1.01 * value for value in row.spacing_mm)
    return Fingerprint(
        dataset=folder or row.folder,
        case_ids=tuple(map(str, range(NUM_CASES))),
        shapes=((depth + 9, 2 * height, 2 * width),) * NUM_CASES,
        spacings_mm=(spacing_mm or (z_mm, y_mm, x_mm),) * NUM_CASES,
        intensity=(MEASURED,) * len(row.channels),
        relative_sizes=(1.0,) * NUM_CASES,
        channel_names=row.channels,
        label_names=tuple(map(str, range(row.num_labels))),
        class_names=(),
    )


def plan(source: Fingerprint, configuration: str = "3d_fullres", **options: object) -> Plan:
    chosen = replace(PlannerOptions(preset="nvidia"), **options)
    return plan_experiment(source, configuration=configuration, options=chosen)


@pytest.mark.parametrize("number", ROWS)
def test_a_published_task_is_planned_with_the_published_settings(number: str) -> None:
    row = ROWS[number]
    planned = plan(measured(row))
    validate_plan(planned)
    assert (planned.patch, planned.spacing_mm, planned.batch_size) == (row.patch, row.spacing_mm, 2)
    assert planned.axis_order == (0, 1, 2)


@pytest.mark.parametrize("number", FLAT_ROWS)
def test_its_slices_are_planned_with_the_published_settings(number: str) -> None:
    row = ROWS[number]
    planned = plan(measured(row), "2d")
    validate_plan(planned)
    assert (planned.patch, planned.spacing_mm, planned.batch_size) == ((1, *row.plane), row.spacing_mm, 16)


@pytest.mark.parametrize("number", ROWS)
def test_the_published_window_takes_the_place_of_the_measured_one(number: str) -> None:
    row = ROWS[number]
    (stats,) = {(item.low, item.high, item.mean, item.std) for item in plan(measured(row)).intensity}
    assert stats == (row.window or (MEASURED.low, MEASURED.high, MEASURED.mean, MEASURED.std))


@pytest.mark.parametrize("key", [*(f"{n}_3d" for n in ROWS), *(f"{n}_2d" for n in FLAT_ROWS)])
def test_the_stages_are_the_published_ones(key: str) -> None:
    number, dim = key.split("_")
    twin = {"11": "01", "12": "01"}.get(number, number) if dim == "3d" else number
    expected = NVIDIA.get(f"{twin}_{dim}", NVIDIA["07_2d"])  # all planes of 512 x 512 voxels are alike
    planned = plan(measured(ROWS[number]), "2d" if dim == "2d" else "3d_fullres")
    assert tuple(stage.stride for stage in planned.stages) == ((1, 1, 1), *expected.strides)
    flat = tuple(level for level, stage in enumerate(planned.stages) if stage.kernel == (1, 3, 3))
    assert flat == expected.flat_levels
    divisor = total_stride(planned.stages)
    sizes = tuple(edge / step for edge, step in zip(planned.patch, divisor, strict=True))
    assert sizes == expected.bottleneck


@pytest.mark.parametrize("key", [*(f"{n}_3d" for n in ROWS), *(f"{n}_2d" for n in FLAT_ROWS)])
def test_the_network_has_the_published_number_of_parameters(key: str) -> None:
    number, dim = key.split("_")
    row = ROWS[number]
    planned = plan(measured(row), "2d" if dim == "2d" else "3d_fullres")
    architecture = Architecture(branch="none", conv_bias=False, num_outputs=3, decoder_kernels="below")
    with torch.device("meta"):
        network = MultiTaskUNet(planned, architecture)
    count = sum(weight.numel() for weight in network.parameters())
    assert round(count / 1e6, 2) == (row.millions if dim == "3d" else row.flat_millions)


@pytest.mark.parametrize(
    ("folder", "number"),
    [
        ("Task04_Hippocampus", 4),
        ("Dataset004_Hippocampus", 4),
        ("Task4_hippocampus", 4),
        ("Task04_Heart", None),
        ("Task02_Hippocampus", None),
        ("Dataset104_Hippocampus", None),
        ("Task04_Hippocampus2", None),
        ("Hippocampus", None),
        ("Task04", None),
    ],
)
def test_number_and_name_of_the_folder_must_both_agree(folder: str, number: int | None) -> None:
    task = published_task(measured(ROWS["04"], folder=folder))
    assert (task and task.number) == number


@pytest.mark.parametrize(
    "folder", ["BraTS2021_train", "Task11_BraTS2021_train", "Dataset011_BraTS2021_train"]
)
def test_brats_is_known_by_the_name_without_a_number_too(folder: str) -> None:
    task = published_task(measured(ROWS["11"], folder=folder))
    assert task is not None
    assert task.number == 11


def test_another_number_of_channels_is_another_dataset() -> None:
    source = measured(replace(ROWS["04"], channels=MR2))
    assert published_task(source) is None
    assert plan(source) == plan(source, msd_table=False)


def test_slices_along_another_axis_are_another_dataset() -> None:
    sagittal = measured(ROWS["05"], spacing_mm=(0.62, 0.62, 3.6))
    assert published_task(sagittal) is None
    assert plan(sagittal).axis_order == (2, 0, 1)


def test_without_the_table_and_under_the_other_preset_the_data_are_planned() -> None:
    source = measured(ROWS["07"])
    for planned in (plan(source, msd_table=False), plan(source, preset="nnunet")):
        assert planned.spacing_mm == source.spacings_mm[0]
        assert planned.intensity == source.intensity


@pytest.mark.parametrize(("number", "configuration"), [("11", "2d"), ("12", "2d"), ("03", "3d_lowres")])
def test_what_was_not_published_is_planned_from_the_data(number: str, configuration: str) -> None:
    source = replace(measured(ROWS[number]), shapes=((400, 400, 400),) * NUM_CASES)
    assert plan(source, configuration) == plan(source, configuration, msd_table=False)


def test_a_spacing_or_patch_of_the_user_wins_over_the_table() -> None:
    source = measured(ROWS["07"])
    coarse = plan(source, overwrite_target_spacing=(2.5, 1.6, 1.6))
    assert (coarse.spacing_mm, coarse.patch) == ((2.5, 1.6, 1.6), (40, 224, 224))
    small = plan(source, patch_size=(40, 96, 96))
    assert (small.spacing_mm, small.patch, small.batch_size) == ((2.5, 0.8, 0.8), (40, 96, 96), 2)


def test_the_published_patch_takes_the_depth_of_the_brats_recipe_but_no_halved_voxels() -> None:
    assert total_stride(plan(measured(ROWS["11"]), depth=6, min_fmap=2).stages) == (64, 64, 64)
    with pytest.raises(UserError, match=r"\(40, 56, 40\).*next larger one is \(48, 64, 48\).*patch_size"):
        plan(measured(ROWS["04"]), min_fmap=2)


def test_planned_axes_of_a_file_along_the_body_are_nvidias_transposed_array() -> None:
    voxels = np.arange(24.0).reshape(1, 2, 3, 4)  # x y z
    planned = to_planned_axes(voxels, orientation="RAS", axis_order=plan(measured(ROWS["07"])).axis_order)
    np.testing.assert_array_equal(planned, voxels.transpose(0, 3, 2, 1))


@pytest.mark.real_data
def test_the_hippocampus_is_read_in_the_axes_of_its_published_patch() -> None:
    if not REAL.is_dir():
        pytest.skip("the real datasets are not in ../shared/data")
    dataset = read_dataset(REAL)
    source = replace(measured(ROWS["04"], folder=dataset.name), channel_names=dataset.channel_names)
    assert published_task(source) is not None
    loaded = load_case(dataset.training[0])
    cropped = crop_case(loaded, axis_order=plan(source).axis_order, preset="nvidia")
    transposed = loaded.image.transpose(0, 3, 2, 1)
    inside = np.nonzero((transposed > 0).any(axis=0))
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in inside)
    np.testing.assert_array_equal(cropped.image, transposed[(slice(None), *box)])
