"""How `--help` shows an option: its names, and its default as a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Annotated

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
        return replace(spec, fields=tuple(map(_as_shown, spec.fields)))

    return registry


def _as_shown(entry: StructFieldSpec) -> StructFieldSpec:
    """A switch that is off by the name that turns it on, one that is on by both names.

    The text says what a switch does, so --no_NAME alone before it would say the contrary.
    """
    entry = replace(entry, helptext=_on_one_line(entry.helptext))
    if entry.type is bool and entry.default is False:
        kind, default = tyro.conf.FlagCreatePairsOff[bool], "off"
    elif entry.type is bool and entry.default is True:
        kind, default = bool, "on"
    elif entry.default == ():
        kind, default = entry.type, "unset"
    else:
        return entry
    return replace(entry, type=Annotated[kind, tyro.conf.arg(help_behavior_hint=f"(default: {default})")])


def _on_one_line(text: str | Callable[[], str | None] | None) -> Callable[[], str]:
    """The text without the line breaks of the source; found when it is shown."""
    return lambda: " ".join(((text() if callable(text) else text) or "").split())
