"""What leaves the pipelines, beside what went in."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from data_loading.graphs import GENERATED_SOURCE, GraphSettings, training_graph, volume_graph
from data_loading.patches import SamplingRule
from data_loading.recipes import build_recipe
from data_loading.sources import SourceSettings, VolumeSource, WindowSource
from data_loading.targets import TargetRule
from utils.contracts import Shape
from utils.storage import read_array

SETTINGS = GraphSettings(batch_size=2, num_threads=1, device_id=None, prefetch=1)
EVERYTHING = build_recipe(["noise:probability=0.5", "brightness:probability=0.5", "mirror"])


def rule_for(patch: Shape, **changed: Any) -> SamplingRule:
    given = {"batch_size": 2, "world_size": 1, "steps_per_epoch": 10, "foreground_share": 0.5, "seed": 1}
    return SamplingRule(patch=patch, **(given | changed))


def arrays(outputs: Any) -> list[np.ndarray]:
    return [np.array(output.as_tensor()) for output in outputs]


def source_of(prepared, recipe=(), shapes=None, *, on_host: bool = False) -> WindowSource:
    patch = prepared.plan.patch
    targets = TargetRule(shapes=tuple(shapes or [patch]))
    return WindowSource(prepared.entries, rule_for(patch), recipe, targets, SourceSettings(on_host=on_host))


@pytest.fixture(params=["graph", "host"])
def run_graph(request: pytest.FixtureRequest) -> Callable[..., list[list[np.ndarray]]]:
    """Runs the training graph of a folder for some steps."""

    def run(prepared, recipe=(), shapes=None, *, steps: int = 4) -> list[list[np.ndarray]]:
        pipeline = training_graph(
            source_of(prepared, recipe, shapes, on_host=request.param == "host"), SETTINGS
        )
        return [arrays(pipeline.run()) for _ in range(steps)]

    return run


def source_batch(prepared, iteration: int, recipe=()) -> list[np.ndarray]:
    """The same batch straight from the source: image, entry, weights, label."""
    source = source_of(prepared, recipe)
    positions: list[Any] = [SimpleNamespace(iteration=iteration, idx_in_batch=place) for place in range(2)]
    samples = [source(position) for position in positions]
    return [np.stack(column) for column in zip(*samples, strict=True)][:4]


def test_without_augmentation_the_window_passes_bit_by_bit(prepared, run_graph) -> None:
    for step, (image, entry, weight, label) in enumerate(run_graph(prepared)):
        voxels, entries, weights, drawn = source_batch(prepared, step)
        np.testing.assert_array_equal(image, voxels)
        np.testing.assert_array_equal(label, np.maximum(drawn, 0))
        np.testing.assert_array_equal(entry, entries)
        np.testing.assert_array_equal(weight, weights)


def test_types_are_those_of_the_record(prepared, run_graph) -> None:
    image, entry, weight, label = run_graph(prepared, EVERYTHING, steps=1)[0]
    assert [array.dtype.name for array in (image, entry, weight, label)] == [
        "float32",
        "int64",
        "float32",
        "int16",
    ]


def test_half_precision_files_give_the_same_numbers_in_single_precision(prepare_folder, run_graph) -> None:
    prepared = prepare_folder([(5, 7, 6)], dtype="float16")
    image = run_graph(prepared, steps=1)[0][0]
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, source_batch(prepared, 0)[0].astype(np.float32))


@pytest.mark.parametrize("shape", [(2, 3, 3), (4, 3, 2), (1, 2, 1), (3, 5, 4)])
def test_coarse_labels_are_nearest_neighbours_of_the_fine_one(prepared, run_graph, shape: Shape) -> None:
    for batch in run_graph(prepared, EVERYTHING, [prepared.plan.patch, shape]):
        fine, coarse = batch[3], batch[4]
        expected = interpolate(torch.from_numpy(fine).float(), size=shape, mode="nearest-exact")
        assert coarse.shape == (2, 1, *shape)
        np.testing.assert_array_equal(coarse, expected.numpy())


@pytest.mark.parametrize("recipe", [(), EVERYTHING], ids=["plain", "augmented"])
def test_patches_of_one_slice_work(prepare_folder, run_graph, recipe) -> None:
    prepared = prepare_folder([(3, 9, 8), (1, 7, 9)], patch=(1, 6, 5))
    for image, _, _, label, coarse in run_graph(prepared, recipe, [(1, 6, 5), (1, 3, 2)]):
        assert (image.shape, label.shape) == ((2, 1, 1, 6, 5), (2, 1, 1, 6, 5))
        expected = interpolate(torch.from_numpy(label).float(), size=(1, 3, 2), mode="nearest-exact")
        np.testing.assert_array_equal(coarse, expected.numpy())


def test_several_channels_are_cut_alike(prepare_folder, run_graph) -> None:
    prepared = prepare_folder([(7, 9, 8)], num_channels=3)
    for image, *_ in run_graph(prepared, build_recipe(["mirror"])):
        step = 7 * 9 * 8
        np.testing.assert_array_equal(image[:, 1] - image[:, 0], np.full((2, 4, 6, 5), step))
        np.testing.assert_array_equal(image[:, 2] - image[:, 0], np.full((2, 4, 6, 5), 2 * step))


def test_whole_volumes_come_one_by_one_in_their_own_shapes(prepared) -> None:
    settings = GraphSettings(batch_size=1, num_threads=1, device_id=None, prefetch=1)
    targets = TargetRule(shapes=(prepared.plan.patch,))
    pipeline = volume_graph(VolumeSource(prepared.entries, rank=0, world_size=1), targets, settings)
    for place, case in enumerate(prepared.cases):
        image, entry, weights, label = arrays(pipeline.run())
        assert weights.tolist() == [[1.0, 1.0]]
        assert entry.item() == place
        np.testing.assert_array_equal(image[0], read_array(case.image))
        np.testing.assert_array_equal(label[0], np.maximum(read_array(case.label), 0))


def test_no_generated_source_stays_in_the_temporary_folder(prepared, run_graph) -> None:
    run_graph(prepared, EVERYTHING, steps=1)
    modules = [module for name, module in sys.modules.items() if name.startswith(GENERATED_SOURCE)]
    assert modules
    assert not any(Path(module.__file__ or "").exists() for module in modules)
