"""What leaves a pipeline beside the image, on the host and in the graph, against torch and plain loops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.types import DALIDataType
from torch.nn.functional import interpolate

from data_loading.targets import TargetRule, target_rule, targets_in_graph, targets_on_host
from utils.contracts import Plan, Shape

Run = Callable[[np.ndarray, np.ndarray, TargetRule], tuple[np.ndarray, list[np.ndarray]]]
NUM_LABELS, IGNORE = 4, 4
REGIONS = ((1, 2, 3), (3, 1), (2,))


@dataclass(frozen=True)
class Layout:
    """A patch and the shapes of the coarse outputs."""

    patch: Shape
    coarse: tuple[Shape, ...] = ()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (self.patch, *self.coarse)


LAYOUTS = {
    "solid": Layout((8, 12, 10), ((4, 6, 5), (2, 3, 5))),
    "slab": Layout((3, 8, 8), ((3, 4, 4),)),
    "slice": Layout((1, 9, 6), ((1, 5, 3),)),
    "odd": Layout((5, 7, 9), ((3, 4, 5), (2, 2, 3))),
    "one output": Layout((4, 6, 5)),
}
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ignore": {"ignore_label": IGNORE},
    "regions": {"regions": REGIONS},
    "one region": {"regions": ((2, 3),)},
    "background region": {"regions": ((0, 2), (1,))},
    "regions and ignore": {"regions": REGIONS, "ignore_label": IGNORE},
    "prior": {"prior_labels": 3},
    "everything": {"regions": REGIONS, "ignore_label": IGNORE, "prior_labels": 2},
}


def in_graph(image: np.ndarray, label: np.ndarray, rule: TargetRule) -> tuple[np.ndarray, list[np.ndarray]]:
    @pipeline_def(enable_conditionals=True)
    def graph():  # noqa: ANN202
        first, second = fn.external_source(
            source=lambda: ([image], [label]),
            num_outputs=2,
            dtype=[DALIDataType.FLOAT, DALIDataType.INT16],
            ndim=[4, 4],
            layout=["CDHW", "CDHW"],
        )
        changed, targets = targets_in_graph(first, second, rule)
        return (changed, *targets)

    built: Any = graph
    pipeline = built(batch_size=1, num_threads=1, device_id=None, seed=0, prefetch_queue_depth=1)
    pipeline.build()
    outputs = pipeline.run()
    assert {output.layout() for output in outputs} == {"CDHW"}
    changed, *targets = (np.array(output.at(0)) for output in outputs)
    return changed, targets


@pytest.fixture(params=[in_graph, targets_on_host], ids=["graph", "host"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def inputs(patch: Shape, rule: TargetRule, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two channels of noise, and label maps in which every value occurs, from -1 to the ignore label."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(2, *patch)).astype(np.float32)
    highest = NUM_LABELS - 1 if rule.ignore_label is None else IGNORE
    maps = [random.integers(-1, highest + 1, patch)]
    if rule.prior_labels:
        maps.append(random.integers(-1, rule.prior_labels + 1, patch))
    return image, np.stack(maps).astype(np.int16)


def naive_channels(label: np.ndarray, rule: TargetRule) -> np.ndarray:
    """Voxel by voxel: is its label, background outside the non-zero mask, in the region?"""
    groups = [*rule.regions, *([(rule.ignore_label,)] if rule.ignore_label is not None else [])]
    marked = np.zeros((len(groups), *label.shape), np.uint8)
    for place, group in enumerate(groups):
        for voxel, value in np.ndenumerate(label):
            marked[(place, *voxel)] = (0 if value == -1 else value) in group
    return marked


def nearest_exact(target: np.ndarray, shape: Shape) -> np.ndarray:
    values = torch.from_numpy(target.astype(np.float32))[None]
    return interpolate(values, size=shape, mode="nearest-exact")[0].numpy()


def assert_coarse_ones_follow(targets: Sequence[np.ndarray], shapes: Sequence[Shape]) -> None:
    assert len(targets) == len(shapes)
    for target, shape in zip(targets, shapes, strict=True):
        assert target.shape[1:] == shape
        assert target.dtype == targets[0].dtype
        np.testing.assert_array_equal(target, nearest_exact(targets[0], shape))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("ignore", [None, IGNORE])
def test_a_plain_target_is_the_mask_with_background_outside(
    run: Run, layout: Layout, ignore: int | None
) -> None:
    rule = TargetRule(shapes=layout.shapes, ignore_label=ignore)
    image, label = inputs(layout.patch, rule)
    changed, targets = run(image, label, rule)
    np.testing.assert_array_equal(changed, image)
    assert targets[0].dtype == np.int16
    np.testing.assert_array_equal(targets[0], np.where(label == -1, 0, label))
    assert (ignore in targets[0]) == (ignore is not None)
    assert_coarse_ones_follow(targets, layout.shapes)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["regions", "one region", "background region", "regions and ignore"])
def test_regions_are_binary_channels(run: Run, layout: Layout, name: str) -> None:
    rule = TargetRule(shapes=layout.shapes, **RULES[name])
    image, label = inputs(layout.patch, rule)
    changed, targets = run(image, label, rule)
    np.testing.assert_array_equal(changed, image)
    assert targets[0].dtype == np.uint8
    np.testing.assert_array_equal(targets[0], naive_channels(label[0], rule))
    assert_coarse_ones_follow(targets, layout.shapes)


def test_the_last_channel_marks_the_ignored_voxels(run: Run) -> None:
    rule = TargetRule(shapes=((1, 1, 4),), regions=((1, 2), (2,)), ignore_label=3)
    label = np.array([-1, 1, 2, 3], np.int16).reshape(1, 1, 1, 4)
    _, targets = run(np.zeros((1, 1, 1, 4), np.float32), label, rule)
    assert targets[0][:, 0, 0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("prior_labels", [1, 3])
def test_the_previous_stage_becomes_channels_behind_the_image(
    run: Run, layout: Layout, prior_labels: int
) -> None:
    rule = TargetRule(shapes=layout.shapes, prior_labels=prior_labels)
    image, label = inputs(layout.patch, rule)
    changed, targets = run(image, label, rule)
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(changed[:2], image)
    # One more than the labels, so that -1 (outside the volume) and 0 find a place, and are cut off.
    one_hot = np.eye(prior_labels + 1)[np.maximum(label[1], 0)]
    np.testing.assert_array_equal(changed[2:], np.moveaxis(one_hot, -1, 0)[1:])
    np.testing.assert_array_equal(targets[0], np.maximum(label[:1], 0))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", RULES)
def test_graph_and_host_agree(layout: Layout, name: str) -> None:
    rule = TargetRule(shapes=layout.shapes, **RULES[name])
    image, label = inputs(layout.patch, rule, seed=5)
    in_one, ones = in_graph(image, label, rule)
    in_other, others = targets_on_host(image, label, rule)
    np.testing.assert_array_equal(in_one, in_other)
    for one, other in zip(ones, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_the_rule_is_that_of_the_plan(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(regions=((1, 2), (2,)), ignore_label=3, prior_labels=2)
    assert target_rule(plan, [(4, 4, 4)]) == TargetRule(
        shapes=((4, 4, 4),), regions=((1, 2), (2,)), ignore_label=3, prior_labels=2
    )
