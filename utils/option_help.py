"""How `--help` shows an option: its names, and its default as a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def help_registry() -> ConstructorRegistry:
    """tyro's own reading of dataclasses, with every field as `--help` is to show it."""
    registry, asked = ConstructorRegistry(), []

    @registry.struct_rule
    def read(info: StructTypeInfo) -> StructConstructorSpec | None:
        if asked or not is_dataclass(info.type):
            return None
        asked.append(info)  # what follows asks all rules, this one among them
        spec = ConstructorRegistry.get_struct_spec(info)
        asked.clear()
        assert isinstance(spec, StructConstructorSpec)
        metadata = {entry.name: entry.metadata for entry in fields(info.type)}
        shown = (_as_shown(entry, metadata.get(entry.name, {})) for entry in spec.fields)
        return replace(spec, fields=tuple(shown))

    return registry


def _as_shown(entry: StructFieldSpec, metadata: Mapping[str, Any]) -> StructFieldSpec:
    """A switch that is off by the name that turns it on, one that is on by both names; then other names.

    The text says what a switch does, so --no_NAME alone before it would say the contrary.
    """
    entry = replace(entry, helptext=_on_one_line(entry.helptext, _other_names(metadata)))
    if entry.type is bool and entry.default is False:
        kind, default = tyro.conf.FlagCreatePairsOff[bool], "off"
    elif entry.type is bool and entry.default is True:
        kind, default = bool, "on"
    elif entry.default == ():
        kind, default = entry.type, "unset"
    else:
        return entry
    return replace(entry, type=Annotated[kind, tyro.conf.arg(help_behavior_hint=f"(default: {default})")])


def _other_names(metadata: Mapping[str, Any]) -> str:
    """The sentence about the names that a field answers to beside its own; empty: it has none."""
    same, off = metadata.get("aliases", ()), metadata.get("off_aliases", ())
    said = [*same, *(f"{name} (turns it off)" for name in off)]
    return f"Also: {', '.join(said)}." if said else ""


def _on_one_line(text: str | Callable[[], str | None] | None, ending: str) -> Callable[[], str]:
    """The text without the line breaks of the source, then `ending`; found when it is shown."""
    return lambda: " ".join(f"{(text() if callable(text) else text) or ''} {ending}".split())
