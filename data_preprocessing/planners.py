"""The planners by name: what network each plans, for how much memory, and what a user may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data_preprocessing.memory_budget import RESIDUAL, Reference, count_elements
from utils.contracts import Plan, Shape
from utils.errors import UserError
from utils.ranges import check_number
from utils.storage import to_plain

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
PlannerName = Literal[
    "default",
    "resenc_m",
    "resenc_l",
    "resenc_xl",
    "ExperimentPlanner",
    "ResEncUNetPlanner",
    "nnUNetPlannerResEncM",
    "nnUNetPlannerResEncL",
    "nnUNetPlannerResEncXL",
    "nnUNetPlanner_torchres",
    "nnUNetPlannerResEncL_torchres",
    "nnUNetPlannerResEncL_torchres_sepz",
    "nnUNetPlannerResEncL_noResampling",
]
Resampling = Literal["scipy", "torch", "torch_sepz", "none"]
OWN_GRID = "none"  # of them, the one that leaves every case on its own grid
SLICES_AT_ONCE, VOLUMES_AT_ONCE = 12, 2  # batch sizes that nnU-Net's references were measured with
RESENC_BLOCKS = (1, 3, 4, 6)  # Isensee et al. 2024


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """A kind of network and the references that its patch and batch are planned by."""

    volume: Reference
    slice: Reference
    encoder: str = "plain"
    blocks: tuple[int, ...] = (2,)  # per stage; the last holds for all stages behind
    decoder_blocks: int = 2

    def reference_for(self, patch: Shape) -> Reference:
        """The measured network of the same dimension: a patch of one slice is two-dimensional."""
        return self.slice if patch[0] == 1 else self.volume


def _residual_planner(memory_gb: float, *, volume_elements: float, slice_elements: float) -> Planner:
    """nnU-Net's ResEnc presets shrink a slice until the whole batch of the reference fits, not two of it."""
    return Planner(
        volume=Reference(elements=volume_elements, batch_size=VOLUMES_AT_ONCE, memory_gb=memory_gb),
        slice=Reference(
            elements=slice_elements,
            batch_size=SLICES_AT_ONCE,
            memory_gb=memory_gb,
            least_batch_size=SLICES_AT_ONCE,
        ),
        encoder=RESIDUAL,
        blocks=RESENC_BLOCKS,
        decoder_blocks=1,
    )


PLANNERS = {
    "default": Planner(
        volume=Reference(elements=560e6, batch_size=VOLUMES_AT_ONCE, memory_gb=8.0),
        slice=Reference(elements=85e6, batch_size=SLICES_AT_ONCE, memory_gb=8.0),
    ),
    "resenc_m": _residual_planner(8.0, volume_elements=680e6, slice_elements=135e6),
    "resenc_l": _residual_planner(24.0, volume_elements=2.1e9, slice_elements=380e6),
    "resenc_xl": _residual_planner(40.0, volume_elements=3.6e9, slice_elements=560e6),
}
# nnU-Net's names for them, and how each resamples. Its ResEncUNetPlanner is its ResEncM with the limit of 5 %
# of the dataset per batch, which holds for every planner here.
KNOWN_AS: dict[str, tuple[str, Resampling]] = {
    "ExperimentPlanner": ("default", "scipy"),
    "ResEncUNetPlanner": ("resenc_m", "scipy"),
    "nnUNetPlannerResEncM": ("resenc_m", "scipy"),
    "nnUNetPlannerResEncL": ("resenc_l", "scipy"),
    "nnUNetPlannerResEncXL": ("resenc_xl", "scipy"),
    "nnUNetPlanner_torchres": ("default", "torch"),
    "nnUNetPlannerResEncL_torchres": ("resenc_l", "torch"),
    "nnUNetPlannerResEncL_torchres_sepz": ("resenc_l", "torch_sepz"),
    "nnUNetPlannerResEncL_noResampling": ("resenc_l", OWN_GRID),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """What the user may change about the plan."""

    planner: PlannerName = "default"
    """Which network is planned, for how much memory: default (plain) or resenc_m for 8 GB, resenc_l for 24,
    resenc_xl for 40; or one of nnU-Net's names for them."""
    preset: Literal["nnunet", "nvidia"] = "nnunet"
    """Rule of the stages and order of the preprocessing steps."""
    msd_table: bool = True
    """Preset nvidia: patch, spacing, batch size and CT window of a Decathlon dataset are the ones that NVIDIA
    published for it. Off, they are planned from the data, as for every other dataset."""
    gpu_memory_target_gb: float | None = field(default=None, metadata={"aliases": ("--gpu_memory_target",)})
    """Device memory [GB] that patch and batch size are planned for; unset: that of the planner. A published
    table does not ask for it."""
    resampling: Resampling | None = None
    """How images are interpolated: scipy (cubic; a coarse axis apart from its planes, by its nearest slice),
    torch (linear, all axes together) or torch_sepz (linear, a coarse axis apart); none: not at all, every
    case keeps its own grid; unset: as the planner's name says, else scipy. Labels and probabilities are
    linear wherever images are interpolated."""
    overwrite_target_spacing: tuple[float, float, float] | None = None
    """Voxel spacing [mm] as z y x to resample to, instead of the one of the rules."""
    patch_size: tuple[int, int, int] | None = None
    """Patch in voxels, slices first (1 H W in 2D), instead of the planned one."""
    depth: int = 5
    """Preset nvidia: number of poolings at most."""
    min_fmap: int = 4
    """Preset nvidia: no pooling leaves an edge below this many voxels."""

    @property
    def follows_table(self) -> bool:
        """Whether published settings count, for a dataset that has some."""
        return self.preset == "nvidia" and self.msd_table

    @property
    def planner_name(self) -> str:
        """The planner under our own name."""
        return self._meant[0]

    @property
    def chosen(self) -> Planner:
        """The planner itself."""
        return PLANNERS[self.planner_name]

    @property
    def memory_gb(self) -> float:
        """Device memory to plan for."""
        asked = self.gpu_memory_target_gb
        return self.chosen.volume.memory_gb if asked is None else asked

    @property
    def interpolation(self) -> str:
        """How images are resampled."""
        return self.resampling or self._meant[1]

    @property
    def plan_name(self) -> str:
        """What a plan is called where the user does not say; the spelling of the options does not count."""
        is_usual = self.interpolation == "scipy"
        return self.planner_name if is_usual else f"{self.planner_name}_{self.interpolation}"

    @property
    def _meant(self) -> tuple[str, Resampling]:
        return KNOWN_AS.get(self.planner, (self.planner, "scipy"))

    def decisive(self) -> dict[str, Any]:
        """What a plan follows from, in plain values: another spelling of the same options is no change."""
        plain = to_plain(self) | {"gpu_memory_target_gb": self.memory_gb}
        usual = {"planner": "default", "resampling": "scipy"}
        meant = {"planner": self.planner_name, "resampling": self.interpolation}
        # Left out where they are usual: plans of programs without these options stay valid.
        kept = {name: value for name, value in plain.items() if name not in usual}
        return kept | {name: value for name, value in meant.items() if value != usual[name]}


def estimated_memory_gb(plan: Plan, batch_size: int, *, encoder: str) -> float:
    """What the planner's count of elements makes of a training step of `batch_size` cases, in GB.

    `encoder` is the name of the one that is trained. A plan of an unknown planner counts as `default`.
    """
    planner = PLANNERS.get(plan.planner, PLANNERS["default"])
    reference = planner.reference_for(plan.patch)
    elements = count_elements(
        plan.patch, plan.stages, len(plan.label_names), encoder=encoder, decoder_blocks=plan.decoder_blocks
    )
    share = elements * batch_size / (reference.elements * reference.batch_size)
    return share * reference.memory_gb


def check_options(options: PlannerOptions, configuration: str) -> None:
    """UserError for options that no plan of `configuration` can have, whatever the data."""
    if configuration not in CONFIGURATIONS:
        raise UserError(
            f"No configuration is called {configuration!r}. Choose one of {list(CONFIGURATIONS)}."
        )
    if configuration == "3d_lowres" and options.interpolation == OWN_GRID:
        raise UserError(
            "Without resampling (--resampling none, or a planner of that name) cases keep their own grid, so "
            "there is no low resolution. Leave --lowres away, or choose another --resampling."
        )
    check_number("gpu_memory_target_gb", options.memory_gb, above=0)
    for edge_mm in options.overwrite_target_spacing or ():
        check_number("overwrite_target_spacing", edge_mm, above=0)
    check_number("depth", options.depth, least=1)
    check_number("min_fmap", options.min_fmap, least=1)
    for edge in options.patch_size or ():
        check_number("patch_size", edge, least=1)
    if options.patch_size and (options.patch_size[0] == 1) != (configuration == "2d"):
        raise UserError(
            f"--patch_size is {options.patch_size}, which does not fit configuration {configuration}: "
            "a 2-D patch is 1 H W, a 3-D patch has more than one slice."
        )
