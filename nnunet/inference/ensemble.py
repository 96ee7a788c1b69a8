"""Several models' answers about one case -> their mean, two volumes of probabilities held at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from utils.contracts import Prediction


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberAnswer:
    """What one member says, and how much that counts beside the others."""

    prediction: Prediction
    weight: float = 1.0


def mean_prediction(answers: Iterable[MemberAnswer]) -> Prediction:
    """The weighted mean of the label probabilities (C, *spatial) and of the class probabilities (K,).

    `answers` is read once, so that a member may work when its answer is asked for: only the sum and the
    latest answer are held. Members without a class have no say in it. The answers' arrays are not written to.
    Raises ValueError where there is no answer, or where answers are about different grids, labels or classes.
    """
    total: np.ndarray | None = None
    classes: np.ndarray | None = None
    weight = class_weight = 0.0
    members, case_id = 0, ""
    for answer in answers:
        latest = answer.prediction
        if total is None:
            case_id, total = latest.case_id, np.zeros(latest.label_probs.shape, np.float32)
        if total.shape != latest.label_probs.shape:
            raise ValueError(f"Members answer with shapes {total.shape} and {latest.label_probs.shape}.")
        for channel, probs in zip(total, latest.label_probs, strict=True):
            channel += answer.weight * probs  # by channel: the product needs memory too
        weight += answer.weight
        members += latest.num_members
        if latest.class_probs is not None:
            share = answer.weight * latest.class_probs.astype(np.float64)
            if classes is not None and classes.shape != share.shape:
                raise ValueError(f"Members tell {len(classes)} and {len(share)} classes apart.")
            classes = share if classes is None else classes + share
            class_weight += answer.weight
        del answer, latest  # or they would live while the next member works
    if total is None:
        raise ValueError("A mean needs at least one answer.")
    total /= weight
    return Prediction(
        case_id=case_id,
        label_probs=total,
        class_probs=None if classes is None else classes / class_weight,
        num_members=members,
    )
