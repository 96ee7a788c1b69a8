"""A folder that nnU-Net v2 prepared, read into our words: its plans file, its fingerprint, its cases.

Its cases are blosc2 and pickle files. They are unpacked by nnU-Net's own Python, so neither format is needed
here, and no pickle is opened by ours.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.errors import DatasetError
from utils.storage import read_json

FINGERPRINT = "dataset_fingerprint.json"
PIECE = 2**24  # bytes of an array that are read at once
IMAGE_END, LABEL_END = ".b2nd", "_seg.b2nd"

NORMALISERS = {
    "CTNormalization": "ct_window",
    "ZScoreNormalization": "z_score",
    "RescaleTo01Normalization": "unit_range",
    "RGBTo01Normalization": "rgb",
    "NoNormalization": "identity",
}
ENCODERS = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
INTENSITY = {
    "mean": "mean",
    "std": "std",
    "median": "median",
    "min": "min",
    "max": "max",
    "low": "percentile_00_5",
    "high": "percentile_99_5",
}

# Run by nnU-Net's Python: one line of JSON per case, the bytes of image and label behind it.
UNPACK = """
import json, pickle, sys
from pathlib import Path
import blosc2, numpy as np
folder = Path(sys.argv[1])
for case_id in sys.argv[2:]:
    image = blosc2.open(urlpath=str(folder / f"{case_id}.b2nd"), mode="r")[:]
    label = blosc2.open(urlpath=str(folder / f"{case_id}_seg.b2nd"), mode="r")[:]
    with open(folder / f"{case_id}.pkl", "rb") as stream:
        properties = pickle.load(stream)
    head = {
        "shape": properties["shape_before_cropping"],
        "box": properties["bbox_used_for_cropping"],
        "cropped_shape": properties["shape_after_cropping_and_before_resampling"],
        "spacing_mm": properties["spacing"],
        "image": [list(image.shape), image.dtype.str],
        "label": [list(label.shape), label.dtype.str],
    }
    plain = json.dumps(head, default=lambda value: value.tolist())
    sys.stdout.buffer.write(plain.encode() + b"\\n")
    for array in (image, label):
        sys.stdout.buffer.write(np.ascontiguousarray(array).data)
    sys.stdout.buffer.flush()
"""


PACKAGES = ("nnunetv2", "batchgenerators", "scikit-image", "scipy", "numpy", "torch", "nibabel")
NAME_VERSIONS = """
import json, sys
from importlib.metadata import distributions
found = {one.metadata["Name"]: one.version for one in distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeerCase:
    """A case as nnU-Net stored it: image (C, D, H, W) float32, label (D, H, W), boxes in planned axes."""

    case_id: str
    image: np.ndarray
    label: np.ndarray
    shape: tuple[int, ...]  # before the crop
    crop_start: tuple[int, ...]
    crop_stop: tuple[int, ...]
    cropped_shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]  # (z, y, x), before the axes of the plan


def plan_values(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The plan of one configuration, each field under the name and in the form that ours has."""
    described = plans["configurations"].get(configuration)
    if described is None:
        raise DatasetError(
            f"nnU-Net planned no {configuration}; it has {sorted(plans['configurations'])}. "
            "Compare those, or prepare the other one."
        )
    network = described["architecture"]["arch_kwargs"]
    blocks = network.get("n_blocks_per_stage", network.get("n_conv_per_stage"))
    resampling = described["resampling_fn_data"]
    return {
        "axis_order": plans["transpose_forward"],
        "spacing_mm": described["spacing"],
        "median_shape": described["median_image_size_in_voxels"],
        "patch": described["patch_size"],
        "batch_size": described["batch_size"],
        "batch_dice": described["batch_dice"],
        "number of stages": network["n_stages"],
        "features": network["features_per_stage"],
        "kernels": network["kernel_sizes"],
        "strides": network["strides"],
        "blocks": blocks,
        "decoder_blocks": network["n_conv_per_stage_decoder"],
        "encoder": ENCODERS.get(described["architecture"]["network_class_name"].rpartition(".")[2]),
        "normalisers": [NORMALISERS.get(name, name) for name in described["normalization_schemes"]],
        "uses_mask": described["use_mask_for_norm"],
        "resampling": _resampling(resampling, described["resampling_fn_data_kwargs"]),
    }


def intensity_values(plans: dict[str, Any], channel: int) -> dict[str, float]:
    """The foreground statistics of a channel under our names."""
    found = plans["foreground_intensity_properties_per_channel"][str(channel)]
    return {name: float(found[theirs]) for name, theirs in INTENSITY.items()}


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """Shapes after the crop and spacings [mm], one per case in the order of the ids, (z, y, x)."""
    found = read_json(folder / FINGERPRINT)
    return {
        "shapes": found["shapes_after_crop"],
        "spacings_mm": found["spacings"],
        "relative size": found["median_relative_size_after_cropping"],
    }


def versions(python: str) -> dict[str, str]:
    """What of nnU-Net and the packages that decide its numbers is installed in the interpreter `python`."""
    command = [python, "-c", NAME_VERSIONS, *PACKAGES]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def case_ids(folder: Path) -> tuple[str, ...]:
    """The cases of a folder of one configuration, sorted."""
    labels = (path.name.removesuffix(LABEL_END) for path in folder.glob(f"*{LABEL_END}"))
    return tuple(sorted(labels))


def read_cases(folder: Path, names: Sequence[str], python: str) -> Iterator[PeerCase]:
    """The cases one after the other, unpacked by the interpreter `python`, which has nnU-Net's packages."""
    command = [python, "-c", UNPACK, str(folder), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for name in names:
            line = process.stdout.readline()
            if not line:
                said = process.stderr.read().decode(errors="replace").strip().splitlines()
                raise DatasetError(
                    f"{folder.name}: case {name} could not be unpacked: {said[-1] if said else 'no reason'}. "
                    "--peer_python should be the Python that nnU-Net is installed in."
                )
            yield _unpacked(name, json.loads(line), process.stdout)


def _unpacked(name: str, head: dict[str, Any], stream: IO[bytes]) -> PeerCase:
    image, label = (_next_array(stream, *head[part]) for part in ("image", "label"))
    return PeerCase(
        case_id=name,
        image=image,
        label=label[0],
        shape=tuple(head["shape"]),
        crop_start=tuple(int(low) for low, _ in head["box"]),
        crop_stop=tuple(int(high) for _, high in head["box"]),
        cropped_shape=tuple(head["cropped_shape"]),
        spacing_mm=tuple(float(edge) for edge in head["spacing_mm"]),
    )


def _next_array(stream: IO[bytes], shape: list[int], dtype: str) -> np.ndarray:
    array = np.empty(shape, dtype=dtype)
    flat = array.reshape(-1).view(np.uint8)
    filled = 0
    while filled < flat.size:
        part = stream.read(min(flat.size - filled, PIECE))
        if not part:
            raise DatasetError(f"Only {filled} of {flat.size} bytes of an array came from nnU-Net's Python.")
        flat[filled : filled + len(part)] = np.frombuffer(part, dtype=np.uint8)
        filled += len(part)
    return array


def _resampling(function: str, settings: dict[str, Any]) -> str:
    """Our name of the way that images are resampled."""
    if function == "resample_data_or_seg_to_shape":
        return "scipy" if settings.get("order") == 3 else f"splines of order {settings.get('order')}"
    is_torch = function == "resample_torch_fornnunet"
    if not is_torch:
        return function
    return "torch" if settings.get("force_separate_z") is False else "torch_sepz"
