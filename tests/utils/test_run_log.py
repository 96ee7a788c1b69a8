"""Log lines are DLLogger's, survive a crash, and progress is readable without a terminal."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import DatasetError, EnvironmentFault, StorageFault
from utils.run_log import RunLog, progress, read_log, say


def test_a_line_has_the_fields_of_dllogger(tmp_path: Path) -> None:
    with RunLog(tmp_path / "logs.json") as log:
        log.log([0, 7], {"train/loss": 0.5})
    line = (tmp_path / "logs.json").read_text(encoding="utf-8")
    assert line.startswith("DLLL {")
    entry = json.loads(line.removeprefix("DLLL "))
    assert {key: type(entry[key]) for key in ("timestamp", "datetime", "elapsedtime")} == {
        "timestamp": str,
        "datetime": str,
        "elapsedtime": str,
    }
    assert (entry["type"], entry["step"], entry["data"]) == ("LOG", [0, 7], {"train/loss": 0.5})


@pytest.mark.parametrize(
    ("step", "written"), [("PARAMETER", "PARAMETER"), (3, [3]), ((1, 2), [1, 2]), ((), []), ([], [])]
)
def test_steps_are_written_as_lists(step: Any, written: Any, tmp_path: Path) -> None:
    with RunLog(tmp_path / "logs.json") as log:
        log.log(step, {})
    assert read_log(tmp_path / "logs.json")[0]["step"] == written


def test_metadata_describes_a_metric(tmp_path: Path) -> None:
    with RunLog(tmp_path / "logs.json") as log:
        log.metadata("val/dsc", {"unit": "", "GOAL": "MAXIMIZE"})
    entry = read_log(tmp_path / "logs.json")[0]
    assert (entry["type"], entry["metric"], entry["metadata"]["GOAL"]) == ("METADATA", "val/dsc", "MAXIMIZE")


def test_tensors_and_numpy_values_become_numbers(tmp_path: Path) -> None:
    values = {
        "a": torch.tensor(1.5, requires_grad=True),
        "b": np.float32(0.5),
        "c": np.arange(2),
        "d": torch.tensor([1, 2]),
        "e": {"f": np.int8(3)},
        "g": Path("x"),
    }
    with RunLog(tmp_path / "logs.json") as log:
        log.log([], values)
    expected = {"a": 1.5, "b": 0.5, "c": [0, 1], "d": [1, 2], "e": {"f": 3}, "g": "x"}
    assert read_log(tmp_path / "logs.json")[0]["data"] == expected


def test_a_number_that_is_not_finite_is_null_with_a_mark(tmp_path: Path) -> None:
    with RunLog(tmp_path / "logs.json") as log:
        log.log([], {"loss": torch.tensor(float("nan")), "norm": float("inf")})
    assert "NaN" not in (tmp_path / "logs.json").read_text(encoding="utf-8")
    assert read_log(tmp_path / "logs.json")[0]["data"] == {
        "loss": None,
        "loss_isnan": True,
        "norm": None,
        "norm_isinf": True,
    }


def test_a_line_is_visible_to_others_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "logs.json")
    log.log([0], {"a": 1})
    assert len(read_log(tmp_path / "logs.json")) == 1
    log.close()


def test_reopening_appends(tmp_path: Path) -> None:
    for epoch in range(2):
        with RunLog(tmp_path / "logs.json") as log:
            log.log([epoch], {})
    assert [entry["step"] for entry in read_log(tmp_path / "logs.json")] == [[0], [1]]


def test_a_line_cut_off_by_a_crash_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "logs.json"
    with RunLog(path) as log:
        log.log([0], {})
    with path.open("a", encoding="utf-8") as stream:
        stream.write('DLLL {"type": "LO')
    assert [entry["step"] for entry in read_log(path)] == [[0]]
    with RunLog(path) as log:
        log.log([1], {})
    assert [entry["step"] for entry in read_log(path)] == [[0], [1]]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs.json").write_text('other tool\nDLLL {"a"\nDLLL {}\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"logs\.json line 2"):
        read_log(tmp_path / "logs.json")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "logs.json", rank=1) as log:
        log.log([0], {"a": 1})
        log.metadata("a", {})
        log.flush()
    assert not (tmp_path / "logs.json").exists()


def test_a_log_that_cannot_be_opened_is_a_storage_fault(tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match="cannot be opened for writing"):
        RunLog(tmp_path)


def test_echo_prints_through_dllogger_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[tuple[Any, ...]] = []
    printer = types.SimpleNamespace(
        log=lambda step, data, verbosity: printed.append((step, data, verbosity)),
        metadata=lambda metric, metadata: printed.append((metric, metadata)),
    )
    package = types.ModuleType("dllogger")
    package.Logger = lambda backends: printer  # pyright: ignore[reportAttributeAccessIssue]
    package.StdOutBackend = lambda verbosity: verbosity  # pyright: ignore[reportAttributeAccessIssue]
    package.Verbosity = types.SimpleNamespace(DEFAULT=0)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "dllogger", package)
    with RunLog(tmp_path / "logs.json", echo=True) as log:
        log.metadata("a", {"unit": "ms"})
        log.log([1], {"a": np.float32(2)})
    assert printed == [("a", {"unit": "ms"}), ([1], {"a": 2.0}, 0)]


def test_echo_without_dllogger_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dllogger", None)
    with pytest.raises(EnvironmentFault, match="needs the dllogger package"):
        RunLog(tmp_path / "logs.json", echo=True)


def test_progress_without_a_terminal_is_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(25), total=25, label="Cases")) == list(range(25))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("Cases: 10 % (3 of 25), ")
    assert lines[-1].startswith("Cases: 100 % (25 of 25), ")


def test_progress_of_few_items_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress("ab", total=2, label="Cases"))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_progress_on_a_terminal_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress(range(3), total=3, label="Cases")) == [0, 1, 2]
    assert "100%" in capsys.readouterr().err


def test_say_leaves_standard_output_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")
