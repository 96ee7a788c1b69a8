"""A family finds its parts by name and lists them when it does not."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from utils.registry import Registry, UnknownPartError


@dataclass(frozen=True)
class Plain:
    name: ClassVar[str] = "plain"


@dataclass(frozen=True)
class Fancy:
    name: ClassVar[str] = "fancy"


def family() -> Registry[Any]:
    return Registry("encoder", Plain, Fancy)


def test_a_part_is_found_by_its_name() -> None:
    assert family()["fancy"] is Fancy


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UnknownPartError, match=r"No encoder is called 'fnacy'.*\['fancy', 'plain'\]"):
        family()["fnacy"]


def test_parts_come_in_the_order_they_were_listed() -> None:
    assert list(family()) == [Plain, Fancy]


def test_two_parts_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        Registry("encoder", Plain, Plain)
