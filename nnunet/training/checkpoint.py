"""Checkpoints: written atomically, plain inside, loadable with `weights_only=True` by anyone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.portable import PORTABLE_SUFFIX, read_portable
from utils.contracts import Plan
from utils.errors import DatasetError
from utils.storage import atomic_file, from_plain, to_plain

MODEL_KEY = "multitask_nnunet"  # where the model card lies in a checkpoint
MODEL_FORMAT = 1
NETWORK_PREFIX = "network."
LOSS_PREFIX = "loss."
AVERAGED_PREFIX = "averaged.module."  # torch's AveragedModel keeps its copy under `module`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """A network with everything that prediction needs to know."""

    network: MultiTaskUNet
    plan: Plan
    architecture: Architecture
    training_cases: tuple[str, ...] = ()


@final
class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; a killed process leaves the old checkpoint or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:  # noqa: ARG002
        """Write `checkpoint` whole or not at all."""
        with atomic_file(Path(path)) as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,  # noqa: FBT001, FBT002 - Lightning's signature
    ) -> dict[str, Any]:
        """The checkpoint at `path`; never runs code from it."""
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file at `path`, if it is there."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint; DatasetError if it is missing, damaged or more than plain values.

    An exported model (.safetensors) is one of a network alone.
    """
    if not path.is_file():
        raise DatasetError(f"There is no checkpoint {path}. Train first, or give --ckpt_path.")
    if path.suffix == PORTABLE_SUFFIX:
        card, weights = read_portable(path, map_location)
        return {
            "state_dict": {NETWORK_PREFIX + name: value for name, value in weights.items()},
            MODEL_KEY: card,
        }
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises a dozen kinds for a damaged or foreign file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DatasetError(f"{path} is not a checkpoint that can be loaded safely: {reason}.") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise DatasetError(f"{path} holds no weights of a training run; was it made by this program?")
    return content


def model_card(plan: Plan, architecture: Architecture, training_cases: Sequence[str] = ()) -> dict[str, Any]:
    """What a checkpoint says about its network, in plain values, and which cases it has seen."""
    return {
        "format": MODEL_FORMAT,
        "plan": to_plain(plan),
        "architecture": to_plain(architecture),
        "training_cases": list(training_cases),
    }


def refuse_other_model(checkpoint: dict[str, Any], card: dict[str, Any], weights: Iterable[str]) -> None:
    """DatasetError that names what differs, if a run cannot be continued from `checkpoint`.

    What an older program did not know to write has its default.
    """
    stored = checkpoint.get(MODEL_KEY, {})
    changed = [
        f"{part}.{name}"
        for part, record in (("plan", Plan), ("architecture", Architecture))
        for name in changed_fields(record, stored.get(part, {}), card[part])
    ]
    if not changed and (others := set(checkpoint["state_dict"]) ^ set(weights)):
        is_balance = all(name.startswith(LOSS_PREFIX) for name in others)
        changed = ["task_balance (learned weights)" if is_balance else "ema (the average of the weights)"]
    if changed:
        raise DatasetError(
            f"The checkpoint was trained with another {', '.join(changed)}. "
            "Resume with the options of that run, or train into another results folder."
        )


def changed_fields(record: type, stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields of a `record` in plain values that were otherwise when it was stored.

    What an older program did not know to write has its default.
    """
    before = _defaults(record) | dict(stored)
    return [name for name, value in now.items() if _told(before.get(name)) != _told(value)]


def _told(value: Any) -> Any:
    """The value; an empty list counts as None: nobody declared pairs, or there are none."""
    return None if value == [] else value


def _defaults(record: type) -> dict[str, Any]:
    return {field.name: to_plain(field.default) for field in fields(record) if field.default is not MISSING}


def network_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights by their name in the network; the averaged ones where the run kept them."""
    state = checkpoint["state_dict"]
    prefix = AVERAGED_PREFIX if any(key.startswith(AVERAGED_PREFIX) for key in state) else NETWORK_PREFIX
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """The trained network at `path` in evaluation mode; the averaged weights where the run kept them."""
    checkpoint = read_checkpoint(path)
    card = checkpoint.get(MODEL_KEY)
    if not isinstance(card, dict) or card.get("format") != MODEL_FORMAT:
        raise DatasetError(
            f"{path} has no model description of format {MODEL_FORMAT}; was it made by this program?"
        )
    plan = from_plain(Plan, card["plan"], source=f"{path}: plan")
    architecture = from_plain(Architecture, card["architecture"], source=f"{path}: architecture")
    network = MultiTaskUNet(plan, architecture)
    weights = network_weights(checkpoint)
    check_weights(path, network, weights)
    network.load_state_dict(weights)
    return TrainedModel(
        network=network.to(device).eval(),
        plan=plan,
        architecture=architecture,
        training_cases=tuple(card.get("training_cases", ())),
    )


def check_weights(source: Path | str, network: MultiTaskUNet, weights: dict[str, torch.Tensor]) -> None:
    """DatasetError, in the name of `source`, unless `weights` are those of `network` by name and shape."""
    expected = network.state_dict()
    for name in sorted(set(expected) | set(weights)):
        wanted = tuple(expected[name].shape) if name in expected else "no such weight"
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if wanted != found:
            raise DatasetError(f"{source}: weight {name} should be {wanted}, the file has {found}.")
