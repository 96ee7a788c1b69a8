"""One prepared volume -> its Prediction, on any device, through any network function."""

from __future__ import annotations

import numpy as np
import torch

from nnunet.inference.placement import home_of
from nnunet.inference.sliding_window import Network, WindowRule, predict_volume
from nnunet.precision import half_type
from utils.contracts import Prediction
from utils.errors import DatasetError


def predict_case(
    network: Network, image: np.ndarray, rule: WindowRule, *, case_id: str, device: torch.device, amp: bool
) -> Prediction:
    """Label probabilities (L, D, H, W) and class probabilities (K,) of one (C, D, H, W) volume.

    With regions the probabilities are those of each region by itself, (R, D, H, W).
    A volume too large for the device stays on the host. DatasetError if the network answers with NaN or
    infinity, or a GPU has no room for its maps, so that one bad case does not end a folder.
    """
    home = device if rule.coding is None else home_of(image.shape, rule.coding, device)
    # A copy: torch takes no read-only memory, which a mapped file is.
    volume = torch.from_numpy(np.array(image, dtype=np.float32, order="C")).unsqueeze(0).to(home)
    kind = half_type(device.type) if amp else None
    try:
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            output = predict_volume(network, volume, rule, device=device)
    except torch.OutOfMemoryError as error:
        raise DatasetError(
            f"Case {case_id}: the GPU has no room for {rule.batch_size} windows at once. Give a smaller "
            f"--val_batch_size, or --amp, or end other programs there. ({error})"
        ) from error
    if not bool(torch.isfinite(output.label_logits).all()):
        raise DatasetError(
            f"Case {case_id}: the network's output is not finite. Check the scan's intensities."
        )
    logits = output.label_logits.unsqueeze(0)
    probs = rule.coding_of(logits.shape[1]).probabilities(logits)[0]
    return Prediction(
        case_id=case_id,
        label_probs=probs.cpu().numpy(),
        class_probs=None if output.class_probs is None else output.class_probs.cpu().numpy(),
    )
