"""The GPU suite's bookkeeping: what fails is recorded and the rest goes on."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import final_validation, gpu_suite_figures, gpu_suite_run
from scripts.benchmark_options import BenchmarkOptions
from scripts.benchmark_refusals import refuse_impossible
from scripts.gpu_suite_parts import Part, Places, parts_of
from scripts.gpu_suite_profile import ProfileOptions
from scripts.run_options import RunOptions
from utils.errors import UserError
from utils.options import parse


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "out").mkdir()
    return Places(work=tmp_path / "work", out=tmp_path / "out")


def part(name: str, program: str, *, limit_s: float = 60.0, is_timed: bool = True) -> Part:
    words = (sys.executable, "-c", program)
    return Part(name=name, kind="made", words=words, limit_s=limit_s, is_timed=is_timed)


def outcomes(parts: list[Part], places: Places, seconds: float = 100.0) -> list[gpu_suite_run.Outcome]:
    return list(gpu_suite_run.run_parts(parts, time.monotonic() + seconds, places))


def test_a_part_that_fails_does_not_stop_the_others(places: Places) -> None:
    good = "print('hello'); print('{\"figures\": {\"rate\": 3.5}}')"
    found = outcomes([part("bad", "raise SystemExit(3)"), part("good", good)], places)
    assert [(one.name, one.rc) for one in found] == [("bad", 3), ("good", 0)]
    assert found[1].figures == {"rate": 3.5}
    log = (places.out / gpu_suite_run.LOG_FILE).read_text()
    assert "===== bad: rc 3" in log
    assert "hello" in log


def test_a_part_that_takes_too_long_ends_with_its_children(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(5); pathlib.Path({str(alive)!r}).touch()"
    # The child holds the output open: reading to its end waits for the child too.
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    monkeypatch.setattr(gpu_suite_run, "LEAST_S", 0.1)
    (found,) = outcomes([part("slow", program, limit_s=1.0)], places)
    assert found.rc == gpu_suite_run.TIMED_OUT
    assert time.monotonic() - started < 4.5
    assert not alive.exists()


def test_without_time_nothing_is_started(places: Places) -> None:
    (found,) = outcomes([part("late", "raise SystemExit(3)")], places, seconds=1.0)
    assert (found.rc, found.seconds) == (gpu_suite_run.NOT_STARTED, 0.0)


def test_parts_that_are_not_timed_run_side_by_side_and_first(places: Places, tmp_path: Path) -> None:
    # Each waits for the other's file: one after the other would not end.
    program = (
        "import pathlib, sys, time\n"
        "own, other = (pathlib.Path({folder!r}) / name for name in {names})\n"
        "own.touch()\n"
        "for _ in range(400):\n"
        "    if other.exists(): sys.exit(0)\n"
        "    time.sleep(0.02)\n"
        "sys.exit(1)\n"
    )
    pair = [
        part(names[0], program.format(folder=str(tmp_path), names=names), is_timed=False)
        for names in (("one", "two"), ("two", "one"))
    ]
    found = outcomes([part("timed", ""), *pair], places)
    assert [one.name for one in found] == ["one", "two", "timed"]
    assert [one.rc for one in found] == [0, 0, 0]


def test_the_table_has_a_line_per_part_and_no_folder_of_this_machine(places: Places) -> None:
    words = f'print(\'{{"figures": {{"rate": 3.14159}}}}\') # {places.work}'
    found = outcomes([part("fine", words), part("bad", "raise SystemExit(3)")], places)
    record = gpu_suite_run.SuiteRecord(
        schema=gpu_suite_run.SCHEMA,
        machine=gpu_suite_run.machine_record("a GPU"),
        small=True,
        seconds=12.0,
        parts=tuple(found),
    )
    first, _, fine, bad = gpu_suite_run.table_of(record).splitlines()
    assert "a GPU" in first
    assert fine.endswith("rate 3.142")
    assert bad.split()[:2] == ["bad", "3"]
    assert "WORK" in found[0].command
    assert str(places.work) not in found[0].command


def test_every_command_of_the_suite_is_understood(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gpu_suite_run.ROOT)  # where the suite starts its commands
    kinds = {"benchmark.py": BenchmarkOptions, "gpu_suite_profile.py": ProfileOptions, "main.py": RunOptions}
    seen = set()
    for one in (*parts_of(places, small=False), *parts_of(places, small=True)):
        name = Path(one.words[1]).name
        seen.add(name)
        if name in kinds:
            options = parse(kinds[name], one.words[2:], program=name, description="")
            if isinstance(options, BenchmarkOptions):
                refuse_impossible(options)
    assert seen > set(kinds)


def test_the_small_suite_has_one_part_of_each_kind(places: Places) -> None:
    small = [one.kind for one in parts_of(places, small=True)]
    assert len(small) == len(set(small))
    assert {*small, "compiled"} == {one.kind for one in parts_of(places, small=False)}


def test_only_the_kinds_that_were_named_are_run(places: Places) -> None:
    options = gpu_suite_run.SuiteOptions(out=places.out, only=("data", "loader"))
    assert {one.kind for one in gpu_suite_run.chosen_parts(options, places)} == {"data", "loader"}
    with pytest.raises(UserError, match="got \\['lunch'\\]"):
        gpu_suite_run.chosen_parts(replace(options, only=("data", "lunch")), places)


def test_names_of_parts_are_unique(places: Places) -> None:
    names = [one.name for one in parts_of(places, small=False)]
    assert len(names) == len(set(names))


# --- figures -----------------------------------------------------------------------------------------------


def test_tests_are_counted_over_the_suites(places: Places) -> None:
    places.tests.write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="0" skipped="2"/>'
        '<testsuite tests="3" failures="1" errors="1" skipped="0"/></testsuites>'
    )
    tests = replace(part("tests", ""), kind="tests")
    expected = {"tests": 8, "failures": 2, "errors": 1, "skipped": 2}
    assert gpu_suite_figures.figures_of(tests, "", places) == expected
    places.tests.write_text("<testsuites><testsuite")
    assert gpu_suite_figures.figures_of(tests, "", places) == {}
    lines = "a.py::one PASSED [ 1%]\na.py::two[x] PASSED\na.py::three FAILED\na.py::four \n"
    assert gpu_suite_figures.figures_of(tests, lines, places) == {"passed": 2, "failures": 1, "errors": 0}


def test_tests_that_wait_for_the_compiler_have_a_part_and_an_account_of_their_own(places: Places) -> None:
    whole = {one.kind: one for one in reversed(parts_of(places, small=False))}
    words = whole["tests"].words, whole["compiled"].words
    assert [one[one.index("-k") + 1] for one in words] == ["not compiled", "compiled"]
    places.compiled_tests.write_text('<testsuites><testsuite tests="3" failures="1"/></testsuites>')
    assert gpu_suite_figures.figures_of(whole["compiled"], "", places)["failures"] == 1
    assert "compiled" not in {one.kind for one in parts_of(places, small=True)}


def test_a_training_gives_its_last_epoch_and_its_dice(places: Places) -> None:
    places.training.mkdir(parents=True)
    lines = [{"type": "LOG", "step": [epoch], "data": {"train_s": 2.0 + epoch}} for epoch in range(3)]
    log = "".join(f"DLLL {json.dumps(line)}\n" for line in lines)
    (places.training / gpu_suite_figures.RUN_LOG).write_text(log)
    (places.training / gpu_suite_figures.FINAL_METRICS).write_text('{"dsc_mean": 0.5}')
    training = replace(part("training", ""), kind="training")
    figures = gpu_suite_figures.figures_of(training, "", places)
    assert (figures["epochs"], figures["train_s"], figures["final Dice"]) == (3, 4.0, 0.5)
    assert gpu_suite_figures.FINAL_METRICS == final_validation.METRICS_FILE


def test_an_output_without_a_result_has_no_figures(places: Places) -> None:
    assert gpu_suite_figures.figures_of(part("cut", ""), 'text\n{"mode": "tra', places) == {}
    found = gpu_suite_figures.figures_of(part("other", ""), '{"mode": "train"}', places)
    assert list(found) == ["not a result"]
