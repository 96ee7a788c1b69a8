"""DICOM series: sorted by position, rescaled, placed; everything that is no even stack is refused by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedCTImageStorage, JPEGLosslessSV1

from data_preprocessing.cases import load_case
from data_preprocessing.faults import DatasetFaults, VolumeError
from data_preprocessing.geometry import to_planned_axes
from data_preprocessing.scans import read_scans
from data_preprocessing.volume_io import Volume, read_label_volume, read_volume
from tests.dicom_tools import (
    AFFINE,
    INTERCEPT,
    ORIGIN,
    SPACING,
    change,
    stored_voxels,
    study,
    write_object,
    write_series,
)

VOXELS = stored_voxels()
SHARED = Path(__file__).parents[3].parent / "shared" / "data"
SAMPLES = SHARED / "dicom_samples"


def refusal(path: Path) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert "Fix: " in str(caught.value)
    return caught.value


def write_enhanced(path: Path, voxels: np.ndarray, *, slopes: tuple[float, ...]) -> Path:
    """A multi-frame object whose frames are stored from the top down, each with a slope of its own."""
    data = study("CT")
    data.SeriesInstanceUID = "1.2.3"
    data.Columns, data.Rows, data.NumberOfFrames = voxels.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 1
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    order = range(voxels.shape[2] - 1, -1, -1)
    for index in order:
        position, values, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] * index]
        values.RescaleSlope, values.RescaleIntercept = slopes[index], INTERCEPT
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    data.PixelData = np.stack([voxels[:, :, index].T for index in order]).astype(np.int16).tobytes()
    return write_object(path, data, EnhancedCTImageStorage)


def test_slices_are_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path, VOXELS)[1])
    np.testing.assert_array_equal(volume.voxels, VOXELS + INTERCEPT)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.spacing_mm == pytest.approx(SPACING)
    assert (volume.orientation, volume.sform_code) == ("LPS", 1)
    assert volume.voxels.dtype == np.float32


def test_frames_of_an_enhanced_object_are_the_same_volume(tmp_path: Path) -> None:
    volume = read_volume(write_enhanced(tmp_path / "enhanced.dcm", VOXELS, slopes=(1, 2, 3)))
    np.testing.assert_array_equal(volume.voxels, VOXELS * np.array([1, 2, 3]) + INTERCEPT)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_other_series_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    first = write_series(tmp_path, VOXELS, uid="1.2.1")
    for path in first:
        path.rename(path.with_suffix(".first"))
    second = write_series(tmp_path, VOXELS + 5, uid="1.2.2", number=2)
    assert read_volume(second[0]).voxels.shape == VOXELS.shape
    np.testing.assert_array_equal(read_volume(second[0]).voxels, VOXELS + 5 + INTERCEPT)


def test_an_oblique_series_keeps_its_directions(tmp_path: Path) -> None:
    cosine, sine = 0.8, 0.6
    paths = write_series(tmp_path, VOXELS, ImageOrientationPatient=[cosine, sine, 0, -sine, cosine, 0])
    affine = read_volume(paths[0]).affine
    np.testing.assert_allclose(affine[:3, 0], [-0.5 * cosine, -0.5 * sine, 0], atol=1e-6)
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 2.5], atol=1e-6)


def test_a_missing_slice_is_named_by_its_neighbour(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_voxels((5, 4, 6)))
    paths[2].unlink()
    error = refusal(paths[0])
    assert error.fault.code == "E211"
    assert str(paths[3]) in str(error)
    assert paths[1].name in str(error)
    assert "slices are missing" in str(error)


def test_rounded_positions_are_even_enough(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_voxels((5, 4, 4)))
    change(paths[1], ImagePositionPatient=[ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] + 0.04])
    assert read_volume(paths[0]).spacing_mm == pytest.approx(SPACING)


REFUSED = {
    "the same place": ({"ImagePositionPatient": [ORIGIN[0], ORIGIN[1], ORIGIN[2]]}, "E211", "lies where"),
    "turned": ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "E211", "runs along"),
    "other pixels": ({"PixelSpacing": [1, 1]}, "E211", "pixel spacing"),
    "no position": ({"ImagePositionPatient": None}, "E211", "ImagePositionPatient"),
    "no spacing": ({"PixelSpacing": None}, "E211", "PixelSpacing"),
    "another size": ({"Rows": 3}, "E211", "rows and columns"),
    "colours": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "E205", "RGB"),
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "E205", "PALETTE"),
    "a table": ({"ModalityLUTSequence": [Dataset()]}, "E205", "Modality LUT"),
    "pixels cut off": ({"PixelData": b"\0\0"}, "E212", "cannot be decoded"),
    "several frames": ({"NumberOfFrames": 2}, "E211", "without a position"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_slice_that_does_not_fit_is_named(tmp_path: Path, name: str) -> None:
    values, code, words = REFUSED[name]
    paths = write_series(tmp_path, VOXELS)
    change(paths[1], **values)
    error = refusal(paths[0])
    assert error.fault.code == code
    assert words in str(error)
    assert str(tmp_path) in str(error)


@pytest.mark.parametrize(("shift_mm", "is_tilt"), [(0.5, True), (0.04, False)])
def test_a_tilted_gantry_is_refused(tmp_path: Path, shift_mm: float, *, is_tilt: bool) -> None:
    paths = write_series(tmp_path, VOXELS)
    for index, path in enumerate(paths):
        place = [ORIGIN[0], ORIGIN[1] + shift_mm * index, ORIGIN[2] + SPACING[2] * index]
        change(path, ImagePositionPatient=place)
    if is_tilt:
        assert "leans by 11.3 degrees (gantry tilt)" in str(refusal(paths[0]))
    else:
        assert read_volume(paths[0]).spacing_mm == pytest.approx(SPACING)


def test_a_volume_of_terabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    paths = write_series(tmp_path, np.tile(VOXELS, (1, 1, 2)), Rows=65535, Columns=65535)
    assert refusal(paths[0]).fault.code == "E207"


def test_pixels_that_no_package_decodes_say_what_to_install(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    data = dcmread(paths[1])
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data["PixelData"].is_undefined_length = True
    data.PixelData = (
        b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x02\0\0\0\xff\xd8" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    data.save_as(paths[1])
    error = refusal(paths[0])
    assert error.fault.code == "E212"
    assert str(paths[1]) in str(error)
    assert "JPEG Lossless" in str(error)


def test_a_deflated_file_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    data = dcmread(paths[0])
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(paths[0])
    assert refusal(paths[0]).fault.code == "E212"


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, share: float) -> None:
    paths = write_series(tmp_path, VOXELS)
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: int(len(content) * share)])
    assert str(paths[1]) in str(refusal(paths[1]))


def test_a_dicom_file_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="convert_dicom"):
        read_label_volume(write_series(tmp_path, VOXELS)[0])


def test_every_series_below_a_folder_is_a_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "a b" / "ct", VOXELS, uid="1.2.1", number=3)
    for path in write_series(tmp_path / "c", VOXELS, uid="1.2.2", number=4):
        path.rename(path.with_suffix(".4"))
    write_series(tmp_path / "c", VOXELS, uid="1.2.3", number=5)
    write_object(tmp_path / "report", study("SR"), "1.2.840.10008.5.1.4.1.1.88.11")
    scans = read_scans(tmp_path, num_channels=1)
    assert [scan.case_id for scan in scans] == ["a_b_ct", "c_s5", "c_s4"]
    assert all(load_case(scan).image.shape == (1, *VOXELS.shape) for scan in scans)
    assert load_case(scans[0]).mask_ending == ".nii.gz"


def test_one_file_stands_for_its_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "study", VOXELS)
    (scan,) = read_scans(paths[2], num_channels=1)
    assert (scan.case_id, scan.images) == ("study", (paths[2],))


def test_series_of_one_number_are_told_apart(tmp_path: Path) -> None:
    for path in write_series(tmp_path, VOXELS, uid="1.2.1"):
        path.rename(path.with_suffix(".1"))
    write_series(tmp_path, VOXELS, uid="1.2.2")
    ids = [scan.case_id for scan in read_scans(tmp_path, num_channels=1)]
    assert ids == [f"{tmp_path.name}_s1-1", f"{tmp_path.name}_s1-2"]


def test_dicom_cannot_say_which_channel_it_is(tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS)
    with pytest.raises(DatasetFaults, match=r"convert_dicom\.py"):
        read_scans(tmp_path, num_channels=2)


def test_a_folder_without_image_series_says_what_it_holds(tmp_path: Path) -> None:
    write_object(tmp_path / "report", study("SR"), "1.2.840.10008.5.1.4.1.1.88.11")
    with pytest.raises(DatasetFaults, match="1 DICOM objects lie here, but no image series"):
        read_scans(tmp_path, num_channels=1)


def test_nothing_of_the_patient_is_said(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "x", VOXELS, patient="secret")
    paths[1].unlink()
    change(paths[2], ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    assert "secret" not in str(refusal(paths[0]))
    assert "secret" not in repr([scan.case_id for scan in read_scans(tmp_path, num_channels=1)])


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
def test_a_compressed_series_is_its_nifti_copy_voxel_by_voxel() -> None:
    series = read_volume(sorted((SAMPLES / "ts_ct20_series").iterdir())[0])
    nifti = read_volume(SHARED / "ts_samples" / "imagesTr" / "ts_ct_fullres20_0000.nii.gz")

    def oriented(volume: Volume) -> np.ndarray:
        return to_planned_axes(volume.voxels, orientation=volume.orientation)

    np.testing.assert_array_equal(oriented(series), oriented(nifti))


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
@pytest.mark.parametrize(
    ("folder", "shape", "orientation"),
    [
        ("dcmqi_ct3_series", (512, 512, 3), "LPS"),
        ("dcmqi_24x38_series", (24, 38, 3), "LPS"),
        ("dcmqi_24x38_multiframe", (24, 38, 3), "LPS"),
        ("oblique_series", (100, 50, 3), "LPS"),
        ("rtstruct_ct2", (512, 512, 2), "LPS"),
    ],
)
def test_real_series_are_read(folder: str, shape: tuple[int, int, int], orientation: str) -> None:
    (scan,) = read_scans(SAMPLES / folder, num_channels=1)
    loaded = load_case(scan)
    assert (loaded.image.shape[1:], loaded.orientation) == (shape, orientation)


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the DICOM samples are not here")
def test_the_real_series_with_missing_slices_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "tiny_ct_series", tmp_path / "tiny")
    assert "202.5 mm" in str(refusal(tmp_path / "tiny" / "17106"))
