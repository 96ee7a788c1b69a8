"""Our plans and prepared volumes beside nnU-Net v2's own: field by field, voxel by voxel, as one JSON file.

nnU-Net first. Our axes are those of its reader that reorients, so the dataset.json of its raw folder says
"overwrite_image_reader_writer": "NibabelIOWithReorient":

    nnUNetv2_plan_and_preprocess -d 4 -c 2d 3d_fullres

Then ours in single precision, one folder per configuration, and the comparison:

    python preprocess.py --data RAW --results OURS --task 4 --dtype float32
    python preprocess.py --data RAW --results OURS --task 4 --dtype float32 --dim 2
    python benchmarks/nnunet_equivalence.py --out FILE.json --peer PREPROCESSED/Dataset004_Hippocampus \\
        --peer_python PYTHON_OF_NNUNET OURS/04_3d OURS/04_2d

A folder of ours that belongs to other plans than nnUNetPlans is given as FOLDER=PLANS.

The exit status is 1 where anything differs beyond its tolerance. A voxel may have another label where two
labels have the same share of it: there rounding decides. Not compared: the positions of the labels that a
patch may be centred on (another random draw by design) and what only one of the two writes down.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import nnunet_equivalence_peer as theirs  # noqa: E402
from data_preprocessing.prepare import target_spacing  # noqa: E402
from data_preprocessing.resampling import coarse_axis  # noqa: E402
from scripts.benchmark_record import machine_record  # noqa: E402
from utils import prepared_folder  # noqa: E402
from utils.contracts import Fingerprint, Footprint, Plan, PreprocessedCase, Shape  # noqa: E402
from utils.errors import DatasetError, UserError  # noqa: E402
from utils.run_log import say  # noqa: E402
from utils.storage import read_array, read_json, read_record, write_json  # noqa: E402

SCHEMA = 1
USUAL_PLANS = "nnUNetPlans"
LISTED = 20  # cases of a dataset that are all listed in the result
IMAGE_TOLERANCE = 1e-3  # of a normalised intensity
SPACING_TOLERANCE = 1e-6  # relative: headers hold single precision
INTENSITY_TOLERANCE = 1e-6  # of a statistic, in standard deviations of the channel
SHARE_TOLERANCE = {  # of two shares of a voxel that tie, by the way of resampling
    "scipy": 1e-6,
    "torch": 1e-3,  # nnU-Net compares thousandths in half precision there, in steps of 0.5
    "torch_sepz": 1e-3,
}
SLICES = "2d"  # the configuration whose patch has a third axis of one slice here and none there


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldVerdict:
    """One value of the plan or the fingerprint; `tolerance` is None where it should be the same."""

    field: str
    ours: Any
    peer: Any
    tolerance: float | None
    equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseVerdict:
    """One case: whether its geometry is the same, and how far its voxels are apart.

    The differences are None where the shapes do not allow to take them. `voxels` counts the volume,
    `label_voxels_that_differ` those with another label, `label_voxels_that_tie` those of them where both
    labels have the same share.
    """

    case_id: str
    geometry_that_differs: tuple[str, ...]
    voxels: int
    largest_difference: float | None
    mean_difference: float | None
    label_voxels_that_differ: int | None
    label_voxels_that_tie: int | None
    equal: bool


def compare_plans(plan: Plan, plans: dict[str, Any]) -> list[FieldVerdict]:
    """Every field that both plans have, and the intensities of every channel."""
    ours, peer = own_values(plan), theirs.plan_values(plans, plan.configuration)
    verdicts = []
    for name, value in ours.items():
        tolerance = SPACING_TOLERANCE if name == "spacing_mm" else None
        verdicts.append(field_verdict(name, value, peer[name], tolerance))
    for index, stats in enumerate(plan.intensity):
        # A statistic is as far off as it moves normalised intensities: in deviations of its channel.
        tolerance = INTENSITY_TOLERANCE * stats.std
        for name, value in theirs.intensity_values(plans, index).items():
            field = f"intensity of channel {index}: {name}"
            verdicts.append(field_verdict(field, getattr(stats, name), value, tolerance))
    return verdicts


def own_values(plan: Plan) -> dict[str, Any]:
    """The fields of our plan that nnU-Net's has too; sizes of slices have two numbers, as there."""
    return {
        "axis_order": plan.axis_order,
        "spacing_mm": _as_planned(plan.spacing_mm, plan),
        "median_shape": _as_planned(plan.median_shape, plan),
        "patch": _as_planned(plan.patch, plan),
        "batch_size": plan.batch_size,
        "batch_dice": plan.batch_dice,
        "number of stages": len(plan.stages),
        "features": [stage.channels for stage in plan.stages],
        "kernels": [_as_planned(stage.kernel, plan) for stage in plan.stages],
        "strides": [_as_planned(stage.stride, plan) for stage in plan.stages],
        "blocks": [stage.num_blocks for stage in plan.stages],
        "decoder_blocks": [plan.decoder_blocks] * (len(plan.stages) - 1),
        "encoder": plan.encoder,
        "normalisers": plan.normalisers,
        "uses_mask": plan.uses_mask,
        "resampling": plan.resampling,
    }


def compare_fingerprints(ours: Fingerprint, peer: dict[str, Any]) -> list[FieldVerdict]:
    """Shapes after the crop and spacings of every case, and the median of what the crop left."""
    relative_size = float(np.median(ours.relative_sizes))
    return [
        field_verdict("shapes after the crop", ours.shapes, peer["shapes"], None),
        field_verdict("spacings", ours.spacings_mm, peer["spacings_mm"], SPACING_TOLERANCE),
        field_verdict("relative size after the crop", relative_size, peer["relative size"], 1e-6),
    ]


def field_verdict(name: str, ours: Any, peer: Any, tolerance: float | None) -> FieldVerdict:
    """The same values in the same shape, numbers within `tolerance`; lists and tuples are one."""
    if tolerance is None:
        equal = _plain(ours) == _plain(peer)
    else:
        left, right = (np.asarray(value, dtype=np.float64) for value in (ours, peer))
        equal = left.shape == right.shape and bool(np.all(np.abs(left - right) <= tolerance))
    return FieldVerdict(field=name, ours=ours, peer=peer, tolerance=tolerance, equal=equal)


def compare_case(folder: Path, plan: Plan, case: PreprocessedCase, peer: theirs.PeerCase) -> CaseVerdict:
    """Geometry and voxels of one case, what ours is padded with left out."""
    print_ = case.footprint
    geometry = {
        "shape before the crop": (print_.oriented_shape, peer.shape),
        "start of the crop": (print_.crop_start, peer.crop_start),
        "end of the crop": (print_.crop_stop, peer.crop_stop),
        "shape after the crop": (print_.cropped_shape, peer.cropped_shape),
        "shape of the image": (print_.planned_shape, peer.image.shape[1:]),
        "shape of the label": (print_.planned_shape, peer.label.shape),
    }
    differing = [name for name, (ours, other) in geometry.items() if tuple(ours) != tuple(other)]
    spacing = np.array(peer.spacing_mm)[list(print_.axis_order)]
    if np.abs(spacing - print_.oriented_spacing_mm).max() > SPACING_TOLERANCE:
        differing.append("spacing")
    largest = mean = labels = ties = None
    if print_.planned_shape == tuple(peer.image.shape[1:]):
        largest, mean = _image_difference(case, peer.image)
        labels, ties = _label_difference(folder, plan, case, peer.label)
    return CaseVerdict(
        case_id=case.case_id,
        geometry_that_differs=tuple(differing),
        voxels=int(np.prod(print_.planned_shape)),
        largest_difference=largest,
        mean_difference=mean,
        label_voxels_that_differ=labels,
        label_voxels_that_tie=ties,
        equal=not differing and labels == ties and largest is not None and largest <= IMAGE_TOLERANCE,
    )


def _image_difference(case: PreprocessedCase, peer: np.ndarray) -> tuple[float, float]:
    """Largest and mean absolute difference, channel by channel to keep the memory of one."""
    ours = read_array(case.image, mapped=True)
    largest, total = 0.0, 0.0
    for channel, other in zip(ours[(slice(None), *_content(case))], peer, strict=True):
        apart = np.abs(channel.astype(np.float32) - other)
        largest, total = max(largest, float(apart.max())), total + float(apart.sum(dtype=np.float64))
    return largest, total / peer.size


def _label_difference(folder: Path, plan: Plan, case: PreprocessedCase, peer: np.ndarray) -> tuple[int, int]:
    """How many voxels have another label, and in how many of them both labels have the same share."""
    assert case.label is not None  # a training case has one
    ours = read_array(case.label, mapped=True)[(0, *_content(case))]
    voxels = np.argwhere(ours != peer)
    if voxels.size == 0:
        return 0, 0
    drawn = read_array(prepared_folder.case_file(folder, case.case_id, prepared_folder.ORIGINAL_LABEL))[0]
    places = _places_before(voxels, plan, case.footprint)
    pair = [label[tuple(voxels.T)] for label in (ours, peer)]
    shares = [np.full(len(voxels), np.nan) for _ in pair]
    # What lies outside the content of a scan is not in the label as it was drawn, so it never ties.
    for value in np.unique(pair)[np.unique(pair) >= 0]:
        share = ndimage.map_coordinates((drawn == value).astype(float), places, order=1, mode="nearest")
        for labels, found in zip(pair, shares, strict=True):
            found[labels == value] = share[labels == value]
    gaps = np.abs(shares[0] - shares[1])
    return len(voxels), int((gaps <= SHARE_TOLERANCE[plan.resampling]).sum())


def _places_before(voxels: np.ndarray, plan: Plan, print_: Footprint) -> list[np.ndarray]:
    """Where (n, 3) voxels of the planned grid lie in the cropped case, per axis, in its voxels."""
    spacing = print_.oriented_spacing_mm
    coarse = coarse_axis(spacing, target_spacing(plan, spacing), resampling=plan.resampling)
    places = []
    for axis, (old, new) in enumerate(zip(print_.cropped_shape, print_.planned_shape, strict=True)):
        place = np.clip((voxels[:, axis] + 0.5) * old / new - 0.5, 0, old - 1)
        places.append(np.floor(place + 0.5) if axis == coarse else place)
    return places


def _content(case: PreprocessedCase) -> tuple[slice, ...]:
    """Where the case lies in its padded volume."""
    print_ = case.footprint
    return tuple(
        slice(before, before + size)
        for before, size in zip(print_.padding_before, print_.planned_shape, strict=True)
    )


def compare_cases(folder: Path, plan: Plan, peer: Path, python: str) -> Iterator[CaseVerdict]:
    """Every case of both folders; DatasetError unless both hold the same ones."""
    ours = {case.case_id: case for case in prepared_folder.list_prepared(folder)}
    names = theirs.case_ids(peer)
    if set(ours) != set(names):
        alone = sorted(set(ours) ^ set(names))
        raise DatasetError(f"{len(alone)} cases are in one of {folder} and {peer} only, such as {alone[0]}.")
    for case in theirs.read_cases(peer, names, python):
        yield compare_case(folder, plan, ours[case.case_id], case)


def compare_folder(folder: Path, peer: Path, name: str, python: str) -> dict[str, Any]:
    """The plan and all cases of one of our folders beside those of the plans `name` there.

    Of many cases only those that differ are listed.
    """
    plan = prepared_folder.read_plan(folder)
    plans = read_json(peer / f"{name}.json")
    fingerprint = read_record(Fingerprint, folder / prepared_folder.FINGERPRINT)
    fields = compare_plans(plan, plans)
    fields += compare_fingerprints(fingerprint, theirs.read_fingerprint(peer))
    identifier = plans["configurations"][plan.configuration]["data_identifier"]
    cases = []
    for verdict in compare_cases(folder, plan, peer / identifier, python):
        cases.append(verdict)
        if not verdict.equal:
            say(f"{plan.configuration}, case {verdict.case_id}: {_told(verdict)}")
    for field in fields:
        if not field.equal:
            say(f"{plan.configuration}, {field.field}: ours {field.ours}, nnU-Net's {field.peer}")
    return {
        "configuration": plan.configuration,
        "plans": name,
        "equal": all(found.equal for found in (*fields, *cases)),
        "fields": [_brief(field) for field in fields],
        "volumes": summary_of(cases),
        "cases": [asdict(case) for case in cases if not case.equal or len(cases) <= LISTED],
    }


def summary_of(cases: Sequence[CaseVerdict]) -> dict[str, Any]:
    """The worst of all cases."""
    largest = [case.largest_difference for case in cases if case.largest_difference is not None]
    means = [case.mean_difference for case in cases if case.mean_difference is not None]
    return {
        "cases": len(cases),
        "cases_that_differ": sum(not case.equal for case in cases),
        "cases_of_other_geometry": sum(bool(case.geometry_that_differs) for case in cases),
        "largest_difference": max(largest, default=None),
        "largest_mean_difference": max(means, default=None),
        "voxels": sum(case.voxels for case in cases),
        "label_voxels_that_differ": sum(case.label_voxels_that_differ or 0 for case in cases),
        "label_voxels_that_tie": sum(case.label_voxels_that_tie or 0 for case in cases),
    }


def _told(verdict: CaseVerdict) -> str:
    if verdict.geometry_that_differs:
        return f"another {', '.join(verdict.geometry_that_differs)}"
    return (
        f"image up to {verdict.largest_difference:.3g} apart, "
        f"{verdict.label_voxels_that_differ} of {verdict.voxels} voxels with another label, "
        f"{verdict.label_voxels_that_tie} of them ties"
    )


def _brief(verdict: FieldVerdict) -> dict[str, Any]:
    """A list of one entry per case is told by its length where both agree."""
    plain = asdict(verdict)
    if verdict.equal and verdict.field in ("shapes after the crop", "spacings"):
        plain |= {side: f"{len(verdict.ours)} cases" for side in ("ours", "peer")}
    return plain


def _as_planned(sizes: Sequence[float] | Shape, plan: Plan) -> list[Any]:
    return list(sizes[1:] if plan.configuration == SLICES else sizes)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Our plans and prepared volumes beside nnU-Net v2's own.")
    parser.add_argument("ours", nargs="+", help="FOLDER[=PLANS] that preprocess.py --dtype float32 wrote")
    parser.add_argument("--peer", type=Path, required=True, help="nnU-Net's folder of the dataset")
    parser.add_argument("--peer_python", default=sys.executable, help="the Python nnU-Net is installed in")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Compare every folder, write the result, and end with 1 where something differs."""
    chosen = parse_arguments()
    compared = []
    try:
        for given in chosen.ours:
            folder, _, name = given.partition("=")
            compared.append(
                compare_folder(Path(folder), chosen.peer, name or USUAL_PLANS, chosen.peer_python)
            )
    except UserError as error:
        raise SystemExit(str(error)) from error
    equal = all(found["equal"] for found in compared)
    result = {
        "schema": SCHEMA,
        "machine": machine_record(None),
        "peer": theirs.versions(chosen.peer_python),
        "dataset": chosen.peer.name,
        "tolerances": {
            "image": IMAGE_TOLERANCE,
            "label_shares_that_tie": SHARE_TOLERANCE,
            "spacing_mm": SPACING_TOLERANCE,
            "intensity_in_deviations": INTENSITY_TOLERANCE,
        },
        "equal": equal,
        "compared": compared,
    }
    write_json(chosen.out, result)
    say(f"{'Equal' if equal else 'Not equal'}: {len(compared)} prepared folders, {chosen.out}")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
