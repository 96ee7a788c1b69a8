"""Plain labels become the regions of BraTS."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.plan_check import validate_plan
from data_preprocessing.restore import painted_regions
from scripts.brats_plan import with_brats_regions
from utils.contracts import Plan
from utils.errors import DatasetError

NAMES = ("background", "necrotic core", "edema", "enhancing tumour")
FOLDER = Path("11_3d")


@pytest.fixture
def brats(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(num_labels=4, label_names=NAMES)


def test_the_network_gets_an_output_per_region(brats: Plan) -> None:
    plan = with_brats_regions(brats, FOLDER)
    validate_plan(plan)
    assert plan.num_logits == 3
    assert plan.target_names == ("whole tumour", "tumour core", "enhancing tumour")


def test_regions_of_a_mask_write_this_mask_again(brats: Plan) -> None:
    plan = with_brats_regions(brats, FOLDER)
    mask = np.array([[[0, 1, 2, 3]]])
    members = np.stack([np.isin(mask, region) for region in plan.regions]).astype(float)
    assert members[:, 0, 0].tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    np.testing.assert_array_equal(painted_regions(members, plan.regions_class_order), mask)


def test_it_says_of_which_labels_a_region_is_made(brats: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    with_brats_regions(brats, FOLDER)
    assert "tumour core = necrotic core + enhancing tumour;" in capsys.readouterr().err


def test_another_number_of_labels_is_refused(make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(DatasetError, match="11_3d: --brats needs the labels .* has 2 labels: organ, lesion"):
        with_brats_regions(make_plan(), FOLDER)


def test_regions_of_the_dataset_are_not_replaced(brats: Plan) -> None:
    plan = replace(brats, regions=((1, 2, 3),), region_names=("tumour",), regions_class_order=(1,))
    with pytest.raises(DatasetError, match="regions of its own, tumour. Leave --brats away"):
        with_brats_regions(plan, FOLDER)


def test_the_decathlons_numbering_is_known_by_the_name_of_the_oedema(brats: Plan) -> None:
    names = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    plan = with_brats_regions(replace(brats, label_names=names), FOLDER)
    assert (plan.regions, plan.regions_class_order) == (((1, 2, 3), (2, 3), (3,)), (1, 2, 3))
