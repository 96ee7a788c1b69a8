"""The foreground table: where each label lies, so that a patch is aimed without reading the volume."""

from __future__ import annotations

import numpy as np

MIN_POSITIONS = 10_000  # per label and case (Isensee et al. 2021)
LARGE_LABEL_SHARE = 0.01  # of a label's voxels, if that is more
SEED = 1234


def foreground_table(label: np.ndarray, *, ignore_label: int | None = None) -> np.ndarray:
    """Int32 rows (label, d, h, w) of an int (D, H, W); row 0 is (0, D, H, W), the volume's shape.

    Each label has min(its voxels, max(10 000, 1 % of them)) rows, drawn without replacement by NumPy's
    default generator with a fixed seed per case, in ascending order. With an ignore label, annotated
    background is listed too, as label 0 from row 1 on: every position is then one that an expert looked at.
    """
    flat = label.ravel()
    lowest = 1 if ignore_label is None else 0
    listed = flat >= lowest
    if ignore_label is not None:
        listed &= flat != ignore_label
    positions = np.flatnonzero(listed)
    values = flat[positions]
    order = np.argsort(values, kind="stable")
    names, starts = np.unique(values[order], return_index=True)
    generator = np.random.default_rng(SEED)
    rows = [np.array([[0, *label.shape]], dtype=np.int32)]
    for name, group in zip(names, np.split(positions[order], starts[1:]), strict=False):
        count = min(group.size, max(MIN_POSITIONS, round(LARGE_LABEL_SHARE * group.size)))
        drawn = group if count == group.size else np.sort(generator.choice(group, count, replace=False))
        where = np.stack(np.unravel_index(drawn, label.shape), axis=1)
        rows.append(np.column_stack([np.full(count, name), where]).astype(np.int32))
    return np.concatenate(rows)
