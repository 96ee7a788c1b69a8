"""Our runs beside a peer's: equal steps and batch, means over seeds."""

from pathlib import Path

import pytest

from benchmarks.equal_steps import Run, compare, main
from tests.scripts.test_compare_runs import make_run
from utils.errors import DatasetError
from utils.storage import read_json, write_json


def run(seed: int, *dice: float, steps: int = 100, batch: int = 8) -> Run:
    curve = tuple((steps * (place + 1) // len(dice), value) for place, value in enumerate(dice))
    return Run(steps=steps, batch=batch, seed=seed, curve=curve)


def test_means_are_of_the_last_step_over_seeds() -> None:
    found = compare([run(0, 0.9, 0.6), run(1, 0.9, 0.8)], [run(0, 0.1, 0.75)])
    assert found["mean_dice"] == {"peer": pytest.approx(0.7), "ours": 0.75}
    assert found["difference"] == pytest.approx(0.05)
    assert found["runs"]["ours"][0]["curve"] == [{"step": 50, "dice": 0.1}, {"step": 100, "dice": 0.75}]


@pytest.mark.parametrize("other", [run(0, 0.5, steps=50), run(0, 0.5, batch=2)])
def test_unequal_runs_are_refused(other: Run) -> None:
    with pytest.raises(DatasetError, match="Only equal ones compare"):
        compare([run(0, 0.5)], [other])


def test_a_run_that_was_stopped_is_refused() -> None:
    stopped = Run(steps=100, batch=8, seed=3, curve=((50, 0.5),))
    with pytest.raises(DatasetError, match="seed 3 was last scored at step 50 of 100"):
        compare([run(0, 0.5)], [stopped])


def test_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = make_run(tmp_path / "ours", 0.1, {"a": "0.5"}, None, epochs=2, steps_per_epoch=50, batch_size=8)
    points = [{"iter": 50, "dice": 0.1}, {"iter": 100, "dice": 0.25}]
    write_json(tmp_path / "peer.json", {"iters": 100, "batch": 8, "seed": 1, "curve": points})
    out = tmp_path / "out.json"
    main(["--out", str(out), "--peer", str(tmp_path / "peer.json"), "--ours", str(ours)])
    assert read_json(out)["difference"] == pytest.approx(0.15)
    assert "ours 0.4000, the peer's 0.2500 (+0.1500)" in capsys.readouterr().err
