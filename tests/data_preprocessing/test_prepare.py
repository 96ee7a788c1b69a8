"""One raw case becomes arrays, in the order of each preset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing import geometry
from data_preprocessing.cases import LoadedCase
from data_preprocessing.prepare import prepare_case, with_foreground_channel, write_prepared
from data_preprocessing.restore import restore_label, restore_map
from utils.contracts import IntensityStats, Plan, RawCase, Stage
from utils.prepared_folder import complete_case_ids, list_prepared, read_prepared_case
from utils.storage import read_array

STATS = IntensityStats(mean=10.0, std=5.0, median=10.0, min=0.0, max=20.0, low=0.0, high=20.0)
PLAN = Plan(
    dataset="made",
    configuration="3d_fullres",
    axis_order=(0, 1, 2),
    median_shape=(4, 5, 6),
    spacing_mm=(1.0, 1.0, 1.0),
    patch=(2, 2, 2),
    batch_size=2,
    stages=(Stage(channels=8, kernel=(3, 3, 3), stride=(1, 1, 1)),),
    normalisers=("identity",),
    uses_mask=(False,),
    intensity=(STATS,),
    channel_names=("MR",),
    label_names=("background", "organ"),
    class_names=(),
    num_channels=1,
    num_labels=2,
    num_classes=0,
)
RAW = RawCase(case_id="one", patient_id="one", images=(Path("one.nii.gz"),))


def scan(orientation: str = "RAS", spacing_mm: tuple = (1.0, 1.0, 1.0)) -> LoadedCase:
    """A (x, y, z) = (8, 7, 6) scan whose content is 6 x 5 x 4; one corner of the content is empty."""
    image = np.zeros((8, 7, 6), np.float32)
    image[1:7, 1:6, 1:5] = np.random.default_rng(0).uniform(1, 20, (6, 5, 4))
    image[1, 1, 1] = 0
    label = np.zeros((8, 7, 6), np.int16)
    label[3:5, 2:4, 2:4] = 1
    return LoadedCase(
        case_id="one",
        image=image[None],
        label=label,
        affine=np.eye(4),
        spacing_mm=spacing_mm,
        orientation=orientation,
        qform_code=1,
        sform_code=1,
    )


def test_empty_margins_are_cut_and_the_outside_is_marked() -> None:
    arrays = prepare_case(scan(), PLAN)
    assert arrays.image.shape == (1, 4, 5, 6)
    assert arrays.label is not None
    assert (arrays.label == -1).sum() == 1
    assert arrays.label[0, 0, 0, 0] == -1
    assert (arrays.label == 1).sum() == 8


def test_the_original_label_is_cropped_but_as_drawn() -> None:
    original = prepare_case(scan(), replace(PLAN, spacing_mm=(2.0, 2.0, 2.0))).original_label
    assert original is not None
    assert original.shape == (1, 4, 5, 6)
    assert original.min() == 0


def test_a_small_case_is_padded_to_the_patch_for_training_only() -> None:
    plan = replace(PLAN, patch=(8, 8, 8))
    arrays = prepare_case(scan(), plan)
    assert arrays.image.shape == (1, 8, 8, 8)
    assert arrays.label is not None
    assert (arrays.label[0, 0] == -1).all()
    assert (arrays.image[0, 0] == 0).all()
    assert prepare_case(scan(), plan, mode="val").image.shape == (1, 4, 5, 6)


def test_val_and_test_have_no_label_on_the_planned_grid() -> None:
    arrays = prepare_case(scan(), PLAN, mode="val")
    assert arrays.label is None
    assert arrays.foreground is None
    assert arrays.original_label is not None


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "PIR"])
def test_the_orientation_of_the_file_does_not_change_the_arrays(orientation: str) -> None:
    reference = scan()
    world = geometry.to_planned_axes(reference.image, orientation="RAS")
    assert reference.label is not None
    stored = replace(
        reference,
        orientation=orientation,
        image=geometry.to_file_axes(world, orientation=orientation),
        label=geometry.to_file_axes(
            geometry.to_planned_axes(reference.label, orientation="RAS"), orientation=orientation
        ),
    )
    first, second = prepare_case(reference, PLAN), prepare_case(stored, PLAN)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.foreground, second.foreground)


def test_prepare_then_restore_gives_the_drawn_label_back() -> None:
    loaded = scan("LPS")
    plan = replace(PLAN, axis_order=(2, 0, 1), patch=(8, 8, 8))
    arrays = prepare_case(loaded, plan)
    assert arrays.label is not None
    scores = np.stack([arrays.label[0] != 1, arrays.label[0] == 1]).astype(np.float32)
    np.testing.assert_array_equal(restore_label(scores, arrays.footprint), loaded.label)


def test_spacing_decides_the_planned_shape() -> None:
    arrays = prepare_case(scan(spacing_mm=(2.0, 1.0, 1.0)), PLAN)
    assert arrays.image.shape == (1, 4, 5, 12)
    assert arrays.footprint.oriented_spacing_mm == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("way", ["scipy", "torch", "torch_sepz"])
def test_the_way_back_takes_axes_apart_as_the_way_there_did(way: str) -> None:
    plan = replace(PLAN, resampling=way)
    arrays = prepare_case(scan(spacing_mm=(1.0, 1.0, 4.0)), plan)  # 16 slices on the planned grid
    assert arrays.footprint.resampling == way
    # A ramp along the slices returns in steps of whole slices only where slices were taken apart.
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32)[:, None, None], arrays.image.shape[1:])
    restored = restore_map(ramp, arrays.footprint)[3, 3, 1:5]
    whole = restored == np.round(restored)
    assert whole.all() == (way != "torch")


def test_torch_interpolates_between_slices_that_the_others_repeat() -> None:
    loaded = scan(spacing_mm=(1.0, 1.0, 5.0))
    images = {
        way: prepare_case(loaded, replace(PLAN, resampling=way)).image[0]
        for way in ("scipy", "torch", "torch_sepz")
    }
    assert {way: (image[:5] == image[:1]).all() for way, image in images.items()} == {
        "scipy": True,
        "torch": False,
        "torch_sepz": True,
    }


@pytest.mark.parametrize("changes", [{}, {"preset": "nvidia"}, {"configuration": "2d", "patch": (1, 2, 2)}])
def test_without_resampling_a_case_keeps_its_voxels_and_gets_its_label_back(changes: dict) -> None:
    loaded = scan(spacing_mm=(2.0, 1.0, 0.3))
    arrays = prepare_case(loaded, replace(PLAN, resampling="none", **changes))
    np.testing.assert_array_equal(arrays.image[0], loaded.image[0, 1:7, 1:6, 1:5].T)
    assert arrays.label is not None
    assert arrays.footprint.planned_shape == arrays.footprint.cropped_shape == (4, 5, 6)
    scores = np.stack([arrays.label[0] != 1, arrays.label[0] == 1]).astype(np.float32)
    np.testing.assert_array_equal(restore_label(scores, arrays.footprint), loaded.label)


def test_a_one_slice_patch_keeps_the_slices() -> None:
    plan = replace(PLAN, configuration="2d", patch=(1, 2, 2), spacing_mm=(9.0, 0.5, 0.5))
    assert prepare_case(scan(), plan).image.shape == (1, 4, 10, 12)


def test_the_way_of_resampling_decides_who_wins_a_tie() -> None:
    # Six slices over the four of the content: the second lies half-way between the first two, where the organ
    # begins.
    plans = (replace(PLAN, spacing_mm=(4 / 6, 1.0, 1.0), resampling=way) for way in ("scipy", "torch"))
    nearest, lowest = (prepare_case(scan(), plan).label for plan in plans)
    assert nearest is not None
    assert lowest is not None
    assert (nearest[0, 1, 1, 2], lowest[0, 1, 1, 2]) == (1, 0)


def test_normalisation_comes_before_resampling() -> None:
    plan = replace(PLAN, normalisers=("z_score",), spacing_mm=(1.0, 0.5, 0.5))
    image = prepare_case(scan(), plan).image
    raw = scan().image[0, 1:7, 1:6, 1:5]
    expected_low = (raw.min() - raw.mean()) / raw.std()
    assert image.min() == pytest.approx(expected_low, rel=1e-3)


def test_the_nvidia_preset_crops_to_positive_voxels_and_marks_no_outside() -> None:
    loaded = scan()
    loaded.image[0, 0, 0, 0] = -5
    assert prepare_case(loaded, PLAN).image.shape == (1, 5, 6, 7)
    arrays = prepare_case(loaded, replace(PLAN, preset="nvidia"))
    assert arrays.image.shape == (1, 4, 5, 6)
    assert arrays.label is not None
    assert arrays.label.min() == 0
    assert arrays.meta is not None
    assert arrays.meta.tolist() == [[1, 1, 1], [5, 6, 7], [6, 7, 8], [4, 5, 6]]


def test_the_nvidia_z_score_is_over_non_zero_voxels() -> None:
    plan = replace(PLAN, preset="nvidia", normalisers=("z_score",))
    image = prepare_case(scan(), plan).image
    assert image[0, 0, 0, 0] == 0
    assert image[image != 0].mean() == pytest.approx(0, abs=1e-5)


def test_the_foreground_channel_marks_raw_non_zero_voxels() -> None:
    plan = with_foreground_channel(replace(PLAN, normalisers=("z_score",)))
    image = prepare_case(scan(), plan).image
    assert image.shape[0] == plan.num_channels == len(plan.normalisers) == 2
    assert image[1, 0, 0, 0] == 0
    assert image[1].sum() == image[1].size - 1


def test_a_case_without_a_mask_is_unknown_everywhere() -> None:
    loaded = replace(scan(), label=None)
    arrays = prepare_case(loaded, PLAN)
    assert arrays.label is not None
    assert np.unique(arrays.label).tolist() == [-1]
    ignored = prepare_case(loaded, replace(PLAN, ignore_label=2)).label
    assert ignored is not None
    assert np.unique(ignored).tolist() == [2]


def test_a_written_case_is_read_back_with_absolute_paths(tmp_path: Path) -> None:
    write_prepared(tmp_path, RAW, prepare_case(scan(), PLAN), dtype="float16")
    (case,) = list_prepared(tmp_path)
    image = read_array(case.image)
    assert (image.dtype, image.shape) == (np.float16, (1, *case.shape))
    assert case.label is not None
    assert read_array(case.label).dtype == np.int16
    assert case.class_target == -1


def test_the_folder_may_be_moved(tmp_path: Path) -> None:
    write_prepared(tmp_path / "before", RAW, prepare_case(scan(), PLAN), dtype="float32")
    (tmp_path / "before").rename(tmp_path / "after")
    assert read_prepared_case(tmp_path / "after", "one").image.is_file()


def test_a_case_without_a_mask_names_no_foreground_table_but_has_one(tmp_path: Path) -> None:
    arrays = prepare_case(replace(scan(), label=None), PLAN)
    case = write_prepared(tmp_path, RAW, arrays, dtype="float16")
    assert case.foreground is None
    assert (tmp_path / "one_fg.npy").is_file()


def test_intensities_beyond_half_precision_are_clipped_not_infinite(tmp_path: Path) -> None:
    loaded = scan()
    loaded.image[0, 3, 3, 3] = 1e6
    case = write_prepared(tmp_path, RAW, prepare_case(loaded, PLAN), dtype="float16")
    assert read_array(case.image).max() == 65504


def test_a_case_without_its_record_is_not_listed(tmp_path: Path) -> None:
    write_prepared(tmp_path, RAW, prepare_case(scan(), PLAN), dtype="float16")
    (tmp_path / "one.json").unlink()
    assert complete_case_ids(tmp_path) == ()
