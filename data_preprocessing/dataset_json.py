"""dataset.json -> channels and labels; its unknown keys are ignored, its misspelt ones are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data_preprocessing.faults import make_fault
from utils.contracts import HIGHEST_LABEL
from utils.errors import DatasetError, Fault, StorageFault, UserError
from utils.left_right import declared_pairs
from utils.storage import read_json

LEFT_RIGHT_KEY = "left_right_pairs"
KNOWN_KEYS = (
    "name",
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "numTraining",
    "training",
    "test",
    "dataset",
    "classification",
    "classes",
    "grouping",
    LEFT_RIGHT_KEY,
)
IGNORE_NAME = "ignore"  # nnU-Net's name for voxels that take no part in the loss
SPELLING_CUTOFF = 0.8  # difflib ratio from which an unknown key is taken for a misspelt one


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """What the values of a label volume mean; `names[i]` is the name of value i.

    With regions (overlapping groups of values), region i is `regions[i]`, is called `region_names[i]` and is
    painted in this order as value `region_values[i]` (nnU-Net's regions_class_order).
    """

    names: tuple[str, ...]
    ignore_label: int | None = None
    regions: tuple[tuple[int, ...], ...] = ()
    region_names: tuple[str, ...] = ()
    region_values: tuple[int, ...] = ()


EMPTY_SCHEME = LabelScheme(names=())


def read_description(file: Path, faults: list[Fault]) -> dict[str, Any]:
    """The object in dataset.json; empty, with a fault, if there is none."""
    try:
        data = read_json(file)
    except StorageFault:
        raise
    except DatasetError as error:
        fix = "give the dataset folder, the one that holds dataset.json, and mend that file."
        faults.append(make_fault("E101", file, str(error), fix))
        return {}
    if not isinstance(data, dict):
        what = f"the file holds a {type(data).__name__}, it should hold an object {{...}}."
        faults.append(make_fault("E101", file, what, "write the description as one JSON object."))
        return {}
    check_spelling(data, KNOWN_KEYS, file, faults)
    return data


def check_spelling(data: dict[str, Any], known: tuple[str, ...], file: Path, faults: list[Fault]) -> None:
    """A key that resembles a known, absent one is an error; other unknown keys are left alone."""
    absent = [key for key in known if key not in data]
    for key in data:
        if key not in known and (meant := get_close_matches(key, absent, n=1, cutoff=SPELLING_CUTOFF)):
            what = f"the key {key!r} is not known; did you mean {meant[0]!r}?"
            faults.append(make_fault("E102", file, what, f"rename it to {meant[0]!r}."))


def parse_channels(data: dict[str, Any], file: Path, faults: list[Fault]) -> tuple[str, ...]:
    """Names of the channels in order, from `channel_names` (nnU-Net v2) or `modality` (MSD)."""
    names = data.get("channel_names", data.get("modality"))
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    fix = 'write for example "channel_names": {"0": "CT"}.'
    if not isinstance(names, dict) or not names:
        what = f"the channels should be an object from index to name, got {_shown(names)}."
        faults.append(make_fault("E104", file, what, fix))
        return ()
    if sorted(names) != sorted(str(index) for index in range(len(names))):
        what = f"the channel indices are {sorted(names)}, they should be 0 to {len(names) - 1}."
        faults.append(make_fault("E104", file, what, fix))
        return ()
    ordered = [names[str(index)] for index in range(len(names))]
    if not all(isinstance(name, str) and name for name in ordered):
        faults.append(make_fault("E104", file, f"a channel has no name: {_shown(ordered)}.", fix))
        return ()
    return tuple(ordered)


def parse_labels(data: dict[str, Any], file: Path, faults: list[Fault]) -> LabelScheme:
    """The label values, as name -> value (nnU-Net v2) or value -> name (MSD); with `ignore` and regions."""
    labels = data.get("labels")
    fix = 'write for example "labels": {"background": 0, "tumour": 1}.'
    if not isinstance(labels, dict) or not labels:
        what = f"the labels should be an object from name to value, got {_shown(labels)}."
        faults.append(make_fault("E105", file, what, fix))
        return EMPTY_SCHEME
    if all(key.isdecimal() for key in labels):
        names = [name for name in labels.values() if isinstance(name, str)]
        if len(set(names)) != len(labels):
            what = f"each value needs a name of its own, got {_shown(list(labels.values()))}."
            faults.append(make_fault("E105", file, what, fix))
            return EMPTY_SCHEME
        labels = {name: int(value) for value, name in labels.items()}
    wrong = {name: value for name, value in labels.items() if not _is_value(value) and not _is_region(value)}
    if wrong:
        what = f"these labels are neither a whole number nor a list of them: {_shown(wrong)}."
        faults.append(make_fault("E105", file, what, fix))
        return EMPTY_SCHEME
    if any(isinstance(value, list) for value in labels.values()):
        return _region_scheme(labels, data.get("regions_class_order"), file, faults)
    return _plain_scheme(labels, file, faults)


def parse_left_right(
    data: dict[str, Any], scheme: LabelScheme, file: Path, faults: list[Fault]
) -> tuple[tuple[int, int], ...] | None:
    """Label values that change places where left and right do, from pairs of names in `left_right_pairs`.

    None where the key is absent: names are looked at then. An empty list says that there are none.
    """
    named = data.get(LEFT_RIGHT_KEY)
    if named is None or not scheme.names:
        return None
    fix = f'write for example "{LEFT_RIGHT_KEY}": [["kidney_left", "kidney_right"]].'
    if not isinstance(named, list) or not all(isinstance(pair, list) for pair in named):
        what = f"{LEFT_RIGHT_KEY} should be a list of pairs of names, got {_shown(named)}."
        faults.append(make_fault("E103", file, what, fix))
        return None
    try:
        return declared_pairs(named, scheme.names, scheme.regions, scheme.region_names)
    except UserError as error:
        faults.append(make_fault("E103", file, f"{LEFT_RIGHT_KEY}: {error}", fix))
        return None


def _plain_scheme(labels: dict[str, int], file: Path, faults: list[Fault]) -> LabelScheme:
    ignore = labels.get(IGNORE_NAME)
    named = {name: value for name, value in labels.items() if name != IGNORE_NAME}
    if not _are_valid(named.values(), ignore, file, faults):
        return EMPTY_SCHEME
    return LabelScheme(names=tuple(sorted(named, key=lambda name: named[name])), ignore_label=ignore)


def _region_scheme(labels: dict[str, Any], order: Any, file: Path, faults: list[Fault]) -> LabelScheme:
    ignore = labels.get(IGNORE_NAME)
    parts = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in labels.items()
        if name != IGNORE_NAME
    }
    background = next((name for name, values in parts.items() if values == (0,)), None)
    regions = {name: values for name, values in parts.items() if name != background}
    values = {value for members in parts.values() for value in members}
    if strays := _beyond_a_gap(parts, values):
        what = f"{'; '.join(strays)}; the values should be 0, 1, 2, ... without a gap."
        fix = "correct the value there; where masks do hold it, renumber the labels, there and in the files."
        faults.append(make_fault("E105", file, what, fix))
        return EMPTY_SCHEME
    if not _are_valid(values, ignore, file, faults):
        return EMPTY_SCHEME
    if background is None:
        faults.append(make_fault("E105", file, "no label is the background.", 'add "background": 0.'))
        return EMPTY_SCHEME
    is_order = isinstance(order, list) and all(
        _is_value(value) and 0 < value < len(values) for value in order
    )
    if not is_order or len(set(order)) != len(order) or len(order) != len(regions):
        what = (
            f"{len(regions)} regions {list(regions)} need regions_class_order to list as many different "
            f"label values, got {_shown(order)}."
        )
        faults.append(
            make_fault("E106", file, what, "list the value to write for each region, in their order.")
        )
        return EMPTY_SCHEME
    painted = dict(zip(order, regions, strict=True))
    return LabelScheme(
        names=(background, *(painted.get(value, f"label {value}") for value in range(1, len(values)))),
        ignore_label=ignore,
        regions=tuple(regions.values()),
        region_names=tuple(regions),
        region_values=tuple(order),
    )


def _beyond_a_gap(parts: dict[str, tuple[int, ...]], values: set[int]) -> list[str]:
    """Which label or region names which value above the first one that nothing names."""
    gap = next(value for value in range(len(values) + 1) if value not in values)
    return [
        f"{name!r} names the value {value}, but nothing names {gap}"
        for name, members in parts.items()
        for value in sorted(set(members))
        if value > gap > 0
    ]


def _are_valid(values: Iterable[int], ignore: Any, file: Path, faults: list[Fault]) -> bool:
    """Whether the values are 0, 1, 2, ... with the ignore label, if any, right above the highest.

    The ignore label is never predicted, so it alone may be above what a mask holds.
    """
    found = sorted(values)
    if found != list(range(len(found))) or not found:
        what = f"the label values are {found}; they should be 0, 1, 2, ... without gap or repetition."
        faults.append(
            make_fault("E105", file, what, "renumber the labels, in dataset.json and in the files.")
        )
        return False
    if ignore is not None and ignore != len(found):
        what = f"the ignore label is {_shown(ignore)}, it should be the highest value, {len(found)}."
        faults.append(
            make_fault("E105", file, what, "renumber the labels, in dataset.json and in the files.")
        )
        return False
    if found[-1] > HIGHEST_LABEL:
        what = f"there are {len(found)} labels; a predicted mask holds values up to {HIGHEST_LABEL}."
        fix = "join labels, or split them into datasets of at most that highest value."
        faults.append(make_fault("E105", file, what, fix))
        return False
    return True


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_region(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_value(item) for item in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
