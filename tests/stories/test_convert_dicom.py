"""`scripts/convert_dicom.py`: DICOM series with masks -> a dataset, and predicted masks -> DICOM-SEG."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from data_preprocessing.cases import load_case
from data_preprocessing.dataset import read_dataset
from data_preprocessing.dicom_masks import label_map
from data_preprocessing.faults import DatasetFaults
from data_preprocessing.formats.dicom import open_series
from data_preprocessing.formats.dicom_seg import write_seg
from data_preprocessing.volume_io import read_label_volume, read_volume, write_volume
from scripts.convert_dicom import ConvertOptions, run
from tests.dicom_tools import INTERCEPT, ORIGIN, SPACING, stored_voxels, write_rtstruct, write_series
from utils.errors import UserError
from utils.storage import write_json

pytestmark = pytest.mark.story

ROOT = Path(__file__).resolve().parents[2]
VOXELS = stored_voxels((8, 6, 4))
SAMPLES = ROOT.parent / "shared" / "data" / "dicom_samples"


def outline(left: float, right: float, slice_index: int) -> list[tuple[float, float, float]]:
    """A rectangle over all rows between two columns."""
    corners = [(left, -0.5), (right, -0.5), (right, 5.5), (left, 5.5)]
    z_mm = ORIGIN[2] + SPACING[2] * slice_index
    return [(ORIGIN[0] + SPACING[0] * x, ORIGIN[1] + SPACING[1] * y, z_mm) for x, y in corners]


@pytest.fixture
def options(tmp_path: Path) -> ConvertOptions:
    """Two series with masks, one SEG and one RTSTRUCT, of one patient, and one without of another."""
    source = tmp_path / "dicom"
    write_series(source / "p1" / "first", VOXELS, uid="1.2.1", number=11)
    mask = np.zeros(VOXELS.shape, np.uint8)
    mask[1:3, 1:3, 1], mask[4:6, 1:3, 1:3] = 1, 2
    stack = open_series(source / "p1" / "first" / "IM001")
    write_seg(source / "p1" / "seg" / "seg.dcm", mask, stack, ["organ", "lesion"])
    write_series(source / "p1" / "second", VOXELS + 1, uid="1.2.2", number=12)
    rois = {"organ": [outline(0.5, 4.5, 2)], "lesion": [outline(2.5, 6.5, 2)]}
    write_rtstruct(source / "p1" / "rt" / "rt.dcm", "1.2.2", rois)
    write_series(source / "p2", VOXELS + 2, uid="1.2.3", number=13, patient="another")
    return ConvertOptions(
        src_dir=source, out=tmp_path / "Dataset020_Made", structures=("organ", "lesion"), n_jobs=1
    )


@pytest.mark.flag("convert_dicom:exec_mode", "convert_dicom:src_dir", "convert_dicom:out")
def test_series_with_masks_are_training_cases_and_the_others_test_cases(options: ConvertOptions) -> None:
    dataset = read_dataset(run(options))
    assert dataset.root == options.out
    assert dataset.label_names == ("background", "organ", "lesion")
    assert dataset.channel_names == ("CT",)
    assert [case.case_id for case in dataset.training] == ["p1_first", "p1_second"]
    assert [case.case_id for case in dataset.test] == ["p2"]
    first, second = (load_case(case, allowed_labels=frozenset({0, 1, 2})) for case in dataset.training)
    np.testing.assert_array_equal(first.image[0], VOXELS + INTERCEPT)
    assert first.label is not None
    assert [int((first.label == value).sum()) for value in (1, 2)] == [4, 8]
    assert second.label is not None
    # Columns 1 to 4 are organ, 3 to 6 lesion: the later structure covers the earlier one.
    assert [int((second.label == value).sum()) for value in (1, 2)] == [2 * 6, 4 * 6]


def test_patients_are_told_apart_and_not_named(options: ConvertOptions) -> None:
    dataset = read_dataset(run(options))
    assert {case.patient_id for case in dataset.training} == {"patient_0001"}
    written = b"".join(path.read_bytes() for path in options.out.rglob("*.*") if path.suffix != ".gz")
    assert b"someone" not in written
    assert b"another" not in written


@pytest.mark.flag("convert_dicom:structures")
def test_structures_are_labels_in_the_order_given_and_overlap_needs_one(options: ConvertOptions) -> None:
    dataset = read_dataset(run(replace(options, structures=("lesion",))))
    assert dataset.label_names == ("background", "lesion")
    second = load_case(dataset.training[1])
    assert second.label is not None
    assert int((second.label == 1).sum()) == 4 * 6
    unordered = replace(options, structures=(), out=options.out.with_name("Dataset021_Other"))
    with pytest.raises(DatasetFaults, match=r"rt\.dcm: structures overlap"):
        run(unordered)
    assert sorted(path.name for path in options.out.parent.iterdir()) == ["Dataset020_Made", "dicom"]
    with pytest.raises(UserError, match="liver"):
        run(replace(unordered, structures=("liver",)))


@pytest.mark.flag("convert_dicom:series")
@pytest.mark.parametrize("wanted", ["11", "1.2.1"])
def test_series_are_chosen_by_number_or_uid(options: ConvertOptions, wanted: str) -> None:
    with pytest.raises(UserError, match=r"none of them is wanted. Found: 11 \(CT\)"):
        run(replace(options, series=("99",)))
    dataset = read_dataset(run(replace(options, series=(wanted,))))
    assert [case.case_id for case in (*dataset.training, *dataset.test)] == ["p1_first"]


@pytest.mark.flag("convert_dicom:modality")
def test_series_are_chosen_by_modality(options: ConvertOptions) -> None:
    write_series(options.src_dir / "p2" / "mr", VOXELS, uid="1.2.4", Modality="MR")
    with pytest.raises(UserError, match="Choose one with --modality"):
        run(options)
    dataset = read_dataset(run(replace(options, modality="CT")))
    assert len(dataset.training) + len(dataset.test) == 3


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_left(options: ConvertOptions) -> None:
    for name in ("p1/first", "p2"):
        (options.src_dir / name / "IM002").unlink()
    with pytest.raises(DatasetFaults) as caught:
        run(options)
    assert len(caught.value.faults) == 2
    assert not options.out.exists()


def test_an_existing_folder_is_left_alone(options: ConvertOptions) -> None:
    options.out.mkdir()
    (options.out / "mine").touch()
    with pytest.raises(UserError, match="is there already"):
        run(options)


@pytest.mark.flag("convert_dicom:n_jobs")
def test_no_job_at_all_is_refused(options: ConvertOptions) -> None:
    with pytest.raises(UserError, match="n_jobs"):
        run(replace(options, n_jobs=0))


@pytest.mark.flag("convert_dicom:masks", "convert_dicom:names")
@pytest.mark.parametrize("names", ["dataset.json", "plan.json"])
def test_predicted_masks_become_seg_objects_beside_their_series(
    options: ConvertOptions, tmp_path: Path, names: str
) -> None:
    scans = {"p1_first": "p1/first", "p1_second": "p1/second", "p2": "p2"}
    masks = tmp_path / "masks"
    for case_id, folder in scans.items():
        scan = read_volume(options.src_dir / folder / "IM001")
        write_volume(
            masks / f"{case_id}.nii.gz",
            (VOXELS % 3).astype(np.uint8),
            affine=scan.affine,
            qform_code=1,
            sform_code=1,
            spacing_mm=scan.spacing_mm,
        )
    described = {"label_names": ["background", "organ", "lesion"]}
    labels = {"labels": {"background": 0, "organ": 1, "lesion": 2}}
    write_json(tmp_path / names, described if names == "plan.json" else labels)
    asked = replace(options, exec_mode="masks", masks=masks, names=tmp_path / names, out=tmp_path / "segs")
    run(asked)
    for case_id, folder in scans.items():
        stack = open_series(options.src_dir / folder / "IM001")
        values = {"organ": 1, "lesion": 2}
        label = label_map([asked.out / f"{case_id}.dcm"], stack, values, may_overlap=False)
        np.testing.assert_array_equal(label, VOXELS % 3)
    assert dcmread(asked.out / "p2.dcm").PatientID == "another"
    (masks / "p2.nii.gz").unlink()
    with pytest.raises(DatasetFaults, match=r"p2\.nii\.gz"):
        run(replace(asked, out=tmp_path / "again"))
    with pytest.raises(UserError, match="--masks FOLDER and --names"):
        run(replace(asked, masks=None, out=tmp_path / "again"))


def test_a_mask_of_another_grid_is_refused(options: ConvertOptions, tmp_path: Path) -> None:
    scan = read_volume(options.src_dir / "p2" / "IM001")
    moved = scan.affine + np.array([[0, 0, 0, 1.0], *[[0.0] * 4] * 3])
    write_volume(
        tmp_path / "masks" / "p2.nii.gz",
        VOXELS % 2,
        affine=moved,
        qform_code=1,
        sform_code=1,
        spacing_mm=scan.spacing_mm,
    )
    write_json(tmp_path / "plan.json", {"label_names": ["background", "organ"]})
    asked = replace(options, exec_mode="masks", masks=tmp_path / "masks", names=tmp_path / "plan.json")
    with pytest.raises(DatasetFaults, match="lies 1 mm from that of the series"):
        run(replace(asked, series=("13",)))


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
def test_the_command_converts_a_real_series_with_its_seg(tmp_path: Path) -> None:
    source = tmp_path / "dicom"
    for name in ("dcmqi_ct3_series", "dcmqi_ct3_seg"):
        shutil.copytree(SAMPLES / name, source / name)
    words = ["--src_dir", source, "--out", tmp_path / "Dataset001_Liver", "--structures", "Liver"]
    words += ["--n_jobs", "1"]
    command = [sys.executable, str(ROOT / "scripts" / "convert_dicom.py"), *map(str, words)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (case,) = read_dataset(tmp_path / "Dataset001_Liver").training
    assert case.label is not None
    copy = read_label_volume(SAMPLES / "dcmqi_ct3_nrrd" / "liver_seg.nrrd")
    np.testing.assert_array_equal(read_label_volume(case.label).voxels, copy.voxels)
