"""docs/flags.md says what the commands have, and every option of the main ones is proven by a test."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import flag_table
from scripts.benchmark_options import BenchmarkOptions
from scripts.run_options import RunOptions
from utils.options import flatten


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A group."""

    rate: float | None = None
    """How
    fast | slow."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A command."""

    amp: bool = True
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""


def test_texts_and_defaults_come_from_all_groups() -> None:
    assert flag_table.option_texts(Outer) == {"rate": "How fast | slow.", "sizes": "Sizes."}
    defaults = flag_table.option_defaults(Outer)
    assert (defaults["amp"], defaults["rate"], defaults["sizes"]) == (True, None, (1, 2))


@pytest.mark.parametrize("kind", [RunOptions, BenchmarkOptions])
def test_every_option_has_a_help_text(kind: type) -> None:
    assert set(flatten(kind)) <= flag_table.option_texts(kind).keys()


def test_a_row_has_the_recipes_default_and_the_tests() -> None:
    table = flag_table.make_table({"momentum": ["a::b"], "schedule": ["1", "2", "3", "4"]})
    row = next(line for line in table.splitlines() if line.startswith("| `--schedule`"))
    assert "| auto; nnunet: poly |" in row
    assert row.endswith("| `1`, `2`, `3`, 1 more |")
    assert "| Momentum of sgd. | `a::b` |" in table


def test_options_without_test_and_marks_without_option_are_found() -> None:
    proofs = dict.fromkeys(flatten(RunOptions), ["t"])
    proofs |= {f"benchmark:{name}": ["t"] for name in flatten(BenchmarkOptions)}
    del proofs["amp"], proofs["benchmark:mode"]
    missing = flag_table.unproven(proofs)
    assert "amp" in missing
    assert "benchmark:mode" in missing
    assert "preprocess:dim" in missing
    assert not any(name.startswith("download:") for name in missing)
    assert flag_table.unknown(proofs | {"config": ["t"], "preprocess:nonsense": ["t"]}) == [
        "preprocess:nonsense"
    ]


def test_the_head_names_the_commands_whose_options_all_have_a_test() -> None:
    promise = flag_table.HEAD.partition("Every option of ")[2].partition(" has one")[0]
    named = re.findall("`(.+?)`", promise)
    assert named == [command.program for command in flag_table.COMMANDS if command.must_be_proven]


@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("--chekc", 2)])
def test_a_word_that_asks_for_no_table_writes_none(
    word: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["flag_table.py", word])
    monkeypatch.setattr(flag_table, "TABLE", tmp_path / "flags.md")
    monkeypatch.setattr(flag_table, "ROOT", tmp_path)
    monkeypatch.setattr(flag_table, "collect_proofs", dict)
    with pytest.raises(SystemExit) as caught:
        flag_table.main()
    assert caught.value.code == status
    assert not (tmp_path / "flags.md").exists()


@pytest.mark.story
def test_the_table_is_current_and_complete() -> None:
    """Collects all tests in a process of its own, as the command does."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "scripts" / "flag_table.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert answer.returncode == 0, answer.stderr
