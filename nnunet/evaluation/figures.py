"""Figures of the report as PNG bytes, from plain arrays: overlays, Dice distribution, training curve.

Plots have a transparent background and grey text, so that they sit on a light page as well as on a dark one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Window = tuple[float, float]
Box = tuple[slice, slice]

REFERENCE_COLOUR = "#35d0ff"
PREDICTION_COLOUR = "#ff9d2e"
BAR_COLOUR = "#4f93cc"
TEXT_COLOUR = "#7d8590"  # about 4:1 on white and on near-black
LINE_COLOURS = ("#4f93cc", "#d9822b", "#4a9d6e", "#b0568f", "#8a7a3c")
WINDOW_PERCENTILES = (1.0, 99.0)
DOTS_PER_INCH = 160
ZOOM_SHARE = 0.5  # a structure smaller than this share of the slice, along both axes, is also shown enlarged
ZOOM_MARGIN = 0.6  # free space around the enlarged structure, as a share of its size
MIN_ZOOM_VOXELS = 24
JITTER = 0.16  # half the width over which the dots of a column are spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of the training curve: a name and its value at each epoch."""

    name: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


def fullest_slice(truth: np.ndarray, predicted: np.ndarray) -> int:
    """Index along the first axis of the slice with most reference foreground.

    Both are (D, H, W); foreground is any label above 0. Without any in the reference the prediction decides,
    and without any in either it is the middle slice.
    """
    for mask in (truth, predicted):
        counts = (mask > 0).sum(axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
    return truth.shape[0] // 2


def intensity_window(image: np.ndarray) -> Window:
    """The grey range from the 1st to the 99th percentile of the finite voxels; never of zero width."""
    finite = image[np.isfinite(image)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, WINDOW_PERCENTILES))
    return (low, high) if high > low else (low, low + 1.0)


def overlay_png(
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    pixel_mm: tuple[float, float] = (1.0, 1.0),
    window: Window | None = None,
) -> bytes:
    """The fullest slice with the contours of both masks, and an enlarged view where the structure is small.

    All arrays are (D, H, W); slices are cut along D. `pixel_mm` is the spacing along (H, W). The first row is
    drawn at the bottom and the first column at the right: for a RAS volume as (z, y, x) that is the
    radiological view, the patient's right on the left.
    """
    index = fullest_slice(truth, predicted)
    low, high = window or intensity_window(image)
    slices = (image[index], truth[index], predicted[index])
    rows, columns = slices[0].shape
    box = zoom_box(slices[1], slices[2])
    heights = [rows * pixel_mm[0] / (columns * pixel_mm[1])]
    if box is not None:
        heights.append(
            (box[0].stop - box[0].start) * pixel_mm[0] / ((box[1].stop - box[1].start) * pixel_mm[1])
        )
    figure = Figure(
        facecolor="none", figsize=(3.4 * len(heights), 3.4 * min(max(*heights, 0.3), 2.0)), dpi=DOTS_PER_INCH
    )
    panels = figure.subplots(1, len(heights), squeeze=False, gridspec_kw={"wspace": 0.03})[0]
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    _draw_slice(panels[0], slices, (low, high), pixel_mm)
    if box is not None:
        _mark(panels[0], box)
        _draw_slice(panels[1], slices, (low, high), pixel_mm)
        panels[1].set_xlim(box[1].stop - 0.5, box[1].start - 0.5)
        panels[1].set_ylim(box[0].start - 0.5, box[0].stop - 0.5)
    return _png(figure)


def zoom_box(truth: np.ndarray, predicted: np.ndarray) -> Box | None:
    """The part of a slice (H, W) worth enlarging; None when the structure fills the slice or is absent."""
    where = np.argwhere((truth > 0) | (predicted > 0))
    if len(where) == 0:
        return None
    low, high = where.min(axis=0), where.max(axis=0) + 1
    # A square in voxels keeps both panels alike; it is shifted, not cut, at the border.
    side = max(int((high - low).max() * (1 + ZOOM_MARGIN)), MIN_ZOOM_VOXELS)
    if any(side > ZOOM_SHARE * size for size in truth.shape):
        return None
    starts = [
        int(np.clip((first + last - side) // 2, 0, size - side))
        for first, last, size in zip(low, high, truth.shape, strict=True)
    ]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def dice_distribution_png(names: Sequence[str], dice: Sequence[np.ndarray]) -> bytes:
    """One column per structure: a dot for every case that has a Dice, a box for the quartiles."""
    figure = Figure(
        facecolor="none",
        figsize=(min(max(2.2 + 1.1 * len(names), 5.0), 11.0), 3.4),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    for column, values in enumerate(dice):
        defined = np.asarray(values)[~np.isnan(values)]
        if defined.size == 0:
            continue
        offsets = generator.uniform(-JITTER, JITTER, defined.size)
        axes.scatter(column + offsets, defined, s=11, color=BAR_COLOUR, alpha=0.55, linewidths=0, zorder=2)
        axes.boxplot(
            defined,
            positions=[column],
            widths=0.52,
            showfliers=False,
            medianprops={"color": PREDICTION_COLOUR, "linewidth": 2},
            boxprops={"color": TEXT_COLOUR},
            whiskerprops={"color": TEXT_COLOUR},
            capprops={"color": TEXT_COLOUR},
        )
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(range(len(names)), [_shortened(name) for name in names])
    if len(names) > 5:
        axes.tick_params(axis="x", labelrotation=40)
    axes.set_ylabel("Dice")
    _quiet(axes)
    return _png(figure)


def training_curve_png(curves: Sequence[Curve]) -> bytes:
    """Losses (names with "loss" in them) in the left panel, every other value in the right one."""

    def is_loss(curve: Curve) -> bool:
        return "loss" in curve.name

    def is_score(curve: Curve) -> bool:
        return "loss" not in curve.name

    kinds: list[tuple[str, Callable[[Curve], bool]]] = [("loss", is_loss), ("score", is_score)]
    panels = [(title, [c for c in curves if belongs(c)]) for title, belongs in kinds]
    panels = [(title, members) for title, members in panels if members]
    figure = Figure(
        facecolor="none", figsize=(4.6 * max(len(panels), 1), 3.0), dpi=DOTS_PER_INCH, layout="constrained"
    )
    for axes, (title, members) in zip(
        figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False
    ):
        for curve, colour in zip(members, LINE_COLOURS * len(members), strict=False):
            axes.plot(curve.epochs, curve.values, label=curve.name, color=colour, linewidth=1.5)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.legend(frameon=False, labelcolor=TEXT_COLOUR, fontsize=8)
        _quiet(axes)
    return _png(figure)


def _draw_slice(axes: Axes, slices: Sequence[np.ndarray], window: Window, pixel_mm: Sequence[float]) -> None:
    image, truth, predicted = slices
    axes.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        aspect=pixel_mm[0] / pixel_mm[1],
        interpolation="nearest",
    )
    _contour(axes, truth, REFERENCE_COLOUR, "solid")
    _contour(axes, predicted, PREDICTION_COLOUR, "dashed")
    axes.set_xlim(image.shape[1] - 0.5, -0.5)
    axes.set_ylim(-0.5, image.shape[0] - 0.5)
    axes.set_axis_off()


def _contour(axes: Axes, mask: np.ndarray, colour: str, style: str) -> None:
    """The outline of each label; a frame of background closes those that touch the border."""
    framed = np.pad(mask, 1)
    height, width = framed.shape
    for label in np.unique(framed[framed > 0]):
        axes.contour(
            np.arange(width) - 1,
            np.arange(height) - 1,
            framed == label,
            levels=[0.5],
            colors=[colour],
            linestyles=[style],
            linewidths=1.4,
        )


def _mark(axes: Axes, box: Box) -> None:
    corner = (box[1].start - 0.5, box[0].start - 0.5)
    width, height = box[1].stop - box[1].start, box[0].stop - box[0].start
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=0.8, alpha=0.8))


def _quiet(axes: Axes) -> None:
    """Grey axes without a frame, on nothing."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(TEXT_COLOUR)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=9)
    axes.xaxis.label.set_color(TEXT_COLOUR)
    axes.yaxis.label.set_color(TEXT_COLOUR)
    axes.grid(axis="y", color=TEXT_COLOUR, alpha=0.2, linewidth=0.8)
    axes.set_axisbelow(True)


def _shortened(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _png(figure: Figure) -> bytes:
    """The figure as PNG without a creation date, so that equal data give equal bytes."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
