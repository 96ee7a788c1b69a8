"""Plans against published nnU-Net plans, and the rules one by one."""

from dataclasses import dataclass, replace

import pytest

from data_preprocessing import memory_budget
from data_preprocessing.plan_check import validate_plan
from data_preprocessing.planners import KNOWN_AS, PlannerName, PlannerOptions
from data_preprocessing.planning import coarsest_first, plan_experiment, target_spacing
from utils.contracts import Fingerprint, IntensityStats, Plan, Shape, Spacing
from utils.errors import DatasetError, UserError

STATS = IntensityStats(mean=80.0, std=30.0, median=79.0, min=-20.0, max=300.0, low=-10.0, high=200.0)


def fingerprint(
    spacing_mm: Spacing,
    shape: Shape,
    *,
    num_cases: int = 100,
    num_labels: int = 3,
    channels: tuple[str, ...] = ("CT",),
) -> Fingerprint:
    """A dataset of equal cases."""
    return Fingerprint(
        dataset="Toy",
        case_ids=tuple(f"case_{number}" for number in range(num_cases)),
        shapes=(shape,) * num_cases,
        spacings_mm=(spacing_mm,) * num_cases,
        intensity=(STATS,) * len(channels),
        relative_sizes=(1.0,) * num_cases,
        channel_names=channels,
        label_names=("background", *(f"organ_{value}" for value in range(1, num_labels))),
        class_names=(),
    )


def plan(
    source: Fingerprint, configuration: str = "3d_fullres", options: PlannerOptions | None = None
) -> Plan:
    return plan_experiment(source, configuration=configuration, options=options or PlannerOptions())


def pools(planned: Plan) -> Shape:
    depth, height, width = (sum(stage.stride[axis] == 2 for stage in planned.stages) for axis in range(3))
    return depth, height, width


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A dataset and the plan that a planner of nnU-Net makes for it."""

    source: Fingerprint
    configuration: str
    patch: Shape
    batch_size: int
    pools: Shape
    flat_stages: int = 0
    planner: PlannerName = "default"

    def plan(self) -> Plan:
        return plan(self.source, self.configuration, PlannerOptions(planner=self.planner))


HIPPOCAMPUS = fingerprint((1, 1, 1), (36, 50, 35), num_cases=260)
BRAIN = fingerprint((1, 1, 1), (138, 169, 138), num_cases=484, num_labels=4)
ABDOMEN = fingerprint((2, 0.78, 0.78), (228, 513, 513), num_labels=14)
THIN_CT = fingerprint((1, 0.833, 0.833), (300, 480, 480))
PROSTATE = fingerprint((3.6, 0.62, 0.62), (20, 320, 319), num_cases=32)
HEART = fingerprint((5, 1.56, 1.56), (18, 237, 208), num_cases=200, num_labels=4)
LIVER = fingerprint((1, 0.767, 0.767), (482, 512, 512), num_cases=131)

GOLDEN = {
    "hippocampus_3d": Golden(
        source=HIPPOCAMPUS, configuration="3d_fullres", patch=(40, 56, 40), batch_size=9, pools=(3, 3, 3)
    ),
    "hippocampus_2d": Golden(
        source=HIPPOCAMPUS,
        configuration="2d",
        patch=(1, 56, 40),
        batch_size=366,
        pools=(0, 3, 3),
        flat_stages=4,
    ),
    "brain_3d": Golden(
        source=BRAIN, configuration="3d_fullres", patch=(128, 128, 128), batch_size=2, pools=(5, 5, 5)
    ),
    "brain_2d": Golden(
        source=BRAIN, configuration="2d", patch=(1, 192, 160), batch_size=105, pools=(0, 5, 5), flat_stages=6
    ),
    "abdomen_3d": Golden(
        source=ABDOMEN,
        configuration="3d_fullres",
        patch=(64, 160, 160),
        batch_size=2,
        pools=(4, 5, 5),
        flat_stages=1,
    ),
    "thin_ct_3d": Golden(
        source=THIN_CT, configuration="3d_fullres", patch=(96, 160, 160), batch_size=2, pools=(4, 5, 5)
    ),
    "prostate_3d": Golden(
        source=PROSTATE,
        configuration="3d_fullres",
        patch=(20, 320, 256),
        batch_size=2,
        pools=(2, 6, 6),
        flat_stages=2,
    ),
    "prostate_2d": Golden(
        source=PROSTATE,
        configuration="2d",
        patch=(1, 320, 320),
        batch_size=32,
        pools=(0, 6, 6),
        flat_stages=7,
    ),
    "heart_3d": Golden(
        source=HEART,
        configuration="3d_fullres",
        patch=(20, 256, 224),
        batch_size=4,
        pools=(2, 5, 5),
        flat_stages=1,
    ),
    "heart_2d": Golden(
        source=HEART, configuration="2d", patch=(1, 256, 224), batch_size=56, pools=(0, 5, 5), flat_stages=6
    ),
    "liver_3d": Golden(
        source=LIVER, configuration="3d_fullres", patch=(128, 128, 128), batch_size=2, pools=(5, 5, 5)
    ),
    "liver_2d": Golden(
        source=LIVER, configuration="2d", patch=(1, 512, 512), batch_size=12, pools=(0, 7, 7), flat_stages=8
    ),
}


def golden_3d(
    source: Fingerprint, planner: PlannerName, patch: Shape, batch_size: int, pools: Shape, flat: int = 0
) -> Golden:
    return Golden(
        source=source,
        configuration="3d_fullres",
        planner=planner,
        patch=patch,
        batch_size=batch_size,
        pools=pools,
        flat_stages=flat,
    )


GOLDEN |= {
    "hippocampus_3d_m": golden_3d(HIPPOCAMPUS, "resenc_m", (40, 56, 40), 9, (3, 3, 3)),
    "hippocampus_3d_l": golden_3d(HIPPOCAMPUS, "resenc_l", (40, 56, 40), 9, (3, 3, 3)),
    "hippocampus_3d_xl": golden_3d(HIPPOCAMPUS, "resenc_xl", (40, 56, 40), 9, (3, 3, 3)),
    "brain_3d_l": golden_3d(BRAIN, "resenc_l", (160, 192, 160), 3, (5, 5, 5)),
    "brain_3d_xl": golden_3d(BRAIN, "resenc_xl", (160, 192, 160), 5, (5, 5, 5)),
    "abdomen_3d_l": golden_3d(ABDOMEN, "resenc_l", (96, 224, 224), 2, (4, 5, 5), flat=1),
    "abdomen_3d_xl": golden_3d(ABDOMEN, "resenc_xl", (128, 256, 256), 2, (5, 6, 6), flat=1),
    "liver_3d_m": golden_3d(LIVER, "resenc_m", (128, 128, 128), 2, (5, 5, 5)),
    "liver_3d_l": golden_3d(LIVER, "resenc_l", (192, 192, 192), 2, (5, 5, 5)),
    "liver_3d_xl": golden_3d(LIVER, "resenc_xl", (224, 256, 224), 2, (5, 5, 5)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_plan_is_that_of_nnunet(name: str) -> None:
    golden = GOLDEN[name]
    planned = golden.plan()
    assert planned.patch == golden.patch
    assert planned.batch_size == golden.batch_size
    assert pools(planned) == golden.pools


@pytest.mark.parametrize("name", GOLDEN)
def test_only_the_first_kernels_are_flat(name: str) -> None:
    golden = GOLDEN[name]
    kernels = [stage.kernel for stage in golden.plan().stages]
    full = len(kernels) - golden.flat_stages
    assert kernels == [(1, 3, 3)] * golden.flat_stages + [(3, 3, 3)] * full


@pytest.mark.parametrize("name", GOLDEN)
def test_every_plan_passes_the_check_for_edited_plans(name: str) -> None:
    validate_plan(GOLDEN[name].plan())


@pytest.mark.parametrize(
    ("configuration", "planner", "uncapped"),
    [
        ("3d_fullres", "resenc_m", 58),
        ("3d_fullres", "resenc_l", 178),
        ("3d_fullres", "resenc_xl", 183),
        ("2d", "resenc_m", 1618),
        ("2d", "resenc_l", 4554),
        ("2d", "resenc_xl", 6711),
    ],
)
def test_a_batch_keeps_to_a_twentieth_of_the_dataset_where_nnunets_residual_planners_do_not(
    monkeypatch: pytest.MonkeyPatch, configuration: str, planner: PlannerName, uncapped: int
) -> None:
    options = PlannerOptions(planner=planner)
    capped = GOLDEN["hippocampus_2d" if configuration == "2d" else "hippocampus_3d"].batch_size
    assert plan(HIPPOCAMPUS, configuration, options).batch_size == capped
    # nnU-Net's own planners of these names let one batch hold the whole dataset.
    monkeypatch.setattr(memory_budget, "MAX_DATASET_SHARE", 1.0)
    assert plan(HIPPOCAMPUS, configuration, options).batch_size == uncapped


def test_a_plan_says_what_network_it_is_for() -> None:
    plain, residual = plan(LIVER), plan(LIVER, options=PlannerOptions(planner="resenc_m"))
    assert (plain.planner, plain.encoder, plain.decoder_blocks) == ("default", "plain", 2)
    assert [stage.num_blocks for stage in plain.stages] == [2, 2, 2, 2, 2, 2]
    assert (residual.planner, residual.encoder, residual.decoder_blocks) == ("resenc_m", "residual", 1)
    assert [stage.num_blocks for stage in residual.stages] == [1, 3, 4, 6, 6, 6]


@pytest.mark.parametrize("theirs", KNOWN_AS)
def test_nnunets_names_make_the_same_plans(theirs: PlannerName) -> None:
    ours, resampling = KNOWN_AS[theirs]
    expected = plan(BRAIN, options=PlannerOptions(planner=ours, resampling=resampling))  # pyright: ignore
    assert plan(BRAIN, options=PlannerOptions(planner=theirs)) == expected
    ways = {"torchres": "torch", "sepz": "torch_sepz", "noResampling": "none"}
    assert expected.resampling == ways.get(theirs.split("_")[-1], "scipy")


def test_an_option_says_how_to_resample_before_the_planners_name_does() -> None:
    options = PlannerOptions(planner="nnUNetPlanner_torchres", resampling="scipy")
    assert plan(BRAIN, options=options).resampling == "scipy"


def test_without_resampling_patch_and_stages_are_those_of_the_same_planner_with_it() -> None:
    kept = plan(BRAIN, options=PlannerOptions(planner="nnUNetPlannerResEncL_noResampling"))
    assert replace(kept, resampling="scipy") == plan(BRAIN, options=PlannerOptions(planner="resenc_l"))


@pytest.mark.flag("preprocess:resampling", "preprocess:planner")
def test_without_resampling_there_is_no_low_resolution() -> None:
    named = PlannerOptions(planner="nnUNetPlannerResEncL_noResampling")
    for options in (named, PlannerOptions(resampling="none")):
        with pytest.raises(UserError, match="cases keep their own grid, so there is no low resolution"):
            plan(LIVER, "3d_lowres", options)
    assert plan(LIVER, "3d_fullres", PlannerOptions(resampling="none")).resampling == "none"


@pytest.mark.parametrize(("planner", "memory_gb"), [("resenc_l", 24.0), ("resenc_xl", 40.0)])
def test_the_memory_of_a_planner_is_its_own_unless_it_is_given(
    planner: PlannerName, memory_gb: float
) -> None:
    unset = plan(LIVER, options=PlannerOptions(planner=planner))
    assert unset == plan(LIVER, options=PlannerOptions(planner=planner, gpu_memory_target_gb=memory_gb))
    tight = plan(LIVER, options=PlannerOptions(planner=planner, gpu_memory_target_gb=8.0))
    assert tight.patch < unset.patch
    # 1.25 times the 557 million of 128^3 are 697: within 8/24 of 2.1e9 and 8/40 of 3.6e9, not within 680e6.
    assert tight.patch == (128, 160, 128)


def test_channels_double_up_to_320_in_3d_and_512_in_2d() -> None:
    assert [stage.channels for stage in plan(BRAIN).stages] == [32, 64, 128, 256, 320, 320]
    assert [stage.channels for stage in plan(BRAIN, "2d").stages] == [32, 64, 128, 256, 512, 512]


def test_twice_the_memory_allows_a_larger_patch() -> None:
    assert plan(LIVER, options=PlannerOptions(gpu_memory_target_gb=24.0)).patch > (128, 128, 128)


def test_the_longest_share_of_the_median_shrinks_first_and_the_last_axis_wins_a_tie() -> None:
    # Between 160^3 and 128^3: one step of 32 at a time, always from the last of the longest axes.
    cube = fingerprint((1, 1, 1), (160, 160, 160))
    assert plan(cube, options=PlannerOptions(gpu_memory_target_gb=10.1)).patch == (160, 128, 128)
    assert plan(cube, options=PlannerOptions(gpu_memory_target_gb=12.6)).patch == (160, 160, 128)


def test_a_device_too_small_for_any_patch_is_named() -> None:
    with pytest.raises(UserError, match=r"gpu_memory_target_gb 1e-05"):
        plan(LIVER, options=PlannerOptions(gpu_memory_target_gb=1e-5))


def test_the_target_is_the_median_spacing_per_axis() -> None:
    source = replace(
        fingerprint((1, 1, 1), (60, 60, 60), num_cases=3),
        spacings_mm=((1.0, 2.0, 1.0), (2.0, 1.0, 1.0), (3.0, 3.0, 1.0)),
    )
    assert target_spacing(source) == (2.0, 2.0, 1.0)


def thick(spacings_z_mm: tuple[float, ...], shape: Shape) -> Fingerprint:
    source = fingerprint((5, 1, 1), shape, num_cases=len(spacings_z_mm))
    return replace(source, spacings_mm=tuple((z, 1.0, 1.0) for z in spacings_z_mm))


def test_thick_and_few_slices_get_the_tenth_percentile() -> None:
    assert target_spacing(thick((2.0, 5.0, 5.0), (20, 100, 100)))[0] == pytest.approx(2.6)


def test_the_exception_never_makes_slices_finer_than_the_planes() -> None:
    assert target_spacing(thick((0.5, 0.5, 5.0, 5.0, 5.0), (20, 100, 100)))[0] == 1.0 + 1e-5


def test_three_times_coarser_is_not_yet_an_exception() -> None:
    assert target_spacing(thick((2.0, 3.0, 3.0), (20, 100, 100)))[0] == 3.0


def test_thick_but_many_slices_are_no_exception() -> None:
    assert target_spacing(thick((2.0, 5.0, 5.0), (34, 100, 100)))[0] == 5.0


def test_the_coarsest_axis_comes_first_and_the_first_wins_a_tie() -> None:
    assert coarsest_first((1.0, 1.0, 3.0)) == (2, 0, 1)
    assert coarsest_first((1.0, 3.0, 3.0)) == (1, 0, 2)
    assert coarsest_first((1.0, 1.0, 1.0)) == (0, 1, 2)


def test_a_sagittal_dataset_is_planned_in_its_own_order() -> None:
    planned = plan(fingerprint((0.62, 0.62, 3.6), (320, 319, 20), num_cases=32))
    assert planned.axis_order == (2, 0, 1)
    assert planned.spacing_mm == (3.6, 0.62, 0.62)
    assert planned.median_shape == (20, 320, 319)
    assert planned.patch == (20, 320, 256)


def test_an_overwritten_spacing_changes_grid_and_order() -> None:
    planned = plan(BRAIN, options=PlannerOptions(overwrite_target_spacing=(1.0, 1.0, 2.0)))
    assert planned.axis_order == (2, 0, 1)
    assert planned.spacing_mm == (2.0, 1.0, 1.0)
    assert planned.median_shape == (69, 138, 169)


def test_the_2d_plan_keeps_the_slice_spacing_and_the_median_number_of_slices() -> None:
    planned = plan(PROSTATE, "2d")
    assert planned.spacing_mm == (3.6, 0.62, 0.62)
    assert planned.median_shape == (20, 320, 319)


def test_batch_dice_is_on_in_2d_and_where_a_low_resolution_exists() -> None:
    assert plan(HIPPOCAMPUS, "2d").batch_dice
    assert not plan(HIPPOCAMPUS).batch_dice
    assert plan(LIVER).batch_dice
    assert not plan(LIVER, "3d_lowres").batch_dice


def test_the_low_resolution_patch_covers_a_quarter_of_the_median_case() -> None:
    planned = plan(LIVER, "3d_lowres")
    covered = [patch / edge for patch, edge in zip(planned.patch, planned.median_shape, strict=True)]
    assert covered[0] * covered[1] * covered[2] >= 0.25
    assert planned.spacing_mm > plan(LIVER).spacing_mm


def test_the_low_resolution_coarsens_the_fine_axes_first() -> None:
    planned = plan(fingerprint((3.0, 0.5, 0.5), (120, 640, 640)), "3d_lowres")
    assert planned.spacing_mm[0] == 3.0
    assert planned.spacing_mm[1] > 0.5


def test_a_low_resolution_that_saves_less_than_half_is_dropped() -> None:
    # The patch of 128^3 sees 0.24 of 206^3: one step of the spacing is enough, and saves 9 %.
    assert not plan(fingerprint((1, 1, 1), (206, 206, 206))).batch_dice


def test_asking_for_a_needless_low_resolution_is_an_error() -> None:
    with pytest.raises(DatasetError, match="Use the 3d_fullres configuration"):
        plan(HIPPOCAMPUS, "3d_lowres")


def test_single_slices_have_no_3d_configuration() -> None:
    with pytest.raises(DatasetError, match="--dim 2"):
        plan(fingerprint((5, 1, 1), (1, 256, 256)))


def test_volumes_too_small_to_halve_are_an_error() -> None:
    with pytest.raises(DatasetError, match="too small to be halved"):
        plan(fingerprint((1, 1, 1), (5, 6, 7)))


def test_one_tiny_case_has_a_plan_with_the_smallest_batch() -> None:
    planned = plan(fingerprint((2, 1, 1), (9, 20, 21), num_cases=1))
    assert (planned.batch_size, planned.patch) == (2, (10, 20, 24))


def test_channel_names_choose_the_normaliser_in_any_case() -> None:
    names = ("Ct", "noNorm", "rescale_to_0_1", "RGB_to_0_1", "T1")
    planned = plan(fingerprint((1, 1, 1), (40, 40, 40), channels=names))
    assert planned.normalisers == ("ct_window", "identity", "unit_range", "rgb", "z_score")


def test_only_z_scores_use_the_mask_and_only_where_the_crop_removes_a_quarter() -> None:
    source = fingerprint((1, 1, 1), (40, 40, 40), channels=("CT", "T1"))
    assert plan(replace(source, relative_sizes=(0.75,) * 100)).uses_mask == (False, False)
    assert plan(replace(source, relative_sizes=(0.74,) * 100)).uses_mask == (False, True)


def test_the_ignore_label_is_no_output_of_the_network() -> None:
    planned = plan_experiment(BRAIN, configuration="2d", options=PlannerOptions(), ignore_label=3)
    assert (planned.num_labels, planned.ignore_label) == (3, 3)
    validate_plan(planned)


def test_the_nvidia_preset_uses_its_depth_on_the_planned_patch() -> None:
    planned = plan(PROSTATE, options=PlannerOptions(preset="nvidia"))
    assert (planned.preset, planned.patch, pools(planned)) == ("nvidia", (20, 320, 256), (2, 5, 5))
    shallow = plan(PROSTATE, options=PlannerOptions(preset="nvidia", depth=3))
    assert pools(shallow) == (1, 3, 3)


def test_a_given_patch_is_kept() -> None:
    options = PlannerOptions(preset="nvidia", patch_size=(40, 224, 224))
    planned = plan(fingerprint((2.5, 0.8, 0.8), (96, 512, 512)), options=options)
    assert (planned.patch, pools(planned)) == ((40, 224, 224), (3, 5, 5))


def test_a_given_patch_that_cannot_be_halved_is_refused_with_the_next_larger() -> None:
    with pytest.raises(UserError, match=r"\(30, 40, 40\).*\(32, 40, 40\)"):
        plan(HIPPOCAMPUS, options=PlannerOptions(patch_size=(30, 40, 40)))


def test_a_given_patch_need_not_fit_the_spacings_on_the_way_to_a_low_resolution() -> None:
    # At (5, 1, 1) mm its 18 slices are halved once; where the planes are nearly as coarse, twice, to 4.5.
    options = PlannerOptions(preset="nvidia", patch_size=(18, 128, 128), depth=3)
    planned = plan(fingerprint((5, 1, 1), (100, 640, 640)), options=options)
    assert planned.patch == (18, 128, 128)
    assert planned.batch_dice


@pytest.mark.parametrize(
    ("configuration", "options", "message"),
    [
        ("4d", PlannerOptions(), "No configuration is called '4d'"),
        ("2d", PlannerOptions(gpu_memory_target_gb=0.0), "--gpu_memory_target_gb should be above 0, got 0.0"),
        (
            "2d",
            PlannerOptions(overwrite_target_spacing=(1.0, 0.0, 1.0)),
            "--overwrite_target_spacing should be above 0",
        ),
        ("2d", PlannerOptions(depth=0), "--depth should be at least 1, got 0"),
        ("2d", PlannerOptions(min_fmap=0), "--min_fmap should be at least 1, got 0"),
        ("2d", PlannerOptions(patch_size=(32, 32, 32)), "does not fit configuration 2d"),
        ("3d_fullres", PlannerOptions(patch_size=(1, 32, 32)), "does not fit configuration 3d_fullres"),
        ("3d_fullres", PlannerOptions(patch_size=(0, 32, 32)), "--patch_size should be at least 1, got 0"),
    ],
)
def test_an_impossible_option_is_named(configuration: str, options: PlannerOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(BRAIN, configuration, options)
