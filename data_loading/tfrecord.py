"""Whole volumes from the TFRecord files of data_preprocessing/convert2tfrec.py, through DALI's reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from nvidia.dali import fn, tfrecord
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline, pipeline_def
from nvidia.dali.types import DALIDataType
from torch import Tensor

from data_loading.graphs import IMAGE_TYPES
from data_loading.loader import Shard
from utils.errors import DatasetError, UserError
from utils.prepared_folder import MANIFEST

FILES = "volumes-*-of-*.tfrecord"
REMEDY = "Run convert2tfrec.py again."
TEXT = tfrecord.FixedLenFeature([], tfrecord.string, "")
NUMBER = tfrecord.FixedLenFeature([1], tfrecord.int64, -1)
SHAPE = tfrecord.FixedLenFeature([4], tfrecord.int64, 0)
FEATURES = {
    "X": TEXT,
    "X_shape": SHAPE,
    "X_dtype": TEXT,
    "Y": TEXT,
    "Y_shape": SHAPE,
    "fname": TEXT,
    "class_target": NUMBER,
    "has_mask": NUMBER,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredVolume:
    """One case as it was converted: image (C, D, H, W) float16 or float32, label (1, D, H, W) int16."""

    case_id: str
    image: Tensor
    label: Tensor
    class_target: int  # NO_CLASS where it is unknown
    has_mask: bool  # whether an expert drew the label


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPart:
    """One TFRecord file, its index, and how many records the index lists."""

    path: Path
    index: Path
    num_records: int


def find_parts(folder: Path) -> tuple[RecordPart, ...]:
    """The files of a complete conversion in their order.

    DatasetError if the conversion was not finished, or a file or index is missing, or does not fit the other.
    """
    if not (folder / MANIFEST).is_file():
        raise DatasetError(f"{folder} has no {MANIFEST}: the conversion was not finished. {REMEDY}")
    paths = sorted(folder.glob(FILES))
    total = int(paths[0].stem.rpartition("-")[2]) if paths else 0
    expected = [f"volumes-{place:05d}-of-{total:05d}.tfrecord" for place in range(total)]
    if [path.name for path in paths] != expected or not paths:
        raise DatasetError(f"{folder} holds {len(paths)} TFRecord files of {total}. {REMEDY}")
    return tuple(_checked_part(path) for path in paths)


def _checked_part(path: Path) -> RecordPart:
    index = path.with_name(f"{path.name}.idx")
    try:
        rows = [tuple(map(int, line.split())) for line in index.read_text("ascii").splitlines()]
        end = 0
        for start, length in rows:
            if start != end or length <= 0:
                raise ValueError(f"a record at {start}, expected at {end}")
            end += length
        if end != path.stat().st_size or not rows:
            raise ValueError(f"records of {end} bytes, the file has {path.stat().st_size}")
    except FileNotFoundError as error:
        raise DatasetError(f"{index} does not exist. {REMEDY}") from error
    except ValueError as error:
        raise DatasetError(f"{index} does not describe {path.name} ({error}). {REMEDY}") from error
    return RecordPart(path=path, index=index, num_records=len(rows))


@final
class TfRecordVolumes:
    """Every case of a conversion once per pass, each on exactly one rank; ranks differ by one case at most.

    `for volume in volumes` may be repeated. With fewer cases than ranks some ranks get none. The tensors are
    on the shard's device. Checksums are not verified: the manifest has the hash of every file. UserError for
    a rank that is none, DatasetError for a folder that is no complete conversion.
    """

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        self.folder = folder
        self.parts = find_parts(folder)
        self.shard = shard or Shard()
        if not 0 <= self.shard.rank < self.shard.world_size:
            raise UserError(f"rank is {self.shard.rank}, expected 0 to {self.shard.world_size - 1}.")
        self._pipeline: Pipeline | None = None  # between two passes, when it stands at the first record

    @property
    def num_records(self) -> int:
        """Cases of all ranks."""
        return sum(part.num_records for part in self.parts)

    def __len__(self) -> int:
        # DALI's own rule for the records of a shard.
        before, behind = (rank * self.num_records // self._num_shards for rank in self._borders)
        return behind - before

    def __iter__(self) -> Iterator[StoredVolume]:
        if not len(self):
            return
        stored = _stored_type(self.parts)
        # A pass that is given up half way takes its pipeline with it.
        pipeline, self._pipeline = self._pipeline or self._build(stored), None
        for _ in range(len(self)):
            yield _volume(self._run(pipeline))
        # So that all ranks are equally long, DALI shows the last record of a short shard once more.
        for _ in range(-(-self.num_records // self._num_shards) - len(self)):
            self._run(pipeline)
        self._pipeline = pipeline

    def _run(self, pipeline: Pipeline) -> Sequence[Any]:
        try:
            return pipeline.run()
        except RuntimeError as error:
            raise DatasetError(
                f"{self.folder}: DALI could not read a record. If the files do not have the hashes of their "
                f"{MANIFEST}, they are damaged: {REMEDY} DALI says: {error}"
            ) from error

    @property
    def _num_shards(self) -> int:
        """DALI refuses more shards than records."""
        return min(self.shard.world_size, self.num_records)

    @property
    def _borders(self) -> tuple[int, int]:
        rank = self.shard.rank
        return min(rank, self._num_shards), min(rank + 1, self._num_shards)

    def _build(self, stored: str) -> Pipeline:
        reader = ReaderSettings(
            parts=self.parts, features=FEATURES, rank=self.shard.rank, num_shards=self._num_shards
        )
        return _volume_graph(reader, stored, self.shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """Which features of which records DALI reads."""

    parts: Sequence[RecordPart]
    features: Mapping[str, Any]
    rank: int = 0
    num_shards: int = 1


def _read_records(reader: ReaderSettings) -> Any:
    """The features of a record by their names."""
    return fn.readers.tfrecord(
        name="records",
        path=[str(part.path) for part in reader.parts],
        index_path=[str(part.index) for part in reader.parts],
        features=dict(reader.features),
        shard_id=reader.rank,
        num_shards=reader.num_shards,
        stick_to_shard=True,
        pad_last_batch=True,
    )


def _volume_graph(reader: ReaderSettings, stored: str, shard: Shard) -> Pipeline:
    """One record per run: image, label, and on the host its name, class and mark of a mask."""

    def decoded(content: DataNode, dtype: DALIDataType, shape: DataNode) -> DataNode:
        content = content if shard.device_id is None else content.gpu()
        return fn.reinterpret(content, dtype=dtype, shape=shape)

    @pipeline_def
    def graph():  # noqa: ANN202
        record = _read_records(reader)
        image = decoded(record["X"], IMAGE_TYPES[stored], record["X_shape"])
        label = decoded(record["Y"], DALIDataType.INT16, record["Y_shape"])
        return image, label, record["fname"], record["class_target"], record["has_mask"]

    return _built(graph, shard.device_id)


def _stored_type(parts: Sequence[RecordPart]) -> str:
    """The number type of the first record, which is that of all; DALI has to know it before it reads."""
    reader = ReaderSettings(parts=parts[:1], features={"X_dtype": FEATURES["X_dtype"]})

    @pipeline_def
    def graph():  # noqa: ANN202
        return _read_records(reader)["X_dtype"]

    stored = _as_text(_built(graph, None).run()[0])
    if stored not in IMAGE_TYPES:
        raise DatasetError(
            f"{parts[0].path} holds images of {stored!r}, expected {' or '.join(IMAGE_TYPES)}. {REMEDY}"
        )
    return stored


def _built(graph: Callable[..., Pipeline], device_id: int | None) -> Pipeline:
    """One case at a time, as shapes differ, and one ahead: whole volumes deserve no more memory."""
    pipeline = graph(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    pipeline.build()
    return pipeline


def _volume(outputs: Sequence[Any]) -> StoredVolume:
    image, label, name, class_target, has_mask = outputs
    return StoredVolume(
        case_id=_as_text(name),
        image=torch.from_dlpack(image.as_tensor())[0],
        label=torch.from_dlpack(label.as_tensor())[0],
        class_target=int(class_target.as_array()[0, 0]),
        has_mask=bool(has_mask.as_array()[0, 0]),
    )


def _as_text(output: Any) -> str:
    return output.as_array()[0].tobytes().decode()
