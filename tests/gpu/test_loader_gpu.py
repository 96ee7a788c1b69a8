"""The graph on the GPU and on the CPU, side by side."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.catalogue import Entry, ForegroundTable
from data_loading.loader import Shard, TrainingLoader, VolumeLoader
from data_loading.patches import SamplingRule
from data_loading.recipes import build_recipe
from data_loading.targets import TargetRule
from utils.contracts import Batch
from utils.storage import write_array

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]

PATCH = (8, 12, 10)
TARGETS = TargetRule(shapes=(PATCH, (4, 6, 5)))


@pytest.fixture
def entries(tmp_path: Path) -> tuple[Entry, ...]:
    """Three cases of two channels, one of them shorter than the patch."""
    random = np.random.default_rng(0)
    made = []
    for place, shape in enumerate([(10, 14, 12), (8, 12, 10), (5, 13, 9)]):
        label = random.integers(-1, 3, (1, *shape)).astype(np.int16)
        write_array(tmp_path / f"{place}_x.npy", random.normal(size=(2, *shape)).astype(np.float32))
        write_array(tmp_path / f"{place}_y.npy", label)
        positions = np.argwhere(label[0] == 1).astype(np.int32)
        case: Any = SimpleNamespace(
            case_id=f"case_{place}",
            image=tmp_path / f"{place}_x.npy",
            label=tmp_path / f"{place}_y.npy",
            class_target=place - 1,
        )
        table = ForegroundTable(labels=(1,), starts=(0,), stops=(len(positions),), positions=positions)
        made.append(Entry(case=case, shape=shape, image_type="float32", foreground=table))
    return tuple(made)


def batches(
    entries: tuple[Entry, ...], device_id: int | None, *augment: str, on_host: bool = False
) -> Iterator[Batch]:
    rule = SamplingRule(
        patch=PATCH, batch_size=3, world_size=1, steps_per_epoch=8, foreground_share=0.33, seed=5
    )
    shard = Shard(device_id=device_id, num_threads=1, on_host=on_host)
    recipe = [replace(p, largest_label=2) if isinstance(p, RotateScale) else p for p in build_recipe(augment)]
    return iter(TrainingLoader(entries, rule, recipe, TARGETS, shard))


def assert_alike(on_gpu: Batch, on_cpu: Batch, *, tolerance: float) -> None:
    assert on_gpu.case_ids == on_cpu.case_ids
    assert {tensor.device.type for tensor in (on_gpu.image, *on_gpu.label)} == {"cuda"}
    torch.testing.assert_close(on_gpu.image.cpu(), on_cpu.image, rtol=tolerance, atol=tolerance)
    for one, other in zip(on_gpu.label, on_cpu.label, strict=True):
        assert (one.cpu() != other).float().mean() <= (0.002 if tolerance else 0.0)
    for name in ("class_target", "case_weights", "mask_weights"):
        one, other = getattr(on_gpu, name), getattr(on_cpu, name)
        assert one.device.type == "cuda"
        assert torch.equal(one.cpu(), other)


def test_windows_and_mirroring_agree_bit_by_bit(entries: tuple[Entry, ...]) -> None:
    for pair in zip(batches(entries, 0, "mirror"), batches(entries, None, "mirror"), strict=True):
        assert_alike(*pair, tolerance=0.0)


@pytest.mark.parametrize("part", [spec.name for spec in AUGMENTATIONS if spec.name != "noise"])
def test_every_part_agrees_with_the_graph_on_the_cpu(entries: tuple[Entry, ...], part: str) -> None:
    certain = ",".join(
        f"{field.name}=1.0" for field in fields(AUGMENTATIONS[part]) if field.name.endswith("probability")
    )
    augment = f"{part}:{certain}" if certain else part
    for pair in zip(batches(entries, 0, augment), batches(entries, None, augment), strict=True):
        assert_alike(*pair, tolerance=2e-4)


@pytest.mark.parametrize("preset", ["nnunet", "nvidia"])
def test_whole_presets_agree_but_for_the_noise(entries: tuple[Entry, ...], preset: str) -> None:
    augment = (preset, "no_noise")
    for pair in zip(batches(entries, 0, *augment), batches(entries, None, *augment), strict=True):
        assert_alike(*pair, tolerance=2e-3)


def test_a_gpu_takes_what_the_host_has_augmented(entries: tuple[Entry, ...]) -> None:
    """--augment_in host with a GPU: the same batches as on the CPU, bit by bit."""
    pairs = [batches(entries, device, "nnunet", on_host=True) for device in (0, None)]
    for pair in zip(*pairs, strict=True):
        assert_alike(*pair, tolerance=0.0)


def test_noise_has_the_drawn_strength_and_returns_with_the_seed(entries: tuple[Entry, ...]) -> None:
    augment = "noise:probability=0.5,max_std=0.5"
    runs = [batches(entries, device, augment) for device in (0, 0, None)]
    plain = batches(entries, None)
    for first, again, on_cpu, clean in zip(*runs, plain, strict=True):
        assert torch.equal(first.image, again.image)
        spread = (first.image.cpu() - clean.image).flatten(1).std(1)
        expected = (on_cpu.image - clean.image).flatten(1).std(1)
        torch.testing.assert_close(spread, expected, rtol=0.15, atol=0.0)


def test_whole_volumes_agree_bit_by_bit(entries: tuple[Entry, ...]) -> None:
    loaders = [VolumeLoader(entries, TARGETS, Shard(device_id=device)) for device in (0, None)]
    for on_gpu, on_cpu in zip(*loaders, strict=True):
        assert on_gpu.image.device.type == "cuda"
        assert on_gpu.case_ids == on_cpu.case_ids
        assert torch.equal(on_gpu.image.cpu(), on_cpu.image)
        assert torch.equal(on_gpu.label[0].cpu(), on_cpu.label[0])


def test_work_queued_on_a_batch_still_sees_it_after_the_batch_was_dropped(entries: tuple[Entry, ...]) -> None:
    """Freed too early, its memory would hold a later batch when the device gets there."""
    busy = torch.rand(4096, 4096, device="cuda")
    copies = []
    for batch in batches(entries, 0, "mirror"):
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        copies.append(batch.image.clone())
        del batch
    for copied, on_cpu in zip(copies, batches(entries, None, "mirror"), strict=True):
        assert torch.equal(copied.cpu(), on_cpu.image)


def test_a_batch_on_the_gpu_stays_as_it_was(entries: tuple[Entry, ...]) -> None:
    kept = [(batch, batch.image.clone(), batch.label[0].clone()) for batch in batches(entries, 0, "mirror")]
    for batch, image, label in kept:
        assert torch.equal(batch.image, image)
        assert torch.equal(batch.label[0], label)
