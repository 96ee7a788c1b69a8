"""Where a volume and its logits lie while windows pass through the network: on its device or the host."""

from __future__ import annotations

from math import prod

import torch

from nnunet.label_coding import LabelCoding

HOST = torch.device("cpu")
COPIES = 5  # of the logits at the same time: their sum, probabilities, and what scores or losses make of them
SHARE = 0.5  # of the free memory; the rest is for the network's maps
FLOAT_BYTES = 4


def home_of(shape: tuple[int, ...], coding: LabelCoding, device: torch.device) -> torch.device:
    """`device`, or the host where a volume (C, D, H, W) with its logits would fill a GPU's free memory.

    The network runs on the GPU in either case; kept on the host, each batch of windows is copied there and
    back.
    """
    if device.type != "cuda":
        return device
    voxels, num_outputs = prod(shape[1:]), len(coding.regions) or coding.num_labels
    need = FLOAT_BYTES * voxels * (2 * shape[0] + COPIES * num_outputs + 1)
    if need <= SHARE * _free_bytes(device):
        return device
    torch.cuda.empty_cache()  # what torch keeps for later is free too
    return device if need <= SHARE * _free_bytes(device) else HOST


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]
