"""The sources that DALI calls: what they return depends on the position of the sample alone."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, final

import numpy as np

from data_loading import readers
from data_loading.augmentations.base import Augmentation, DrawContext
from data_loading.patches import SamplingRule
from data_loading.readers import OpenVolumes, VolumeSource, WindowSource
from utils.contracts import Shape
from utils.storage import read_array

RULE = SamplingRule(
    patch=(4, 6, 5), batch_size=2, world_size=1, steps_per_epoch=10, foreground_share=0.5, seed=1
)


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
    source = WindowSource(prepared.entries, RULE, (), rank=0)
    for iteration in range(20):
        for image, label, entry, weight in batch_of(source, iteration):
            case = prepared.cases[int(entry[0])]
            stored, drawn = read_array(case.image), read_array(case.label)
            inside = image > 0  # every stored voxel is positive and unique
            corner = np.argwhere(stored == image[inside].min())[0, 1:]
            extent = np.ptp(np.argwhere(inside), axis=0)[1:] + 1
            d, h, w = (slice(o, o + n) for o, n in zip(corner, extent, strict=True))
            np.testing.assert_array_equal(image[inside], stored[:, d, h, w].ravel())
            np.testing.assert_array_equal(label[inside], drawn[:, d, h, w].ravel())
            assert (label[~inside] == -1).all()
            assert weight == 1.0


def test_the_answer_does_not_depend_on_what_was_asked_before(prepared) -> None:
    forward, backward = (WindowSource(prepared.entries, RULE, (Wide(),), rank=0) for _ in range(2))
    steps = range(12)
    one = [batch_of(forward, step) for step in steps]
    other = [batch_of(backward, step) for step in reversed(steps)][::-1]
    assert all(are_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_source_that_starts_later_continues_the_same_stream(prepared) -> None:
    whole = WindowSource(prepared.entries, RULE, (), rank=0)
    late = WindowSource(prepared.entries, RULE, (), rank=0, first_step=7)
    assert are_equal(batch_of(whole, 9), batch_of(late, 2))


def test_a_part_that_needs_more_gets_the_block_around_the_same_patch(prepare_folder) -> None:
    prepared = prepare_folder([(9, 20, 9)])
    wide, narrow = (WindowSource(prepared.entries, RULE, recipe, rank=0) for recipe in ((Wide(),), ()))
    for iteration in range(20):
        for outer, inner in zip(batch_of(wide, iteration), batch_of(narrow, iteration), strict=True):
            assert outer[0].shape == (1, 4, 10, 5)
            np.testing.assert_array_equal(outer[0][:, :, 2:-2], inner[0])
            np.testing.assert_array_equal(outer[1][:, :, 2:-2], inner[1])


def test_few_files_are_open_at_a_time_and_none_is_mistaken(prepared) -> None:
    volumes = OpenVolumes(prepared.entries, limit=2)
    for place in (0, 1, 2, 0, 3, 4, 4, 1):
        image, label = volumes[place]
        np.testing.assert_array_equal(image, read_array(prepared.cases[place].image))
        np.testing.assert_array_equal(label, read_array(prepared.cases[place].label))
        assert len(volumes) <= 2


def test_a_case_in_use_is_not_opened_again(prepared, monkeypatch) -> None:
    opened = []
    honest = readers._map_volumes
    monkeypatch.setattr(readers, "_map_volumes", lambda entry: opened.append(entry) or honest(entry))
    volumes = OpenVolumes(prepared.entries, limit=2)
    for place in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which was used longest ago
        volumes[place]
    assert [entry.case.case_id for entry in opened] == ["case_00", "case_01", "case_02", "case_01"]


def test_the_ranks_share_the_volumes_without_overlap(prepared) -> None:
    for world_size in (1, 2, 3, 5):
        sources = [VolumeSource(prepared.entries, rank=r, world_size=world_size) for r in range(world_size)]
        assert sorted(place for source in sources for place in source.places) == [0, 1, 2, 3, 4]


def test_a_rank_beyond_the_cases_repeats_one_so_that_no_rank_waits_for_it(prepared) -> None:
    assert VolumeSource(prepared.entries, rank=6, world_size=7).places == (1,)


def test_a_volume_comes_as_stored_and_the_list_starts_again(prepared) -> None:
    source = VolumeSource(prepared.entries, rank=1, world_size=2)
    assert [int(source(sample(step))[2][0]) for step in range(4)] == [1, 3, 1, 3]
    image, label, _ = source(sample(0))
    np.testing.assert_array_equal(image, read_array(prepared.cases[1].image))
    np.testing.assert_array_equal(label, read_array(prepared.cases[1].label))
