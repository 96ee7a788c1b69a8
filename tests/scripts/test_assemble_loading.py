"""Options and a fold become the loaders of a run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_loading.options import LoaderOptions
from nnunet.training.trainer import Machine
from scripts import assemble
from scripts.assemble import (
    build_training_loader,
    build_volume_loader,
    residency_of,
    sampling_rule,
    training_entries,
)
from scripts.fold_data import FoldCases
from scripts.process_place import shard_of
from scripts.run_options import RunOptions
from utils.contracts import Plan, PreprocessedCase, Shape
from utils.errors import DatasetError, UserError
from utils.storage import write_array

CPU, GPU = Machine(device="cpu"), Machine(device="cuda")


def write_case(folder: Path, name: str, class_target: int, shape: Shape) -> PreprocessedCase:
    files = {suffix: folder / f"{name}_{suffix}.npy" for suffix in ("x", "y", "fg")}
    write_array(files["x"], np.ones((1, *shape), np.float16))
    write_array(files["y"], np.zeros((1, *shape), np.int16))
    write_array(files["fg"], np.array([[0, *shape], [1, 0, 0, 0]], np.int32))
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
    return RunOptions(loader=LoaderOptions(augment=("none",), **changed))


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
