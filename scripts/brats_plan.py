"""The plan of a BraTS dataset with plain labels -> one with the challenge's three overlapping regions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scripts.one_voice import say_once
from utils.contracts import Plan
from utils.errors import DatasetError

BRATS_LABELS = 3
REGION_NAMES = ("whole tumour", "tumour core", "enhancing tumour")
ENHANCING = 3  # as BraTS numbers its labels since 2017, its 4 written as 3
OEDEMA = 2  # likewise; 1 in the Decathlon's brain tumours, whose label of this name counts


def with_brats_regions(plan: Plan, folder: Path) -> Plan:
    """The plan that trains whole tumour, tumour core and enhancing tumour, one sigmoid each (--brats).

    The core is the tumour without the oedema: the label 1 or 2 that is called so, else 2. DatasetError unless
    the plan of `folder` has the labels 1, 2 and 3 beside the background, and no regions.
    """
    if plan.regions:
        raise DatasetError(
            f"{folder}: the plan has regions of its own, {', '.join(plan.region_names)}. Leave --brats away."
        )
    if plan.num_labels != BRATS_LABELS + 1:
        names = ", ".join(plan.target_names)
        raise DatasetError(
            f"{folder}: --brats needs the labels 1 (necrotic core), 2 (oedema) and 3 (enhancing tumour), the "
            f"plan has {plan.num_labels - 1} labels: {names}. Leave --brats away for another dataset."
        )
    oedema = next((label for label in (1, 2) if "edema" in plan.label_names[label].lower()), OEDEMA)
    necrosis = 3 - oedema
    regions = ((1, 2, 3), (necrosis, ENHANCING), (ENHANCING,))
    made_of = (" + ".join(plan.label_names[label] for label in labels) for labels in regions)
    told = "; ".join(f"{name} = {labels}" for name, labels in zip(REGION_NAMES, made_of, strict=True))
    say_once(f"--brats trains {told}.")
    # What is left of a region by the smaller ones written over it.
    order = (oedema, necrosis, ENHANCING)
    return replace(plan, regions=regions, region_names=REGION_NAMES, regions_class_order=order)
