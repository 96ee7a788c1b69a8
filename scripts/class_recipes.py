"""Recipes under the names of other multi-task nnU-Nets' trainers, each nnU-Net's own recipe with changes.

They build what those trainers describe; where published code contradicts its own description (a learning rate
that a scheduler overwrites, layers that no optimiser sees) the description counts. Losses, branches and
encoders are ours, so results need not be theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAIN_FOCAL = {"class_loss": "focal:gamma=2,weights=none", "class_loss_weight": 1.0}
ALL_SCALES = {
    "branch": "multi_scale:arms=decoder,pool=max,grid=4,combine=mix,hidden=0,dropout=0",
    "class_loss": "cross_entropy:weights=none",
    "class_loss_weight": 0.3,
    "learning_rate": 1e-3,
    "epochs": 200,
}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "nnUNetTrainerWithClassification": {"encoder": "residual", "branch": "simple", **PLAIN_FOCAL},
    "ClsFeatureScaling": {"encoder": "residual", "branch": "roi_scaled", **PLAIN_FOCAL},
    "AgClassEnc": {
        "encoder": "attention_gated:body=residual,balance=1",
        "branch": "roi_scaled:stride=1,layers=1",
        **PLAIN_FOCAL,
    },
    "CLSHeadSimple": {
        "branch": "bottleneck",
        "class_loss": "cross_entropy",
        "class_loss_weight": 1.0,
        "learn": "classification",
        "learning_rate": 1e-3,
    },
    "CLSHeadSum": ALL_SCALES,
    "CLSHeadSumFT": {**ALL_SCALES, "head_learning_rate": 1e-2},
    "CLSHeadSepOpt": {
        "branch": "bottleneck:layer_norm=true,detach_features=true",
        "class_loss": "cross_entropy",
        "class_loss_weight": 0.3,
        "head_learning_rate": 5e-2,
    },
    "CLSHeadMA": {
        "branch": "memory_query:queries=200,width=320,blocks=4,heads=8,grid=5+5+8",
        "class_loss_weight": 0.3,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "epochs": 200,
    },
    "multi_scale_focal": {
        "encoder": "residual",
        "branch": (
            "multi_scale:arms=encoder,stages=-3+-2+-1,pool=mean,grid=5,combine=conv,hidden=64,dropout=0.4"
        ),
        "class_loss": "focal",
        "class_loss_weight": 0.5,
    },
}
FINE_TUNING = frozenset({"CLSHeadSumFT"})  # these start from a checkpoint


def class_recipes(base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every recipe in full: `base`, which is nnU-Net's, with its changes."""
    return {name: {**base, **changes} for name, changes in CHANGES.items()}
