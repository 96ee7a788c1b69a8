"""Weights as safetensors with the model card in the header: numbers and JSON, nothing that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import DatasetError
from utils.storage import atomic_file, parse_json

PORTABLE_SUFFIX = ".safetensors"
CARD_KEY = "model_card"  # in the header's metadata


def write_portable(path: Path, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a network's weights by name, with its model card in plain values."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    content = save(plain, metadata={CARD_KEY: json.dumps(card, allow_nan=False, ensure_ascii=False)})
    with atomic_file(path) as stream:
        stream.write(content)


def read_portable(path: Path, device: Any = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(model card, weights by name) of an exported model; DatasetError if the file is damaged or foreign."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as opened:
            text = (opened.metadata() or {}).get(CARD_KEY, "")
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DatasetError(f"{path} is no whole safetensors file: {error}.") from error
    card = parse_json(text.encode(), source=f"{path}: model card") if text else None
    if not isinstance(card, dict):
        raise DatasetError(f"{path} has no model card; was it written by scripts/export_model.py?")
    return card, weights
