"""A trained model on a device, ready to be asked; and what it answered, as a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nnunet.blocks import flatten_depth
from nnunet.case_features import ML_PER_MM3, PredictedVolume, case_features, weights_hash
from nnunet.inference.mirroring import LeftRight, left_right_of
from nnunet.inference.predict import predict_case
from nnunet.inference.sliding_window import WindowRule
from nnunet.label_coding import LabelCoding
from nnunet.layout import arrange
from nnunet.linear_classifier import FeatureRule, FittedClassifier
from nnunet.precision import half_type
from nnunet.training.checkpoint import TrainedModel, load_model
from nnunet.training.trainer import choose_machine, kept_checkpoints, last_checkpoint
from scripts.classifier_files import BRANCH, load_classifier
from scripts.run_options import RunOptions
from utils.contracts import Footprint, Plan, Prediction, Spacing
from utils.errors import DatasetError, UserError
from utils.left_right import AUTO, SWAP
from utils.storage import atomic_file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelRun:
    """A model, where it runs, and how volumes are cut into windows.

    With a `classifier` its class probabilities stand in for the network's.
    """

    model: TrainedModel
    rule: WindowRule
    device: torch.device
    amp: bool
    classifier: FittedClassifier | None = None

    @property
    def plan(self) -> Plan:
        """What the model was trained for."""
        return self.model.plan

    @property
    def tells_class(self) -> bool:
        """Whether a prediction has class probabilities."""
        return self.classifier is not None or self.model.network.branch is not None

    def predict(self, image: np.ndarray, case_id: str, spacing_mm: Spacing) -> Prediction:
        """The prediction for one prepared (C, D, H, W) volume; `spacing_mm` are the edges of its voxels."""
        prediction = predict_case(
            self.model.network, image, self.rule, case_id=case_id, device=self.device, amp=self.amp
        )
        if self.classifier is None:
            return prediction
        features = self.features(image, prediction, self.classifier.features, spacing_mm)
        return replace(prediction, class_probs=self.classifier.rule.probabilities(features[None])[0])

    def features(
        self, image: np.ndarray, prediction: Prediction, rule: FeatureRule, spacing_mm: Spacing
    ) -> np.ndarray:
        """(F,) what a classical classifier knows of a predicted volume; see `case_features`."""
        network = self.model.network
        volume = PredictedVolume(
            image=torch.from_numpy(np.array(image, dtype=np.float32)).unsqueeze(0).to(self.device),
            label_probs=torch.from_numpy(prediction.label_probs).unsqueeze(0).to(self.device),
            spacing_mm=spacing_mm,
        )

        def encoder(windows: torch.Tensor) -> Sequence[torch.Tensor]:
            return network.encoder(flatten_depth(windows, network.dims))

        kind = half_type(self.device.type) if self.amp else None
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            return case_features(encoder, volume, rule, self.rule)

    def refuse_training_cases(self, case_ids: Sequence[str]) -> None:
        """DatasetError if the model has seen one of the cases that are to be scored as unseen."""
        if seen := sorted(set(case_ids) & set(self.model.training_cases)):
            raise DatasetError(
                f"{len(seen)} of these {len(case_ids)} cases trained the model ({', '.join(seen[:3])}, ...); "
                "a score on them would be too good. Give the --fold that the model was trained with."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One line of predictions.csv."""

    case_id: str
    class_probs: tuple[float, ...]
    volumes_ml: tuple[float, ...]  # per region, else per foreground label; empty where there is no mask
    mask_ending: str = ".nii.gz"  # of the case's mask


def open_model(options: RunOptions, checkpoint: Path | None = None) -> ModelRun:
    """The model of `checkpoint`, of --ckpt_path, or the best one in the results folder."""
    path = checkpoint or options.ckpt_path or find_checkpoint(options.store)
    device = torch.device(choose_machine(options.device, 1, 1).device)
    model = load_model(path, device)
    arrange(model.network, options.network.layout)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # as in training: windows are all of one size
    inference = options.inference
    rule = WindowRule(
        patch=model.plan.patch,
        overlap=inference.overlap,
        blend=inference.blend,
        batch_size=inference.val_batch_size,
        mirror=inference.tta,
        coding=LabelCoding.of_plan(model.plan),
        class_vote=inference.class_vote,
        left_right=_left_right(options, model.plan),
    )
    return ModelRun(
        model=model,
        rule=rule,
        device=device,
        amp=options.training.amp,
        classifier=_classifier(options, model, path),
    )


def _left_right(options: RunOptions, plan: Plan) -> LeftRight:
    """How the mirrored views treat left and right: as in training, unless the options say otherwise."""
    choice = options.mirror_left_right
    if choice == SWAP and not plan.left_right_pairs:
        raise UserError(
            "--mirror_left_right swap: this model was trained without pairs of left and right labels. Leave "
            "the option away to mirror as in its training."
        )
    return left_right_of(plan, plan.left_right if choice == AUTO else choice)


def _classifier(options: RunOptions, model: TrainedModel, checkpoint: Path) -> FittedClassifier | None:
    """The one of --classifier; None where the branch answers."""
    if options.inference.classifier == BRANCH:
        return None
    return load_classifier(options, weights_hash(model.network), checkpoint)


def planned_spacing_mm(footprint: Footprint) -> Spacing:
    """The edges of a voxel of the planned grid."""
    ratio = np.array(footprint.cropped_shape) / np.array(footprint.planned_shape)
    depth, height, width = (ratio * footprint.oriented_spacing_mm).tolist()
    return depth, height, width


def planned_voxel_ml(footprint: Footprint) -> float:
    """The volume of a voxel of the planned grid."""
    return math.prod(planned_spacing_mm(footprint)) * ML_PER_MM3


def find_checkpoint(results: Path) -> Path:
    """The best checkpoint of a run (epoch=N.ckpt), else its last one."""
    kept = kept_checkpoints(results)
    if not kept:
        raise DatasetError(f"{results} has no checkpoint. Train first, or give --ckpt_path.")
    best = [path for path in kept if path != last_checkpoint(results)]
    return best[-1] if best else kept[-1]


def prediction_row(
    prediction: Prediction, mask: np.ndarray | None, spacing_mm: Sequence[float], plan: Plan
) -> PredictionRow:
    """The table's line for one case; volumes are counted in its mask."""
    probs = () if prediction.class_probs is None else tuple(prediction.class_probs.tolist())
    volumes = () if mask is None else volumes_ml(mask, spacing_mm, plan)
    return PredictionRow(case_id=prediction.case_id, class_probs=probs, volumes_ml=volumes)


def volumes_ml(mask: np.ndarray, spacing_mm: Sequence[float], plan: Plan) -> tuple[float, ...]:
    """Millilitres of each region, or else of each foreground label, in a mask of label values."""
    of_label = np.bincount(mask.ravel(), minlength=plan.num_labels)
    parts = plan.regions or [(label,) for label in range(1, plan.num_labels)]
    counts = np.array([of_label[list(labels)].sum() for labels in parts])
    volumes: list[float] = (counts * float(np.prod(spacing_mm)) * ML_PER_MM3).tolist()
    return tuple(volumes)


def write_predictions_table(path: Path, rows: Sequence[PredictionRow], plan: Plan) -> None:
    """predictions.csv: case, class probabilities, the most probable class, volumes where there are masks."""
    has_class = any(row.class_probs for row in rows)
    has_volumes = not rows or any(row.volumes_ml for row in rows)
    volume_columns = [f"volume_ml_{name}" for name in plan.target_names] if has_volumes else []
    names = plan.class_names if has_class else ()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    class_columns = [*(f"prob_{name}" for name in names), *(["predicted_class"] if has_class else [])]
    writer.writerow(["case", *class_columns, *volume_columns])
    for row in rows:
        answer = [*(f"{p:.6f}" for p in row.class_probs)]
        if has_class:
            answer.append(names[int(np.argmax(row.class_probs))])
        writer.writerow([row.case_id, *answer, *(f"{volume:.4f}" for volume in row.volumes_ml)])
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())
