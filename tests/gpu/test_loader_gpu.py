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
from data_loading.resident import ResidentVolumes, upload
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


def make_loader(entries: tuple[Entry, ...], *augment: str, steps: int = 8, **place: Any) -> TrainingLoader:
    rule = SamplingRule(
        patch=PATCH, batch_size=3, world_size=1, steps_per_epoch=steps, foreground_share=0.33, seed=5
    )
    recipe = [replace(p, largest_label=2) if isinstance(p, RotateScale) else p for p in build_recipe(augment)]
    return TrainingLoader(entries, rule, recipe, TARGETS, Shard(num_threads=1, **place))


def batches(
    entries: tuple[Entry, ...], device_id: int | None, *augment: str, on_host: bool = False
) -> Iterator[Batch]:
    return iter(make_loader(entries, *augment, device_id=device_id, on_host=on_host))


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


@pytest.mark.parametrize("part", ["mirror", "mirror:pairs=1+2"])
def test_windows_and_mirroring_agree_bit_by_bit(entries: tuple[Entry, ...], part: str) -> None:
    for pair in zip(batches(entries, 0, part), batches(entries, None, part), strict=True):
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


# --- volumes on the GPU ------------------------------------------------------------------------------------

HOST = torch.device("cpu")
GPU = torch.device("cuda", 0)


def stored_as(entries: tuple[Entry, ...], image_type: str) -> tuple[Entry, ...]:
    """The same cases with images of this type; one of them without a mask."""
    made = []
    for place, entry in enumerate(entries):
        path = entry.case.image.with_name(f"{place}_{image_type}_x.npy")
        write_array(path, np.load(entry.case.image).astype(image_type))
        label = entry.case.label if place else None
        case: Any = SimpleNamespace(**(vars(entry.case) | {"image": path, "label": label}))
        made.append(replace(entry, case=case, image_type=image_type))
    return tuple(made)


def test_volumes_lie_on_the_gpu_in_the_types_of_their_files(entries: tuple[Entry, ...]) -> None:
    kept = upload(stored_as(entries, "float16"), GPU)
    for entry, case in zip(entries, kept.cases, strict=True):
        assert (case.image.device, case.image.dtype) == (GPU, torch.float16)
        assert case.image.shape == (2, *entry.shape)
    assert [case.label is None for case in kept.cases] == [True, False, False]
    assert kept.occupied_bytes >= 0


def test_what_is_occupied_is_what_the_gpu_says(tmp_path: Path) -> None:
    write_array(tmp_path / "big_x.npy", np.zeros((1, 64, 512, 512), np.float16))
    case: Any = SimpleNamespace(case_id="big", image=tmp_path / "big_x.npy", label=None, class_target=0)
    none = ForegroundTable(labels=(), starts=(), stops=(), positions=np.zeros((0, 3), np.int32))
    entry = Entry(case=case, shape=(64, 512, 512), image_type="float16", foreground=none)
    torch.cuda.empty_cache()
    volume = 64 * 512 * 512 * 2
    assert volume <= upload([entry], GPU).occupied_bytes < 2 * volume + 2**26


@pytest.mark.parametrize("image_type", ["float32", "float16"])
def test_patches_cut_on_the_gpu_are_bit_equal_to_those_read_by_the_host(
    entries: tuple[Entry, ...], image_type: str
) -> None:
    entries = stored_as(entries, image_type)
    kept = iter(make_loader(entries, "mirror", device_id=0, resident=upload(entries, GPU)))
    for pair in zip(kept, batches(entries, None, "mirror"), strict=True):
        assert_alike(*pair, tolerance=0.0)


def test_augmented_patches_cut_on_the_gpu_equal_those_that_the_gpu_gets_from_the_host(
    entries: tuple[Entry, ...],
) -> None:
    kept = iter(make_loader(entries, "nnunet", device_id=0, resident=upload(entries, GPU)))
    for one, other in zip(kept, batches(entries, 0, "nnunet"), strict=True):
        assert torch.equal(one.image, other.image)
        assert all(torch.equal(a, b) for a, b in zip(one.label, other.label, strict=True))


def test_augmented_patches_cut_on_the_gpu_agree_with_the_same_code_on_the_cpu(
    entries: tuple[Entry, ...],
) -> None:
    augment = ("nnunet", "no_noise")
    pairs = zip(
        make_loader(entries, *augment, device_id=0, resident=upload(entries, GPU)),
        make_loader(entries, *augment, resident=upload(entries, HOST)),
        strict=True,
    )
    for pair in pairs:
        assert_alike(*pair, tolerance=2e-3)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Entry, ...]:
    """Two cases large enough that a cut takes the GPU some time."""
    folder, random, made = tmp_path_factory.mktemp("large"), np.random.default_rng(1), []
    none = ForegroundTable(labels=(), starts=(), stops=(), positions=np.zeros((0, 3), np.int32))
    for place in range(2):
        image = random.normal(size=(2, 96, 160, 160)).astype(np.float16)
        write_array(folder / f"{place}_x.npy", image)
        write_array(folder / f"{place}_y.npy", (image[:1] > 1).astype(np.int16))
        case: Any = SimpleNamespace(
            case_id=f"case_{place}",
            image=folder / f"{place}_x.npy",
            label=folder / f"{place}_y.npy",
            class_target=place,
        )
        made.append(Entry(case=case, shape=(96, 160, 160), image_type="float16", foreground=none))
    return tuple(made)


def large_loader(entries: tuple[Entry, ...], steps: int, **place: Any) -> TrainingLoader:
    patch = (64, 96, 96)
    rule = SamplingRule(
        patch=patch, batch_size=4, world_size=1, steps_per_epoch=steps, foreground_share=0.0, seed=2
    )
    targets = TargetRule(shapes=(patch,))
    return TrainingLoader(entries, rule, build_recipe(["mirror"]), targets, Shard(num_threads=2, **place))


@pytest.mark.parametrize("busy", ["default stream", "side stream", "allocator"])
def test_cuts_are_whole_whatever_else_the_gpu_and_its_allocator_do(
    large: tuple[Entry, ...], busy: str
) -> None:
    """A cut that DALI copied too early, or whose memory was given away too early, would differ."""
    kept = large_loader(large, 30, device_id=0, resident=upload(large, GPU), prefetch=3)
    expected = large_loader(large, 30, device_id=None)
    work, side = torch.rand(4096, 4096, device="cuda"), torch.cuda.Stream()
    for one, other in zip(kept, expected, strict=True):
        if busy == "allocator":  # memory of every size that a cut has, taken and dropped on another stream
            _ = [torch.full((2, 64, 96, 96), 7.0, dtype=torch.float16, device="cuda") for _ in range(16)]
        else:
            with torch.cuda.stream(side if busy == "side stream" else torch.cuda.current_stream()):
                for _ in range(10):
                    work = torch.tanh(work @ work)
        assert torch.equal(one.image.cpu(), other.image)
        assert torch.equal(one.label[0].cpu(), other.label[0])


def test_a_run_resumes_bit_by_bit_with_volumes_on_the_gpu(entries: tuple[Entry, ...]) -> None:
    kept: ResidentVolumes = upload(entries, GPU)
    whole = list(make_loader(entries, "nnunet", device_id=0, resident=kept))
    saved = make_loader(entries, "nnunet", device_id=0).state_dict() | {"delivered": 3}
    fresh = make_loader(entries, "nnunet", device_id=0, resident=kept)
    fresh.load_state_dict(saved)
    for one, other in zip(fresh, whole[3:], strict=True):
        assert torch.equal(one.image, other.image)


# --- the order of axes in memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["graph", "host", "resident"])
def test_channels_last_patches_are_the_same_on_the_gpu(entries: tuple[Entry, ...], place: str) -> None:
    where: dict[str, Any] = {"device_id": 0, "on_host": place == "host"}
    where["resident"] = upload(entries, GPU) if place == "resident" else None
    last, first = (make_loader(entries, "nnunet", **where, channels_last=wish) for wish in (True, False))
    for one, other in zip(last, first, strict=True):
        assert one.image.is_contiguous(memory_format=torch.channels_last_3d)
        assert one.image.stride(1) == 1
        assert torch.equal(one.image, other.image)


def test_channels_last_volumes_are_the_same_on_the_gpu(entries: tuple[Entry, ...]) -> None:
    loaders = [
        VolumeLoader(entries, TARGETS, Shard(device_id=0, channels_last=wish)) for wish in (True, False)
    ]
    for one, other in zip(*loaders, strict=True):
        assert one.image.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(one.image, other.image)
