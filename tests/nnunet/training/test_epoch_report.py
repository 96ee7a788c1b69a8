"""The line that a person reads after an epoch."""

from collections.abc import Callable

from nnunet.training.epoch_report import epoch_line
from utils.contracts import Plan

TRAINING = {
    "train/loss": 0.5,
    "train/loss_segmentation": 0.35,
    "train/loss_class": 0.5,
    "speed/patches_per_s": 12.34,
    "speed/waiting_percent": 1.26,
    "epoch_s": 9.87,
}
VALIDATION = {"val/loss": 0.4, "val/dsc": 0.7, "val/dsc_1": 0.91, "val/dsc_2": 0.5}
CLASSES = {"val/macro_f1": 0.6667, "val/macro_f1_constant": 0.4}


def test_it_names_every_label_and_the_constant_beside_macro_f1(make_plan: Callable[..., Plan]) -> None:
    assert epoch_line(3, 10, {**TRAINING, **VALIDATION, **CLASSES}, make_plan()) == (
        "epoch 3/10 | loss 0.500 (seg 0.350, class 0.500) | val loss 0.400 | "
        "Dice organ 0.910, lesion 0.500 | macro-F1 0.667 (constant 0.400) | "
        "12.3 patches/s | waiting for data 1.3 % | 9.9 s"
    )


def test_an_epoch_without_validation_has_no_scores(make_plan: Callable[..., Plan]) -> None:
    assert epoch_line(1, 2, TRAINING, make_plan(num_classes=0)) == (
        "epoch 1/2 | loss 0.500 | 12.3 patches/s | waiting for data 1.3 % | 9.9 s"
    )


def test_without_masks_to_validate_on_no_dice_is_said(make_plan: Callable[..., Plan]) -> None:
    metrics = {**TRAINING, "val/loss": 0.4, "val/dsc_1": float("nan"), "val/dsc_2": float("nan"), **CLASSES}
    assert "val loss 0.400 | macro-F1 0.667" in epoch_line(3, 10, metrics, make_plan())


def test_dice_on_the_original_grid_is_said_where_it_chooses_the_epoch(make_plan: Callable[..., Plan]) -> None:
    original = {"val/dsc_original": 0.5, "val/dsc_original_1": 0.6, "val/dsc_original_2": 0.4}
    line = epoch_line(1, 2, {**TRAINING, **VALIDATION, **original}, make_plan(num_classes=0))
    assert "| Dice on the original grid organ 0.600, lesion 0.400 |" in line


def test_regions_are_said_by_their_names(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(regions=((1, 2), (2,)), region_names=("whole", "core"), num_classes=0)
    assert "| Dice whole 0.910, core 0.500 |" in epoch_line(1, 2, {**TRAINING, **VALIDATION}, plan)
