"""Option dataclasses, a TOML file and the command line become one checked tree of options."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from utils.errors import UserError
from utils.storage import to_plain

T = TypeVar("T")

CONFIG_FLAG = "--config"
HELP_FLAGS = {"-h", "--help"}
EPILOGUE = (
    "Any option can also stand in a file: --config FILE.toml with lines such as learning_rate = 0.001, or "
    "FILE.json with the same names. --no_NAME turns the switch --NAME off. What is said in several places "
    "counts in this order: {places}."
)
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One option of the flattened tree: its name, its type, and the dataclass that owns it."""

    name: str
    kind: Any
    owner: str
    aliases: tuple[str, ...] = ()
    off_aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRules:
    """What a command's options have beyond their types.

    The value of the option `preset` chooses one of `presets`: other defaults, by option name; where it is not
    given, `usual_preset`. `environment` names, by option, a variable that gives it where nothing else but a
    preset does. `refused` holds names ("bind") or values ("norm=fused") that other programs have, each with
    the sentence that says what to use here.
    """

    preset: str = ""
    usual_preset: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Options from one place: `tokens` is what one would type, `names` are the options that it sets."""

    origin: str
    tokens: tuple[str, ...]
    names: frozenset[str]


NO_RULES = OptionRules()


def parse(
    kind: type[T], argv: Sequence[str], *, program: str, description: str, rules: OptionRules = NO_RULES
) -> T:
    """The options of `kind`, a (nested) frozen dataclass, from `argv` without the program's name.

    Nested dataclasses are flattened: every field is `--field_name`, whichever group holds it. A field with
    `metadata={"aliases": ("-i",)}` answers to those names too, a switch with `"off_aliases"` is turned off by
    those; its help is the string below the field. `--config FILE.toml` may occur several times, the later
    file wins. Ends with status 2 and a short message on a wrong option (SystemExit), or with UserError on a
    wrong file.
    """
    import tyro

    from utils.option_help import help_registry

    layers = option_layers(kind, argv, rules)
    tokens = [token for layer in layers for token in layer.tokens]
    remaining = layers[-1].tokens
    markers = [tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes]
    is_help = bool(HELP_FLAGS.intersection(remaining))
    return tyro.cli(
        kind,
        args=["--help"] if is_help else tokens,
        prog=program,
        description=f"{description}\n\n{EPILOGUE.format(places=_places(rules))}",
        use_underscores=True,
        config=markers,
        registry=help_registry() if is_help else None,
    )


def _places(rules: OptionRules) -> str:
    """Where options come from, the strongest first: the order of `option_layers`, turned round."""
    places = ["the command line", f"{CONFIG_FLAG} (the last one first)"]
    places += ["an environment variable"] if rules.environment else []
    places += [f"--{rules.preset}"] if rules.preset else []
    return ", ".join([*places, "the default"])


def option_layers(kind: type, argv: Sequence[str], rules: OptionRules = NO_RULES) -> tuple[Layer, ...]:
    """Where options come from, weakest first: preset, environment, files, the command line as the last."""
    leaves = flatten(kind)
    files, remaining = split_config(argv)
    typed = tuple(expand_aliases(remaining, leaves))
    layers = _environment_layers(rules.environment)
    layers += [_file_layer(path, leaves, rules.refused) for path in files]
    _refuse(_pairs(typed), rules.refused)
    layers.append(Layer(origin=COMMAND_LINE, tokens=typed, names=_names_in(typed, leaves)))
    if rules.preset:
        given = [value for layer in layers for name, value in _pairs(layer.tokens) if name == rules.preset]
        chosen = given[-1] if given else rules.usual_preset
        values = rules.presets.get(chosen, {})  # a wrong name is told when the options are parsed
        tokens = tuple(token for name, value in values.items() for token in _as_typed(leaves[name], value))
        layer = Layer(origin=f"{rules.preset} {chosen}", tokens=tokens, names=frozenset(values))
        layers.insert(0, layer)
    return tuple(layers)


def _environment_layers(variables: Mapping[str, str]) -> list[Layer]:
    """One layer per variable that is set and not empty."""
    found = ((name, variable, os.environ.get(variable, "")) for name, variable in variables.items())
    return [
        Layer(origin=f"environment {variable}", tokens=(f"--{name}={value}",), names=frozenset({name}))
        for name, variable, value in found
        if value
    ]


def origins(layers: Sequence[Layer]) -> dict[str, str]:
    """For each option that is not at its default, the strongest place that sets it."""
    return {name: layer.origin for layer in layers for name in sorted(layer.names)}


def _names_in(tokens: Sequence[str], leaves: Mapping[str, Leaf]) -> frozenset[str]:
    names = {name for name, _ in _pairs(tokens)}
    return frozenset({name if name in leaves else name.removeprefix("no_") for name in names} & leaves.keys())


def _pairs(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option among the tokens, with underscores, and its (first) value."""
    for place, token in enumerate(tokens):
        if token.startswith("--"):
            name, equals, value = token.removeprefix("--").partition("=")
            following = tokens[place + 1] if place + 1 < len(tokens) else ""
            yield name.replace("-", "_"), value if equals else following


def _refuse(pairs: Iterable[tuple[str, Any]], refused: Mapping[str, str]) -> None:
    for name, value in pairs:
        reason = refused.get(name) or refused.get(f"{name}={value}")
        if reason and value is not False:
            raise UserError(reason)


def describe(options: Any) -> dict[str, Any]:
    """Every option by its flat name as a plain value, ready for a log or a JSON file."""
    flat: dict[str, Any] = {}
    for entry in fields(options):
        value = getattr(options, entry.name)
        if is_dataclass(value) and not isinstance(value, type):
            flat |= describe(value)
        else:
            flat[entry.name] = to_plain(value)
    return flat


def flatten(kind: type) -> dict[str, Leaf]:
    """The leaves of a dataclass tree by flat name; two groups with the same name are a programming error."""
    leaves: dict[str, Leaf] = {}
    taken: dict[str, str] = {CONFIG_FLAG: "utils.options", "-h": "utils.options", "--help": "utils.options"}
    for leaf in _walk(kind):
        for flag in (f"--{leaf.name}", *leaf.aliases, *leaf.off_aliases):
            if flag in taken:
                raise ValueError(f"The option {flag} occurs twice: in {taken[flag]} and in {leaf.owner}.")
            taken[flag] = leaf.owner
        leaves[leaf.name] = leaf
    return leaves


def _walk(kind: type) -> Iterator[Leaf]:
    hints = typing.get_type_hints(kind)
    for entry in _init_fields(kind):
        if is_dataclass(hints[entry.name]):
            yield from _walk(hints[entry.name])
        else:
            yield Leaf(
                name=entry.name,
                kind=hints[entry.name],
                owner=kind.__name__,
                aliases=tuple(entry.metadata.get("aliases", ())),
                off_aliases=tuple(entry.metadata.get("off_aliases", ())),
            )


def _init_fields(kind: Any) -> list[Field[Any]]:
    return [entry for entry in fields(kind) if entry.init]


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
    full |= {alias: f"--no_{leaf.name}" for leaf in leaves.values() for alias in leaf.off_aliases}
    expanded = []
    for token in tokens:
        name, equals, value = token.partition("=")
        expanded.append(f"{full.get(name, name)}{equals}{value}")
    return expanded


def _file_layer(path: Path, leaves: dict[str, Leaf], refused: Mapping[str, str]) -> Layer:
    """What one would type instead of the file at `path`; unknown names and wrong types are errors."""
    tokens: list[str] = []
    content = _read_file(path)
    _refuse(content.items(), refused)
    for name, value in content.items():
        if name not in leaves:
            raise UserError(f"{path}: {_unknown_key(name, value, leaves)} See --help.")
        leaf = leaves[name]
        if not _fits(value, leaf.kind):
            raise UserError(f"{path}: {name} should be {_kind_text(leaf.kind)}, got {value!r}. See --help.")
        if isinstance(value, list) and any(str(item).startswith("-") for item in value if type(item) is str):
            raise UserError(f"{path}: an entry of {name} starts with a dash: {value}.")
        tokens += _as_typed(leaf, value)
    return Layer(origin=str(path), tokens=tuple(tokens), names=frozenset(content))


def _read_file(path: Path) -> dict[str, Any]:
    """A TOML file, or a JSON one by its name; a null of JSON leaves its option unset."""
    is_json = path.suffix == ".json"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text) if is_json else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{CONFIG_FLAG}: {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid {'JSON' if is_json else 'TOML'}: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold one object of option names and values.")
    return {name: value for name, value in content.items() if value is not None}


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


def _as_typed(leaf: Leaf, value: Any) -> list[str]:
    if leaf.kind is bool:
        return [f"--{leaf.name}" if value else f"--no_{leaf.name}"]
    if not isinstance(value, list):
        return [f"--{leaf.name}={value}"]
    return [f"--{leaf.name}", *map(str, value)]
