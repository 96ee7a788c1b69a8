"""The command line of a run: NVIDIA's defaults, others' as recipes, and names that have no place here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scripts.class_recipes import class_recipes
from scripts.configurations import as_configured
from scripts.environment_defaults import with_environment, with_folders
from scripts.run_options import RunOptions
from utils.options import OptionRules, option_layers, origins, parse

# Isensee et al. 2021 and nnU-Net v2.
NNUNET: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "weight_decay": 3e-5,
    "momentum": 0.99,
    "schedule": "poly",
    "gradient_clip_val": 12.0,
    "deep_supervision": True,
    "oversampling": 0.33,
    "epochs": 1000,
    "steps_per_epoch": 250,
    "patience": 0,
    "amp": True,
    "tta": True,
}
REFUSED = {
    "brats22_model": (
        "--brats22_model is not offered: that network is written down by hand for one dataset. Use --brats "
        "--deep_supervision --depth 6 --min_fmap 2 --filters 64 96 128 192 256 384 512 instead."
    ),
    "bind": "--bind is not offered: use --affinity, which keeps a GPU's process on the processors near it.",
    "norm=instance_nvfuser": (
        "--norm instance_nvfuser is not offered: its kernel left PyTorch. Use --norm instance; --compile "
        "fuses it with its neighbours, --layout NDHWC keeps the channels last."
    ),
}
USUAL = "nvidia"
RECIPES: dict[str, dict[str, Any]] = {USUAL: {}, "nnunet": NNUNET, **class_recipes(NNUNET)}
RULES = OptionRules(preset="recipe", usual_preset=USUAL, presets=RECIPES, refused=REFUSED)
TRAINING_PROGRAMS = ("main.py", "train.py", "crossval.py")
PROGRAMS = (*TRAINING_PROGRAMS, "cascade.py", "inference.py", "fit_classifier.py")
# NVIDIA's training script: epochs, and those before the first validation; on several GPUs (True), on one.
SCRIPT_EPOCHS, SCRIPT_SKIPPED = {True: 600, False: 300}, {True: 150, False: 100}


def training_script_rules(argv: Sequence[str]) -> OptionRules:
    """The rules of `scripts/train.py`: the recipe nvidia as NVIDIA's training script has it.

    Deep supervision, 300 epochs (600 on several GPUs) of which the first 100 (150) are not validated. With an
    own number of epochs every epoch is validated, unless --skip_first_n_eval is given.
    """
    given = {name for layer in option_layers(RunOptions, argv) for name in layer.names}
    options = parse(RunOptions, argv, program="train.py", description="", rules=RULES)
    is_many = options.gpus * options.nodes > 1
    nvidia: dict[str, Any] = {"deep_supervision": True}
    if not given & {"epochs", "max_epochs", "skip_first_n_eval"}:
        nvidia |= {"epochs": SCRIPT_EPOCHS[is_many], "skip_first_n_eval": SCRIPT_SKIPPED[is_many]}
    return replace(RULES, presets={**RECIPES, USUAL: nvidia})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    """The options of a run, and for each that is not at its default who set it."""

    options: RunOptions
    origins: dict[str, str]


def read_command(
    argv: Sequence[str], *, program: str, description: str, rules: OptionRules = RULES
) -> RunCommand:
    """`argv` without the program's name, understood; ends the program as `utils.options.parse` does.

    A program takes nnU-Net's folders for defaults where the environment names them, one that trains also the
    variables of another system.
    """
    if program in PROGRAMS:
        rules = with_folders(rules)
    if program in TRAINING_PROGRAMS:
        rules = with_environment(argv, rules)
    options = parse(RunOptions, argv, program=program, description=description, rules=rules)
    given = origins(option_layers(RunOptions, argv, rules))
    return RunCommand(options=as_configured(options, given), origins=given)
