"""Who trains which fold where, and at the same time as whom."""

import threading
from pathlib import Path

import pytest

from scripts.crossval_jobs import OUTPUT, FoldJob, FoldProcesses, Seats, run_jobs


class Recorder:
    """Notes who trains with which GPUs; waits until `together` trainings run at once."""

    def __init__(self, together: int = 1, failing: int = -1) -> None:
        self.barrier = threading.Barrier(together, timeout=20)
        self.failing = failing
        self.seen: list[tuple[int, str | None]] = []

    def train(self, job: FoldJob, devices: str | None) -> int:
        self.seen.append((job.fold, devices))
        self.barrier.wait()
        return 3 if job.fold == self.failing else 0

    def stop(self) -> None:
        """Nothing runs for long."""


def jobs(count: int, folder: Path = Path("unused")) -> list[FoldJob]:
    return [FoldJob(fold=fold, words=(), folder=folder) for fold in range(count)]


@pytest.mark.flag("folds_at_once")
@pytest.mark.parametrize(
    ("visible", "per_fold", "wanted", "devices"),
    [
        ((), 1, None, (None,)),
        ((), 1, 2, (None, None)),
        (("0",), 1, None, (None,)),
        (("0", "1", "2"), 1, None, ("0", "1", "2")),
        (("4", "5", "6"), 2, None, (None,)),
        (("0", "1", "2", "3"), 2, None, ("0,1", "2,3")),
        (("0", "1"), 1, 3, ("0", "1", "0")),
        (("0", "1"), 1, 1, (None,)),
    ],
)
def test_each_place_has_gpus_of_its_own(
    visible: tuple[str, ...], per_fold: int, wanted: int | None, devices: tuple[str | None, ...]
) -> None:
    assert Seats.for_gpus(visible, per_fold, wanted).devices == devices


def test_one_after_the_other_keeps_the_order_and_a_failure_stops_nobody() -> None:
    trainer = Recorder(failing=0)
    ends = [(job.fold, status) for job, status in run_jobs(jobs(3), Seats(devices=(None,)), trainer)]
    assert trainer.seen == [(0, None), (1, None), (2, None)]
    assert sorted(ends) == [(0, 3), (1, 0), (2, 0)]


def test_two_places_train_at_the_same_time_on_different_gpus() -> None:
    trainer = Recorder(together=2)
    ends = list(run_jobs(jobs(4), Seats(devices=("0", "1")), trainer))
    assert len(ends) == 4
    assert {devices for _, devices in trainer.seen[:2]} == {"0", "1"}


class Endless(Recorder):
    """Ends the first training at once and the others when it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    def train(self, job: FoldJob, devices: str | None) -> int:
        self.seen.append((job.fold, devices))
        if job.fold:
            self.stopped.wait(timeout=20)
        return 0

    def stop(self) -> None:
        self.stopped.set()


def test_whoever_stops_listening_stops_the_trainings_and_starts_no_other() -> None:
    trainer = Endless()
    ends = run_jobs(jobs(4), Seats(devices=(None,)), trainer)
    next(ends)
    ends.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert trainer.stopped.is_set()
    assert [fold for fold, _ in trainer.seen] in ([0], [0, 1])


@pytest.mark.parametrize(("words", "status"), [(("--no_such_option",), 2), (("--help",), 0)])
def test_a_process_is_heard_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int
) -> None:
    job = FoldJob(fold=7, words=words, folder=tmp_path / "fold_7")
    assert FoldProcesses().train(job, None) == status
    kept = (job.folder / OUTPUT).read_text(encoding="utf-8")
    assert kept.splitlines()
    assert capsys.readouterr().err == "".join(f"fold 7: {line.rstrip()}\n" for line in kept.splitlines())
