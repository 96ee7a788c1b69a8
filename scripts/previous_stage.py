"""Where the previous stage of a cascade lies, and its answer as input of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_preprocessing.prepare import PreparedArrays
from data_preprocessing.previous_stage import prior_label, with_prior
from scripts.ensemble import Ensemble, ScanAnswer, open_ensemble
from scripts.members import FOLD_FOLDER, Member, fold_folders, results_of
from scripts.run_options import SEGMENTATION, RunOptions
from scripts.stage_notes import find_note
from utils.contracts import Plan
from utils.errors import DatasetError, UserError


def find_previous_stage(options: RunOptions, members: Sequence[Member]) -> Path:
    """The results of the previous stage: --previous_stage, or those noted beside the `members` or above them.

    All members are second stages. UserError where one has no note and there is no option, or where their
    notes name different results.
    """
    if options.previous_stage is not None:
        return options.previous_stage
    noted = {member.checkpoint: _noted(member) for member in members}
    (first, path), *others = noted.items()
    for checkpoint, other in others:
        if other != path:
            raise UserError(
                f"The previous stage of {first} is {path}, that of {checkpoint} is {other}. A prediction has "
                "one: give second stages of the same cascade, or one --previous_stage for all."
            )
    return path


def _noted(member: Member) -> Path:
    note = next(filter(None, map(find_note, member.places)), None)
    if note is None:
        raise UserError(
            f"{member.checkpoint} is the second stage of a cascade, but {member.results.resolve()} does not "
            "name the first. Give its results folder as --previous_stage."
        )
    return note.results


def _same_folds(path: Path, members: Sequence[Member]) -> tuple[int, ...]:
    """The folds of the last stage where both stages have them: no other first stage holds out their cases."""
    there = fold_folders(path)
    matches = [FOLD_FOLDER.fullmatch(results_of(member.checkpoint).name) for member in members]
    numbers = [int(match[1]) for match in matches if match]
    is_covered = len(numbers) == len(members) and set(numbers) <= set(there)
    return tuple(dict.fromkeys(numbers)) if is_covered else ()


def previous_options(options: RunOptions, path: Path, members: Sequence[Member]) -> RunOptions:
    """The options that open the models in `path` as the previous stage of `members`."""
    return replace(
        options,
        members=(path,),
        folds=_same_folds(path, members),
        ckpt_path=None,
        predictor=SEGMENTATION,
        previous_stage=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """The models that answer, and those that see a scan before them; often there are none of the latter."""

    last: Ensemble
    previous: Ensemble | None = None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """One for each way to prepare a scan, those of the last stage first."""
        return (*self.last.plans, *(self.previous.plans if self.previous else ()))

    def refuse_training_cases(self, case_ids: Sequence[str]) -> None:
        """DatasetError if a model of any stage has seen a case that is to be scored as unseen."""
        for ensemble in (self.last, self.previous):
            if ensemble is not None:
                ensemble.refuse_training_cases(case_ids)

    def answer(self, arrays: Sequence[PreparedArrays], case_id: str) -> ScanAnswer:
        """What the models say of a scan that was prepared for each of `plans`."""
        return self.last.answer(self.inputs(arrays, case_id), case_id)

    def inputs(self, arrays: Sequence[PreparedArrays], case_id: str) -> tuple[PreparedArrays, ...]:
        """What the last stage sees of a scan that was prepared for each of `plans`."""
        plans = self.last.plans
        if self.previous is None:
            return tuple(arrays)
        own, earlier = arrays[: len(plans)], arrays[len(plans) :]
        order = self.previous.plan.regions_class_order
        scores = self.previous.answer(earlier, case_id).prediction.label_probs
        return tuple(
            replace(
                prepared,
                image=with_prior(
                    prepared.image,
                    prior_label(scores, earlier[0].footprint, prepared.footprint, regions_class_order=order),
                    plan.prior_labels,
                ),
            )
            if plan.prior_labels
            else prepared
            for plan, prepared in zip(plans, own, strict=True)
        )


def open_stages(options: RunOptions) -> Stages:
    """The models of a prediction of raw scans; DatasetError where the stages know different labels."""
    last = open_ensemble(options)
    cascades = [plan for plan in last.plans if plan.prior_labels]
    if not cascades:
        if options.previous_stage is not None:
            raise UserError(
                "--previous_stage is for the second stage of a cascade; there is none among these models."
            )
        return Stages(last=last)
    path = find_previous_stage(options, last.second_stages)
    previous = open_ensemble(previous_options(options, path, last.second_stages))
    labels = previous.plan.label_names[: previous.plan.num_labels]
    is_one = len(previous.plans) == 1 and not previous.second_stages
    if not is_one or any(plan.label_names[: plan.num_labels] != labels for plan in cascades):
        raise DatasetError(
            f"{path} is not the previous stage of {last.second_stages[0].checkpoint}: it should hold first "
            "stages of one preparation, with the labels "
            f"{', '.join(cascades[0].label_names[: cascades[0].num_labels])}."
        )
    return Stages(last=last, previous=previous)
