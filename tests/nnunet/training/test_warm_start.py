"""Weights of an earlier run as a start: what fits is taken, what does not is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.warm_start import load_fitting, refuse_seen
from utils.contracts import Plan
from utils.errors import DatasetError

if TYPE_CHECKING:
    from tests.nnunet.training.conftest import TinyRun

MakePlan = Callable[..., Plan]


def network_of(plan: Plan, branch: str = "roi_pooled") -> MultiTaskUNet:
    torch.manual_seed(7)
    return MultiTaskUNet(plan, Architecture(branch=branch))


def test_the_averaged_weights_are_taken_where_the_run_kept_them(
    tiny_run: "TinyRun", make_plan: MakePlan
) -> None:
    network = network_of(make_plan(patch=(8, 32, 32)))  # another patch needs no other weight
    start = load_fitting(tiny_run.checkpoint, network)
    averaged = tiny_run.module.averaged
    assert averaged is not None
    expected = averaged.module.state_dict()
    assert start.num_loaded == len(expected)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert str(start) == f"{len(expected)} weights taken from {tiny_run.checkpoint}"


def test_another_branch_starts_at_random_and_is_named(tiny_run: "TinyRun", make_plan: MakePlan) -> None:
    fresh = network_of(make_plan(), "simple").state_dict()
    network = network_of(make_plan(), "simple")
    start = load_fitting(tiny_run.checkpoint, network)
    assert start.missing == tuple(name for name in fresh if name.startswith("branch."))
    assert start.unused
    assert all(name.startswith("branch.") for name in start.unused)
    assert not start.other_shape
    for name, value in network.state_dict().items():
        assert torch.equal(value, fresh[name]) == (name in start.missing) or value.unique().numel() == 1
    assert f"{len(start.missing)} are not in it and start at random (branch." in str(start)
    assert str(start).endswith(", ...)")


def test_other_channels_are_named(tiny_run: "TinyRun", make_plan: MakePlan) -> None:
    plan = make_plan()
    stages = (*plan.stages[:2], replace(plan.stages[2], channels=12))
    start = load_fitting(tiny_run.checkpoint, network_of(replace(plan, stages=stages)))
    assert start.other_shape
    assert not any(name.startswith("encoder.stages.0") for name in start.other_shape)
    assert set(start.other_shape) == set(start.to_log()["other_shape"])
    assert "have another shape there" in str(start)


def test_a_checkpoint_of_which_nothing_fits_is_refused(
    tiny_run: "TinyRun", make_plan: MakePlan, tmp_path: Path
) -> None:
    torch.save({"state_dict": {"network.other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(DatasetError, match=r"other\.ckpt: none of its 1 weights fits"):
        load_fitting(tmp_path / "other.ckpt", network_of(make_plan()))


def test_cases_that_the_checkpoint_has_seen_may_not_be_held_out(
    tiny_run: "TinyRun", make_plan: MakePlan
) -> None:
    start = load_fitting(tiny_run.checkpoint, network_of(make_plan()))
    assert start.dataset == "Dataset001_Tiny"
    start = replace(start, training_cases=("a", "b"))
    assert refuse_seen(start, "Dataset001_Tiny", ["c"]) == ("a", "b")
    assert refuse_seen(start, "Dataset002_Other", ["a"]) == ()
    with pytest.raises(DatasetError, match=r"trained on 1 of the 2 cases that this run holds out \(b, "):
        refuse_seen(start, "Dataset001_Tiny", ["b", "c"])
