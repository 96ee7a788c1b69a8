"""The parts of the GPU suite: commands with time limits, the most telling first."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

NUM_WORKERS = 12
NVIDIA = ("--preset", "nvidia", "--labels", "4", "--branch", "none", "--no_deep_supervision")  # its benchmark
PHANTOM_TASK = "500"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders: `work` is deleted in the end, `out` is what stays."""

    work: Path
    out: Path

    @property
    def data(self) -> Path:
        """Raw and prepared data."""
        return self.work / "data"

    @property
    def training(self) -> Path:
        """Results of the whole training."""
        return self.work / "training"

    @property
    def tests(self) -> Path:
        """JUnit's account of the tests."""
        return self.out / "tests.xml"

    @property
    def compiled_tests(self) -> Path:
        """The same for the tests that wait for the compiler."""
        return self.out / "tests_compiled.xml"

    @property
    def trace(self) -> Path:
        """The profiler's trace, for chrome://tracing or Perfetto."""
        return self.out / "trace.json.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One command; `kind` groups those that differ in their settings only."""

    name: str
    kind: str
    words: tuple[str, ...]
    limit_s: float
    is_timed: bool = True  # measures speed, so that nothing else may run beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What differs between the whole suite and the small one."""

    large_patch: str
    large_batch: str
    little_patch: str
    little_batch: str
    task_01: str  # channels and patch
    slabs: str
    slices: str
    slices_batch: str
    steps: tuple[str, ...]
    loader_batches: str
    profiled: str  # steps in the trace
    training: tuple[str, ...]
    tests: tuple[str, ...]


WHOLE = Sizes(
    large_patch="128 128 128",
    large_batch="2",
    little_patch="40 56 40",
    little_batch="8",
    task_01="4 128 128 128",
    slabs="1 64 192 192",
    slices="1 1 512 512",
    slices_batch="64",
    steps=("--warmup", "6", "--train_batches", "20", "--test_batches", "20", "--repeats", "3"),
    loader_batches="100",
    profiled="20",
    training=("--config", "scripts/presets/quickstart.toml", "--time_budget", "1"),
    tests=(),
)
SMALL = Sizes(
    large_patch="16 16 16",
    large_batch="1",
    little_patch="8 8 8",
    little_batch="2",
    task_01="4 16 16 16",
    slabs="1 8 16 16",
    slices="1 1 32 32",
    slices_batch="2",
    steps=(
        "--warmup",
        "1",
        "--train_batches",
        "2",
        "--test_batches",
        "1",
        "--repeats",
        "1",
        "--filters",
        "4",
    ),
    loader_batches="2",
    profiled="2",
    training=("--epochs", "1", "--steps_per_epoch", "1", "--filters", "4", "--overlap", "0"),
    tests=("tests/gpu",),
)


def parts_of(places: Places, *, small: bool) -> tuple[Part, ...]:
    """All parts, or with `small` the first of each kind; without the compiler, which takes minutes there."""
    sizes = SMALL if small else WHOLE
    parts = (
        *_before(places, sizes, small=small),
        *_task_01(sizes),
        *_loaders(places, sizes),
        *_real_and_synthetic(places, sizes),
        _whole_training(places, sizes),
        _prediction(sizes),
        *_other_shapes(sizes),
        _profile(places, sizes),
        *_variants(sizes),
    )
    if not small:
        compiled = _tests(places.compiled_tests, "compiled", "tests/gpu")
        return (
            *parts,
            Part(name="tests of compiled branches", kind="compiled", words=compiled, limit_s=300),
        )
    kinds = [part.kind for part in parts]
    return tuple(part for place, part in enumerate(parts) if part.kind not in kinds[:place])


def _python(script: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, script, *words)


def _before(places: Places, sizes: Sizes, *, small: bool) -> tuple[Part, ...]:
    data = ("--data", str(places.data), *(["--small"] if small else []))
    return (
        Part(
            name="tests marked gpu",
            kind="tests",
            words=_tests(places.tests, "not compiled", *sizes.tests),
            limit_s=150,
            is_timed=False,
        ),
        Part(
            name="data",
            kind="data",
            words=_python("scripts/gpu_suite_data.py", *data),
            limit_s=150,
            is_timed=False,
        ),
    )


def _tests(account: Path, which: str, *folders: str) -> tuple[str, ...]:
    """-v: the log has a line per test, also where the part's time runs out."""
    words = ("-m", "gpu", "-k", which, "-p", "no:cacheprovider", f"--junitxml={account}")
    return (sys.executable, "-m", "pytest", "-v", *words, "--continue-on-collection-errors", *folders)


def _benchmark(name: str, kind: str, *words: str, limit_s: float = 60) -> Part:
    return Part(
        name=name, kind=kind, words=_python("scripts/benchmark.py", *words, "--json"), limit_s=limit_s
    )


def _synthetic(sizes: Sizes, shape: str, batch_size: str, *words: str) -> tuple[str, ...]:
    made = ("--mode", "train", "--input", "synthetic", "--shape", *shape.split(), "--batch_size", batch_size)
    return (*made, *sizes.steps, *words)


def _task_01(sizes: Sizes) -> tuple[Part, ...]:
    return tuple(
        _benchmark(
            f"train, Task-01 shape, batch {batch}, amp, {layout}",
            "train",
            *_synthetic(sizes, sizes.task_01, batch, *NVIDIA, "--amp", "--layout", layout),
        )
        for batch in ("1", "2", "4")
        for layout in ("NCDHW", "NDHWC")
    )


def _large(places: Places, sizes: Sizes) -> tuple[str, ...]:
    where = ("--data", str(places.data), "--task", "101", "--patch", *sizes.large_patch.split())
    return (*where, "--batch_size", sizes.large_batch, "--num_workers", str(NUM_WORKERS))


def _loaders(places: Places, sizes: Sizes) -> tuple[Part, ...]:
    little = ("--data", str(places.data), "--task", "104", "--patch", *sizes.little_patch.split())
    little += ("--batch_size", sizes.little_batch, "--num_workers", str(NUM_WORKERS))
    counts = ("--warmup", "8", "--train_batches", sizes.loader_batches, "--repeats", "3")
    large = _large(places, sizes)
    kinds = (
        ("large, graph", large, ("--augment_in", "graph")),  # the volumes lie on the GPU where they fit
        ("large, graph, volumes on the host", large, ("--augment_in", "graph", "--residency", "memory")),
        ("large, host", large, ("--augment_in", "host")),
        ("little, graph", little, ("--augment_in", "graph")),
        ("little, host", little, ("--augment_in", "host")),
    )
    return tuple(
        _benchmark(f"loader, {name}", "loader", "--mode", "loader", *where, *counts, *words)
        for name, where, words in kinds
    )


def _real_and_synthetic(places: Places, sizes: Sizes) -> tuple[Part, ...]:
    return tuple(
        _benchmark(
            f"train, large, amp, {source} input, {layout}",
            "train_large",
            *("--mode", "train", "--input", source, "--layout", layout, "--amp"),
            *_large(places, sizes),
            *sizes.steps,
        )
        for source, layout in (("real", "NCDHW"), ("real", "NDHWC"), ("synthetic", "NDHWC"))
    )


def _whole_training(places: Places, sizes: Sizes) -> Part:
    where = ("--data", str(places.data), "--results", str(places.training), "--task", PHANTOM_TASK)
    words = ("--exec_mode", "train", *where, "--num_workers", str(NUM_WORKERS), *sizes.training)
    return Part(
        name="whole training, phantom", kind="training", words=_python("main.py", *words), limit_s=150
    )


def _prediction(sizes: Sizes) -> Part:
    words = ("--mode", "predict", "--input", "synthetic", "--shape", *sizes.task_01.split(), *NVIDIA)
    return _benchmark(
        "predict, Task-01 shape, batch 1, amp", "predict", *words, "--batch_size", "1", "--amp", *sizes.steps
    )


def _other_shapes(sizes: Sizes) -> tuple[Part, ...]:
    slabs = ("--spacing", "2.5", "0.8", "0.8", "--classes", "3", "--amp")
    return (
        _benchmark(
            "train, slabs with 3 classes, batch 2, amp",
            "train",
            *_synthetic(sizes, sizes.slabs, "2", *slabs),
        ),
        _benchmark(
            f"train, 2-D slices, batch {sizes.slices_batch}, amp",
            "train",
            *_synthetic(sizes, sizes.slices, sizes.slices_batch, "--dim", "2", "--amp"),
        ),
        _benchmark(
            "train, Task-01 slices 192x160, batch 64, amp, NDHWC",
            "train",
            *_synthetic(sizes, "4 1 192 160", "64", *NVIDIA, "--dim", "2", "--amp", "--layout", "NDHWC"),
        ),
    )


def _profile(places: Places, sizes: Sizes) -> Part:
    words = _synthetic(sizes, sizes.task_01, "2", *NVIDIA, "--amp", "--steps", sizes.profiled)
    words += ("--trace", str(places.trace))
    return Part(
        name="profile, Task-01 shape, batch 2, amp",
        kind="profile",
        words=_python("scripts/gpu_suite_profile.py", *words),
        limit_s=90,
    )


def _variants(sizes: Sizes) -> tuple[Part, ...]:
    compiled = _synthetic(sizes, sizes.task_01, "2", *NVIDIA, "--amp", "--compile")
    return (
        _benchmark("train, Task-01 shape, batch 2, amp, compiled", "train", *compiled, limit_s=150),
        _benchmark(
            "train, Task-01 shape, batch 2, single precision",
            "train",
            *_synthetic(sizes, sizes.task_01, "2", *NVIDIA),
        ),
    )
