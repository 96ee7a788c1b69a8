"""The options change the planned network, or say why they cannot."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from nnunet.options import NetworkOptions
from scripts.trained_plan import MORE_CHANNELS, architecture_of, trained_plan
from utils.contracts import Plan, Shape, Stage
from utils.errors import UserError

STAGES = (Stage(channels=4, kernel=(3, 3, 3), stride=(1, 1, 1)),) * 6
EQUAL_MM = (1.0, 1.0, 1.0)


def strides(plan: Plan) -> list[Shape]:
    return [stage.stride for stage in plan.stages]


def channels(plan: Plan) -> list[int]:
    return [stage.channels for stage in plan.stages]


def test_without_options_the_plan_stays_itself(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    assert trained_plan(plan, NetworkOptions()) is plan


# --- stages ------------------------------------------------------------------------------------------------


@pytest.mark.flag("depth")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_number_of_poolings_at_most(make_plan: Callable[..., Plan], depth: int) -> None:
    plan = make_plan(patch=(32, 32, 32), spacing_mm=EQUAL_MM)
    assert strides(trained_plan(plan, NetworkOptions(depth=depth))) == [(1, 1, 1)] + depth * [(2, 2, 2)]


@pytest.mark.flag("min_fmap")
@pytest.mark.parametrize(("min_fmap", "poolings"), [(16, 1), (8, 2), (4, 3), (2, 4)])
def test_no_pooling_leaves_an_edge_below_min_fmap(
    make_plan: Callable[..., Plan], min_fmap: int, poolings: int
) -> None:
    plan = make_plan(patch=(32, 32, 32), spacing_mm=EQUAL_MM)
    changed = trained_plan(plan, NetworkOptions(min_fmap=min_fmap))
    assert strides(changed) == [(1, 1, 1)] + poolings * [(2, 2, 2)]


@pytest.mark.flag("depth")
@pytest.mark.flag("min_fmap")
def test_the_one_that_is_not_given_is_nvidias_five_or_four(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(patch=(256, 256, 256), spacing_mm=EQUAL_MM)
    assert len(trained_plan(plan, NetworkOptions(min_fmap=1)).stages) == 1 + 5
    assert len(trained_plan(plan, NetworkOptions(depth=9)).stages) == 1 + 6  # 256 / 2^6 = 4


def test_spacing_decides_which_axes_are_pooled_and_convolved(make_plan: Callable[..., Plan]) -> None:
    changed = trained_plan(make_plan(patch=(16, 32, 32), spacing_mm=(3.0, 1.0, 1.0)), NetworkOptions(depth=2))
    assert [(stage.kernel, stage.stride) for stage in changed.stages] == [
        ((1, 3, 3), (1, 1, 1)),
        ((3, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
    ]


def test_a_one_slice_plan_stays_flat(make_plan: Callable[..., Plan]) -> None:
    changed = trained_plan(make_plan(flat=True, patch=(1, 32, 32)), NetworkOptions(depth=2))
    assert {stage.kernel for stage in changed.stages} == {(1, 3, 3)}
    assert strides(changed) == [(1, 1, 1), (1, 2, 2), (1, 2, 2)]


def test_the_patch_grows_to_what_the_stages_halve_and_that_is_said_once(
    make_plan: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(patch=(40, 56, 40), spacing_mm=EQUAL_MM)
    # Three poolings leave 5, 7 and 5 voxels; the fourth needs even numbers.
    changed = trained_plan(plan, NetworkOptions(depth=4, min_fmap=2))
    assert (strides(changed)[1:], changed.patch) == (4 * [(2, 2, 2)], (48, 64, 48))
    (line,) = capsys.readouterr().err.splitlines()
    assert "from 40x56x40 to 48x64x48 voxels" in line
    assert trained_plan(plan, NetworkOptions(depth=3)).patch == plan.patch
    assert not capsys.readouterr().err


def test_blocks_per_stage_stay_as_planned(make_plan: Callable[..., Plan]) -> None:
    stages = tuple(replace(stage, num_blocks=count) for stage, count in zip(STAGES, (1, 3, 4)))  # noqa: B905
    plan = make_plan(patch=(64, 64, 64), spacing_mm=EQUAL_MM, stages=stages)
    changed = trained_plan(plan, NetworkOptions(depth=4))
    assert [stage.num_blocks for stage in changed.stages] == [1, 3, 4, 4, 4]


@pytest.mark.flag("depth")
@pytest.mark.flag("min_fmap")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (NetworkOptions(depth=0), "at least 1, got 0 and 4"),
        (NetworkOptions(min_fmap=0), "at least 1, got 5 and 0"),
        (NetworkOptions(min_fmap=1), "--depth 5 --min_fmap 1: the lowest stage would be a single voxel"),
        (NetworkOptions(min_fmap=9), "patch 4x16x16 even once would leave an edge below 9 voxels"),
    ],
)
def test_stages_that_cannot_be_are_refused(
    make_plan: Callable[..., Plan], options: NetworkOptions, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        trained_plan(make_plan(), options)


# --- channels ----------------------------------------------------------------------------------------------


@pytest.mark.flag("filters")
def test_filters_replace_the_planned_channels_and_the_last_holds_on(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(stages=STAGES)
    assert channels(trained_plan(plan, NetworkOptions(filters=(8, 16, 24)))) == [8, 16, 24, 24, 24, 24]
    assert channels(trained_plan(plan, NetworkOptions(filters=tuple(range(1, 9))))) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="at least 1"):
        trained_plan(plan, NetworkOptions(filters=(8, 0)))


@pytest.mark.flag("filters")
@pytest.mark.flag("depth")
def test_filters_are_those_of_the_new_stages(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(patch=(64, 64, 64), spacing_mm=EQUAL_MM)
    assert channels(trained_plan(plan, NetworkOptions(depth=4, filters=(1, 2, 3, 4, 5, 6)))) == [
        1,
        2,
        3,
        4,
        5,
    ]


@pytest.mark.flag("more_chn")
def test_more_chn_is_short_for_nvidias_filters(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(stages=STAGES)
    assert channels(trained_plan(plan, NetworkOptions(more_chn=True))) == [64, 96, 128, 192, 256, 384]
    written = NetworkOptions(filters=MORE_CHANNELS)
    assert trained_plan(plan, NetworkOptions(more_chn=True)) == trained_plan(plan, written)
    with pytest.raises(UserError, match="--more_chn is short for --filters 64 96"):
        trained_plan(plan, NetworkOptions(more_chn=True, filters=(8,)))


# --- the open choices --------------------------------------------------------------------------------------


@pytest.mark.flag("deep_supervision")
@pytest.mark.flag("deep_supr_num")
@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        (NetworkOptions(deep_supervision=True), 4),
        (NetworkOptions(deep_supervision=True, deep_supr_num=1), 2),
        (NetworkOptions(deep_supervision=True, deep_supr_num=4), 5),
        (NetworkOptions(deep_supervision=False), 1),
        (NetworkOptions(deep_supervision=False, deep_supr_num=2), 1),
    ],
)
def test_the_finest_output_and_the_lower_ones_asked_for_are_supervised(
    make_plan: Callable[..., Plan], options: NetworkOptions, outputs: int
) -> None:
    assert architecture_of(options, make_plan(stages=STAGES)).num_outputs == outputs


@pytest.mark.flag("deep_supr_num")
@pytest.mark.parametrize(
    ("is_deep", "number", "is_told"), [(False, 2, True), (False, None, False), (True, 2, False)]
)
def test_a_number_of_outputs_that_are_not_supervised_is_told(
    make_plan: Callable[..., Plan],
    capsys: pytest.CaptureFixture[str],
    *,
    is_deep: bool,
    number: int | None,
    is_told: bool,
) -> None:
    options = NetworkOptions(deep_supervision=is_deep, deep_supr_num=number)
    architecture_of(options, make_plan(stages=STAGES))
    told = "--deep_supr_num 2 does nothing without --deep_supervision" in capsys.readouterr().err
    assert told == is_told


@pytest.mark.flag("deep_supr_num")
@pytest.mark.parametrize("number", [-1, 0, 5])
def test_more_outputs_than_the_decoder_has_are_refused(make_plan: Callable[..., Plan], number: int) -> None:
    options = NetworkOptions(deep_supervision=True, deep_supr_num=number)
    with pytest.raises(UserError, match=f"--deep_supr_num should be from 1 to 4, got {number}"):
        architecture_of(options, make_plan(stages=STAGES))


@pytest.mark.flag("deep_supr_num")
def test_two_stages_have_no_lower_output(make_plan: Callable[..., Plan]) -> None:
    options = NetworkOptions(deep_supervision=True, deep_supr_num=1)
    with pytest.raises(UserError, match="--deep_supr_num should be left away, got 1"):
        architecture_of(options, make_plan(stages=STAGES[:2]))
    assert (
        architecture_of(replace(options, deep_supr_num=None), make_plan(stages=STAGES[:2])).num_outputs == 1
    )


@pytest.mark.flag("encoder")
@pytest.mark.flag("res_block")
@pytest.mark.parametrize(
    ("options", "encoder"),
    [
        (NetworkOptions(), "plain"),
        (NetworkOptions(res_block=True), "residual"),
        (NetworkOptions(res_block=True, encoder="residual"), "residual"),
        (NetworkOptions(encoder="residual"), "residual"),
        (NetworkOptions(encoder="attention_gated:heads=2"), "attention_gated:heads=2"),
    ],
)
def test_res_block_is_short_for_the_residual_encoder(
    make_plan: Callable[..., Plan], options: NetworkOptions, encoder: str
) -> None:
    assert architecture_of(options, make_plan()).encoder == encoder


@pytest.mark.flag("encoder")
def test_an_unset_encoder_is_that_of_the_plan(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(encoder="residual")
    assert architecture_of(NetworkOptions(), plan).encoder == "residual"
    assert architecture_of(NetworkOptions(encoder="plain"), plan).encoder == "plain"


@pytest.mark.flag("res_block")
def test_res_block_beside_another_encoder_is_refused(make_plan: Callable[..., Plan]) -> None:
    for encoder in ("plain", "attention_gated:heads=2"):
        name = encoder.partition(":")[0]
        with pytest.raises(UserError, match=f"short for --encoder residual, but --encoder is {name}"):
            architecture_of(NetworkOptions(res_block=True, encoder=encoder), make_plan())


def test_the_nvidia_preset_brings_its_convolutions(make_plan: Callable[..., Plan]) -> None:
    ours = architecture_of(NetworkOptions(), make_plan())
    theirs = architecture_of(NetworkOptions(), make_plan(preset="nvidia"))
    assert (ours.conv_bias, ours.decoder_kernels) == (True, "skip")
    assert (theirs.conv_bias, theirs.decoder_kernels) == (False, "below")
