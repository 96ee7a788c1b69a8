"""The DALI pipelines; one graph runs on a GPU or, with `device_id=None`, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline, pipeline_def
from nvidia.dali.types import DALIDataType

from data_loading.sources import VolumeSource, WindowSource
from data_loading.targets import TargetRule, targets_in_graph

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


def training_graph(source: WindowSource, settings: GraphSettings) -> Pipeline:
    """Windows in, augmented batches out: image, entry, weights, then one target per supervised output.

    Whatever the source has not done on the host is done here.
    """
    finished, recipe, targets = source.is_finished, source.in_graph, source.targets
    stored_type = IMAGE_TYPES[source.entries[0].image_type]
    image_type = DALIDataType.FLOAT if source.num_on_host or finished else stored_type
    num_maps = len(targets.shapes) if finished else 1
    float_type, num_drawn = DALIDataType.FLOAT, len(recipe)
    kinds = [image_type, DALIDataType.INT64, float_type]
    label_type = DALIDataType.UINT8 if finished and targets.regions else DALIDataType.INT16
    kinds += [label_type] * num_maps + [float_type] * num_drawn

    @pipeline_def(enable_conditionals=True)
    def graph():  # noqa: ANN202 - DALI reads the source of this function and calls it
        image, entry, weights, *others = fn.external_source(
            source=source,
            num_outputs=len(kinds),
            batch=False,
            dtype=kinds,
            ndim=[4, 1, 1, *[4] * num_maps, *[1] * num_drawn],
            layout=["CDHW", "", "", *["CDHW"] * num_maps, *[""] * num_drawn],
        )
        image = _on_device(image, settings)
        if image_type != float_type:
            image = fn.cast(image, dtype=float_type)
        labels = [_on_device(label, settings) for label in others[:num_maps]]
        if not finished:
            label = labels[0]
            for place, part in enumerate(recipe):
                image, label = part.apply(image, label, others[num_maps + place])
            image, labels = targets_in_graph(image, label, targets)
        return (image, entry, weights, *labels)

    return _build(graph, settings)


def volume_graph(source: VolumeSource, targets: TargetRule, settings: GraphSettings) -> Pipeline:
    """Whole volumes one by one, shapes differing: image, entry, weights, the mask at full resolution."""
    image_type = IMAGE_TYPES[source.entries[0].image_type]
    finest = replace(targets, shapes=targets.shapes[:1])

    @pipeline_def
    def graph():  # noqa: ANN202
        image, entry, weights, label = fn.external_source(
            source=source,
            num_outputs=4,
            batch=False,
            dtype=[image_type, DALIDataType.INT64, DALIDataType.FLOAT, DALIDataType.INT16],
            ndim=[4, 1, 1, 4],
            layout=["CDHW", "", "", "CDHW"],
        )
        image = fn.cast(_on_device(image, settings), dtype=DALIDataType.FLOAT)
        image, labels = targets_in_graph(image, _on_device(label, settings), finest)
        return image, entry, weights, labels[0]

    return _build(graph, settings)


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
