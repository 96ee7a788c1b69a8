"""The plan of a BraTS dataset with plain labels -> one with the challenge's three overlapping regions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning_fabric.utilities.rank_zero import rank_zero_only

from utils.contracts import Plan
from utils.errors import DatasetError
from utils.run_log import say

# Labels as BraTS numbers them since 2017, its 4 written as 3: necrotic core 1, oedema 2, enhancing tumour 3.
BRATS_LABELS = 3
REGIONS = ((1, 2, 3), (1, 3), (3,))
REGION_NAMES = ("whole tumour", "tumour core", "enhancing tumour")
# What is left of a region by the smaller ones written over it: oedema, necrotic core, enhancing tumour.
CLASS_ORDER = (2, 1, 3)


def with_brats_regions(plan: Plan, folder: Path) -> Plan:
    """The plan that trains whole tumour, tumour core and enhancing tumour, one sigmoid each (--brats).

    DatasetError unless the plan of `folder` has the labels 1, 2 and 3 beside the background, and no regions.
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
    _say_once(f"--brats trains {'; '.join(_composition(plan, place) for place in range(len(REGIONS)))}.")
    return replace(plan, regions=REGIONS, region_names=REGION_NAMES, regions_class_order=CLASS_ORDER)


def _composition(plan: Plan, place: int) -> str:
    """A region and the names of its labels: datasets that number them otherwise show here."""
    return f"{REGION_NAMES[place]} = {' + '.join(plan.label_names[label] for label in REGIONS[place])}"


@rank_zero_only
def _say_once(message: str) -> None:
    """One process speaks for all."""
    say(message)
