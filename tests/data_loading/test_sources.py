"""The sources that DALI calls: what they return depends on the position of the sample alone."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, final

import numpy as np
import pytest

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.base import Augmentation, DrawContext
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.graphs import GraphSettings, training_graph
from data_loading.patches import SamplingRule
from data_loading.recipes import build_recipe
from data_loading.sources import SourceSettings, VolumeSource, WindowSource
from data_loading.targets import TargetRule
from utils.contracts import Shape
from utils.errors import DatasetError
from utils.storage import read_array

RULE = SamplingRule(
    patch=(4, 6, 5), batch_size=2, world_size=1, steps_per_epoch=10, foreground_share=0.5, seed=1
)
TARGETS = TargetRule(shapes=((4, 6, 5),))


def make_source(prepared, recipe=(), *, rank: int = 0, **settings: Any) -> WindowSource:
    return WindowSource(prepared.entries, RULE, recipe, TARGETS, SourceSettings(rank=rank, **settings))


def sample(iteration: int, place: int = 0) -> Any:
    return SimpleNamespace(iteration=iteration, idx_in_batch=place)


def batch_of(source: WindowSource, iteration: int) -> list[tuple[np.ndarray, ...]]:
    return [source(sample(iteration, place)) for place in range(source.rule.batch_size)]


def are_equal(one: list[tuple[np.ndarray, ...]], other: list[tuple[np.ndarray, ...]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


@final
@dataclass(frozen=True)
class Wide(Augmentation):
    """Needs two voxels more on each side of the second axis."""

    name: ClassVar[str] = "wide"

    def draw(self, random: np.random.Generator, context: DrawContext) -> np.ndarray:  # noqa: ARG002
        return np.array([random.random()], np.float32)

    def apply(self, image: Any, label: Any, drawn: Any) -> tuple[Any, Any]:  # noqa: ARG002
        return image, label

    def source_shape(self, drawn: np.ndarray, patch: Shape) -> Shape:  # noqa: ARG002
        return patch[0], patch[1] + 4, patch[2]


def test_image_and_label_are_the_stored_voxels_of_one_window(prepared) -> None:
    source = make_source(prepared)
    for iteration in range(20):
        for image, entry, weights, label in batch_of(source, iteration):
            case = prepared.cases[int(entry[0])]
            stored, drawn = read_array(case.image), read_array(case.label)
            inside = image > 0  # every stored voxel is positive and unique
            corner = np.argwhere(stored == image[inside].min())[0, 1:]
            extent = np.ptp(np.argwhere(inside), axis=0)[1:] + 1
            d, h, w = (slice(o, o + n) for o, n in zip(corner, extent, strict=True))
            np.testing.assert_array_equal(image[inside], stored[:, d, h, w].ravel())
            np.testing.assert_array_equal(label[inside], drawn[:, d, h, w].ravel())
            assert (label[~inside] == -1).all()
            assert weights.tolist() == [1.0, 1.0]


def test_the_answer_does_not_depend_on_what_was_asked_before(prepared) -> None:
    forward, backward = (make_source(prepared, (Wide(),)) for _ in range(2))
    steps = range(12)
    one = [batch_of(forward, step) for step in steps]
    other = [batch_of(backward, step) for step in reversed(steps)][::-1]
    assert all(are_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_source_that_starts_later_continues_the_same_stream(prepared) -> None:
    whole = make_source(prepared)
    late = make_source(prepared, first_step=7)
    assert are_equal(batch_of(whole, 9), batch_of(late, 2))


def test_a_part_that_needs_more_gets_the_block_around_the_same_patch(prepare_folder) -> None:
    prepared = prepare_folder([(9, 20, 9)])
    wide, narrow = (make_source(prepared, recipe) for recipe in ((Wide(),), ()))
    for iteration in range(20):
        for outer, inner in zip(batch_of(wide, iteration), batch_of(narrow, iteration), strict=True):
            assert outer[0].shape == (1, 4, 10, 5)
            np.testing.assert_array_equal(outer[0][:, :, 2:-2], inner[0])
            np.testing.assert_array_equal(outer[3][:, :, 2:-2], inner[3])


def test_threads_that_work_ahead_change_no_sample(prepared) -> None:
    alone = make_source(prepared, (Wide(),))
    threaded = make_source(prepared, (Wide(),), threads=3, ahead=5)
    for step in range(10):
        assert are_equal(batch_of(alone, step), batch_of(threaded, step))
    threaded.close()


def test_what_fails_on_a_thread_is_raised_where_the_sample_is_taken(prepare_folder) -> None:
    prepared = prepare_folder([(5, 7, 6)])
    source = make_source(prepared, threads=1, ahead=0)
    prepared.cases[0].image.unlink()
    with pytest.raises(DatasetError, match="case_00_x.npy"):
        source(sample(0))
    with pytest.raises(DatasetError, match="case_00_x.npy"):
        source(sample(0, 1))  # DALI may ask for the next before it is stopped
    source.close()


def test_a_case_without_a_mask_counts_in_no_segmentation_loss(prepared) -> None:
    maskless = [replace(entry, case=replace(entry.case, label=None)) for entry in prepared.entries]
    source = make_source(SimpleNamespace(entries=maskless))
    for image, _, weights, label in batch_of(source, 0):
        assert weights.tolist() == [1.0, 0.0]
        np.testing.assert_array_equal(label == 0, image > 0)  # background in the volume, outside beyond


@pytest.mark.parametrize("on_host", [False, True], ids=["graph", "host"])
def test_the_image_of_a_case_without_a_mask_is_not_zeroed(prepared, on_host) -> None:
    maskless = [replace(entry, case=replace(entry.case, label=None)) for entry in prepared.entries]
    recipe = build_recipe(["nnunet", "zero_outside:channels=0", "rotate_scale:rotation_probability=1"])
    recipe = tuple(replace(p, largest_label=2) if isinstance(p, RotateScale) else p for p in recipe)
    source = make_source(SimpleNamespace(entries=maskless), recipe, on_host=on_host)
    pipeline = training_graph(source, GraphSettings(batch_size=2, num_threads=1, device_id=None, prefetch=1))
    for _ in range(4):
        image = np.array(pipeline.run()[0].as_tensor())
        assert (image != 0).reshape(2, -1).any(axis=1).all()


def test_twins_run_on_the_host_up_to_the_first_part_without_one(prepared) -> None:
    mirror = AUGMENTATIONS.build("mirror")
    recipe = (mirror, Wide(), mirror)
    source = make_source(prepared, recipe, on_host=True)
    assert source.num_on_host == 1
    assert source.in_graph == recipe[1:]
    assert not source.is_finished
    assert make_source(prepared, (mirror, mirror), on_host=True).is_finished
    assert make_source(prepared, (mirror, mirror)).num_on_host == 0


def test_the_ranks_share_the_volumes_without_overlap(prepared) -> None:
    for world_size in (1, 2, 3, 5):
        sources = [VolumeSource(prepared.entries, rank=r, world_size=world_size) for r in range(world_size)]
        assert sorted(place for source in sources for place in source.places) == [0, 1, 2, 3, 4]


def test_a_rank_beyond_the_cases_repeats_one_so_that_no_rank_waits_for_it(prepared) -> None:
    assert VolumeSource(prepared.entries, rank=6, world_size=7).places == (1,)


def test_a_volume_comes_as_stored_and_the_list_starts_again(prepared) -> None:
    source = VolumeSource(prepared.entries, rank=1, world_size=2)
    assert [int(source(sample(step))[1][0]) for step in range(4)] == [1, 3, 1, 3]
    image, _, weights, label = source(sample(0))
    assert weights.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(image, read_array(prepared.cases[1].image))
    np.testing.assert_array_equal(label, read_array(prepared.cases[1].label))
