"""What every augmentation must do, run on each entry of the registry, in the graph and on the host."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.base import Augmentation, DrawContext
from tests.data_loading.augmentation_tools import (
    Arrays,
    always,
    draws,
    in_graph,
    on_host,
    phantom,
    random_block,
)
from utils.contracts import Plan
from utils.errors import UserError

SOLID = DrawContext(patch=(10, 12, 11), num_channels=2)
SLAB = DrawContext(patch=(3, 16, 14), num_channels=2)
SLICE = DrawContext(patch=(1, 16, 14), num_channels=2)
GENERATES = {"noise"}  # graph and host agree in distribution only
Runner = Callable[[Augmentation, list[np.ndarray], Arrays], Arrays]


@pytest.fixture(params=[*(spec.name for spec in AUGMENTATIONS), "mirror:pairs=1+2"])
def part(request: pytest.FixtureRequest, make_plan: Callable[..., Plan]) -> Augmentation:
    plan = make_plan(num_labels=3, num_channels=2, uses_mask=(True, False))
    return always(AUGMENTATIONS.build(request.param)).for_plan(plan)


@pytest.fixture(params=[SOLID, SLAB, SLICE], ids=["solid", "slab", "slice"])
def context(request: pytest.FixtureRequest) -> DrawContext:
    return request.param


@pytest.fixture(params=["graph", "host"])
def run(request: pytest.FixtureRequest, part: Augmentation) -> Runner:
    if request.param == "host" and not part.has_twin:
        pytest.skip(f"{part.name} has no twin on the host")
    return {"graph": in_graph, "host": on_host}[request.param]


def active_draws(part: Augmentation, number: int, context: DrawContext, seed: int = 0) -> list[np.ndarray]:
    """The first draws in which something happens."""
    every = draws(part, 20 * number, context, seed)
    return list(every[every[:, 0] > 0][:number])


def blocks(part: Augmentation, drawn: list[np.ndarray], context: DrawContext) -> Arrays:
    """One smooth random block per draw, as large as the part asks for."""
    made = [
        random_block(part.source_shape(values, context.patch), context.num_channels, seed)
        for seed, values in enumerate(drawn)
    ]
    return [image for image, _ in made], [label for _, label in made]


# --- numbers drawn -----------------------------------------------------------------------------------------


def test_draws_are_finite_float32_vectors_of_one_length(part: Augmentation, context: DrawContext) -> None:
    random = np.random.default_rng(0)
    every = [part.draw(random, context) for _ in range(50)]
    assert {values.dtype for values in every} == {np.dtype(np.float32)}
    assert {values.shape for values in every} == {every[0].shape}
    assert every[0].ndim == 1
    assert np.isfinite(every).all()


def test_the_same_seed_draws_the_same(part: Augmentation, context: DrawContext) -> None:
    part = AUGMENTATIONS.build(part.name)  # a mirror that always flips draws alike
    np.testing.assert_array_equal(draws(part, 50, context, seed=3), draws(part, 50, context, seed=3))
    if part.draw(np.random.default_rng(0), context).size > 1:
        assert not np.array_equal(draws(part, 50, context, seed=3), draws(part, 50, context, seed=4))


def test_what_is_consumed_does_not_depend_on_what_is_drawn(part: Augmentation, context: DrawContext) -> None:
    """One part's choice must not move the draws of those behind it."""
    generators = [np.random.Generator(np.random.Philox(key=[1, seed])) for seed in range(40)]
    for place, random in enumerate(generators):
        part.draw(random, replace(context, place=place))
    assert len({str(random.bit_generator.state["state"]["counter"]) for random in generators}) == 1
    assert len({random.bit_generator.state["buffer_pos"] for random in generators}) == 1


def test_slices_of_a_run_share_their_draws(part: Augmentation) -> None:
    """Noise apart, whose generator starts from another state for each."""
    first, later = draws(part, 20, SLICE), draws(part, 20, replace(SLICE, place=5))
    shared = 2 if part.name in GENERATES else None
    np.testing.assert_array_equal(first[:, :shared], later[:, :shared])


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_a_probability_outside_0_to_1_is_refused_by_name(part: Augmentation, value: float) -> None:
    for option in (field.name for field in fields(part) if field.name.endswith("probability")):
        with pytest.raises(UserError, match=rf"^{part.name}: {option} .* 0\.\.1, got {value}"):
            AUGMENTATIONS.build(f"{part.name}:{option}={value}")
        for edge in (0, 1):
            AUGMENTATIONS.build(f"{part.name}:{option}={edge}")


def test_blocks_share_their_centre_with_the_patch(part: Augmentation, context: DrawContext) -> None:
    for values in draws(part, 50, context):
        extra = np.array(part.source_shape(values, context.patch)) - context.patch
        assert (extra >= 0).all()
        assert (extra % 2 == 0).all()


# --- voxels changed ----------------------------------------------------------------------------------------


def test_a_neutral_draw_is_the_identity(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = [values * 0 if values.size == 1 else values for values in active_draws(part, 2, context)]
    for values in drawn:
        values[0] = 0
    inputs = blocks(part, drawn, context)
    images, labels = run(part, drawn, inputs)
    for place in range(2):
        np.testing.assert_array_equal(images[place], inputs[0][place])
        np.testing.assert_array_equal(labels[place], inputs[1][place])


def test_only_the_samples_that_drew_it_change(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = active_draws(part, 4, context)
    drawn[0][0] = drawn[2][0] = 0
    inputs = blocks(part, drawn, context)
    images, _ = run(part, drawn, inputs)
    changed = [not np.array_equal(images[i], inputs[0][i]) for i in range(4)]
    assert changed == [False, True, False, True]


def test_the_patch_keeps_shape_and_types(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = active_draws(part, 3, context)
    images, labels = run(part, drawn, blocks(part, drawn, context))
    assert {image.shape for image in images} == {(context.num_channels, *context.patch)}
    assert {label.shape for label in labels} == {(1, *context.patch)}
    assert {image.dtype for image in images} == {np.dtype(np.float32)}
    assert {label.dtype for label in labels} == {np.dtype(np.int16)}


def test_no_label_value_is_invented(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = active_draws(part, 8, context)
    _, labels = run(part, drawn, blocks(part, drawn, context))
    assert all(set(np.unique(label)) <= {-1, 0, 1, 2} for label in labels)


def test_several_label_maps_move_alike(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = active_draws(part, 3, context)
    images, labels = blocks(part, drawn, context)
    pairs = [np.concatenate([label, label]) for label in labels]
    _, moved = run(part, drawn, (images, pairs))
    for label in moved:
        assert label.shape == (2, *context.patch)
        np.testing.assert_array_equal(label[0], label[1])


def test_image_and_label_move_together(part: Augmentation, run: Runner) -> None:
    """The brightest label is where the image is brightest, before and after, to a rim of voxels."""
    if getattr(part, "pairs", ()):
        part = replace(part, pairs=())  # they change labels, on purpose, where the image keeps its value
    context = DrawContext(patch=(18, 24, 20), num_channels=1)
    drawn = active_draws(part, 8, context)
    made = [phantom(part.source_shape(values, context.patch), 1, place) for place, values in enumerate(drawn)]
    images, labels = run(part, drawn, ([image for image, _ in made], [label for _, label in made]))
    checked = 0
    for (_, before), image, label in zip(made, images, labels, strict=True):
        if not (label == 2).any() or not (label == 0).any():
            continue  # turned or zoomed out of sight
        checked += 1
        middle = 0.5 * (image[0][label[0] == 2].mean() + image[0][label[0] == 0].mean())
        brightest = (image[0] > middle) & (label[0] != 1)
        assert (brightest == (label[0] == 2)).mean() > 0.97
        assert (np.flip(before[0], axis=0) == before[0]).mean() < 0.9  # the phantom can tell
    assert checked >= 7


def test_the_same_draws_give_the_same_voxels(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = active_draws(part, 4, context)
    inputs = blocks(part, drawn, context)
    first, again = run(part, drawn, inputs), run(part, drawn, inputs)
    for one, other in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_graph_and_host_agree(part: Augmentation, context: DrawContext) -> None:
    if not part.has_twin:
        pytest.skip(f"{part.name} has no twin on the host")
    drawn = active_draws(part, 8, context)
    inputs = blocks(part, drawn, context)
    graph, host = in_graph(part, drawn, inputs), on_host(part, drawn, inputs)
    for place in range(8):
        np.testing.assert_array_equal(host[1][place], graph[1][place])
        if part.name not in GENERATES:
            np.testing.assert_allclose(host[0][place], graph[0][place], rtol=1e-4, atol=2e-4)


def test_constant_and_huge_images_stay_finite(part: Augmentation, run: Runner, context: DrawContext) -> None:
    drawn = active_draws(part, 4, context)
    images, labels = blocks(part, drawn, context)
    for place, value in enumerate((0.0, -3.0, 60000.0)):
        images[place][:] = value
    results, _ = run(part, drawn, (images, labels))
    assert all(np.isfinite(image).all() for image in results)
