"""The loaders' promises: epochs, ranks, seeds and an exact resume."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_loading import loader as loader_module
from data_loading.data_module import DataModule
from data_loading.loader import Shard, TrainingLoader, VolumeLoader
from data_loading.patches import SamplingRule
from data_loading.recipes import build_recipe
from data_loading.targets import TargetRule
from utils.contracts import Batch, Shape
from utils.errors import DatasetError
from utils.storage import read_array

AUGMENTED = build_recipe(["rotate_scale:nearest=true", "noise:probability=0.5", "brightness", "mirror"])
WHOLE = TargetRule(shapes=((4, 6, 5),))
ON_HOST = False  # set by the fixture `place`
SIZES = [(5, 7, 6), (4, 6, 5), (3, 9, 8)]


@pytest.fixture(scope="module")
def thirteen(prepare_folder):
    """Thirteen small cases: a number that no batch and no world divides."""
    return prepare_folder([SIZES[place % 3] for place in range(13)])


@pytest.fixture(params=[False, True], ids=["graph", "host"], autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds wherever the augmentations run."""
    monkeypatch.setattr(sys.modules[__name__], "ON_HOST", request.param)


def make_loader(prepared, *, rank: int = 0, recipe=AUGMENTED, shapes=None, **changed: Any) -> TrainingLoader:
    patch: Shape = prepared.plan.patch
    given = {"batch_size": 2, "world_size": 1, "steps_per_epoch": 4, "foreground_share": 0.5, "seed": 7}
    rule = SamplingRule(patch=patch, **(given | changed))
    shard = Shard(rank=rank, world_size=rule.world_size, num_threads=1, on_host=ON_HOST)
    return TrainingLoader(prepared.entries, rule, recipe, TargetRule(shapes=tuple(shapes or [patch])), shard)


def take(loader: TrainingLoader, number: int) -> list[Batch]:
    """The next batches, across the ends of epochs."""
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return list(itertools.islice(epochs, number))


def are_equal(one: Batch, other: Batch) -> bool:
    return one.case_ids == other.case_ids and all(
        torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True)
    )


def tensors(batch: Batch) -> list[Tensor]:
    assert batch.class_target is not None
    assert batch.case_weights is not None
    return [batch.image, *batch.label, batch.class_target, batch.case_weights]


def all_equal(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return all(are_equal(a, b) for a, b in zip(one, other, strict=True))


# --- what a batch holds ------------------------------------------------------------------------------------


def test_a_batch_is_the_record_that_training_reads(prepared) -> None:
    batch = take(make_loader(prepared, shapes=[(4, 6, 5), (2, 3, 3)]), 1)[0]
    assert (batch.image.shape, batch.image.dtype) == ((2, 1, 4, 6, 5), torch.float32)
    assert [tuple(label.shape) for label in batch.label] == [(2, 1, 4, 6, 5), (2, 1, 2, 3, 3)]
    assert batch.class_target is not None
    assert batch.case_weights is not None
    assert (batch.class_target.shape, batch.class_target.dtype) == ((2,), torch.int64)
    assert batch.case_weights.tolist() == [1.0, 1.0]


def test_image_label_class_and_name_belong_to_one_case(prepared) -> None:
    targets = {case.case_id: case.class_target for case in prepared.cases}
    assert -1 in targets.values()  # one case has no class
    for batch in take(make_loader(prepared, recipe=()), 12):
        assert batch.class_target is not None
        assert batch.class_target.tolist() == [targets[name] for name in batch.case_ids]
        for image, label, name in zip(batch.image, batch.label[0], batch.case_ids, strict=True):
            case = next(case for case in prepared.cases if case.case_id == name)
            stored, drawn = read_array(case.image).ravel(), read_array(case.label).ravel()
            inside = image.flatten() > 0
            places = np.searchsorted(stored, image.flatten()[inside].numpy())  # voxels count upwards
            np.testing.assert_array_equal(stored[places], image.flatten()[inside])
            np.testing.assert_array_equal(np.maximum(drawn[places], 0), label.flatten()[inside])
            assert (label.flatten()[~inside] == 0).all()


def test_a_patch_larger_than_the_volume_holds_all_of_it(prepare_folder) -> None:
    prepared = prepare_folder([(2, 4, 3)])
    image = take(make_loader(prepared, recipe=()), 1)[0].image[0, 0]
    np.testing.assert_array_equal(image[1:3, 1:5, 1:4], read_array(prepared.cases[0].image)[0])
    assert int((image != 0).sum()) == 2 * 4 * 3


@pytest.mark.parametrize(("batch_size", "forced"), [(2, 1), (3, 1), (9, 3)])
def test_the_last_samples_of_every_batch_show_foreground(
    prepare_folder, batch_size: int, forced: int
) -> None:
    prepared = prepare_folder([(30, 30, 30), (25, 31, 28)])
    loader = make_loader(
        prepared, recipe=build_recipe(["mirror"]), batch_size=batch_size, foreground_share=0.33
    )
    shown = torch.stack([(batch.label[0] > 0).flatten(1).any(1) for batch in take(loader, 16)])
    assert shown[:, batch_size - forced :].all()
    assert not shown[:, : batch_size - forced].all()


def test_page_locked_memory_is_copied_as_torch_takes_it_from_no_other_library() -> None:
    class Locked:
        def __dlpack_device__(self) -> tuple[int, int]:
            return loader_module.PAGE_LOCKED, 0

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001
            return np.arange(3, dtype=dtype)

    class Output:
        def as_tensor(self) -> Locked:
            return Locked()

    assert loader_module._as_tensor(Output()).tolist() == [0, 1, 2]


# --- epochs and ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_an_epoch_shows_every_case_once_over_all_ranks(thirteen, world_size: int, batch_size: int) -> None:
    loaders = [
        make_loader(
            thirteen, rank=rank, recipe=(), world_size=world_size, batch_size=batch_size, steps_per_epoch=0
        )
        for rank in range(world_size)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    for _ in range(2):
        batches = [list(loader) for loader in loaders]
        assert {len(own) for own in batches} == {len(loaders[0])}
        count = Counter()
        for batch in itertools.chain.from_iterable(batches):
            assert batch.case_weights is not None
            for name, weight in zip(batch.case_ids, batch.case_weights.tolist(), strict=True):
                assert weight in (0.0, 1.0)
                count[name] += weight
        assert count == {case.case_id: 1.0 for case in thirteen.cases}


def test_an_epoch_has_the_steps_asked_for(prepared) -> None:
    loader = make_loader(prepared, steps_per_epoch=3)
    assert [len(list(loader)) for _ in range(3)] == [len(loader)] * 3 == [3, 3, 3]


def test_epochs_differ(prepared) -> None:
    loader = make_loader(prepared)
    assert not all_equal(list(loader), list(loader))


# --- seeds -------------------------------------------------------------------------------------------------


def test_one_seed_decides_every_batch(prepared) -> None:
    assert all_equal(take(make_loader(prepared), 10), take(make_loader(prepared), 10))


@pytest.mark.parametrize("changed", [{"seed": 8}, {"rank": 1, "world_size": 2}])
def test_other_seeds_and_ranks_see_other_windows(prepared, changed: dict[str, int]) -> None:
    other = {"world_size": changed.get("world_size", 1)}
    one, two = take(make_loader(prepared, **other), 5), take(make_loader(prepared, **changed), 5)
    assert not any(are_equal(a, b) for a, b in zip(one, two, strict=True))


def test_threads_and_prefetching_change_nothing(prepared) -> None:
    plain = make_loader(prepared)
    busy = make_loader(prepared)
    busy.shard = Shard(num_threads=3, prefetch=4, on_host=ON_HOST)
    assert all_equal(take(plain, 8), take(busy, 8))


def test_a_batch_stays_as_it_was_when_later_ones_are_made(prepared) -> None:
    batches, copies = [], []
    for batch in take_lazily(make_loader(prepared, recipe=()), 12):
        batches.append(batch)
        copies.append((batch.image.clone(), batch.label[0].clone()))
    for batch, (image, label) in zip(batches, copies, strict=True):
        assert torch.equal(batch.image, image)
        assert torch.equal(batch.label[0], label)


def take_lazily(loader: TrainingLoader, number: int) -> Iterator[Batch]:
    for _ in range(number // len(loader)):
        yield from loader


# --- resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_epoch", [0, 4], ids=["one pass", "with replacement"])
@pytest.mark.parametrize("position", [0, 1, 3, 4, 6, 9])
def test_a_resumed_loader_delivers_the_next_batches_bit_by_bit(
    prepared, position: int, steps_per_epoch: int
) -> None:
    whole = make_loader(prepared, steps_per_epoch=steps_per_epoch)
    take(whole, position)
    state = json.loads(json.dumps(whole.state_dict()))
    fresh = make_loader(prepared, steps_per_epoch=steps_per_epoch)
    fresh.load_state_dict(state)
    # `take` ended inside an epoch; the generator that Lightning would hold continues there.
    assert all_equal(take(whole, 6), take(fresh, 6))


def test_an_epoch_ends_where_it_would_have_ended(prepared) -> None:
    whole = make_loader(prepared)
    take(whole, 6)
    fresh = make_loader(prepared)
    fresh.load_state_dict(whole.state_dict())
    assert [len(list(fresh)), len(list(fresh))] == [2, 4]


def test_every_rank_resumes_from_the_state_of_the_first(prepared) -> None:
    """Lightning writes what rank 0 tells."""
    first, second = (make_loader(prepared, rank=rank, world_size=2) for rank in (0, 1))
    take(first, 3)
    take(second, 3)
    fresh = make_loader(prepared, rank=1, world_size=2)
    fresh.load_state_dict(first.state_dict())
    assert all_equal(take(second, 4), take(fresh, 4))


def test_a_loader_in_use_can_go_back(prepared) -> None:
    loader = make_loader(prepared)
    take(loader, 2)
    state = loader.state_dict()
    following = take(loader, 3)
    loader.load_state_dict(state)
    assert all_equal(take(loader, 3), following)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch_size": 3}, "batch_size 2; this run has batch_size 3"),
        ({"world_size": 2}, "devices 1; this run has devices 2"),
        ({"seed": 8}, "seed 7; this run has seed 8"),
        ({"steps_per_epoch": 5}, "steps_per_epoch 4; this run has steps_per_epoch 5"),
        ({"foreground_share": 0.1}, "foreground_share 0.5; this run has foreground_share 0.1"),
        ({"recipe": build_recipe(["mirror"])}, "augmentations"),
    ],
)
def test_a_changed_layout_is_refused(prepared, changed: dict[str, Any], told: str) -> None:
    state = make_loader(prepared).state_dict()
    with pytest.raises(DatasetError, match=told):
        make_loader(prepared, **changed).load_state_dict(state)


def test_other_cases_or_another_patch_are_refused(prepared) -> None:
    state = make_loader(prepared).state_dict()
    fewer = replace(prepared, cases=prepared.cases[1:])
    with pytest.raises(DatasetError, match="cases 5, .*; this run has cases 4"):
        make_loader(fewer).load_state_dict(state)
    renamed = tuple(replace(case, case_id=f"other_{case.case_id}") for case in prepared.cases)
    with pytest.raises(DatasetError, match="case_ids_hash"):
        make_loader(replace(prepared, cases=renamed)).load_state_dict(state)
    smaller = replace(prepared, plan=replace(prepared.plan, patch=(2, 2, 2)))
    with pytest.raises(DatasetError, match="patch"):
        make_loader(smaller).load_state_dict(state)


# --- whole volumes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_volume_is_shown_once_per_pass_over_all_ranks(prepared, world_size: int) -> None:
    loaders = [
        VolumeLoader(prepared.entries, WHOLE, Shard(rank=r, world_size=world_size)) for r in range(world_size)
    ]
    for _ in range(2):
        batches = [batch for loader in loaders for batch in loader]
        assert sorted(batch.case_ids[0] for batch in batches) == [case.case_id for case in prepared.cases]
    assert sum(len(loader) for loader in loaders) == 5


def test_a_volume_comes_as_stored_with_outside_as_background(prepared) -> None:
    for batch, case in zip(VolumeLoader(prepared.entries, WHOLE, Shard()), prepared.cases, strict=True):
        drawn = read_array(case.label)
        assert (drawn == -1).any()
        np.testing.assert_array_equal(batch.image[0], read_array(case.image))
        np.testing.assert_array_equal(batch.label[0][0], np.maximum(drawn, 0))
        assert batch.class_target is not None
        assert batch.class_target.tolist() == [case.class_target]
        assert batch.mask_weights is not None
        assert batch.mask_weights.tolist() == [1.0]


def test_after_a_pass_was_left_early_the_next_still_shows_every_volume(prepared) -> None:
    loader = VolumeLoader(prepared.entries, WHOLE, Shard())
    next(iter(loader))
    assert sorted(batch.case_ids[0] for batch in loader) == [case.case_id for case in prepared.cases]


def test_lightning_gets_the_loaders_themselves(prepared) -> None:
    training, volumes = make_loader(prepared), VolumeLoader(prepared.entries, WHOLE, Shard())
    module = DataModule(training, volumes)
    assert module.train_dataloader() is training
    assert module.val_dataloader() is volumes


def test_the_loader_counts_the_time_that_training_waited_for_it(prepared) -> None:
    loader = make_loader(prepared)
    assert loader.waited_seconds == 0.0
    take(loader, 2)
    assert loader.waited_seconds > 0.0
