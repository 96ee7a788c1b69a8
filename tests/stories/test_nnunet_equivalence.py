"""Our prepared folder beside one in nnU-Net's format, made here: what is equal and what is told to differ."""

import copy
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import nnunet_equivalence as equivalence
from benchmarks import nnunet_equivalence_peer as peers
from data_preprocessing import workers
from tests.stories.made_dataset import prepare, write_dataset
from utils.contracts import Fingerprint, Plan
from utils.errors import DatasetError
from utils.prepared_folder import FINGERPRINT, list_prepared, read_plan
from utils.storage import read_array, read_json, read_record, write_json

pytestmark = pytest.mark.story

PYTHON = sys.executable
IDENTIFIER = "nnUNetPlans_3d_fullres"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three raw cases."""
    monkeypatch.setattr(workers, "samples_per_case", lambda num_cases: 1000)
    return write_dataset(tmp_path)


@pytest.fixture
def ours(data: Path) -> Path:
    """They in single precision."""
    return prepare(data, "--dtype", "float32")


@pytest.fixture
def peer(tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same content as nnU-Net would write it, and a blosc2 that reads plain arrays."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "blosc2.py").write_text(
        "import numpy as np\ndef open(urlpath, mode):\n    return np.load(urlpath)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    folder = tmp_path / "Dataset007_Made"
    (folder / IDENTIFIER).mkdir(parents=True)
    write_peer(folder, ours)
    return folder


def write_peer(folder: Path, ours: Path) -> None:
    write_json(folder / "nnUNetPlans.json", peer_plans(read_plan(ours)))
    found = read_record(Fingerprint, ours / FINGERPRINT)
    described = {"shapes_after_crop": found.shapes, "spacings": found.spacings_mm}
    relative = {"median_relative_size_after_cropping": float(np.median(found.relative_sizes))}
    write_json(folder / peers.FINGERPRINT, described | relative)
    for case in list_prepared(ours):
        write_peer_case(folder / IDENTIFIER, case)


def peer_plans(plan: Plan) -> dict[str, Any]:
    """A plan in nnU-Net's words."""
    (stats,) = plan.intensity
    network = {
        "n_stages": len(plan.stages),
        "features_per_stage": [stage.channels for stage in plan.stages],
        "kernel_sizes": [stage.kernel for stage in plan.stages],
        "strides": [stage.stride for stage in plan.stages],
        "n_conv_per_stage": [stage.num_blocks for stage in plan.stages],
        "n_conv_per_stage_decoder": [2] * (len(plan.stages) - 1),
    }
    configuration = {
        "data_identifier": IDENTIFIER,
        "spacing": plan.spacing_mm,
        "median_image_size_in_voxels": plan.median_shape,
        "patch_size": plan.patch,
        "batch_size": plan.batch_size,
        "batch_dice": plan.batch_dice,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": plan.uses_mask,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"order": 3},
        "architecture": {"network_class_name": "somewhere.PlainConvUNet", "arch_kwargs": network},
    }
    intensity = {theirs: getattr(stats, name) for name, theirs in peers.INTENSITY.items()}
    return {
        "transpose_forward": plan.axis_order,
        "foreground_intensity_properties_per_channel": {"0": intensity},
        "configurations": {plan.configuration: configuration},
    }


def write_peer_case(folder: Path, case: Any) -> None:
    """Image and label without their padding, and the pickled properties."""
    print_ = case.footprint
    content = tuple(
        slice(start, start + size)
        for start, size in zip(print_.padding_before, print_.planned_shape, strict=True)
    )
    for path, end in ((case.image, peers.IMAGE_END), (case.label, peers.LABEL_END)):
        with (folder / f"{case.case_id}{end}").open("wb") as stream:
            np.save(stream, read_array(path)[(slice(None), *content)])
    properties = {
        "shape_before_cropping": print_.oriented_shape,
        "bbox_used_for_cropping": [
            [np.int64(a), np.int64(b)] for a, b in zip(print_.crop_start, print_.crop_stop, strict=True)
        ],
        "shape_after_cropping_and_before_resampling": print_.cropped_shape,
        "spacing": list(print_.oriented_spacing_mm),
    }
    (folder / f"{case.case_id}.pkl").write_bytes(pickle.dumps(properties))


def change(folder: Path, case_id: str, end: str, index: tuple[int, ...], amount: float) -> None:
    path = folder / IDENTIFIER / f"{case_id}{end}"
    with path.open("rb") as stream:
        array = np.load(stream)
    array[index] += amount
    with path.open("wb") as stream:
        np.save(stream, array)


def compare(ours: Path, peer: Path) -> dict[str, Any]:
    return equivalence.compare_folder(ours, peer, "nnUNetPlans", PYTHON)


def test_the_same_content_in_both_formats_is_equal(ours: Path, peer: Path) -> None:
    found = compare(ours, peer)
    assert found["equal"]
    assert all(field["equal"] for field in found["fields"])
    assert found["volumes"] == {
        "cases": 3,
        "cases_that_differ": 0,
        "cases_of_other_geometry": 0,
        "largest_difference": 0.0,
        "largest_mean_difference": 0.0,
        "voxels": 3 * 20 * 22 * 18,
        "label_voxels_that_differ": 0,
        "label_voxels_that_tie": 0,
    }


def test_one_other_voxel_of_an_image_and_of_a_label_are_found(ours: Path, peer: Path) -> None:
    change(peer, "case_1", peers.IMAGE_END, (0, 3, 4, 5), 0.5)
    change(peer, "case_2", peers.LABEL_END, (0, 0, 0, 0), 1)
    found = compare(ours, peer)
    first, second, third = found["cases"]
    assert (first["equal"], second["equal"], third["equal"], found["equal"]) == (True, False, False, False)
    assert second["largest_difference"] == pytest.approx(0.5, abs=1e-6)
    assert second["mean_difference"] == pytest.approx(0.5 / (20 * 22 * 18), abs=1e-9)
    assert (second["label_voxels_that_differ"], third["label_voxels_that_differ"]) == (0, 1)


def test_another_label_is_no_difference_only_where_two_have_the_same_share(data: Path, peer: Path) -> None:
    # Fifteen voxels over twenty: the fifth lies half-way between the sixth and the seventh, where the organ
    # begins. The coarsest axis is the first of the plan.
    ours = prepare(data, "--dtype", "float32", "--overwrite_target_spacing", "1", "1", str(20 / 15))
    write_peer(peer, ours)
    change(peer, "case_1", peers.LABEL_END, (0, 4, 8, 8), -1)
    (_, tie, _) = compare(ours, peer)["cases"]
    assert (tie["label_voxels_that_differ"], tie["label_voxels_that_tie"], tie["equal"]) == (1, 1, True)
    change(peer, "case_1", peers.LABEL_END, (0, 5, 8, 8), -1)
    (_, wrong, _) = compare(ours, peer)["cases"]
    assert (wrong["label_voxels_that_differ"], wrong["label_voxels_that_tie"], wrong["equal"]) == (
        2,
        1,
        False,
    )


def test_rounding_below_the_tolerance_is_no_difference(ours: Path, peer: Path) -> None:
    change(peer, "case_1", peers.IMAGE_END, (0, 3, 4, 5), 5e-4)
    assert compare(ours, peer)["equal"]


def test_another_crop_and_another_spacing_are_named(ours: Path, peer: Path) -> None:
    path = peer / IDENTIFIER / "case_0.pkl"
    properties = pickle.loads(path.read_bytes())
    properties["bbox_used_for_cropping"][1][0] += 1
    properties["spacing"][2] = 1.5
    path.write_bytes(pickle.dumps(properties))
    assert compare(ours, peer)["cases"][0]["geometry_that_differs"] == ("start of the crop", "spacing")


@pytest.mark.parametrize(
    ("field", "path", "value"),
    [
        ("patch", ("configurations", "3d_fullres", "patch_size"), [32, 32, 32]),
        ("spacing_mm", ("configurations", "3d_fullres", "spacing"), [1, 1, 1.01]),
        ("batch_size", ("configurations", "3d_fullres", "batch_size"), 3),
        ("normalisers", ("configurations", "3d_fullres", "normalization_schemes"), ["CTNormalization"]),
        ("resampling", ("configurations", "3d_fullres", "resampling_fn_data_kwargs", "order"), 1),
        ("axis_order", ("transpose_forward",), [1, 0, 2]),
        (
            "kernels",
            ("configurations", "3d_fullres", "architecture", "arch_kwargs", "kernel_sizes"),
            [[1, 3, 3]],
        ),
        (
            "intensity of channel 0: mean",
            ("foreground_intensity_properties_per_channel", "0", "mean"),
            199.9,
        ),
    ],
)
def test_a_field_that_differs_is_named(ours: Path, field: str, path: tuple[str, ...], value: Any) -> None:
    plan = read_plan(ours)
    plans = json.loads(json.dumps(peer_plans(plan)))
    assert all(verdict.equal for verdict in equivalence.compare_plans(plan, plans))
    inner = changed = copy.deepcopy(plans)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    differing = [verdict.field for verdict in equivalence.compare_plans(plan, changed) if not verdict.equal]
    assert differing == [field]


def test_sizes_of_a_slice_have_two_numbers_as_there(ours: Path) -> None:
    plan = replace(read_plan(ours), configuration="2d", patch=(1, 16, 24))
    assert equivalence.own_values(plan)["patch"] == [16, 24]


def test_a_case_that_one_side_lacks_is_an_error(ours: Path, peer: Path) -> None:
    (peer / IDENTIFIER / f"case_1{peers.LABEL_END}").unlink()
    with pytest.raises(DatasetError, match="case_1"):
        compare(ours, peer)


def test_a_python_without_the_packages_is_told(
    ours: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(DatasetError, match="--peer_python"):
        compare(ours, peer)


@pytest.mark.parametrize("is_changed", [False, True])
def test_the_command_writes_its_result_and_ends_with_its_verdict(
    *, ours: Path, peer: Path, is_changed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if is_changed:
        change(peer, "case_1", peers.LABEL_END, (0, 0, 0, 0), 1)
    out = tmp_path / "result.json"
    (peer / "nnUNetPlans.json").rename(peer / "others.json")
    words = ["nnunet_equivalence.py", "--out", str(out), "--peer", str(peer), f"{ours}=others"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        equivalence.main()
    assert ended.value.code == int(is_changed)
    result = read_json(out)
    assert result["equal"] is not is_changed
    assert [(found["configuration"], found["plans"]) for found in result["compared"]] == [
        ("3d_fullres", "others")
    ]
    assert result["peer"]["numpy"] == np.__version__
    assert str(tmp_path) not in out.read_text()
