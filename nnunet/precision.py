"""Which 16-bit type a device computes in; training and inference ask here, so that they agree."""

from __future__ import annotations

import torch


def half_type(device: str) -> torch.dtype | None:
    """bfloat16 where the device has it, else float16 on CUDA; None on a CPU without bfloat16 arithmetic."""
    if device == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
