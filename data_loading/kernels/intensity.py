"""Intensity changes of image channels in single precision, and the elementary functions they are made of.

The loops call no library function and hold no branch, so that the compiler turns them into vector code. All
of it is in one file because Numba's cache notices a change in the file of the compiled function alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from data_loading.kernels.compiling import compiled

F = np.float32
MANTISSA_BITS = 23  # of a float32
EXPONENT_BIAS = 127
SIGN_BIT = 31
SMALLEST_NORMAL = F(2.0**-126)
SQRT_HALF_BITS = np.int32(np.array(math.sqrt(0.5), np.float32).view(np.int32))
# log2((1 + s) / (1 - s)) = L1 s + L3 s^3 + ...; |s| < 0.172 leaves 3e-9 of it after s^9
L1, L3, L5, L7, L9 = (F(2.0 / (power * math.log(2.0))) for power in (1, 3, 5, 7, 9))
# 2^r = 1 + E1 r + E2 r^2 + ...; |r| <= 0.5 leaves 5e-9 after r^7
E1, E2, E3, E4, E5, E6, E7 = (F(math.log(2.0) ** power / math.factorial(power)) for power in range(1, 8))
# Taylor's sine and cosine; |angle| <= pi / 2 leaves 6e-8 and 7e-9
S3, S5, S7, S9, S11 = (F((-1) ** (power // 2) / math.factorial(power)) for power in (3, 5, 7, 9, 11))
C2, C4, C6, C8, C10, C12 = (F((-1) ** (power // 2) / math.factorial(power)) for power in (2, 4, 6, 8, 10, 12))
# The integer hash `lowbias32`, found by search for even mixing of all bits (Wellons 2018, public domain)
HASH_FIRST, HASH_SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
HALF_TURN = F(math.pi / 2 * 2.0**-31)  # from a signed 32-bit integer to half of an angle in -pi..pi
LARGEST_EXPONENT = F(31.0)  # uniform numbers are fractions of 2^31
MINUS_TWO_LN2 = F(-2.0 * math.log(2.0))
BLOCK = 2048  # voxels changed, then summed while they are in the nearest cache
SMALLEST_SPAN = 1e-7  # below it a channel counts as constant (batchgeneratorsv2 0.3)


def inserted(generator: Callable[..., Any]) -> Any:
    """A function that Numba replaces by the instructions `generator` describes."""
    return intrinsic(generator)


@inserted
def bits_of(typing_context: Any, value: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """The 32 bits of a float32, as int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), generate


@inserted
def from_bits(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001
    """The float32 whose bits are an int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@inserted
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """a * b + c of float32, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


# --- elementary functions ----------------------------------------------------------------------------------


@compiled
def split_log2(x: np.float32) -> tuple[np.float32, np.float32]:
    """log2(x) of a positive normal float32 as a whole number and a rest in -0.5..0.5."""
    bits = bits_of(x)
    whole = np.int32(np.int32(bits - SQRT_HALF_BITS) >> MANTISSA_BITS)
    scaled = from_bits(np.int32(bits - np.int32(whole << MANTISSA_BITS)))
    s = (scaled - F(1.0)) / (scaled + F(1.0))
    q = s * s
    return F(whole), s * (L1 + q * (L3 + q * (L5 + q * (L7 + q * L9))))


@compiled
def power(x: np.float32, exponent: np.float32) -> np.float32:
    """x^exponent for 0 <= x <= 1 and a positive exponent, to 3e-7 of it; 0 where x or the result is no
    normal float32. On a CPU without fused multiply-add (before 2013) to 3e-6.
    """
    whole, rest = split_log2(x)
    nearest = np.floor(exponent * (whole + rest) + F(0.5))
    # One rounding: the product is up to 200, and its rounding would be seen in the result.
    r = multiply_add(exponent, whole, -nearest) + exponent * rest
    fraction = F(1.0) + r * (E1 + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * (E6 + r * E7))))))
    nearest = nearest if nearest > F(-EXPONENT_BIAS) else F(-EXPONENT_BIAS)  # whose scale is 0
    scale = from_bits(np.int32(np.int32(np.int32(nearest) + EXPONENT_BIAS) << MANTISSA_BITS))
    return fraction * scale if x >= SMALLEST_NORMAL else F(0.0)


@compiled
def _mixed(number: np.uint32) -> np.uint32:
    """A 32-bit hash; one-to-one."""
    number = np.uint32(number ^ np.uint32(number >> np.uint32(16)))
    number = np.uint32(number * HASH_FIRST)
    number = np.uint32(number ^ np.uint32(number >> np.uint32(15)))
    number = np.uint32(number * HASH_SECOND)
    return np.uint32(number ^ np.uint32(number >> np.uint32(16)))


@compiled
def _normal_pair(first: np.uint32, second: np.uint32) -> tuple[float, float]:
    """Two independent standard normal numbers from two uniform 32-bit integers (Box and Muller 1958)."""
    whole, rest = split_log2(F(np.int32(np.uint32(first >> np.uint32(1)))) + F(0.5))
    radius = np.sqrt(MINUS_TWO_LN2 * ((whole - LARGEST_EXPONENT) + rest))
    half = HALF_TURN * F(np.int32(second))
    q = half * half
    sine = half * (F(1.0) + q * (S3 + q * (S5 + q * (S7 + q * (S9 + q * S11)))))
    cosine = F(1.0) + q * (C2 + q * (C4 + q * (C6 + q * (C8 + q * (C10 + q * C12)))))
    return radius * (F(1.0) - F(2.0) * sine * sine), radius * (F(2.0) * sine * cosine)


# --- loops over voxels -------------------------------------------------------------------------------------


@compiled
def add_noise(values: np.ndarray, std: float, keys: np.ndarray) -> None:
    """Add normal noise of standard deviation `std`, which depends on the place and on nothing but `keys`.

    `values` is contiguous float32 (n,), n below 2^32; `keys` uint32 (4,). Each place is hashed twice under
    two keys of its own, so that no two samples share a stretch of noise.
    """
    a, b, c, d = keys[0], keys[1], keys[2], keys[3]
    pairs = values.size // 2
    lower, upper = values[:pairs], values[pairs:]
    for place in range(pairs):
        number = np.uint32(place)
        first = _mixed(np.uint32(_mixed(np.uint32(number ^ a)) + b))
        second = _mixed(np.uint32(_mixed(np.uint32(number ^ c)) + d))
        one, other = _normal_pair(first, second)
        lower[place] += std * one
        upper[place] += std * other
    if values.size % 2:
        number = np.uint32(pairs)
        first = _mixed(np.uint32(_mixed(np.uint32(number ^ a)) + b))
        second = _mixed(np.uint32(_mixed(np.uint32(number ^ c)) + d))
        values[values.size - 1] += std * _normal_pair(first, second)[0]


@compiled
def extremes(values: np.ndarray) -> tuple[float, float]:
    """Minimum and maximum of contiguous float32 (n,), n > 0."""
    low, high = np.int32(2**31 - 1), np.int32(-(2**31))
    # A loop over places: Numba's loop over values is not turned into vector code.
    for place in range(values.size):
        # Flipping the other bits of negative numbers orders the bits as the numbers are, and the minimum of
        # integers, unlike that of numbers which may be NaN, is computed side by side.
        bits = bits_of(values[place])
        ordered = np.int32(bits ^ np.int32(np.int32(bits >> SIGN_BIT) & np.int32(2**31 - 1)))
        low = ordered if ordered < low else low
        high = ordered if ordered > high else high
    return _from_ordered(low), _from_ordered(high)


@compiled
def _from_ordered(ordered: int) -> float:
    return from_bits(np.int32(ordered ^ np.int32(np.int32(ordered >> SIGN_BIT) & np.int32(2**31 - 1))))


@compiled
def _sums(values: np.ndarray, shift: float) -> tuple[float, float]:
    """Sums of value - shift and of its square, in double precision."""
    total, squares = 0.0, 0.0
    for place in range(values.size):
        centred = np.float64(values[place]) - shift
        total += centred
        squares += centred * centred
    return total, squares


@compiled
def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and unbiased standard deviation of contiguous float32 (n,), n > 0, in double precision."""
    shift = np.float64(values[0])
    total, squares = _sums(values, shift)
    return shift + total / values.size, _std(total, squares, values.size)


@compiled
def _std(total: float, squares: float, number: int) -> float:
    variance = (squares - total * total / number) / max(number - 1, 1)
    return math.sqrt(max(variance, 0.0))


@compiled
def scale_within_range(
    values: np.ndarray,
    factor: float,
    around_mean: bool,  # noqa: FBT001 - Numba takes no keyword as fast
    limits: tuple[float, float],
) -> None:
    """Multiply the distance of each value to the mean, or to 0, and clamp to `limits`, low and high.

    `values` is one channel, contiguous float32 (n,), n > 0; it is changed in place.
    """
    low, high = F(limits[0]), F(limits[1])
    mean = 0.0
    if around_mean:
        shift = np.float64(values[0])
        mean = shift + _sums(values, shift)[0] / values.size
    offset = F(mean - mean * factor)
    for place in range(values.size):
        value = values[place] * factor + offset
        value = value if value > low else low
        values[place] = value if value < high else high


@compiled
def change_gamma(values: np.ndarray, exponent: float, from_top: bool) -> None:  # noqa: FBT001
    """Raise one channel, scaled to 0..1, to a power, and restore its mean and standard deviation.

    With `from_top` 0 is the maximum and 1 the minimum. `values` is contiguous float32 (n,), n > 0; it is
    changed in place.
    """
    low, high = extremes(values)
    mean, std = mean_and_std(values)
    span = max(np.float64(high) - np.float64(low), SMALLEST_SPAN)
    start = high if from_top else low
    scale = F(-1.0 / span) if from_top else F(1.0 / span)
    total, squares = 0.0, 0.0
    for begin in range(0, values.size, BLOCK):
        block = values[begin : begin + BLOCK]
        for place in range(block.size):
            block[place] = power((block[place] - start) * scale, exponent)
        block_total, block_squares = _sums(block, 0.0)
        total += block_total
        squares += block_squares
    new_std = _std(total, squares, values.size) * span
    ratio = std / max(new_std, SMALLEST_SPAN) * (-span if from_top else span)
    factor, offset = F(ratio), F(mean - ratio * total / values.size)
    for place in range(values.size):
        values[place] = values[place] * factor + offset
