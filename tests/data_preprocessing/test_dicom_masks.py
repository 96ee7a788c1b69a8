"""SEG and RTSTRUCT on the slices of a series."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread

from data_preprocessing.dicom_folders import find_dicom
from data_preprocessing.dicom_masks import label_map, series_of_mask, structure_names
from data_preprocessing.faults import VolumeError
from data_preprocessing.formats import dicom_seg
from data_preprocessing.formats.dicom import DicomStack, open_series
from data_preprocessing.formats.dicom_seg import write_seg
from data_preprocessing.volume_io import read_label_volume
from tests.dicom_tools import ORIGIN, SPACING, change, stored_voxels, write_rtstruct, write_series
from utils.errors import EnvironmentFault

SHAPE = (8, 6, 4)
SAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "dicom_samples"


@pytest.fixture
def series(tmp_path: Path) -> DicomStack:
    return open_series(write_series(tmp_path / "ct", stored_voxels(SHAPE), uid="1.2.9")[0])


def square(
    left: float, top: float, right: float, bottom: float, slice_index: float
) -> list[tuple[float, float, float]]:
    """A rectangle between pixels (columns, rows) as points in mm."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    z_mm = ORIGIN[2] + SPACING[2] * slice_index
    return [(ORIGIN[0] + SPACING[0] * x, ORIGIN[1] + SPACING[1] * y, z_mm) for x, y in corners]


def a_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:5, 0:2] = 1
    mask[5:7, 1:3, 2] = 2
    return mask


def painted(paths: Sequence[Path], stack: DicomStack, *, may_overlap: bool = False) -> np.ndarray:
    names = [name for path in paths for name in structure_names(path)]
    return label_map(
        paths, stack, {name: i for i, name in enumerate(names, start=1)}, may_overlap=may_overlap
    )


def test_a_mask_written_as_seg_comes_back_voxel_by_voxel(series: DicomStack, tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", a_mask(), series, ["organ", "lesion"])
    assert structure_names(tmp_path / "seg.dcm") == ("organ", "lesion")
    np.testing.assert_array_equal(painted([tmp_path / "seg.dcm"], series), a_mask())
    written = dcmread(tmp_path / "seg.dcm")
    source = dcmread(series.frames[0].file)
    assert written.Modality == "SEG"
    assert written.PatientID == source.PatientID
    assert written.StudyInstanceUID == source.StudyInstanceUID
    assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert written.NumberOfFrames == 3  # empty slices are left out


def test_a_fraction_counts_from_one_half(series: DicomStack, tmp_path: Path) -> None:
    probabilities = np.zeros(SHAPE, np.float32)
    probabilities[1, 1, :], probabilities[2, 1, :] = 0.4, 0.6
    write_seg(tmp_path / "binary.dcm", a_mask(), series, ["organ", "lesion"])
    written = highdicom.seg.Segmentation(
        source_images=[dcmread(frame.file) for frame in series.frames],
        pixel_array=probabilities.transpose(2, 1, 0),
        segmentation_type="FRACTIONAL",
        segment_descriptions=[highdicom.seg.segread(tmp_path / "binary.dcm").get_segment_description(1)],
        series_instance_uid="1.2.77",
        series_number=7,
        sop_instance_uid="1.2.78",
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="0",
    )
    written.save_as(tmp_path / "fraction.dcm")
    label = painted([tmp_path / "fraction.dcm"], series)
    assert label[2, 1].all()
    assert int(label.sum()) == SHAPE[2]


def test_a_seg_knows_its_series(series: DicomStack, tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", a_mask(), series, ["organ", "lesion"])
    write_series(tmp_path / "other", stored_voxels(SHAPE), uid="1.2.10")
    content = find_dicom(tmp_path)
    owner = series_of_mask(tmp_path / "seg.dcm", content.images)
    assert owner is not None
    assert owner.uid == "1.2.9"
    assert (
        series_of_mask(tmp_path / "seg.dcm", [item for item in content.images if item is not owner]) is None
    )


def test_an_empty_mask_is_no_seg(series: DicomStack, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="the mask is empty"):
        write_seg(tmp_path / "seg.dcm", np.zeros(SHAPE, np.uint8), series, ["organ"])
    assert not (tmp_path / "seg.dcm").exists()


def test_without_highdicom_the_message_says_how_to_get_it(
    series: DicomStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"requirements-dicom\.txt"):
        write_seg(tmp_path / "seg.dcm", a_mask(), series, ["organ", "lesion"])


def test_a_seg_of_another_grid_is_refused(series: DicomStack, tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", a_mask(), series, ["organ", "lesion"])
    shifted = {"ImagePositionPatient": [ORIGIN[0] + 1, ORIGIN[1], ORIGIN[2]]}
    other = open_series(write_series(tmp_path / "b", stored_voxels(SHAPE)[:, :, :1], **shifted)[0])
    with pytest.raises(VolumeError, match=r"seg\.dcm: frame 0 .*lies at pixel"):
        painted([tmp_path / "seg.dcm"], other)


def test_pixels_whose_centre_a_contour_holds_belong_to_it(series: DicomStack, tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", "1.2.9", {"organ": [square(0.5, 1.5, 3.5, 4.5, 2)]})
    expected = np.zeros(SHAPE, np.int16)
    expected[1:4, 2:5, 2] = 1
    np.testing.assert_array_equal(painted([path], series), expected)


def test_a_contour_inside_another_is_a_hole(series: DicomStack, tmp_path: Path) -> None:
    outlines = [square(0.5, 0.5, 5.5, 4.5, 1), square(1.5, 1.5, 3.5, 3.5, 1)]
    label = painted([write_rtstruct(tmp_path / "rt.dcm", "1.2.9", {"ring": outlines})], series)
    assert int(label.sum()) == 5 * 4 - 2 * 2
    assert not label[2:4, 2:4].any()


def test_a_contour_that_leaves_the_picture_is_cut(series: DicomStack, tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", "1.2.9", {"organ": [square(-5.5, -5.5, 0.5, 99, 0)]})
    assert int(painted([path], series).sum()) == SHAPE[1]


@pytest.mark.parametrize("slice_index", [-1, 1.5, 4])
def test_a_contour_off_the_slices_is_refused(series: DicomStack, tmp_path: Path, slice_index: float) -> None:
    outline = square(0.5, 0.5, 3.5, 3.5, slice_index)
    path = write_rtstruct(tmp_path / "rt.dcm", "1.2.9", {"organ": [outline]})
    with pytest.raises(VolumeError, match=r"rt\.dcm: a contour of 'organ' lies at slice"):
        painted([path], series)


def test_structures_that_overlap_need_an_order(series: DicomStack, tmp_path: Path) -> None:
    rois = {"organ": [square(0.5, 0.5, 4.5, 3.5, 0)], "lesion": [square(2.5, 0.5, 5.5, 2.5, 0)]}
    path = write_rtstruct(tmp_path / "rt.dcm", "1.2.9", rois)
    with pytest.raises(VolumeError, match=r"organ and lesion \(4 voxels\)"):
        painted([path], series)
    label = painted([path], series, may_overlap=True)
    assert (int((label == 1).sum()), int((label == 2).sum())) == (4 * 3 - 4, 3 * 2)
    turned = label_map([path], series, {"lesion": 1, "organ": 2}, may_overlap=True)
    assert (int((turned == 1).sum()), int((turned == 2).sum())) == (3 * 2 - 4, 4 * 3)


@pytest.mark.parametrize("damage", ["StructureSetROISequence", "ReferencedFrameOfReferenceSequence"])
def test_an_object_that_lacks_its_parts_is_named(series: DicomStack, tmp_path: Path, damage: str) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", "1.2.9", {"organ": [square(0.5, 0.5, 3.5, 3.5, 0)]})
    change(path, **{damage: None})
    images = find_dicom(tmp_path).images
    if damage == "StructureSetROISequence":
        with pytest.raises(VolumeError, match=r"rt\.dcm"):
            structure_names(path)
    else:
        assert series_of_mask(path, images) is None


def sample_stack(folder: str) -> DicomStack:
    return open_series(sorted((SAMPLES / folder).glob("*"))[0])


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
def test_a_real_seg_is_its_nrrd_copy_and_survives_the_way_back(tmp_path: Path) -> None:
    stack = sample_stack("dcmqi_ct3_series")
    label = painted([SAMPLES / "dcmqi_ct3_seg" / "liver.dcm"], stack)
    copy = read_label_volume(SAMPLES / "dcmqi_ct3_nrrd" / "liver_seg.nrrd")
    np.testing.assert_array_equal(label, copy.voxels)
    write_seg(tmp_path / "back.dcm", label, stack, ["Liver"])
    np.testing.assert_array_equal(painted([tmp_path / "back.dcm"], stack), label)


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
@pytest.mark.parametrize(
    ("name", "voxels"),
    [("label.seg", 315), ("sparse-labelmap-ppv5.dcm", 630), ("sparse-labelmap-noppv.dcm", 630)],
)
def test_real_binary_and_label_map_segs_are_read(name: str, voxels: int) -> None:
    label = painted([SAMPLES / "dcmqi_24x38_seg" / name], sample_stack("dcmqi_24x38_series"))
    assert int((label == 1).sum()) == voxels


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
def test_real_contours_are_filled_and_missing_slices_refused() -> None:
    stack = open_series(SAMPLES / "rtstruct_ct2" / "ct_1.dcm")
    assert int(painted([SAMPLES / "rtstruct_ct2" / "rt.dcm"], stack).sum()) == 1443
    with pytest.raises(VolumeError, match="slices 0 to 1"):
        painted([SAMPLES / "rtstruct_ct2" / "dummy_rt.dcm"], stack)


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
@pytest.mark.parametrize("kind", ["binary", "binary_fractional"])
def test_a_fractional_seg_counts_from_one_half(tmp_path: Path, kind: str) -> None:
    for name in ("17136", "17166", "17196"):  # the even part of the series
        shutil.copy(SAMPLES / "tiny_ct_series" / name, tmp_path / name)
    stack = open_series(tmp_path / "17136")
    binary = painted([SAMPLES / "tiny_ct_seg" / "seg_image_ct_binary.dcm"], stack)
    assert binary.any()
    np.testing.assert_array_equal(
        painted([SAMPLES / "tiny_ct_seg" / f"seg_image_ct_{kind}.dcm"], stack), binary
    )
