"""Images with the channels last in memory: the same shapes and values, other strides."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.loader import Shard, TrainingLoader, VolumeLoader
from data_loading.patches import SamplingRule
from data_loading.recipes import build_recipe
from data_loading.resident import upload
from data_loading.targets import TargetRule
from nnunet.blocks import flatten_depth, restore_depth
from utils.contracts import Batch, Shape
from utils.storage import write_array

pytestmark = pytest.mark.flag("layout")

RECIPE = tuple(
    replace(part, largest_label=2) if isinstance(part, RotateScale) else part
    for part in build_recipe(["nnunet"])
)
PLACES = {"graph": {}, "host": {"on_host": True}, "resident": {}}


@pytest.fixture(params=PLACES)
def make_batches(request: pytest.FixtureRequest) -> Callable[..., Iterator[Batch]]:
    """The batches of a folder, augmented in the graph, on the host, or cut from volumes on a device."""

    def make(entries, patch: Shape, *, channels_last: bool, prior_labels: int = 0) -> Iterator[Batch]:
        place: dict[str, Any] = dict(PLACES[request.param])
        if request.param == "resident":
            place["resident"] = upload(entries, torch.device("cpu"))
        rule = SamplingRule(
            patch=patch, batch_size=2, world_size=1, steps_per_epoch=4, foreground_share=0.5, seed=3
        )
        targets = TargetRule(shapes=(patch,), prior_labels=prior_labels)
        shard = Shard(num_threads=1, channels_last=channels_last, **place)
        return iter(TrainingLoader(entries, rule, RECIPE, targets, shard))

    return make


def strides_of(shape: torch.Size) -> tuple[int, ...]:
    """Of a dense (B, C, D, H, W) tensor whose values lie as (B, D, H, W, C)."""
    _, channels, depth, height, width = shape
    return depth * height * width * channels, 1, height * width * channels, width * channels, channels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [(4, 6, 5), (1, 6, 5)])
def test_patches_are_the_same_with_the_strides_of_channels_last(
    prepare_folder, make_batches: Callable[..., Iterator[Batch]], patch: Shape, channels: int
) -> None:
    entries = prepare_folder([(7, 9, 8), (3, 4, 5)], num_channels=channels, patch=patch).entries
    pairs = zip(
        make_batches(entries, patch, channels_last=True),
        make_batches(entries, patch, channels_last=False),
        strict=True,
    )
    for last, first in pairs:
        assert last.image.stride() == strides_of(last.image.shape)
        assert last.image.is_contiguous(memory_format=torch.channels_last_3d)
        assert first.image.is_contiguous()
        assert torch.equal(last.image, first.image)
        assert torch.equal(last.label[0], first.label[0])


def test_channels_of_a_previous_stage_are_last_too(
    prepare_folder, make_batches: Callable[..., Iterator[Batch]], tmp_path: Path
) -> None:
    entries = prepare_folder([(7, 9, 8)]).entries
    write_array(tmp_path / "prior.npy", np.ones((1, 7, 9, 8), np.int16))
    entries = [replace(entries[0], prior=tmp_path / "prior.npy")]
    batches = make_batches(entries, (4, 6, 5), channels_last=True, prior_labels=2)
    image = next(batches).image
    assert image.shape == (2, 3, 4, 6, 5)
    assert image.stride() == strides_of(image.shape)


def test_a_flat_network_sees_channels_last_slices(
    prepare_folder, make_batches: Callable[..., Iterator[Batch]]
) -> None:
    """Squeezing the one-slice depth keeps the strides, and so does putting it back."""
    entries = prepare_folder([(7, 9, 8)], num_channels=3, patch=(1, 6, 5)).entries
    image = next(make_batches(entries, (1, 6, 5), channels_last=True)).image
    flat = flatten_depth(image, 2)
    assert flat.stride() == (6 * 5 * 3, 1, 5 * 3, 3)
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert flat.data_ptr() == image.data_ptr()
    assert restore_depth(flat, 2).stride() == image.stride()


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_volumes_are_the_same_with_the_strides_of_channels_last(prepare_folder, channels: int) -> None:
    prepared = prepare_folder([(7, 9, 8), (3, 4, 5)], num_channels=channels)
    targets = TargetRule(shapes=(prepared.plan.patch,))
    last, first = (
        VolumeLoader(prepared.entries, targets, Shard(channels_last=wish)) for wish in (True, False)
    )
    for one, other in zip(last, first, strict=True):
        assert one.image.stride() == strides_of(one.image.shape)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label[0], other.label[0])


def test_a_run_may_resume_with_the_other_layout(prepare_folder) -> None:
    entries = prepare_folder([(7, 9, 8), (3, 4, 5)]).entries
    rule = SamplingRule(
        patch=(4, 6, 5), batch_size=2, world_size=1, steps_per_epoch=4, foreground_share=0.5, seed=3
    )
    before, after = (
        TrainingLoader(entries, rule, RECIPE, TargetRule(shapes=((4, 6, 5),)), Shard(channels_last=wish))
        for wish in (False, True)
    )
    expected = list(before)[2].image
    after.load_state_dict(before.state_dict() | {"delivered": 2})
    assert torch.equal(next(iter(after)).image, expected)
