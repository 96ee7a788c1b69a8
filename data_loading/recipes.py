"""Named recipes of augmentations, and how a user changes one."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.base import Augmentation
from utils.contracts import Plan
from utils.errors import UserError

PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    # nnU-Net v2.8's distribution, in its order (Isensee et al. 2021, and batchgeneratorsv2 0.3)
    "nnunet": (
        "rotate_scale",
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "inverted_gamma",
        "gamma",
        "mirror",
        "zero_outside",
    ),
    # NVIDIA's nnU-Net: one draw for all channels, zoom in only
    "nvidia": (
        "zoom",
        "mirror",
        "noise:probability=0.15,max_std=0.33",
        "blur:probability=0.15,channel_probability=1,low=0.5,high=1.5,same=true",
        "brightness:probability=0.15,low=0.7,high=1.3,same=true",
        "contrast:probability=0.15,low=0.65,high=1.5,same=true,around_mean=false",
    ),
}
REMOVAL = "no_"


def build_recipe(choices: Sequence[str], plan: Plan | None = None) -> tuple[Augmentation, ...]:
    """The augmentations called for, in order, fitted to the plan where one is given.

    Each choice is a preset (`nnunet`), a part with options (`noise:probability=0.2`), which takes the place
    of its namesake or else comes last, or a part to leave out (`no_blur`). Parts named before a preset stay
    before it. UserError for what does not exist, and for an order that cannot be.
    """
    if len(presets := [choice for choice in choices if choice in PRESETS and choice != "none"]) > 1:
        raise UserError(f"--augment: one preset at a time, got {' and '.join(presets)}.")
    built = [AUGMENTATIONS.build(part) for part in _parts(choices)]
    for part in built[1:]:
        if part.reads:
            raise UserError(
                f"--augment: {part.name} reads more than the patch and has to come first, "
                f"before {built[0].name}."
            )
    return tuple(built) if plan is None else tuple(part.for_plan(plan) for part in built)


def told_parts(recipe: Sequence[Augmentation]) -> list[str]:
    """Every part with all its values, as text: what a run that resumes compares."""
    return [repr(part) for part in recipe]


def is_recipe(told: Sequence[str], recipe: Sequence[Augmentation]) -> bool:
    """Whether `told` (of `told_parts`, also of an older program) describes this recipe.

    A value that the text lacks is of a field that came later: its default is what parts did before.
    """
    return len(told) == len(recipe) and all(map(_is_part, told, recipe))


def _is_part(told: str, part: Augmentation) -> bool:
    own = {field.name: getattr(part, field.name) for field in fields(part)}
    defaults = {field.name: field.default for field in fields(part)}
    try:
        given = _values(told, type(part).__name__)
    except (SyntaxError, ValueError):
        return told == repr(part)
    return defaults | given == own


def _values(told: str, kind: str) -> dict[str, Any]:
    """The fields of `told`, written like a call of `kind`; ValueError for anything else."""
    call = ast.parse(told, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != kind:
        raise ValueError(f"{told!r} is no {kind}.")
    return {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}


def _parts(choices: Sequence[str]) -> list[str]:
    """The parts' descriptions in order."""
    parts: list[str] = []
    for choice in choices:
        name = _name(choice)
        places = [place for place, part in enumerate(parts) if _name(part) == name.removeprefix(REMOVAL)]
        if choice == "none":
            parts = []
        elif choice in PRESETS:
            named = {_name(part) for part in parts}
            parts += [part for part in PRESETS[choice] if _name(part) not in named]
        elif name.startswith(REMOVAL):
            if not places:
                raise UserError(f"--augment {choice}: there is no {name.removeprefix(REMOVAL)} to leave out.")
            parts = [part for place, part in enumerate(parts) if place not in places]
        elif places:
            parts[places[0]] = choice
        else:
            parts.append(choice)
    return parts


def _name(choice: str) -> str:
    return choice.partition(":")[0]
