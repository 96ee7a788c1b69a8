"""The data of the GPU suite, made on the spot: prepared large and little volumes, and the phantom."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import joblib
import numpy as np

from data_preprocessing.foreground import foreground_table
from data_preprocessing.phantom import PhantomOptions, write_phantom
from data_preprocessing.planners import PlannerOptions
from scripts import preprocess
from scripts.benchmark_network import made_plan
from scripts.benchmark_options import BenchmarkOptions
from scripts.gpu_suite_parts import PHANTOM_TASK
from utils.command import run_command
from utils.contracts import NO_CLASS, Footprint, Plan, PreprocessedCase, Shape
from utils.options import parse
from utils.prepared_folder import FOREGROUND, IMAGE, LABEL, PLAN, case_file, write_prepared_case
from utils.storage import write_array, write_json

DESCRIPTION = "Make the data of the GPU suite."
ORGAN_RADIUS, LESION_RADIUS = 0.2, 0.06  # shares of each edge
ORGAN_STEP, LESION_STEP = 1.0, -1.5  # against the noise of standard deviation 1
IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Where the data go."""

    data: Path
    """Folder for 101_3d (large), 104_3d (little), the raw phantom and its prepared folder."""
    small: bool = False
    """Tiny volumes, and few of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A prepared folder: its volumes have noise, an organ and a lesion in it."""

    name: str
    cases: int
    smallest: Shape
    largest: Shape
    patch: Shape
    batch_size: int


WHOLE = (
    # As computed tomographies of 512 x 512, and as the hippocampus of the Medical Segmentation Decathlon.
    Made(
        name="101_3d",
        cases=8,
        smallest=(100, 512, 512),
        largest=(160, 512, 512),
        patch=(128, 128, 128),
        batch_size=2,
    ),
    Made(
        name="104_3d",
        cases=200,
        smallest=(24, 40, 31),
        largest=(47, 59, 43),
        patch=(40, 56, 40),
        batch_size=8,
    ),
)
SMALL = (
    Made(
        name="101_3d",
        cases=2,
        smallest=(20, 40, 40),
        largest=(24, 48, 48),
        patch=(16, 16, 16),
        batch_size=1,
    ),
)


def run(options: DataOptions) -> None:
    """Write everything below the folder."""
    for made in SMALL if options.small else WHOLE:
        write_folder(options.data, made)
    size, patch = ("tiny", (8, 16, 16)) if options.small else ("small", (32, 48, 64))
    jobs = 1 if options.small else -1
    write_phantom(options.data, PhantomOptions(size=size, n_jobs=jobs))
    preprocess.run(
        preprocess.PreprocessOptions(
            data=options.data,
            results=options.data,
            task=PHANTOM_TASK,
            n_jobs=jobs,
            planner=PlannerOptions(patch_size=patch),
        )
    )


def write_folder(data: Path, made: Made) -> Path:
    """The folder <data>/<name>; the same volumes on every machine."""
    folder = data / made.name
    plan = made_plan(BenchmarkOptions(shape=(1, *made.patch)))
    plan = replace(plan, dataset=f"Made{made.name}", batch_size=made.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, plan)
    draw = joblib.delayed(_write_case)
    # Threads: NumPy's generators give the interpreter's lock free.
    joblib.Parallel(n_jobs=-1, prefer="threads")(draw(folder, made, plan, n) for n in range(made.cases))
    return folder


def _write_case(folder: Path, made: Made, plan: Plan, number: int) -> None:
    random = np.random.default_rng([len(made.name), made.cases, number])
    depth, height, width = (
        int(random.integers(low, high + 1)) for low, high in zip(made.smallest, made.largest, strict=True)
    )
    shape = (depth, height, width)
    case_id = f"case_{number:03d}"
    label = _label(random, shape)
    image = random.standard_normal(shape, dtype=np.float32)
    image += np.array([0.0, ORGAN_STEP, LESION_STEP], np.float32)[label]
    image_path, label_path, table_path = (
        case_file(folder, case_id, suffix) for suffix in (IMAGE, LABEL, FOREGROUND)
    )
    write_array(image_path, image[np.newaxis].astype(np.float16))
    write_array(label_path, label[np.newaxis])
    write_array(table_path, foreground_table(label))
    write_prepared_case(
        folder,
        PreprocessedCase(
            case_id=case_id,
            patient_id=case_id,
            image=image_path,
            label=label_path,
            foreground=table_path,
            class_target=NO_CLASS,
            shape=shape,
            footprint=_footprint(shape, plan),
        ),
    )


def _label(random: np.random.Generator, shape: Shape) -> np.ndarray:
    """Int16 (D, H, W): 1 in an ellipsoid, 2 in a smaller one inside it."""
    label = np.zeros(shape, np.int16)
    centre = random.uniform(0.4, 0.6, 3)
    for value, radius in ((1, ORGAN_RADIUS), (2, LESION_RADIUS)):
        places = np.ogrid[tuple(slice(size) for size in shape)]
        distances = [
            ((place / size - middle) / radius) ** 2
            for place, size, middle in zip(places, shape, centre, strict=True)
        ]
        label[distances[0] + distances[1] + distances[2] <= 1] = value
    return label


def _footprint(shape: Shape, plan: Plan) -> Footprint:
    """Nothing was cropped, turned or resampled."""
    return Footprint(
        native_shape=(shape[2], shape[1], shape[0]),
        native_spacing_mm=plan.spacing_mm,
        orientation="RAS",
        axis_order=plan.axis_order,
        oriented_shape=shape,
        oriented_spacing_mm=plan.spacing_mm,
        crop_start=(0, 0, 0),
        crop_stop=shape,
        cropped_shape=shape,
        planned_shape=shape,
        padding_before=(0, 0, 0),
        padding_after=(0, 0, 0),
        qform_code=1,
        sform_code=1,
        affine=IDENTITY,
    )


def main() -> None:
    """Parse the command line and run."""
    run(parse(DataOptions, sys.argv[1:], program="gpu_suite_data.py", description=DESCRIPTION))


if __name__ == "__main__":
    sys.exit(run_command(main))
