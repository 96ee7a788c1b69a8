"""The DALI pipelines; one graph runs on a GPU or, with `device_id=None`, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline, pipeline_def
from nvidia.dali.types import DALIDataType

from data_loading.resident import ResidentWindows
from data_loading.sources import VolumeSource, WindowSource
from data_loading.targets import TargetRule, targets_in_graph

IMAGE_TYPES = {"float16": DALIDataType.FLOAT16, "float32": DALIDataType.FLOAT}
GENERATED_SOURCE = (
    "__autograph_generated_file"  # how DALI names the modules it writes to the temporary folder
)
UNUSED_SEED = 0  # all that is random is drawn by the source; -1 would let DALI ask the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSettings:
    """What every pipeline is built with; `device_id` None is the CPU.

    With `channels_last` images leave as (D, H, W, C), else as (C, D, H, W).
    """

    batch_size: int
    num_threads: int
    device_id: int | None
    prefetch: int
    channels_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One output of a source: its number type, and its axes; a vector has none."""

    kind: DALIDataType
    axes: str = ""


def _fed(
    source: Callable[..., Any], ports: Sequence[Port], *, device: str = "cpu", stream: Any = None
) -> Any:
    """The outputs of a source that DALI asks for one sample at a time; `device` is where it makes them."""
    return fn.external_source(
        source=source,
        num_outputs=len(ports),
        batch=False,
        device=device,
        cuda_stream=stream,
        dtype=[port.kind for port in ports],
        ndim=[len(port.axes) or 1 for port in ports],
        layout=[port.axes for port in ports],
    )


def _on_device(node: DataNode, settings: GraphSettings) -> DataNode:
    return node if settings.device_id is None else node.gpu()


def _arranged(image: DataNode, settings: GraphSettings) -> DataNode:
    """(C, D, H, W) in the order of axes that leaves the graph."""
    if not settings.channels_last:
        return image
    return fn.transpose(image, perm=[1, 2, 3, 0], output_layout="DHWC")


def training_graph(
    source: WindowSource, settings: GraphSettings, resident: ResidentWindows | None = None
) -> Pipeline:
    """Windows in, augmented batches out: image, entry, weights, then one target per supervised output.

    Whatever the source has not done on the host is done here. With `resident` the voxels of the same samples
    come from the device that holds the volumes.
    """
    finished, recipe, targets = source.is_finished, source.in_graph, source.targets
    stored_type = IMAGE_TYPES[source.entries[0].image_type]
    image_type = DALIDataType.FLOAT if source.num_on_host or finished else stored_type
    label_type = DALIDataType.UINT8 if finished and targets.regions else DALIDataType.INT16
    ports = [
        Port(kind=image_type, axes="DHWC" if finished and settings.channels_last else "CDHW"),
        *[Port(kind=label_type, axes="CDHW")] * (len(targets.shapes) if finished else 1),
    ]
    facts = [Port(kind=DALIDataType.INT64), Port(kind=DALIDataType.FLOAT)]
    drawn_ports = [Port(kind=DALIDataType.FLOAT)] * len(recipe)

    @pipeline_def(enable_conditionals=True)
    def graph():  # noqa: ANN202 - DALI reads the source of this function and calls it
        if resident is None:
            image, entry, weights, *others = _fed(source, [ports[0], *facts, *ports[1:], *drawn_ports])
            image = _on_device(image, settings)
            labels = [_on_device(label, settings) for label in others[: len(ports) - 1]]
            drawn = others[len(ports) - 1 :]
        else:
            device = "cpu" if settings.device_id is None else "gpu"
            image, *labels = _fed(resident.voxels, ports, device=device, stream=resident.stream)
            entry, weights, *drawn = _fed(resident.facts, [*facts, *drawn_ports])
        if image_type != DALIDataType.FLOAT:
            image = fn.cast(image, dtype=DALIDataType.FLOAT)
        if not finished:
            label = labels[0]
            for place, part in enumerate(recipe):
                image, label = part.apply(image, label, drawn[place])
            image, labels = targets_in_graph(image, label, targets)
            image = _arranged(image, settings)
        return (image, entry, weights, *labels)

    return _build(graph, settings)


def volume_graph(source: VolumeSource, targets: TargetRule, settings: GraphSettings) -> Pipeline:
    """Whole volumes one by one, shapes differing: image, entry, weights, the mask at full resolution."""
    finest = replace(targets, shapes=targets.shapes[:1])
    ports = [
        Port(kind=IMAGE_TYPES[source.entries[0].image_type], axes="CDHW"),
        Port(kind=DALIDataType.INT64),
        Port(kind=DALIDataType.FLOAT),
        Port(kind=DALIDataType.INT16, axes="CDHW"),
    ]

    @pipeline_def
    def graph():  # noqa: ANN202
        image, entry, weights, label = _fed(source, ports)
        image = fn.cast(_on_device(image, settings), dtype=DALIDataType.FLOAT)
        image, labels = targets_in_graph(image, _on_device(label, settings), finest)
        return _arranged(image, settings), entry, weights, labels[0]

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
