"""Headers of .npy files: what an array claims to be, and whether the file can hold it; no voxel is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import DatasetError

READABLE_VERSION = (1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayHeader:
    """Type and shape of a stored array."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def read_header(path: Path) -> ArrayHeader:
    """The header of the .npy file at `path`.

    DatasetError if there is no such file, if it is not plain format 1.0 (C order, little-endian, no objects),
    or if it is shorter than its header says.
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version != READABLE_VERSION:
                raise DatasetError(
                    f"{path} has .npy format {version[0]}.{version[1]}; only format 1.0 is read."
                )
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            promised = stream.tell() + math.prod(shape) * dtype.itemsize
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not a .npy file ({error}).") from error
    if dtype.hasobject:
        raise DatasetError(f"{path} holds pickled Python objects, which are never loaded.")
    if dtype.byteorder == ">":
        raise DatasetError(f"{path} is big-endian ({dtype.str}); only little-endian arrays are read.")
    if is_fortran:
        raise DatasetError(f"{path} is in Fortran order; only C order is read.")
    if size < promised:
        raise DatasetError(f"{path} is cut off: its header promises {promised} bytes, the file has {size}.")
    return ArrayHeader(dtype=dtype, shape=shape)
