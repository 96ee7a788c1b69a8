"""Models that answer together: prepared alike they share a grid, else they meet on that of the scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_preprocessing.prepare import PreparedArrays
from data_preprocessing.restore import painted_regions, restore_label, restore_probabilities
from nnunet.case_features import weights_hash
from nnunet.inference.ensemble import MemberAnswer, mean_prediction
from scripts.classifier_files import BRANCH
from scripts.fold_data import PREPARATION
from scripts.label_meaning import Meaning
from scripts.members import FOLD_FOLDER, Member, find_members
from scripts.model_run import ModelRun, open_model, planned_spacing_mm
from scripts.run_options import CLASSIFICATION, SEGMENTATION, RunOptions
from utils.contracts import Footprint, Plan, Prediction, Spacing
from utils.errors import DatasetError, UserError

SAME_INPUT = (*PREPARATION, "prior_labels")  # of a plan: what decides the channels that a model sees


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alike:
    """Models that see the same input, and the place and weight of each."""

    runs: tuple[ModelRun, ...]
    weights: tuple[float, ...]
    members: tuple[Member, ...]

    @property
    def plan(self) -> Plan:
        """The plan of the first; the others see what it does."""
        return self.runs[0].plan

    def predict(self, image: np.ndarray, case_id: str, spacing_mm: Spacing) -> Prediction:
        """The mean prediction for one prepared (C, D, H, W) volume, one model after the other."""
        if len(self.runs) == 1:
            return self.runs[0].predict(image, case_id, spacing_mm)
        return mean_prediction(
            MemberAnswer(prediction=run.predict(image, case_id, spacing_mm), weight=weight)
            for run, weight in zip(self.runs, self.weights, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanAnswer:
    """A prediction; `footprint` leads it back to the grid of the scan, None: it is there."""

    prediction: Prediction
    footprint: Footprint | None

    def mask(self, plan: Plan) -> np.ndarray:
        """The label map, uint8 (X, Y, Z) in the axes of the scan's file."""
        probs, order = self.prediction.label_probs, plan.regions_class_order
        if self.footprint is not None:
            return restore_label(probs, self.footprint, regions_class_order=order)
        return painted_regions(probs, order) if order else probs.argmax(axis=0).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ensemble:
    """All models of a prediction; often a single one."""

    members: tuple[Member, ...]
    groups: tuple[Alike, ...]
    predictor: str | None = None  # --predictor

    @property
    def plan(self) -> Plan:
        """Labels and classes are those of every member."""
        return self.groups[0].plan

    @property
    def plans(self) -> tuple[Plan, ...]:
        """One for each way to prepare a scan."""
        return tuple(group.plan for group in self.groups)

    @property
    def runs(self) -> tuple[ModelRun, ...]:
        """Every model."""
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def second_stages(self) -> tuple[Member, ...]:
        """The members whose input is the answer of a previous stage."""
        return tuple(member for group in self.groups if group.plan.prior_labels for member in group.members)

    @property
    def has_masks(self) -> bool:
        """Whether masks are wanted."""
        return self.predictor != CLASSIFICATION

    def networks(self) -> tuple[str, ...]:
        """The hashes of all members' weights."""
        return tuple(weights_hash(run.model.network) for run in self.runs)

    def refuse_training_cases(self, case_ids: Sequence[str]) -> None:
        """DatasetError if a member has seen one of the cases that are to be scored as unseen."""
        cases = set(case_ids)
        unseen = [member for member, run in self._placed() if not cases & set(run.model.training_cases)]
        folds = [match[1] for member in unseen if (match := FOLD_FOLDER.fullmatch(member.results.name))]
        for member, run in self._placed():
            if len(self.members) > len(folds) > 0 and member not in unseen:
                raise DatasetError(
                    f"{member.checkpoint} was trained on some of these {len(cases)} cases; a score on them "
                    f"would be too good. Give --folds {' '.join(folds)} too: that model has not seen them."
                )
            run.refuse_training_cases(case_ids)

    def _placed(self) -> Iterator[tuple[Member, ModelRun]]:
        """Every model beside its place."""
        for group in self.groups:
            yield from zip(group.members, group.runs, strict=True)

    def answer(self, arrays: Sequence[PreparedArrays], case_id: str) -> ScanAnswer:
        """What the members say of a scan that was prepared for each of `plans`."""
        if len(self.groups) == 1:
            footprint = arrays[0].footprint
            prediction = self.groups[0].predict(arrays[0].image, case_id, planned_spacing_mm(footprint))
            return ScanAnswer(prediction=self.wanted(prediction), footprint=footprint)
        return ScanAnswer(
            prediction=self.wanted(mean_prediction(self._on_the_scan(arrays, case_id))), footprint=None
        )

    def wanted(self, prediction: Prediction) -> Prediction:
        """The prediction without a class, where only the segmentation was asked for."""
        return replace(prediction, class_probs=None) if self.predictor == SEGMENTATION else prediction

    def _on_the_scan(self, arrays: Sequence[PreparedArrays], case_id: str) -> Iterator[MemberAnswer]:
        """Each group's answer in file axes, when it is asked for."""
        for group, prepared in zip(self.groups, arrays, strict=True):
            footprint = prepared.footprint
            prediction = group.predict(prepared.image, case_id, planned_spacing_mm(footprint))
            yield MemberAnswer(
                prediction=on_the_scan(prediction, footprint, group.plan, has_masks=self.has_masks),
                weight=sum(group.weights),
            )


def on_the_scan(
    prediction: Prediction, footprint: Footprint, plan: Plan, *, has_masks: bool = True
) -> Prediction:
    """Label probabilities (C, X, Y, Z) in the axes of the scan's file; what was cropped away is background.

    Without masks there are none, (0, 0, 0, 0): a class has no grid.
    """
    if not has_masks:
        return replace(prediction, label_probs=np.zeros((0, 0, 0, 0), np.float32))
    probs = np.empty((len(prediction.label_probs), *footprint.native_shape), np.float32)
    channels = restore_probabilities(prediction.label_probs, footprint, has_background=not plan.regions)
    for index, channel in enumerate(channels):
        probs[index] = channel
    return replace(prediction, label_probs=probs)


def open_ensemble(options: RunOptions) -> Ensemble:
    """The models of --ckpt_path, --members or --results, on the device.

    UserError where they mean different labels or classes, or where --predictor wants a class and none has it.
    """
    wanted = options
    if options.predictor == SEGMENTATION:  # no features of a classifier that is not asked
        wanted = replace(options, inference=replace(options.inference, classifier=BRANCH))
    members = find_members(options)
    runs = [open_model(replace(wanted, results=one.results), one.checkpoint) for one in members]
    for member, run in zip(members, runs, strict=True):
        _refuse_other_meaning(members[0], runs[0].plan, member, run.plan)
    if options.predictor == CLASSIFICATION and not any(run.tells_class for run in runs):
        raise UserError(
            f"--predictor {CLASSIFICATION}: {members[0].checkpoint} was trained without a branch and "
            "predicts no class. Leave the option away."
        )
    return Ensemble(members=members, groups=_groups(members, runs), predictor=options.predictor)


def _groups(members: Sequence[Member], runs: Sequence[ModelRun]) -> tuple[Alike, ...]:
    """The runs by what they see, in the order of their first members."""
    keys = [tuple(getattr(run.plan, name) for name in SAME_INPUT) for run in runs]
    groups = []
    for key in dict.fromkeys(keys):
        places = [place for place, other in enumerate(keys) if other == key]
        groups.append(
            Alike(
                runs=tuple(runs[place] for place in places),
                weights=tuple(members[place].weight for place in places),
                members=tuple(members[place] for place in places),
            )
        )
    return tuple(groups)


def _refuse_other_meaning(first: Member, plan: Plan, other: Member, other_plan: Plan) -> None:
    changed = [*Meaning.of(plan).changes(Meaning.of(other_plan))]
    if plan.num_channels - plan.foreground_channel != other_plan.num_channels - other_plan.foreground_channel:
        changed.append("num_channels")
    if changed:
        raise DatasetError(
            f"{other.checkpoint} has another {', '.join(changed)} than {first.checkpoint}: their "
            "probabilities cannot be averaged. Give models of one dataset."
        )
