"""What a resumed loader compares with the run that saved its position."""

from dataclasses import replace
from typing import Any

import pytest

from data_loading.augmentations.mirror import Mirror
from data_loading.loader import Shard, TrainingLoader
from data_loading.patches import SamplingRule
from data_loading.targets import TargetRule
from utils.errors import DatasetError


def make_loader(prepared, **changed: Any) -> TrainingLoader:
    given = {"batch_size": 4, "world_size": 1, "steps_per_epoch": 4, "foreground_share": 0.5, "seed": 7}
    recipe = changed.pop("recipe", ())
    rule = SamplingRule(patch=(1, 6, 5), **(given | changed))
    return TrainingLoader(prepared.entries, rule, recipe, TargetRule(shapes=((1, 6, 5),)), Shard())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lesion_share": 0.5, "lesion_label": 2}, "lesion_share 0.0; this run has lesion_share 0.5"),
        ({"num_volumes": 2}, "volumes_per_batch None; this run has volumes_per_batch 2"),
        ({"case_limits": (0.1, 0.2, 0.3, 0.4, 1.0)}, "balanced_classes None; .* balanced_classes"),
    ],
)
def test_another_way_to_draw_windows_is_refused(prepared, changed: dict[str, Any], told: str) -> None:
    state = make_loader(prepared).state_dict()
    with pytest.raises(DatasetError, match=told):
        make_loader(prepared, **changed).load_state_dict(state)


def test_other_rates_of_the_cases_are_refused(prepared) -> None:
    state = make_loader(prepared, case_limits=(0.1, 0.2, 0.3, 0.4, 1.0)).state_dict()
    with pytest.raises(DatasetError, match="balanced_classes"):
        make_loader(prepared, case_limits=(0.2, 0.4, 0.6, 0.8, 1.0)).load_state_dict(state)


def test_masks_that_vanished_are_refused(prepared) -> None:
    state = make_loader(prepared).state_dict()
    cases = (replace(prepared.cases[0], foreground=None), *prepared.cases[1:])
    with pytest.raises(DatasetError, match="masks 5; this run has masks 4"):
        make_loader(replace(prepared, cases=cases)).load_state_dict(state)


def test_the_same_rule_resumes(prepared) -> None:
    changed: dict[str, Any] = {"lesion_share": 0.5, "lesion_label": 2, "num_volumes": 2}
    loader = make_loader(prepared, **changed)
    loader.delivered = 3
    fresh = make_loader(prepared, **changed)
    fresh.load_state_dict(loader.state_dict())
    assert fresh.delivered == 3


BEFORE_SIDES = "Mirror(probability=0.5, axes=(0, 1, 2))"  # as it was told before pairs of left and right


def test_a_part_that_has_got_a_new_field_resumes_where_that_is_at_its_default(prepared) -> None:
    loader = make_loader(prepared, recipe=(Mirror(),))
    state = loader.state_dict()
    state["delivered"] = 3
    state["layout"] |= {"augmentations": [BEFORE_SIDES]}
    loader.load_state_dict(state)
    assert loader.delivered == 3


@pytest.mark.parametrize(
    "told",
    [
        [BEFORE_SIDES],
        ["Mirror(probability=0.5, axes=(0, 1, 2), swap_axis=2, pairs=(1, 2), later=True)"],
        ["Turn(probability=0.5, axes=(0, 1, 2), swap_axis=2, pairs=(1, 2))"],
        ["Mirror(probability=inf, pairs=(1, 2))"],
        ["no part at all"],
        [],
        None,
    ],
)
def test_a_part_that_acts_in_another_way_is_refused(prepared, told: list[str] | None) -> None:
    loader = make_loader(prepared, recipe=(Mirror(pairs=(1, 2)),))
    state = loader.state_dict()
    state["layout"] |= {"augmentations": told}
    with pytest.raises(DatasetError, match="augmentations"):
        loader.load_state_dict(state)
