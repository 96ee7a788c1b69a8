"""A command ends with a message and a status, never with a traceback the user cannot use."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from utils.command import run_command
from utils.errors import DatasetError, EnvironmentFault, StorageFault, UserError

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException) -> int:
    def main() -> None:
        raise error

    return run_command(main)


def test_success_is_status_zero_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("say this"), 2),
        (DatasetError("say this"), 3),
        (EnvironmentFault("say this"), 4),
        (StorageFault("say this"), 5),
        (OSError(errno.ENOSPC, "say this", "x.npy"), 5),
    ],
)
def test_a_users_error_is_one_line_and_its_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == status
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ")
    assert "say this" in printed
    assert printed.count("\n") == 1


def test_control_c_is_status_130() -> None:
    assert raising(KeyboardInterrupt()) == 130


@pytest.mark.parametrize("error", [ValueError("defect"), FileNotFoundError(errno.ENOENT, "defect")])
def test_a_defect_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="defect"):
        raising(error)


def test_a_reader_that_leaves_early_causes_no_noise() -> None:
    code = (
        "import sys; from utils.command import run_command\n"
        "sys.exit(run_command(lambda: [print('x' * 1000) for _ in range(10_000)] and None))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
