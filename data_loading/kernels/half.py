"""Half-precision bits as single-precision numbers, on the CPU's own instruction."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from data_loading.kernels.compiling import compiled


@intrinsic
def half_to_float(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """float32 value of the IEEE 754 half whose 16 bits are `bits`; Numba has no half type on the CPU."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@compiled
def copy_halves(
    source: np.ndarray, target: np.ndarray, lower: np.ndarray, offset: np.ndarray, size: np.ndarray
) -> None:
    """Write a block of `source` (C, D, H, W) uint16 half bits into `target` (C, d, h, w) float32.

    The block of `size` starts at `lower` in the source and at `offset` in the target.
    """
    for channel in range(source.shape[0]):
        for depth in range(size[0]):
            for height in range(size[1]):
                read = source[channel, lower[0] + depth, lower[1] + height, lower[2] : lower[2] + size[2]]
                row = target[channel, offset[0] + depth, offset[1] + height]
                write = row[offset[2] : offset[2] + size[2]]
                for width in range(read.size):
                    write[width] = half_to_float(read[width])  # pyright: ignore[reportCallIssue]
