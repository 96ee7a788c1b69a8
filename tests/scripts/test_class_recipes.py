"""Recipes under the names of other systems' trainers: each builds its network and takes a step."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from nnunet.label_coding import LabelCoding
from nnunet.losses.classification import CLASS_LOSSES
from nnunet.losses.multi_task import MultiTaskLoss
from nnunet.losses.segmentation import SegmentationLoss
from nnunet.network import MultiTaskUNet
from nnunet.training.learning_parts import choose_learning
from nnunet.training.optimisers import build_optimiser, parameter_groups
from scripts.class_recipes import CHANGES, FINE_TUNING
from scripts.run_options import Recipe, RunOptions
from scripts.run_recipes import NNUNET, RECIPES, read_command
from scripts.run_start import refuse_contradictory_start
from scripts.trained_plan import architecture_of
from utils.contracts import Batch, Plan
from utils.errors import UserError
from utils.options import describe

NAMES = sorted(CHANGES)


def options_of(*words: str) -> RunOptions:
    return read_command(words, program="main.py", description="").options


def batch_of(plan: Plan) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.randn(2, 1, *plan.patch, generator=generator),
        label=(torch.randint(0, 3, (2, 1, *plan.patch), generator=generator, dtype=torch.int16),),
        class_target=torch.tensor([0, 1]),
        case_weights=None,
        case_ids=("a", "b"),
        num_counted=2,
    )


def test_the_command_line_offers_every_recipe() -> None:
    assert set(get_args(Recipe)) == set(RECIPES)
    assert set(RECIPES) == {"nvidia", "nnunet", *NAMES}
    assert set(NAMES) >= FINE_TUNING


@pytest.mark.flag("recipe")
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_nnunets_with_its_changes(name: str) -> None:
    found = describe(options_of("--recipe", name))
    assert {key: found[key] for key in {**NNUNET, **CHANGES[name]}} == {**NNUNET, **CHANGES[name]}


@pytest.mark.parametrize("name", NAMES)
def test_the_network_of_a_recipe_takes_a_step(name: str, make_plan: Callable[..., Plan]) -> None:
    plan, options = make_plan(), options_of("--recipe", name)
    torch.manual_seed(0)
    network = MultiTaskUNet(plan, architecture_of(options.network, plan))
    choose_learning(network, plan, options.training)
    loss = MultiTaskLoss(
        CLASS_LOSSES.build(options.loss.class_loss).build((3, 1)),
        SegmentationLoss(coding=LabelCoding.of_plan(plan), batch_dice=False),
        class_loss_weight=options.loss.class_loss_weight,
        lesion_free_weight=options.loss.lesion_free_weight,
        segmentation_learns=options.training.segmentation_learns,
    )
    optimiser = build_optimiser(parameter_groups(network, loss), options.optimiser, fused=False)
    before = [weight.clone() for weight in network.branch.parameters()]  # every recipe has a branch
    batch = batch_of(plan)
    terms = loss(network(batch.image, batch.label[0] if network.takes_guide else None), batch)
    terms.total.backward()
    assert all(weight.grad is not None for weight in network.parameters() if weight.requires_grad)
    optimiser.step()
    assert any(
        not torch.equal(old, new) for old, new in zip(before, network.branch.parameters(), strict=True)
    )


def test_every_recipe_is_explained() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "classification.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []


def test_fine_tuning_needs_something_to_start_from() -> None:
    with pytest.raises(UserError, match="--recipe CLSHeadSumFT goes on from a trained segmentation"):
        refuse_contradictory_start(options_of("--recipe", "CLSHeadSumFT"))
    refuse_contradictory_start(options_of("--recipe", "CLSHeadSumFT", "--ckpt_path", "a.ckpt"))
    refuse_contradictory_start(options_of("--recipe", "CLSHeadSumFT", "--resume_training"))


@pytest.mark.flag("freeze")
def test_weights_that_nobody_trained_are_not_frozen() -> None:
    with pytest.raises(UserError, match="--freeze encoder would keep weights that nobody has trained"):
        refuse_contradictory_start(options_of("--freeze", "encoder"))
    refuse_contradictory_start(options_of("--freeze", "encoder", "--ckpt_path", "a.ckpt"))
    refuse_contradictory_start(options_of("--freeze", "encoder", "--resume_training"))


def test_two_starting_points_are_refused() -> None:
    with pytest.raises(UserError, match="Give one of the two"):
        refuse_contradictory_start(options_of("--resume_training", "--ckpt_path", "a.ckpt"))
