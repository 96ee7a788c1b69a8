"""What DALI reads from converted folders, compared bit by bit with the .npy files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_loading.loader import Shard
from data_loading.tfrecord import StoredVolume, TfRecordVolumes
from data_preprocessing.convert2tfrec import ConvertOptions, convert
from utils.errors import DatasetError, UserError
from utils.storage import read_array

SHAPES = [(7, 9, 8), (4, 6, 5), (3, 9, 8), (2, 4, 3), (6, 6, 6)]


@pytest.fixture
def converted(prepare_folder: Callable, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """A prepared folder and its conversion."""

    def make(
        num_cases: int = 5, *, vpf: int = 2, channels: int = 1, dtype: str = "float32"
    ) -> tuple[Path, Path]:
        folder = prepare_folder(SHAPES[:num_cases], num_channels=channels, dtype=dtype).folder
        convert(ConvertOptions(data=folder, results=tmp_path / "records", vpf=vpf))
        return folder, tmp_path / "records"

    return make


def is_equal(volume: StoredVolume, folder: Path) -> bool:
    """Type, shape and every bit."""
    for tensor, suffix in ((volume.image, "_x.npy"), (volume.label, "_y.npy")):
        array, stored = tensor.cpu().numpy(), read_array(folder / f"{volume.case_id}{suffix}")
        if (array.dtype, array.shape, array.tobytes()) != (stored.dtype, stored.shape, stored.tobytes()):
            return False
    return True


def names(volumes: TfRecordVolumes) -> list[str]:
    return [volume.case_id for volume in volumes]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("vpf", [1, 2, 5])
def test_volumes_are_those_of_the_npy_files(converted: Callable, dtype: str, channels: int, vpf: int) -> None:
    folder, out = converted(vpf=vpf, channels=channels, dtype=dtype)
    volumes = list(TfRecordVolumes(out))  # all held at once: no buffer may be used twice
    assert [volume.case_id for volume in volumes] == [f"case_{place:02d}" for place in range(5)]
    assert all(is_equal(volume, folder) for volume in volumes)
    assert volumes[0].image.shape == (channels, *SHAPES[0])
    assert [volume.class_target for volume in volumes] == [-1, 1, 0, 1, 0]
    assert all(volume.has_mask for volume in volumes)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("num_cases", [2, 4, 5])
def test_every_case_is_on_one_rank_in_every_pass(
    converted: Callable, world_size: int, num_cases: int
) -> None:
    folder, out = converted(num_cases)
    ranks = [TfRecordVolumes(out, Shard(rank=rank, world_size=world_size)) for rank in range(world_size)]
    first = [names(volumes) for volumes in ranks]
    for _ in range(3):
        shown = [names(volumes) for volumes in ranks]
        assert shown == first
        assert sorted(name for rank in shown for name in rank) == [f"case_{i:02d}" for i in range(num_cases)]
        assert [len(rank) for rank in shown] == [len(volumes) for volumes in ranks]
        assert max(map(len, shown)) - min(map(len, shown)) <= 1
    assert all(is_equal(volume, folder) for volumes in ranks for volume in volumes)


def test_a_pass_that_was_given_up_leaves_the_next_whole(converted: Callable) -> None:
    _, out = converted()
    volumes = TfRecordVolumes(out)
    assert next(iter(volumes)).case_id == "case_00"
    assert names(volumes) == [f"case_{place:02d}" for place in range(5)]


def test_two_passes_at_once_do_not_disturb_each_other(converted: Callable) -> None:
    _, out = converted()
    volumes = TfRecordVolumes(out)
    pairs = zip(volumes, volumes, strict=True)
    assert [(a.case_id, b.case_id) for a, b in pairs] == [(f"case_{i:02d}",) * 2 for i in range(5)]


def test_a_rank_that_is_none_is_told(converted: Callable) -> None:
    _, out = converted(2)
    with pytest.raises(UserError, match="rank is 2, expected 0 to 1"):
        TfRecordVolumes(out, Shard(rank=2, world_size=2))


def remove_manifest(out: Path) -> None:
    (out / "manifest.json").unlink()


def remove_file(out: Path) -> None:
    (out / "volumes-00001-of-00003.tfrecord").unlink()


def remove_index(out: Path) -> None:
    (out / "volumes-00001-of-00003.tfrecord.idx").unlink()


def cut_file(out: Path) -> None:
    path = out / "volumes-00002-of-00003.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])


def garble_index(out: Path) -> None:
    (out / "volumes-00000-of-00003.tfrecord.idx").write_text("0 many\n")


def skip_a_record(out: Path) -> None:
    path = out / "volumes-00000-of-00003.tfrecord.idx"
    path.write_text(path.read_text().split("\n", 1)[1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_manifest, "has no manifest.json: the conversion was not finished"),
        (remove_file, "holds 2 TFRecord files of 3"),
        (remove_index, "00001-of-00003.tfrecord.idx does not exist"),
        (cut_file, "00002-of-00003.tfrecord.idx does not describe"),
        (garble_index, "00000-of-00003.tfrecord.idx does not describe"),
        (skip_a_record, "a record at .*, expected at 0"),
    ],
)
def test_an_incomplete_folder_is_refused(
    converted: Callable, damage: Callable[[Path], None], reason: str
) -> None:
    _, out = converted()
    damage(out)
    with pytest.raises(DatasetError, match=reason):
        TfRecordVolumes(out)


def test_a_shape_that_does_not_fit_its_bytes_stops_the_reading(converted: Callable) -> None:
    _, out = converted(2, vpf=2)
    (path,) = out.glob("*.tfrecord")
    data = path.read_bytes()
    shape = b"X_shape" + bytes([0x12, 0x08, 0x1A, 0x06, 0x0A, 0x04, 1, 7, 9, 8])
    assert shape in data
    path.write_bytes(data.replace(shape, shape[:-1] + bytes([9])))
    with pytest.raises(DatasetError, match="DALI could not read a record.*"):
        names(TfRecordVolumes(out))


@pytest.mark.gpu
def test_volumes_on_a_gpu_are_those_of_the_npy_files(converted: Callable) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    folder, out = converted(channels=2, dtype="float16")
    volumes = list(TfRecordVolumes(out, Shard(device_id=0)))
    assert all(volume.image.is_cuda and volume.label.is_cuda for volume in volumes)
    assert len(volumes) == 5
    assert all(is_equal(volume, folder) for volume in volumes)


def test_values_beyond_the_plain_survive(converted: Callable) -> None:
    """NaN, infinities and the smallest numbers: nothing is converted on the way."""
    folder, out = converted(1)
    image = read_array(folder / "case_00_x.npy")
    image.flat[:4] = (np.nan, np.inf, -np.inf, 1e-45)
    np.save(folder / "case_00_x.npy", image)
    convert(ConvertOptions(data=folder, results=out))
    assert all(is_equal(volume, folder) for volume in TfRecordVolumes(out))
