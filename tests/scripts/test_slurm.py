"""The batch file is valid, its options are ours, it resumes and requeues; srun and scontrol are stand-ins."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from scripts.run_options import RunOptions
from utils.options import flatten

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "scripts/slurm/train.sbatch"
TEXT = SBATCH.read_text(encoding="utf-8")
RECORD = 'printf "%s\\n" "$@" > "$CALLS/srun"\n'


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}", encoding="utf-8")
    path.chmod(0o755)


def environment(tmp_path: Path, srun: str, **more: str) -> dict[str, str]:
    """A PATH with our stand-ins; `python` counts as the active one and needs no packages here."""
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_in(tools, "srun", srun)
    stand_in(tools, "scontrol", 'echo "$@" > "$CALLS/scontrol"\n')
    stand_in(tools, "python", "exit 0\n")
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(tmp_path),
        "DATA": str(tmp_path / "data"),
        "RESULTS": str(tmp_path / "results"),
        "SLURM_JOB_ID": "77",
        **more,
    }


def srun_words(tmp_path: Path, *words: str, **more: str) -> list[str]:
    subprocess.run(
        ["bash", str(SBATCH), *words], env=environment(tmp_path, RECORD, **more), cwd=ROOT, check=True
    )
    return (tmp_path / "srun").read_text(encoding="utf-8").splitlines()


def test_the_shell_reads_it() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)], check=False).returncode == 0


@pytest.mark.parametrize("line", ["--requeue", "--signal=B:USR1@120", "--open-mode=append", "--gres=gpu:1"])
def test_slurm_is_told(line: str) -> None:
    assert f"#SBATCH {line}\n" in TEXT


def test_slurm_stops_reading_at_the_first_command() -> None:
    first_command = next(line for line in TEXT.splitlines() if line and not line.startswith("#"))
    assert "#SBATCH" not in TEXT.split(first_command, 1)[1]


def test_a_bare_run_has_one_task_per_gpu(tmp_path: Path) -> None:
    words = srun_words(tmp_path, "--epochs", "3", SLURM_NTASKS_PER_NODE="4", SLURM_NNODES="2")
    assert words[0] == "--kill-on-bad-exit=1"
    assert words[1].endswith("/tools/python")
    assert words[2] == "main.py"
    assert words[words.index("--gpus") + 1] == "4"
    assert words[words.index("--nodes") + 1] == "2"
    assert words[words.index("--data") + 1] == str(tmp_path / "data")
    assert words[-2:] == ["--epochs", "3"]
    assert "--resume_training" not in words


def test_a_requeued_run_resumes(tmp_path: Path) -> None:
    (tmp_path / "results/checkpoints").mkdir(parents=True)
    (tmp_path / "results/checkpoints/last.ckpt").touch()
    assert "--resume_training" in srun_words(tmp_path)


@pytest.mark.parametrize(
    ("runtime", "mount"), [("pyxis", "--container-mounts={0}"), ("apptainer", "{0}")], ids=lambda v: v
)
def test_a_container_sees_the_two_folders(runtime: str, mount: str, tmp_path: Path) -> None:
    words = srun_words(tmp_path, IMAGE="/images/nnunet", RUNTIME=runtime)
    assert mount.format(f"{tmp_path}/data:/data,{tmp_path}/results:/results") in words
    assert words[words.index("--data") + 1] == "/data"
    assert words[words.index("--results") + 1] == "/results"


def test_another_runtime_is_refused(tmp_path: Path) -> None:
    variables = environment(tmp_path, RECORD, IMAGE="x", RUNTIME="docker")
    answer = subprocess.run(
        ["bash", str(SBATCH)], env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "pyxis or apptainer" in answer.stderr


def test_every_option_of_main_exists() -> None:
    leaves = flatten(RunOptions)
    behind_main = re.findall(r"main\.py (.*)", TEXT) + re.findall(r"arguments\+?=\((.*)\)", TEXT)
    flags = {flag for words in behind_main for flag in re.findall(r"--(\w+)", words)}
    assert {"exec_mode", "task", "gpus", "nodes", "resume_training", "data", "results"} <= flags
    assert flags <= set(leaves)


def test_the_signal_stops_the_training_and_requeues(tmp_path: Path) -> None:
    training = 'trap \'echo stopped > "$CALLS/ended"; exit 143\' TERM\ntouch "$CALLS/started"\n'
    training += 'kill -USR1 "$PPID"\nfor _ in {1..200}; do read -rt 0.05 _ < <(:) || true; done\n'
    done = subprocess.run(
        ["bash", str(SBATCH)],
        env=environment(tmp_path, training),
        cwd=ROOT,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "stopped\n"
    assert (tmp_path / "scontrol").read_text(encoding="utf-8") == "requeue 77\n"


def test_a_failed_training_fails_the_job_without_requeue(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SBATCH)], env=environment(tmp_path, "exit 3\n"), cwd=ROOT, check=False)
    assert done.returncode == 3
    assert not (tmp_path / "scontrol").exists()
