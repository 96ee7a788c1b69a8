"""The order in which a network's weights lie in memory."""

from __future__ import annotations

from typing import Literal

import torch

from nnunet.network import MultiTaskUNet

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # by the network's dimensions


def arrange(network: MultiTaskUNet, layout: Literal["NCDHW", "NDHWC"]) -> MultiTaskUNet:
    """`network` itself, for NDHWC with the channels of its convolutions last; its results stay the same.

    Convolutions compute in the order that input or weights have, so the input is not bound to it.
    """
    if layout == "NDHWC":
        network.to(memory_format=CHANNELS_LAST[network.dims])  # pyright: ignore[reportCallIssue]
    return network
