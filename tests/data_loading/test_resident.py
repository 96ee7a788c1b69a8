"""Volumes on a device: the blocks cut there, and the batches made of them, are those of the host's reader.

On the CPU as a torch device, where everything but the hand-over to DALI is the same; tests/gpu does the rest.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_loading import resident
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.catalogue import Entry
from data_loading.loader import Shard, TrainingLoader
from data_loading.patches import SamplingRule
from data_loading.readers import open_case
from data_loading.recipes import build_recipe
from data_loading.resident import ResidentWindows, upload
from data_loading.sources import SourceSettings, WindowSource
from data_loading.targets import TargetRule
from utils.contracts import Batch, Shape
from utils.errors import DatasetError, UserError
from utils.storage import write_array

CPU = torch.device("cpu")
PATCH: Shape = (4, 6, 5)
RECIPE = tuple(
    replace(part, largest_label=2) if isinstance(part, RotateScale) else part
    for part in build_recipe(["nnunet", "rotate_scale:rotation_probability=0.7", "mirror:pairs=1+2"])
)
BLOCKS: list[tuple[Shape, Shape]] = [
    ((1, 2, 3), (3, 4, 2)),
    ((0, 0, 0), (7, 9, 8)),
    ((-1, 0, 5), (3, 6, 4)),
    ((-2, -3, -4), (12, 16, 15)),
    ((7, 0, 0), (2, 2, 2)),
    ((-4, 2, 2), (2, 2, 2)),
]


@pytest.fixture(params=["float32", "float16"])
def volumes(request: pytest.FixtureRequest, prepare_folder) -> tuple[Entry, ...]:
    """Cases larger than the patch, equal to it, shorter along one axis and along all, of two channels."""
    shapes = [(7, 9, 8), (4, 6, 5), (3, 9, 8), (2, 4, 3), (6, 6, 6)]
    return prepare_folder(shapes, num_channels=2, dtype=request.param).entries


def without_masks(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(replace(entry, case=replace(entry.case, label=None)) for entry in entries)


def with_priors(entries: tuple[Entry, ...], folder: Path) -> tuple[Entry, ...]:
    random, made = np.random.default_rng(3), []
    for place, entry in enumerate(entries):
        write_array(folder / f"{place}.npy", random.integers(0, 3, (1, *entry.shape)).astype(np.int16))
        made.append(replace(entry, prior=folder / f"{place}.npy"))
    return tuple(made)


def make_loader(entries: tuple[Entry, ...], targets: TargetRule, **place: Any) -> TrainingLoader:
    rule = SamplingRule(
        patch=PATCH, batch_size=3, world_size=1, steps_per_epoch=4, foreground_share=0.33, seed=5
    )
    return TrainingLoader(entries, rule, RECIPE, targets, Shard(num_threads=1, **place))


def take(loader: TrainingLoader, number: int) -> list[Batch]:
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    batches = list(itertools.islice(epochs, number))
    loader.close()
    return batches


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(batches, expected, strict=True):
        assert one.case_ids == other.case_ids
        assert torch.equal(one.image, other.image)
        for level, wanted in zip(one.label, other.label, strict=True):
            assert torch.equal(level, wanted)
        for name in ("class_target", "case_weights", "mask_weights"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("start", "shape"), BLOCKS)
def test_a_block_is_the_one_that_the_host_reads(volumes, start: Shape, shape: Shape) -> None:
    for entries in (volumes[:1], without_masks(volumes[:1])):
        kept, stored = upload(entries, CPU).cases[0], open_case(entries[0], in_memory=False)
        image, label = kept.image_block(start, shape), kept.label_block(start, shape)
        assert image.is_contiguous()
        assert label.is_contiguous()
        for block, expected in (
            (image, stored.image.block(start, shape, fill=0.0)),
            (label, stored.label_block(start, shape)),
        ):
            assert block.numpy().dtype == expected.dtype
            np.testing.assert_array_equal(block.numpy(), expected)


def test_a_block_is_a_copy_that_may_be_changed(volumes) -> None:
    case = upload(volumes[:1], CPU).cases[0]
    case.image_block((0, 0, 0), volumes[0].shape).zero_()
    case.label_block((0, 0, 0), volumes[0].shape).fill_(7)
    assert case.image.all()
    assert case.label is not None
    assert not (case.label == 7).any()


def test_volumes_keep_the_types_of_their_files_and_no_more_bytes(volumes) -> None:
    kept = upload(volumes, CPU)
    voxels = sum(int(np.prod(entry.shape)) for entry in volumes)
    bytes_per_voxel = 2 * np.dtype(volumes[0].image_type).itemsize + np.dtype(np.int16).itemsize
    assert kept.occupied_bytes == voxels * bytes_per_voxel


@pytest.mark.parametrize("masked", [True, False])
def test_batches_are_bit_equal_to_those_of_volumes_in_memory(volumes, *, masked: bool) -> None:
    entries = volumes if masked else without_masks(volumes)
    targets = TargetRule(shapes=(PATCH, (2, 3, 3)))
    kept = make_loader(entries, targets, resident=upload(entries, CPU))
    assert_equal(take(kept, 10), take(make_loader(entries, targets, in_memory=True), 10))


def test_maps_of_a_previous_stage_are_damaged_alike(volumes, tmp_path: Path) -> None:
    entries = with_priors(volumes, tmp_path)
    targets = TargetRule(shapes=(PATCH,), prior_labels=2)
    kept = take(make_loader(entries, targets, resident=upload(entries, CPU)), 10)
    assert_equal(kept, take(make_loader(entries, targets), 10))
    assert any((batch.image[:, 2:] > 0).any() for batch in kept)


@pytest.mark.parametrize("position", [0, 1, 5])
def test_a_run_resumes_bit_by_bit_even_where_the_volumes_lay_elsewhere(volumes, position: int) -> None:
    targets = TargetRule(shapes=(PATCH,))
    kept = upload(volumes, CPU)
    expected = take(make_loader(volumes, targets, resident=kept), position + 4)[position:]
    before = make_loader(volumes, targets)
    take(before, position)
    fresh = make_loader(volumes, targets, resident=kept)
    fresh.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert_equal(take(fresh, 4), expected)


def test_facts_and_voxels_belong_together_whichever_is_asked_first(volumes) -> None:
    """DALI asks for a batch of the one, then for a batch of the other, several batches ahead."""
    rule = SamplingRule(
        patch=PATCH, batch_size=2, world_size=1, steps_per_epoch=9, foreground_share=0.5, seed=1
    )
    settings, targets = SourceSettings(), TargetRule(shapes=(PATCH,))
    samples: list[Any] = [
        SimpleNamespace(iteration=number // 2, idx_in_batch=number % 2) for number in range(40)
    ]
    expected = [WindowSource(volumes, rule, RECIPE, targets, settings)(sample) for sample in samples]
    for facts_first in (True, False):
        source = WindowSource(volumes, rule, RECIPE, targets, settings)
        windows = ResidentWindows(source, upload(volumes, CPU))
        asked = [windows.facts, windows.voxels]
        one, other = ([ask(sample) for sample in samples] for ask in (asked if facts_first else asked[::-1]))
        facts, voxels = (one, other) if facts_first else (other, one)
        for (entry, weights, *drawn), (image, label), sample in zip(facts, voxels, expected, strict=True):
            for value, wanted in zip((image, entry, weights, label, *drawn), sample, strict=True):
                np.testing.assert_array_equal(value, wanted)


def test_volumes_that_do_not_fit_are_an_error_that_says_what_to_choose(volumes, monkeypatch) -> None:
    def refuse(entry: Entry, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(resident, "_resident_case", refuse)
    with pytest.raises(UserError, match="volumes of 5 cases do not fit .* Choose --residency memory or auto"):
        upload(volumes, CPU)


def test_a_missing_file_is_named_before_training_begins(prepare_folder) -> None:
    entries = prepare_folder([(7, 9, 8)]).entries
    entries[0].case.image.unlink()
    with pytest.raises(DatasetError, match="case_00_x.npy"):
        upload(entries, CPU)
