"""A trained network -> an ONNX model of both heads, and how far the two answers lie apart."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet.training.checkpoint import TrainedModel, model_card
from utils.contracts import Plan
from utils.errors import UserError

OPSET = 20  # torch 2.11 to 2.13 translate to it; ONNX Runtime reads it from 1.17 on
IMAGE, LABEL_LOGITS, CLASS_LOGITS, BATCH = "image", "label_logits", "class_logits", "batch"
BATCHES = (1, 3)  # of the comparison: a batch of one, and another than that of the export
EXPORT_BATCH = 2  # torch.export takes a size of 1 for a constant
CARD_KEY = "model_card"
ADAPTIVE_AXES = (1, 2, 3)

Reduction = Callable[[Tensor, int, bool], Tensor]


class Heads(nn.Module):
    """The network with plain tensors as its answer: label logits at full resolution, class logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, L, D, H, W), and (B, K) where the network has a branch."""
        output = self.network(image)
        labels = output.label_logits[0]
        return (labels,) if output.class_logits is None else (labels, output.class_logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The largest absolute difference of one head's logits between ONNX Runtime and torch."""

    head: str
    largest: float


def export_network(model: TrainedModel, path: Path) -> None:
    """Write `model` to `path` as ONNX: image (batch, C, D, H, W) of the plan's patch -> both heads.

    The batch is free, the patch is not. The model card is in the metadata, without the training cases.
    UserError where torch or ONNX lacks something that the network does.
    """
    import onnx  # pyright: ignore[reportMissingImports] - an optional package

    plan = model.plan
    has_class = getattr(model.network, "branch", None) is not None
    names = [LABEL_LOGITS, *([CLASS_LOGITS] if has_class else [])]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not used
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about their own use of each other
            captured = captured_heads(model.network, plan)
            program: Any = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=names,
                dynamic_shapes=any_batch(),  # once more, for its name
                verbose=False,
            )
            made = program.model_proto
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise UserError(
            f"This network ({model.architecture.encoder}, {model.architecture.branch}) cannot be written as "
            f"ONNX: {str(error).strip().splitlines()[0]}"
        ) from error
    card = json.dumps(model_card(plan, model.architecture), allow_nan=False)
    onnx.helper.set_model_props(made, {CARD_KEY: card})
    onnx.checker.check_model(made)
    onnx.save(made, path)


def captured_heads(network: nn.Module, plan: Plan) -> Any:
    """The heads as torch.export captures them, of operators that ONNX has, for any batch."""
    heads = Heads(network).eval()
    example = torch.zeros(EXPORT_BATCH, *input_shape(plan))
    captured = torch.export.export(heads, (example,), dynamic_shapes=any_batch())
    return captured.run_decompositions(replacements())


def any_batch() -> dict[str, Any]:
    """That the first axis of the input is free, as torch.export wants it."""
    return {IMAGE: {0: torch.export.Dim(BATCH, min=1)}}


def input_shape(plan: Plan) -> tuple[int, ...]:
    """(C, D, H, W) of one patch, with the channels of a previous stage."""
    return (plan.num_channels + plan.prior_labels, *plan.patch)


def compare(model: TrainedModel, path: Path, *, patches: int, seed: int) -> list[Difference]:
    """How far ONNX Runtime's answer at `path` lies from torch's, on random patches in float32 on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports] - an optional package

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    heads = Heads(model.network).eval()
    names = [output.name for output in session.get_outputs()]
    largest = dict.fromkeys(names, 0.0)
    random = torch.Generator().manual_seed(seed)
    for number in range(patches):
        batch = BATCHES[number % len(BATCHES)]
        image = torch.randn(batch, *input_shape(model.plan), generator=random)
        with torch.inference_mode():
            expected = heads(image)
        found = session.run(names, {IMAGE: image.numpy()})
        for name, one, other in zip(names, found, expected, strict=True):
            # Not a number compares with nothing: it counts as infinitely far away.
            apart = np.abs(np.asarray(one) - other.numpy()).max()
            largest[name] = max(largest[name], float(apart) if np.isfinite(apart) else float("inf"))
    return [Difference(head=name, largest=value) for name, value in largest.items()]


def replacements() -> dict[Any, Callable[..., Any]]:
    """Operators that ONNX or its runtime does not have, as others that they have, with the same values."""
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {aten.where.self: where_of_booleans}
    for dims in ADAPTIVE_AXES:
        for name in (f"_adaptive_avg_pool{dims}d", f"adaptive_avg_pool{dims}d"):
            if hasattr(aten, name):
                table[getattr(aten, name).default] = adaptive_means
        table[getattr(aten, f"adaptive_max_pool{dims}d").default] = adaptive_maxima
    return table


def where_of_booleans(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """torch.where of booleans, by logic; any other type stays as it is."""
    if chosen.dtype != torch.bool or other.dtype != torch.bool:
        return NotImplemented
    return (condition & chosen) | (~condition & other)


def adaptive_means(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive average pooling to `size`, axis by axis: a mean of means, as cells of an axis are equal."""
    return _adaptive(maps, size, lambda part, axis, kept: part.mean(dim=axis, keepdim=kept))


def adaptive_maxima(maps: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Adaptive maximum pooling to `size`, axis by axis; places are not told, nobody reads them."""
    maxima = _adaptive(maps, size, lambda part, axis, kept: part.amax(dim=axis, keepdim=kept))
    return maxima, torch.zeros_like(maxima, dtype=torch.int64)


def _adaptive(maps: Tensor, size: Sequence[int], reduce: Reduction) -> Tensor:
    """Each axis of (B, C, *axes) cut into cells, cell i of n from floor(i L / n) to ceil((i + 1) L / n)."""
    first = maps.ndim - len(size)
    for axis, cells in enumerate(size, start=first):
        length = maps.shape[axis]
        if length == cells:
            continue
        if length % cells == 0:
            maps = reduce(maps.unflatten(axis, (cells, length // cells)), axis + 1, False)  # noqa: FBT003
            continue
        edges = [(cell * length // cells, -(-(cell + 1) * length // cells)) for cell in range(cells)]
        parts = [reduce(maps.narrow(axis, start, stop - start), axis, True) for start, stop in edges]  # noqa: FBT003
        maps = torch.cat(parts, dim=axis)
    return maps
