"""The DALI pipelines; one graph runs on a GPU or, with `device_id=None`, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvidia.dali import fn
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline, pipeline_def
from nvidia.dali.types import DALIDataType, DALIInterpType

from data_loading.augmentations.base import Augmentation
from data_loading.readers import VolumeSource, WindowSource
from utils.contracts import Shape

LARGEST_LABEL = 32767  # labels are int16
IMAGE_TYPES = {"float16": DALIDataType.FLOAT16, "float32": DALIDataType.FLOAT}
GENERATED_SOURCE = (
    "__autograph_generated_file"  # how DALI names the modules it writes to the temporary folder
)
UNUSED_SEED = 0  # all that is random is drawn by the source; -1 would let DALI ask the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSettings:
    """What every pipeline is built with; `device_id` None is the CPU."""

    batch_size: int
    num_threads: int
    device_id: int | None
    prefetch: int


def _on_device(node: DataNode, settings: GraphSettings) -> DataNode:
    return node if settings.device_id is None else node.gpu()


def _as_background(label: DataNode) -> DataNode:
    """Voxels outside the non-zero mask (-1) train as background (nnU-Net v2, step 12)."""
    return fn.cast(dali_math.clamp(label, 0, LARGEST_LABEL), dtype=DALIDataType.INT16)


def training_graph(
    source: WindowSource,
    recipe: Sequence[Augmentation],
    target_shapes: Sequence[Shape],
    settings: GraphSettings,
) -> Pipeline:
    """Windows in, augmented batches out: image, entry, weight, then one label per entry of `target_shapes`.

    Labels are brought to the resolution of each supervised output by nearest neighbour (step 15).
    """
    image_type = IMAGE_TYPES[source.entries[0].image_type]
    drawn_types = [DALIDataType.FLOAT] * len(recipe)
    kinds = [image_type, DALIDataType.INT16, DALIDataType.INT64, DALIDataType.FLOAT, *drawn_types]

    @pipeline_def(enable_conditionals=True)
    def graph():  # noqa: ANN202 - DALI reads the source of this function and calls it
        image, label, entry, weight, *drawn = fn.external_source(
            source=source,
            num_outputs=len(kinds),
            batch=False,
            dtype=kinds,
            ndim=[4, 4, 1, 1, *[1] * len(recipe)],
            layout=["CDHW", "CDHW", "", "", *[""] * len(recipe)],
        )
        image = fn.cast(_on_device(image, settings), dtype=DALIDataType.FLOAT)
        label = _on_device(label, settings)
        for place, part in enumerate(recipe):
            image, label = part.apply(image, label, drawn[place])
        label = _as_background(label)
        targets = [
            label if level == 0 else _shrink(label, shape) for level, shape in enumerate(target_shapes)
        ]
        return (image, entry, weight, *targets)

    return _build(graph, settings)


def volume_graph(source: VolumeSource, settings: GraphSettings) -> Pipeline:
    """Whole volumes one by one, shapes differing: image, entry, label."""
    image_type = IMAGE_TYPES[source.entries[0].image_type]

    @pipeline_def
    def graph():  # noqa: ANN202
        image, label, entry = fn.external_source(
            source=source,
            num_outputs=3,
            batch=False,
            dtype=[image_type, DALIDataType.INT16, DALIDataType.INT64],
            ndim=[4, 4, 1],
            layout=["CDHW", "CDHW", ""],
        )
        image = fn.cast(_on_device(image, settings), dtype=DALIDataType.FLOAT)
        return image, entry, _as_background(_on_device(label, settings))

    return _build(graph, settings)


def _shrink(label: DataNode, shape: Shape) -> Any:
    return fn.resize(label, size=[float(size) for size in shape], interp_type=DALIInterpType.INTERP_NN)


def _build(graph: Callable[..., Pipeline], settings: GraphSettings) -> Pipeline:
    pipeline = graph(
        batch_size=settings.batch_size,
        num_threads=settings.num_threads,
        device_id=settings.device_id,
        seed=UNUSED_SEED,
        prefetch_queue_depth=settings.prefetch,
    )
    pipeline.build()
    _remove_generated_sources()
    return pipeline


def _remove_generated_sources() -> None:
    """Delete the files that DALI's conditionals were loaded from.

    DALI does so at a clean exit only; a killed run would leave them, and their bytecode always stays.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(GENERATED_SOURCE):
            for path in (module.__file__, module.__cached__):
                if path is not None:
                    Path(path).unlink(missing_ok=True)
