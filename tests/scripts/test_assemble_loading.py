"""Options and a fold become the loaders of a run."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_loading.options import LoaderOptions
from data_loading.resident import upload
from data_loading.sources import WindowSource
from nnunet.inference.sliding_window import predict_volume
from nnunet.options import NetworkOptions
from nnunet.training.trainer import Machine
from scripts import assemble
from scripts.assemble import (
    build_parts,
    build_training_loader,
    build_volume_loader,
    residency_of,
    sampling_rule,
    training_entries,
)
from scripts.fold_data import FoldCases
from scripts.process_place import shard_of
from scripts.run_options import RunOptions
from utils.contracts import Batch, Plan, PreprocessedCase, Shape
from utils.errors import DatasetError, UserError
from utils.storage import write_array

CPU, GPU = Machine(device="cpu"), Machine(device="cuda")


FIRST_VOXEL = {1: (0, 0, 0)}


def write_case(
    folder: Path,
    name: str,
    class_target: int,
    shape: Shape,
    voxels: Mapping[int, tuple[int, int, int]] = FIRST_VOXEL,
) -> PreprocessedCase:
    """A case whose image counts its voxels, up to 2047, and whose mask has one voxel of each label named."""
    files = {suffix: folder / f"{name}_{suffix}.npy" for suffix in ("x", "y", "fg")}
    label = np.zeros((1, *shape), np.int16)
    for value, place in voxels.items():
        label[0][place] = value
    write_array(files["x"], (np.arange(1, label.size + 1) % 2048).astype(np.float16).reshape(label.shape))
    write_array(files["y"], label)
    rows = [[0, *shape], *([value, *place] for value, place in voxels.items())]
    write_array(files["fg"], np.array(rows, np.int32))
    footprint: Any = SimpleNamespace()
    return PreprocessedCase(
        case_id=name,
        patient_id=name,
        image=files["x"],
        label=files["y"],
        foreground=files["fg"],
        class_target=class_target,
        shape=shape,
        footprint=footprint,
    )


@pytest.fixture
def make_fold(tmp_path: Path, make_plan: Callable[..., Plan]) -> Callable[..., FoldCases]:
    """Three training cases of the classes 0, 0, 1 and one to validate on; plan and shape as named."""

    def make(shape: Shape = (5, 20, 18), **changes: Any) -> FoldCases:
        cases = [
            write_case(tmp_path, f"case_{place}", target, shape) for place, target in enumerate((0, 0, 1, 1))
        ]
        plan = make_plan(**changes)
        return FoldCases(
            folder=tmp_path, plan=plan, training=tuple(cases[:3]), validation=tuple(cases[3:]), folds=()
        )

    return make


def options_with(**changed: Any) -> RunOptions:
    return RunOptions(loader=LoaderOptions(**({"augment": ("none",), "num_workers": 1} | changed)))


def batches_of(options: RunOptions, fold: FoldCases) -> list[Batch]:
    """One epoch on the CPU."""
    loader = build_training_loader(options, fold, 1, shard_of(options, CPU))
    batches = list(loader)
    loader.close()
    return batches


def write_fold(folder: Path, plan: Plan, shape: Shape, **voxels: Mapping[int, Any]) -> FoldCases:
    """Training cases of these names, all of class 0 but the last, each with the labelled voxels given."""
    cases = tuple(
        write_case(folder, name, int(place == len(voxels) - 1), shape, marked)
        for place, (name, marked) in enumerate(voxels.items())
    )
    return FoldCases(folder=folder, plan=plan, training=cases, validation=cases[:1], folds=())


@pytest.mark.flag("augment_in")
@pytest.mark.parametrize(
    ("augment_in", "machine", "place"),
    [
        ("auto", CPU, "host"),
        ("auto", GPU, "graph"),
        ("host", GPU, "host"),
        ("graph", CPU, "graph"),
    ],
)
def test_augmentations_run_where_asked_or_where_the_device_is(
    augment_in, machine: Machine, place: str
) -> None:
    assert shard_of(options_with(augment_in=augment_in), machine).on_host is (place == "host")


def test_each_option_of_sampling_reaches_the_rule(make_fold: Callable[..., FoldCases]) -> None:
    options = options_with(oversampling=0.5, lesion_centred=0.25, balance_classes=True, steps_per_epoch=7)
    rule = sampling_rule(options, make_fold(), world_size=3)
    assert (rule.foreground_share, rule.lesion_share, rule.lesion_label) == (0.5, 0.25, 2)
    assert (rule.steps_per_epoch, rule.world_size, rule.seed, rule.batch_size) == (7, 3, 1, 2)
    assert rule.case_limits == (0.25, 0.5, 1.0)
    assert not rule.annotated_only
    assert sampling_rule(options, make_fold(ignore_label=3), world_size=1).annotated_only


def test_by_default_cases_have_no_weights_and_slices_their_own_draw(
    make_fold: Callable[..., FoldCases],
) -> None:
    rule = sampling_rule(options_with(), make_fold(), world_size=1)
    assert (rule.case_limits, rule.num_volumes, rule.lesion_share) == ((), None, 0.0)


def test_nvol_is_for_slices(make_fold: Callable[..., FoldCases]) -> None:
    rule = sampling_rule(options_with(nvol=2, batch_size=8), make_fold(flat=True), world_size=1)
    assert (rule.num_volumes, rule.slices_per_draw) == (2, 4)
    with pytest.raises(UserError, match="--dim 2"):
        sampling_rule(options_with(nvol=2, batch_size=8), make_fold(), world_size=1)


def test_a_batch_of_none_is_refused_and_not_taken_from_the_plan(make_fold: Callable[..., FoldCases]) -> None:
    with pytest.raises(UserError, match="--batch_size should be at least 1"):
        sampling_rule(options_with(batch_size=0), make_fold(), world_size=1)


@pytest.mark.flag("data2d_dim")
def test_plain_images_need_a_plan_of_slices_and_cases_of_one(make_fold: Callable[..., FoldCases]) -> None:
    options = options_with(data2d_dim=2)
    assert len(training_entries(options, make_fold((1, 20, 18), flat=True))) == 3
    with pytest.raises(UserError, match="Add --dim 2"):
        training_entries(options, make_fold((1, 20, 18)))
    with pytest.raises(DatasetError, match="case_0.* is 5 slices deep"):
        training_entries(options, make_fold(flat=True))
    with pytest.raises(UserError, match="--nvol cuts neighbouring slices"):
        training_entries(options_with(data2d_dim=2, nvol=2), make_fold((1, 20, 18), flat=True))


def test_the_faults_of_training_and_validation_cases_are_told_together(
    make_fold: Callable[..., FoldCases],
) -> None:
    fold = make_fold()
    for case in (fold.training[0], fold.validation[0]):
        case.image.unlink()
    with pytest.raises(DatasetError, match="(?s)case_0_x.npy.*case_3_x.npy"):
        training_entries(options_with(), fold)


@pytest.mark.flag("residency")
@pytest.mark.parametrize(
    ("residency", "free", "place"),
    [("auto", 10**9, "memory"), ("auto", 1000, "disk"), ("disk", 10**9, "disk"), ("memory", 0, "memory")],
)
def test_volumes_are_kept_where_asked_or_where_they_fit(
    make_fold: Callable[..., FoldCases],
    monkeypatch: pytest.MonkeyPatch,
    residency,
    free: int,
    place: str,
) -> None:
    monkeypatch.setattr(assemble, "free_bytes", lambda: free)
    options, fold = options_with(residency=residency), make_fold()
    loader = build_training_loader(options, fold, 1, shard_of(options, CPU))
    assert loader.shard.in_memory is (place == "memory")
    assert residency_of(options, loader.entries, loader.shard).in_memory is (place == "memory")
    assert [entry.case.case_id for entry in loader.entries] == ["case_0", "case_1", "case_2"]


def test_the_targets_are_those_of_the_plan(make_fold: Callable[..., FoldCases]) -> None:
    fold = make_fold(regions=((1, 2), (2,)), ignore_label=3)
    shard = shard_of(options_with(), CPU)
    loader = build_training_loader(options_with(), fold, 2, shard)
    assert loader.targets.shapes == ((4, 16, 16), (4, 8, 8))
    for targets in (loader.targets, build_volume_loader(options_with(), fold, shard).targets):
        assert (targets.regions, targets.ignore_label, targets.prior_labels) == (((1, 2), (2,)), 3, 0)


def test_the_held_out_cases_become_whole_volumes(make_fold: Callable[..., FoldCases]) -> None:
    loader = build_volume_loader(options_with(), make_fold(), shard_of(options_with(), CPU))
    assert [entry.case.case_id for entry in loader.entries] == ["case_3"]


@pytest.mark.parametrize("gpus", [2, 4])
def test_all_ranks_step_equally_and_a_pass_shows_every_case_once(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    cases = tuple(write_case(tmp_path, f"case_{place:02d}", place % 2, (5, 20, 18)) for place in range(13))
    fold = FoldCases(folder=tmp_path, plan=make_plan(), training=cases, validation=cases[:3], folds=())
    steps, shown, validated = list[int](), list[str](), list[str]()
    for rank in range(gpus):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        shard = shard_of(options_with(num_workers=1), Machine(device="cpu", gpus=gpus))
        loader = build_training_loader(options_with(num_workers=1), fold, 1, shard)
        batches = list(loader)
        loader.close()
        steps.append(len(batches))
        for batch in batches:
            assert batch.case_weights is not None
            shown += [name for name, weight in zip(batch.case_ids, batch.case_weights, strict=True) if weight]
        validated += [batch.case_ids[0] for batch in build_volume_loader(options_with(), fold, shard)]
    assert len(set(steps)) == 1
    assert sorted(shown) == [case.case_id for case in cases]
    # A rank beyond the cases repeats one, which counts once when the results are pooled.
    assert set(validated) == {case.case_id for case in cases[:3]}
    assert len(validated) == max(gpus, 3)


# --- what an option changes in the batches -----------------------------------------------------------------


@pytest.mark.flag("batch_size")
@pytest.mark.parametrize(("batch_size", "patches"), [(None, 2), (3, 3)])
def test_a_batch_has_the_patches_asked_for_or_the_plans(
    make_fold: Callable[..., FoldCases], batch_size: int | None, patches: int
) -> None:
    batch = batches_of(options_with(batch_size=batch_size), make_fold())[0]
    assert batch.image.shape == (patches, 1, 4, 16, 16)


@pytest.mark.flag("steps_per_epoch")
@pytest.mark.parametrize(("steps", "expected"), [(0, 2), (5, 5)])
def test_an_epoch_has_the_steps_asked_for_or_shows_each_case_once(
    make_fold: Callable[..., FoldCases], steps: int, expected: int
) -> None:
    assert len(batches_of(options_with(steps_per_epoch=steps), make_fold())) == expected


def shown(batches: list[Batch], label: int) -> list[bool]:
    """Whether each patch shows a label."""
    return torch.cat([(batch.label[0] == label).flatten(1).any(1) for batch in batches]).tolist()


@pytest.mark.flag("oversampling")
@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_this_share_of_the_patches_shows_the_only_labelled_voxel(
    tmp_path: Path, make_plan: Callable[..., Plan], share: float, expected: float
) -> None:
    # In its corner the voxel lies in one of 45 x 33 x 33 windows: by chance it is never drawn.
    fold = write_fold(tmp_path, make_plan(), (48, 48, 48), a={1: (0, 0, 0)}, b={1: (47, 47, 47)})
    batches = batches_of(options_with(oversampling=share, steps_per_epoch=10), fold)
    assert np.mean(shown(batches, 1)) == expected


@pytest.mark.flag("lesion_centred")
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_this_share_of_the_forced_patches_shows_the_lesion_rather_than_any_label(
    tmp_path: Path, make_plan: Callable[..., Plan], share: float
) -> None:
    fold = write_fold(tmp_path, make_plan(), (48, 48, 48), a={1: (0, 0, 0), 2: (47, 47, 47)})
    options = options_with(oversampling=1.0, lesion_centred=share, steps_per_epoch=20)
    batches = batches_of(options, fold)
    organ, lesion = (sum(shown(batches, label)) for label in (1, 2))
    assert organ + lesion == 40
    assert (lesion == 40) if share else (10 < lesion < 30)


@pytest.mark.flag("balance_classes")
@pytest.mark.parametrize(("balance", "expected"), [(False, 1 / 5), (True, 1 / 2)])
def test_each_class_is_shown_equally_often_where_asked(
    tmp_path: Path, make_plan: Callable[..., Plan], expected: float, *, balance: bool
) -> None:
    names = dict.fromkeys("abcde", FIRST_VOXEL)  # one case of five has class 1
    fold = write_fold(tmp_path, make_plan(), (4, 16, 16), **names)
    options = options_with(balance_classes=balance, steps_per_epoch=30, batch_size=10)
    targets = [batch.class_target for batch in batches_of(options, fold)]
    share = torch.cat([target for target in targets if target is not None]).float().mean()
    assert abs(float(share) - expected) < 4 * np.sqrt(expected * (1 - expected) / 300)


@pytest.mark.flag("augment")
def test_the_parts_named_change_the_patches_and_no_others_do(make_fold: Callable[..., FoldCases]) -> None:
    fold = make_fold()
    none, mirrored, bright = (
        batches_of(options_with(augment=augment), fold)
        for augment in (("none",), ("mirror:probability=1.0",), ("brightness:probability=1.0",))
    )
    for plain, flipped, scaled in zip(none, mirrored, bright, strict=True):
        assert torch.equal(flipped.image, plain.image.flip(2, 3, 4))
        assert torch.equal(flipped.label[0], plain.label[0].flip(2, 3, 4))
        assert not torch.equal(scaled.image, plain.image)
        assert torch.equal(scaled.label[0], plain.label[0])


@pytest.mark.flag("augment_in")
def test_host_and_graph_give_one_patch_and_each_its_own_noise(make_fold: Callable[..., FoldCases]) -> None:
    fold = make_fold()
    for augment, is_same in (("mirror", True), ("noise:probability=1.0", False)):
        host, graph = (
            batches_of(options_with(augment=(augment,), augment_in=place), fold)[0].image
            for place in ("host", "graph")
        )
        assert torch.equal(host, graph) is is_same


@pytest.mark.flag("nvol")
@pytest.mark.parametrize(("nvol", "runs"), [(1, 1), (2, 2)])
def test_a_batch_of_slices_comes_from_so_many_volumes(
    make_fold: Callable[..., FoldCases], nvol: int, runs: int
) -> None:
    fold = make_fold((7, 16, 16), flat=True)
    batch = batches_of(options_with(nvol=nvol, batch_size=4, oversampling=0.0), fold)[0]
    assert len(Counter(batch.case_ids)) == runs
    first = batch.image[:, 0, 0, 0, 0].reshape(runs, 4 // runs)
    for run in first.tolist():  # voxels are counted: neighbouring slices are one slice of them apart
        assert {after - before for before, after in pairwise(run)} == {16.0 * 16.0}


@pytest.mark.flag("data2d_dim")
def test_plain_images_come_whole_and_volumes_are_cut_into_slices(make_fold: Callable[..., FoldCases]) -> None:
    image = batches_of(options_with(data2d_dim=2), make_fold((1, 16, 16), flat=True))[0].image
    assert torch.equal(image[0, 0, 0].flatten(), torch.arange(1, 257).float())
    with pytest.raises(DatasetError, match="is 5 slices deep; --data2d_dim 2 takes images of one slice"):
        batches_of(options_with(data2d_dim=2), make_fold(flat=True))
    assert len(batches_of(options_with(data2d_dim=3), make_fold(flat=True))) == 2


@pytest.mark.flag("num_workers")
@pytest.mark.parametrize(("wish", "cores", "threads"), [(1, 4, 1), (3, 4, 3), (8, 2, 2)])
def test_so_many_threads_make_samples_and_no_more_than_there_are_cores(
    make_fold: Callable[..., FoldCases], monkeypatch: pytest.MonkeyPatch, wish: int, cores: int, threads: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    before = {thread.ident for thread in threading.enumerate()}
    options = options_with(num_workers=wish, batch_size=8)
    loader = build_training_loader(options, make_fold(), 1, shard_of(options, CPU))
    next(iter(loader))
    started = [thread for thread in threading.enumerate() if thread.ident not in before]
    loader.close()
    assert len([thread for thread in started if thread.name.startswith("samples")]) == threads


@pytest.mark.flag("prefetch")
@pytest.mark.parametrize("prefetch", [1, 3])
def test_dali_takes_so_many_batches_before_the_first_is_used(
    make_fold: Callable[..., FoldCases], monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    taken, honest = set[int](), WindowSource.__call__

    def spy(self: WindowSource, sample: Any) -> Any:
        taken.add(sample.iteration)
        return honest(self, sample)

    monkeypatch.setattr(WindowSource, "__call__", spy)
    options = options_with(prefetch=prefetch, steps_per_epoch=9)
    loader = build_training_loader(options, make_fold(), 1, shard_of(options, CPU))
    next(iter(loader))
    loader.close()
    assert taken == set(range(prefetch))


# --- volumes on the GPU ------------------------------------------------------------------------------------


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretends that a GPU has so many bytes free, and keeps on the host what would be uploaded to it."""

    def set_free(free: int) -> None:
        monkeypatch.setattr(assemble, "device_free_bytes", lambda device_id: free)
        monkeypatch.setattr(assemble, "upload", lambda entries, device: upload(entries, torch.device("cpu")))

    return set_free


@pytest.mark.flag("residency")
@pytest.mark.parametrize(
    ("residency", "free", "is_resident"),
    [
        ("auto", 9 * 10**9, True),
        ("auto", 8 * 10**9, False),  # all of it is reserved for training
        ("device", 0, True),
        ("memory", 80 * 10**9, False),
        ("disk", 80 * 10**9, False),
    ],
)
def test_a_gpu_keeps_the_volumes_where_asked_or_where_it_has_room(
    make_fold: Callable[..., FoldCases],
    gpu_of: Callable[[int], None],
    residency,
    free: int,
    *,
    is_resident: bool,
) -> None:
    gpu_of(free)
    options = options_with(residency=residency)
    loader = build_training_loader(options, make_fold(), 1, shard_of(options, GPU))
    assert (loader.shard.resident is not None) is is_resident
    assert loader.shard.in_memory is (not is_resident and residency != "disk")
    if loader.shard.resident is not None:
        assert len(loader.shard.resident.cases) == 3


@pytest.mark.flag("residency")
def test_the_line_tells_the_rule_and_what_is_occupied(
    make_fold: Callable[..., FoldCases],
    gpu_of: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu_of(48 * 10**9)
    options = options_with(residency="device")
    build_training_loader(options, make_fold(), 1, shard_of(options, GPU))
    told = capsys.readouterr().err
    assert told.startswith("Volumes: 0.0 GB, kept in GPU memory, all of them on each GPU (")
    assert "GPU: 48.0 GB free, 8.0 GB reserved for training, half of the rest, 20.0 GB, for volumes" in told
    assert told.endswith("; they occupy 0.0 GB there.\n")
    assert told.count("\n") == 1


@pytest.mark.flag("residency")
@pytest.mark.parametrize(
    ("changed", "machine", "told"),
    [
        ({}, CPU, "this run is on the CPU. Use --residency memory"),
        ({"augment_in": "graph"}, CPU, "this run is on the CPU"),
        ({"augment_in": "host"}, GPU, "--augment_in host augments them on the CPU"),
    ],
)
def test_volumes_on_a_gpu_are_refused_without_one_and_for_the_host_to_augment(
    changed: dict[str, Any], machine: Machine, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        shard_of(options_with(residency="device", **changed), machine)


def test_auto_never_asks_a_gpu_whose_batches_the_host_augments(
    make_fold: Callable[..., FoldCases], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device_id: int) -> int:
        raise AssertionError(f"GPU {device_id} was asked")

    monkeypatch.setattr(assemble, "device_free_bytes", fail)
    options = options_with(augment_in="host")
    assert build_training_loader(options, make_fold(), 1, shard_of(options, GPU)).shard.in_memory


# --- the order of axes in memory ---------------------------------------------------------------------------


@pytest.mark.flag("layout")
@pytest.mark.parametrize("flat", [False, True])
def test_both_layouts_train_and_predict_alike(make_fold: Callable[..., FoldCases], *, flat: bool) -> None:
    losses, gradients, answers = [], [], []
    for layout in ("NCDHW", "NDHWC"):
        options = RunOptions(loader=LoaderOptions(num_workers=1), network=NetworkOptions(layout=layout))
        torch.manual_seed(0)
        parts = build_parts(options, make_fold(flat=flat), shard_of(options, CPU))
        network = parts.module.network
        format_ = torch.channels_last if flat else torch.channels_last_3d
        kernels = [weight for weight in network.parameters() if weight.dim() > 3 and weight.shape[1] > 1]
        is_last = all(weight.is_contiguous(memory_format=format_) for weight in kernels)
        assert is_last is (layout == "NDHWC")
        batch = next(iter(parts.loader))
        assert (batch.image.stride(1) == 1) is (layout == "NDHWC")
        loss = parts.module.loss(network(batch.image), batch).total
        loss.backward()
        losses.append(loss.detach())
        gradients.append([weight.grad for weight in network.parameters()])
        volume = next(iter(parts.volumes))
        answers.append(predict_volume(network.eval(), volume.image, parts.module.settings.window))
        parts.loader.close()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answers[1].label_logits, answers[0].label_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers[1].class_probs, answers[0].class_probs, rtol=1e-4, atol=1e-4)
