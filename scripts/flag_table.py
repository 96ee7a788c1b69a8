"""Makes docs/flags.md: every option of every command, its default, its meaning, and the tests that prove it.

    python scripts/flag_table.py            write the file
    python scripts/flag_table.py --check    fail where the file is old or an option has no test

Meanings are the help texts. A test proves an option by its mark, `@pytest.mark.flag("norm")`, for commands
other than main.py with the command before it, `@pytest.mark.flag("preprocess:dim")`; pytest collects them.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import convert_brats, convert_dicom, convert_pancreas
from scripts.benchmark_options import BenchmarkOptions
from scripts.best_configuration import BestOptions
from scripts.download import DownloadOptions
from scripts.evaluate import EvaluateOptions
from scripts.evaluate_folders import ClassificationOptions, MaskOptions
from scripts.export_model import ExportOptions
from scripts.export_onnx import OnnxOptions
from scripts.import_model import ImportOptions
from scripts.preprocess import PreprocessOptions
from scripts.run_options import RunOptions
from scripts.run_recipes import NNUNET
from utils.command import run_command
from utils.errors import UserError
from utils.options import flatten, parse

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "flags.md"
MOST_TESTS = 3  # of an option are named; the rest is counted
HEAD = """\
# Options

Made by `scripts/flag_table.py` from the option classes, their help and the marks of the tests; do not edit.
A test of the last column fails if its option loses its effect. Every option of `main.py`, `preprocess.py`,
`scripts/benchmark.py`, `scripts/best_configuration.py` and `scripts/convert_dicom.py` has one; of the other
commands, those whose last column is not empty. `scripts/crossval.py` has the options of `main.py`. Every
switch can be turned off by `--no_NAME`, and every option can stand in a file (`--config`). "nnunet" names the
default with `--recipe nnunet`, where it differs.

`main.py` has the defaults of NVIDIA's nnU-Net, with these exceptions: a batch, a number of supervised
resolutions and stages come from the plan unless given; windows overlap by half and are blended by a
Gaussian; checkpoints are written (`--no_save_ckpt`); slices are drawn one by one (`--nvol`); a run has a
seed; sgd has a rate and a decay of its own. `scripts/train.py` trains as NVIDIA's script of that name does
(see its `--help`). Refused with a sentence that names the replacement: `--brats22_model`, `--bind`, `--norm
instance_nvfuser`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """What `scripts/flag_table.py` may be told."""

    check: bool = False
    """Write nothing; fail where the file is old or an option has no test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program with options; `prefix` stands before them in marks; each of them must have a test."""

    program: str
    kind: type
    prefix: str = ""
    must_be_proven: bool = True


COMMANDS = (
    Command(program="main.py", kind=RunOptions),
    Command(program="preprocess.py", kind=PreprocessOptions, prefix="preprocess:"),
    Command(program="scripts/benchmark.py", kind=BenchmarkOptions, prefix="benchmark:"),
    Command(
        program="scripts/best_configuration.py",
        kind=BestOptions,
        prefix="best_configuration:",
    ),
    Command(program="evaluate.py", kind=EvaluateOptions, prefix="evaluate:", must_be_proven=False),
    Command(
        program="evaluate.py classification",
        kind=ClassificationOptions,
        prefix="classification:",
        must_be_proven=False,
    ),
    Command(
        program="evaluate.py segmentation, evaluate.py whole_organ",
        kind=MaskOptions,
        prefix="segmentation:",
        must_be_proven=False,
    ),
    Command(program="download.py", kind=DownloadOptions, prefix="download:", must_be_proven=False),
    Command(
        program="scripts/export_model.py", kind=ExportOptions, prefix="export_model:", must_be_proven=False
    ),
    Command(
        program="scripts/import_model.py", kind=ImportOptions, prefix="import_model:", must_be_proven=False
    ),
    Command(program="scripts/export_onnx.py", kind=OnnxOptions, prefix="export_onnx:", must_be_proven=False),
    Command(
        program="scripts/convert_pancreas.py",
        kind=convert_pancreas.ConvertOptions,
        prefix="convert_pancreas:",
        must_be_proven=False,
    ),
    Command(
        program="scripts/convert_brats.py",
        kind=convert_brats.ConvertOptions,
        prefix="convert_brats:",
        must_be_proven=False,
    ),
    Command(
        program="scripts/convert_dicom.py",
        kind=convert_dicom.ConvertOptions,
        prefix="convert_dicom:",
    ),
)
CONFIG = "A TOML or JSON file of options; may be given several times, the later file wins."


class MarkCollector:
    """A plugin of pytest that notes which tests are marked with which option."""

    def __init__(self) -> None:
        self.proofs: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: Sequence[Any]) -> None:
        """Called by pytest once all tests are known."""
        for item in items:
            path = Path(item.path).relative_to(ROOT / "tests").as_posix()
            name = f"{path}::{item.originalname}"
            for mark in item.iter_markers("flag"):
                for option in mark.args:
                    tests = self.proofs.setdefault(option, [])
                    if name not in tests:
                        tests.append(name)


def collect_proofs() -> dict[str, list[str]]:
    """Marked option -> its tests, from a run of pytest that only collects."""
    import pytest

    collector, said = MarkCollector(), io.StringIO()
    with redirect_stdout(said):
        status = pytest.main(
            ["--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")], plugins=[collector]
        )
    if status:
        raise UserError(f"pytest could not collect the tests:\n{said.getvalue()[-2000:]}")
    return collector.proofs


def option_texts(kind: type) -> dict[str, str]:
    """Help of every option of a dataclass tree: the string below its field, on one line."""
    texts: dict[str, str] = {}
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    for entry, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[entry.target.id] = " ".join(str(following.value.value).split())
    for inner in _groups(kind):
        texts |= option_texts(inner)
    return texts


def option_defaults(kind: type) -> dict[str, Any]:
    """Default of every option of a dataclass tree."""
    found: dict[str, Any] = {}
    for entry in fields(kind):
        if entry.default is not MISSING:
            found[entry.name] = entry.default
    for inner in _groups(kind):
        found |= option_defaults(inner)
    return found


def _groups(kind: type) -> Iterator[type]:
    for inner in get_type_hints(kind).values():
        if isinstance(inner, type) and is_dataclass(inner):
            yield inner


def make_table(proofs: Mapping[str, Sequence[str]]) -> str:
    """The text of the file."""
    parts = [HEAD]
    for command in COMMANDS:
        texts, defaults = option_texts(command.kind), option_defaults(command.kind)
        parts.append(f"\n## {command.program}\n\n| option | default | meaning | tests |\n|---|---|---|---|\n")
        if not command.prefix:
            parts.append(_row("config", "none", CONFIG, proofs.get("config", ())))
        for name in flatten(command.kind):
            default = _default(defaults.get(name))
            if not command.prefix and name in NNUNET and NNUNET[name] != defaults[name]:
                default += f"; nnunet: {_default(NNUNET[name])}"
            parts.append(_row(name, default, texts.get(name, ""), proofs.get(f"{command.prefix}{name}", ())))
    return "".join(parts)


def _row(name: str, default: str, text: str, tests: Sequence[str]) -> str:
    named = [f"`{test}`" for test in tests[:MOST_TESTS]]
    more = [f"{len(tests) - MOST_TESTS} more"] if len(tests) > MOST_TESTS else []
    return f"| `--{name}` | {default} | {text.replace('|', '/')} | {', '.join([*named, *more])} |\n"


def _default(value: Any) -> str:
    if value is None or value == ():
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def unproven(proofs: Mapping[str, Sequence[str]]) -> list[str]:
    """Options without a marked test."""
    return [
        f"{command.prefix}{name}"
        for command in COMMANDS
        for name in flatten(command.kind)
        if command.must_be_proven and f"{command.prefix}{name}" not in proofs
    ]


def unknown(proofs: Mapping[str, Sequence[str]]) -> list[str]:
    """Marks that name no option."""
    known = {f"{command.prefix}{name}" for command in COMMANDS for name in flatten(command.kind)} | {"config"}
    return sorted(set(proofs) - known)


def main() -> None:
    """Write the file, or check it."""
    description = "Make docs/flags.md from the options of all commands and the marks of the tests."
    options = parse(TableOptions, sys.argv[1:], program="scripts/flag_table.py", description=description)
    proofs = collect_proofs()
    if wrong := unknown(proofs):
        raise UserError(f"Tests are marked with options that no command has: {', '.join(wrong)}.")
    text = make_table(proofs)
    if not options.check:
        TABLE.write_text(text, encoding="utf-8")
        print(f"{TABLE.relative_to(ROOT)} written; without a test: {', '.join(unproven(proofs)) or 'none'}")
        return
    if missing := unproven(proofs):
        raise UserError(f"No test proves that these options do anything: {', '.join(missing)}.")
    if not TABLE.is_file() or TABLE.read_text(encoding="utf-8") != text:
        raise UserError(f"{TABLE.relative_to(ROOT)} is old. Run: python scripts/flag_table.py")


if __name__ == "__main__":
    sys.exit(run_command(main))
