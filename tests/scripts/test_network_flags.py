"""Words of the command line change the network that is trained, and where it is trained."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet.encoders.residual import ResidualBlock
from nnunet.network import MultiTaskUNet
from scripts import train
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from scripts.trained_plan import architecture_of, trained_plan
from utils.contracts import Plan, Stage
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STAGES = tuple(
    Stage(channels=4, kernel=(3, 3, 3), stride=(2, 2, 2) if level else (1, 1, 1)) for level in range(4)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What can be seen of a network."""

    channels: tuple[int, ...]
    patch: tuple[int, ...]
    outputs: int
    norms: str
    slope: float
    residual_blocks: int


def options_of(*words: str) -> RunOptions:
    return read_command(words, program="main.py", description="").options


def network_of(plan: Plan, *words: str) -> tuple[Plan, MultiTaskUNet]:
    """The network that training builds for these words."""
    options = options_of(*words).network
    plan = trained_plan(plan, options)
    with torch.device("meta"):
        return plan, MultiTaskUNet(plan, architecture_of(options, plan))


def facts_of(plan: Plan, *words: str) -> Facts:
    plan, network = network_of(plan, *words)
    layers = list(network.modules())
    slopes = {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)}
    kinds = {type(layer).__name__ for layer in layers} & {"InstanceNorm3d", "BatchNorm3d", "GroupNorm"}
    return Facts(
        channels=tuple(stage.channels for stage in plan.stages),
        patch=plan.patch,
        outputs=len(network(torch.empty(1, 1, *plan.patch, device="meta")).label_logits),
        norms="+".join(kinds),
        slope=slopes.pop(),
        residual_blocks=sum(isinstance(layer, ResidualBlock) for layer in layers),
    )


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    """Four stages of four channels for 40^3 voxels of equal spacing, without a class."""
    return make_plan(patch=(40, 40, 40), spacing_mm=(1.0, 1.0, 1.0), stages=STAGES, num_classes=0)


USUAL = Facts(
    channels=(4, 4, 4, 4),
    patch=(40, 40, 40),
    outputs=1,
    norms="InstanceNorm3d",
    slope=0.01,
    residual_blocks=0,
)


def test_without_words_the_network_is_the_planned_one(plan: Plan) -> None:
    assert facts_of(plan) == USUAL


@pytest.mark.parametrize(
    ("words", "fact", "value"),
    [
        pytest.param(words.split(), fact, value, id=words, marks=pytest.mark.flag(words.split()[0][2:]))
        for words, fact, value in [
            ("--encoder residual", "residual_blocks", 8),
            ("--res_block", "residual_blocks", 8),
            ("--depth 1", "channels", (32, 64)),
            ("--min_fmap 6", "channels", (32, 64, 128)),
            ("--min_fmap 2", "patch", (48, 48, 48)),
            ("--filters 2 3", "channels", (2, 3, 3, 3)),
            ("--more_chn", "channels", (64, 96, 128, 192)),
            ("--norm batch", "norms", "BatchNorm3d"),
            ("--norm group", "norms", "GroupNorm"),
            ("--negative_slope 0.3", "slope", 0.3),
            ("--deep_supervision", "outputs", 2),
            ("--deep_supr_num 1 --deep_supervision", "outputs", 2),
            ("--deep_supr_num 2 --deep_supervision", "outputs", 3),
        ]
    ],
)
def test_the_word_changes_the_network(plan: Plan, words: list[str], fact: str, value: object) -> None:
    assert getattr(facts_of(plan, *words), fact) == value != getattr(USUAL, fact)


@pytest.mark.flag("depth", "min_fmap", "filters")
def test_the_recipe_of_brats_2021_has_the_published_size(make_plan: Callable[..., Plan]) -> None:
    given = make_plan(
        patch=(128, 128, 128), spacing_mm=(1.0, 1.0, 1.0), num_channels=5, num_labels=3, preset="nvidia"
    )
    words = ["--depth", "6", "--min_fmap", "2", "--filters", "64", "96", "128", "192", "256", "384", "512"]
    words += ["--deep_supervision", "--deep_supr_num", "2", "--branch", "none"]
    planned, network = network_of(given, *words)
    assert len(planned.stages) == 7
    # The notebook of NVIDIA's third place prints 50.8 million.
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == 50.8


@pytest.mark.flag("sync_batchnorm")
def test_what_cannot_be_trained_is_refused_before_the_data_are_looked_for(tmp_path: Path) -> None:
    words = [
        "--data",
        str(tmp_path / "missing"),
        "--results",
        str(tmp_path),
        "--device",
        "cpu",
        "--gpus",
        "2",
    ]
    with pytest.raises(UserError, match="--sync_batchnorm works on GPUs only"):
        train.run(options_of(*words, "--sync_batchnorm", "--norm", "batch"))
    with pytest.raises(UserError, match="--norm instance has none"):
        train.run(options_of(*words, "--sync_batchnorm"))


@pytest.mark.flag("affinity")
@pytest.mark.parametrize(("choice", "is_bound"), [("socket_single", True), ("disabled", False)])
def test_affinity_binds_the_process_of_a_gpu(choice: str, *, is_bound: bool) -> None:
    code = (
        "import os, sys; from scripts import train; from scripts.run_recipes import read_command\n"
        "options = read_command(sys.argv[1:], program='', description='').options\n"
        "train._bind_to_processors(options, device_id=0); print(len(os.sched_getaffinity(0)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, "--affinity", choice],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    assert int(answer.stdout) == (1 if is_bound else len(os.sched_getaffinity(0)))


@pytest.mark.flag("affinity")
def test_an_unknown_affinity_is_refused_even_without_a_gpu() -> None:
    with pytest.raises(UserError, match="socket_unique_contiguous"):
        train._bind_to_processors(options_of("--affinity", "numa"), device_id=None)
