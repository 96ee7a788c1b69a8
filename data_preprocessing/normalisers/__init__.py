"""Intensity normalisers, chosen per channel by the plan."""

from dataclasses import fields

from data_preprocessing.normalisers.base import Normaliser
from data_preprocessing.normalisers.ct_window import CtWindow
from data_preprocessing.normalisers.identity import Identity
from data_preprocessing.normalisers.rgb import Rgb
from data_preprocessing.normalisers.unit_range import UnitRange
from data_preprocessing.normalisers.z_score import ZScore
from utils.registry import Registry

NORMALISERS: Registry[Normaliser] = Registry("normaliser", CtWindow, ZScore, UnitRange, Rgb, Identity)


def build_normaliser(name: str, *, uses_mask: bool = False) -> Normaliser:
    """The part called `name`; `uses_mask` reaches those that have such an option."""
    spec = NORMALISERS[name]
    if uses_mask and any(field.name == "uses_mask" for field in fields(spec)):
        return spec(uses_mask=uses_mask)  # pyright: ignore[reportCallIssue]
    return spec()
