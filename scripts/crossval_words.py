"""Options as the words of a command line, and back from a training's log."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from scripts.run_options import RunOptions
from scripts.run_recipes import RULES, read_command
from utils.options import COMMAND_LINE, describe, flatten, option_layers
from utils.storage import from_plain

# Set for each fold by the cross-validation.
OWN = frozenset({"exec_mode", "results", "fold", "folds", "folds_at_once", "resume_training"})
# What a prediction has to repeat of the training, so that it predicts as the held-out cases were.
PREDICTING = ("tta", "overlap", "blend", "val_batch_size", "classifier", "class_vote", "amp", "layout")


def without(words: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """The words of a command line but for the options of these names and their values."""
    kept: list[str] = []
    is_kept = True
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0].replace("-", "_")
            is_kept = name not in names and name.removeprefix("no_") not in names
        if is_kept:
            kept.append(word)
    return tuple(kept)


def words_for_folds(argv: Sequence[str]) -> tuple[str, ...]:
    """What was typed, and what stands in option files, as words of a command line that fit every fold."""
    typed = [
        token
        for layer in option_layers(RunOptions, argv, RULES)
        if layer.origin == COMMAND_LINE or Path(layer.origin).is_file()
        for token in layer.tokens
    ]
    return without(typed, OWN)


def options_of(logged: Mapping[str, Any], source: str) -> RunOptions:
    """The options that a log holds by name; those that an older program did not know have their defaults."""
    return from_plain(RunOptions, _nested(RunOptions, logged), source=source)


def words_of(options: RunOptions, *, but: Collection[str] = ()) -> tuple[str, ...]:
    """A command line that gives these options, short where they are those of the recipe."""
    words = ["--recipe", options.recipe]
    usual = read_command(words, program="words", description="").options
    values, defaults = describe(options), describe(usual)
    changed = [name for name in values if values[name] != defaults[name] and name not in but]
    return (*(words if options.recipe != RunOptions().recipe else ()), *typed(values, changed))


def prediction_words(options: RunOptions) -> tuple[str, ...]:
    """The options of a prediction that is made as this training's validation was."""
    values, defaults = describe(options), describe(RunOptions())
    return typed(values, [name for name in PREDICTING if values[name] != defaults[name]])


def typed(values: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The options of these names as one would type them, but for those that are unset."""
    kinds = flatten(RunOptions)
    words: list[str] = []
    for name in names:
        value = values[name]
        if value is None:
            continue
        if kinds[name].kind is bool:
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return tuple(words)


def _nested(kind: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The flat values by the groups of options that they belong to."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for entry in fields(kind):
        inner = hints[entry.name]
        if is_dataclass(inner) and isinstance(inner, type):
            found[entry.name] = _nested(inner, flat)
        elif entry.name in flat:
            found[entry.name] = flat[entry.name]
    return found
