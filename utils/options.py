"""Option dataclasses, a TOML file and the command line become one checked tree of options."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from utils.errors import UserError
from utils.storage import to_plain

T = TypeVar("T")

CONFIG_FLAG = "--config"
HELP_FLAGS = {"-h", "--help"}
EPILOGUE = (
    "Any option can also stand in a file: --config FILE.toml with lines such as learning_rate = 0.001. "
    "The command line wins over the file, the file over the defaults. --no_NAME turns the switch --NAME off."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One option of the flattened tree: its name, its type, and the dataclass that owns it."""

    name: str
    kind: Any
    owner: str
    aliases: tuple[str, ...] = ()


def parse(kind: type[T], argv: Sequence[str], *, program: str, description: str) -> T:
    """The options of `kind`, a (nested) frozen dataclass, from `argv` without the program's name.

    Nested dataclasses are flattened: every field is `--field_name`, whichever group holds it. A field with
    `metadata={"aliases": ("-i",)}` answers to those names too; its help is the string below the field.
    `--config FILE.toml` may occur several times, the later file wins. Ends with status 2 and a short message
    on a wrong option (SystemExit), or with UserError on a wrong file.
    """
    import tyro

    leaves = flatten(kind)
    files, remaining = split_config(argv)
    tokens = [token for path in files for token in file_tokens(path, leaves)]
    tokens += expand_aliases(remaining, leaves)
    markers = [tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes]
    if HELP_FLAGS.intersection(remaining):
        # --amp and --no_amp are always accepted; only the one that changes the default is worth a line.
        tokens, markers = ["--help"], [*markers, tyro.conf.FlagCreatePairsOff]
    return tyro.cli(
        kind,
        args=tokens,
        prog=program,
        description=f"{description}\n\n{EPILOGUE}",
        use_underscores=True,
        config=markers,
    )


def describe(options: Any) -> dict[str, Any]:
    """Every option by its flat name as a plain value, ready for a log or a JSON file."""
    flat: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            flat |= describe(value)
        else:
            flat[field.name] = to_plain(value)
    return flat


def flatten(kind: type) -> dict[str, Leaf]:
    """The leaves of a dataclass tree by flat name; two groups with the same name are a programming error."""
    leaves: dict[str, Leaf] = {}
    taken: dict[str, str] = {CONFIG_FLAG: "utils.options", "-h": "utils.options", "--help": "utils.options"}
    for leaf in _walk(kind):
        for flag in (f"--{leaf.name}", *leaf.aliases):
            if flag in taken:
                raise ValueError(f"The option {flag} occurs twice: in {taken[flag]} and in {leaf.owner}.")
            taken[flag] = leaf.owner
        leaves[leaf.name] = leaf
    return leaves


def _walk(kind: type) -> Iterator[Leaf]:
    hints = typing.get_type_hints(kind)
    for field in _init_fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _walk(hints[field.name])
        else:
            aliases = tuple(field.metadata.get("aliases", ()))
            yield Leaf(name=field.name, kind=hints[field.name], owner=kind.__name__, aliases=aliases)


def _init_fields(kind: Any) -> list[Field[Any]]:
    return [field for field in fields(kind) if field.init]


def split_config(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files named by `--config`, and the arguments without them."""
    files: list[Path] = []
    remaining: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        if token == CONFIG_FLAG:
            value = next(tokens, "")
        elif token.startswith(f"{CONFIG_FLAG}="):
            value = token.removeprefix(f"{CONFIG_FLAG}=")
        else:
            remaining.append(token)
            continue
        if not value or value.startswith("--"):
            raise UserError(f"{CONFIG_FLAG} needs the path of a TOML file, see --help.")
        files.append(Path(value))
    return files, remaining


def expand_aliases(tokens: Sequence[str], leaves: dict[str, Leaf]) -> list[str]:
    """Short names replaced by the full ones: `-i scans` becomes `--input scans`."""
    full = {alias: f"--{leaf.name}" for leaf in leaves.values() for alias in leaf.aliases}
    expanded = []
    for token in tokens:
        name, equals, value = token.partition("=")
        expanded.append(f"{full.get(name, name)}{equals}{value}")
    return expanded


def file_tokens(path: Path, leaves: dict[str, Leaf]) -> list[str]:
    """What one would type instead of the TOML file at `path`; unknown names and wrong types are errors."""
    tokens: list[str] = []
    for name, value in _read_toml(path).items():
        if name not in leaves:
            raise UserError(f"{path}: {_unknown_key(name, value, leaves)} See --help.")
        leaf = leaves[name]
        if not _fits(value, leaf.kind):
            raise UserError(f"{path}: {name} should be {_kind_text(leaf.kind)}, got {value!r}. See --help.")
        tokens += _as_typed(leaf, value, path)
    return tokens


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{CONFIG_FLAG}: {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error


def _unknown_key(name: str, value: Any, leaves: dict[str, Leaf]) -> str:
    if isinstance(value, dict):
        return f"[{name}] is a table, but options are flat: write its keys above the first bracket."
    close = difflib.get_close_matches(name.replace("-", "_"), leaves, n=1, cutoff=0.6)
    return f"no option is called {name!r}." + (f" Did you mean {close[0]!r}?" if close else "")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a TOML value may stand for `kind`; TOML has no None, so an option that is None is left out."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str)
    return type(value) is kind


def _kind_text(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind_text(choice) for choice in inner if choice is not types.NoneType)
    if origin is Literal:
        return f"one of {list(inner)}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} values ({', '.join(map(_kind_text, inner))})"
    if origin in (list, tuple):
        return f"a list ({_kind_text(inner[0])})"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _as_typed(leaf: Leaf, value: Any, path: Path) -> list[str]:
    if leaf.kind is bool:
        return [f"--{leaf.name}" if value else f"--no_{leaf.name}"]
    if not isinstance(value, list):
        return [f"--{leaf.name}={value}"]
    items = [str(item) for item in value]
    if any(isinstance(item, str) and item.startswith("-") for item in value):
        raise UserError(f"{path}: an entry of {leaf.name} starts with a dash: {items}.")
    return [f"--{leaf.name}", *items]
