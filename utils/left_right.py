"""Labels that change places where left and right do: found by name or declared, and what follows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from utils.contracts import Plan
from utils.errors import UserError

Pairs = tuple[tuple[int, int], ...]

AUTO, SWAP, OFF, PLAIN = "auto", "swap", "off", "plain"  # of --mirror_left_right
NO_PAIRS = "none"  # of --left_right_pairs
BETWEEN = ":"  # the two names of a pair
X_AXIS = 2  # of (z, y, x): in a RAS volume it runs from left to right
SIDES = {"left": "right", "l": "r", "lh": "rh", "lt": "rt", "links": "rechts"}
OPPOSITE = SIDES | {right: left for left, right in SIDES.items()}
# Called left and right, but no mirror images of each other: in a flipped scan each keeps its own form.
HEART = ("atrium", "atria", "atrial", "auricle", "appendage", "ventricle", "ventricular", "heart", "cardiac")
VESSELS = ("myocardium", "coronary", "aortic", "brachiocephalic", "portal", "hepatic")
BELLY = ("liver", "colic", "colon", "flexure")
UNEQUAL = frozenset((*HEART, *VESSELS, *BELLY))
EQUAL_AFTER_ALL = frozenset(("lateral", "cerebral", "brain"))  # the ventricles of a brain
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def named_pairs(names: Sequence[str]) -> Pairs:
    """Places of names that differ in their sides alone, as kidney_left and kidney_right.

    A side is a word of its own, in any case, or set off by a capital letter. Organs that are no mirror images
    of each other, such as the chambers of the heart, are no pair.
    """
    words = [_words(name) for name in names]
    found = []
    for place, own in enumerate(words):
        opposite = tuple(OPPOSITE.get(word, word) for word in own)
        is_unequal = UNEQUAL.intersection(own) and not EQUAL_AFTER_ALL.intersection(own)
        if opposite == own or is_unequal or words.count(own) != 1 or words.count(opposite) != 1:
            continue
        if (partner := words.index(opposite)) > place:
            found.append((place, partner))
    return tuple(found)


def lonely_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that tell a side but belong to no pair."""
    paired = set(chain.from_iterable(named_pairs(names)))
    return tuple(
        name
        for place, name in enumerate(names)
        if place not in paired and not OPPOSITE.keys().isdisjoint(_words(name))
    )


def declared_pairs(
    named: Iterable[Sequence[str]],
    label_names: Sequence[str],
    regions: Sequence[tuple[int, ...]] = (),
    region_names: Sequence[str] = (),
) -> Pairs:
    """Pairs of label values from pairs of names: of regions where there are any, else of labels.

    UserError for an unknown name, one that occurs twice, and regions that do not correspond.
    """
    known = list(region_names if regions else label_names)
    pairs = []
    for names in named:
        if len(names) != 2 or any(name not in known for name in names):
            got = " and ".join(map(str, names))
            raise UserError(f"A pair of left and right should be two of {', '.join(known)}, got {got}.")
        pairs.append((known.index(names[0]), known.index(names[1])))
    return label_pairs(pairs, regions) if regions else _checked(pairs, 1, len(known))


def label_pairs(region_pairs: Iterable[tuple[int, int]], regions: Sequence[tuple[int, ...]]) -> Pairs:
    """Pairs of label values that change places where these regions do; UserError if there are none such.

    A label goes to one that the partners of its own regions have in common.
    """
    partner = partners(_checked(region_pairs, 0, len(regions)), len(regions))
    members: dict[frozenset[int], list[int]] = {}
    for value in sorted(set(chain.from_iterable(regions))):
        holders = frozenset(place for place, region in enumerate(regions) if value in region)
        members.setdefault(holders, []).append(value)
    pairs: dict[tuple[int, int], None] = {}
    for holders, values in members.items():
        others = members.get(frozenset(partner[i] for i in holders), [])
        if len(others) != len(values):
            raise UserError(
                f"The regions {[regions[i] for i in sorted(holders)]} are to change places with others where "
                f"left and right do, but no label corresponds to {values}. Use --mirror_left_right off."
            )
        # In the regions all labels of one group are alike: any order does.
        pairs |= {(a, b): None for a, b in zip(values, others, strict=True) if a < b}
    return tuple(pairs)


def partners(pairs: Pairs, number: int) -> tuple[int, ...]:
    """For each of `number` values the one that takes its place; most stay."""
    order = list(range(number))
    for first, second in pairs:
        order[first], order[second] = second, first
    return tuple(order)


def left_right_axis(plan: Plan) -> int:
    """Which of (D, H, W) runs from left to right."""
    return plan.axis_order.index(X_AXIS)


def logit_order(plan: Plan, pairs: Pairs) -> tuple[int, ...]:
    """For each channel of the label logits the channel that takes its place.

    UserError if the labels of a region, swapped, are no region.
    """
    partner = partners(pairs, plan.num_labels)
    if not plan.regions:
        return partner
    sets = [frozenset(region) for region in plan.regions]
    swapped = [frozenset(partner[value] for value in region) for region in sets]
    if lost := [name for name, region in zip(plan.region_names, swapped, strict=True) if region not in sets]:
        raise UserError(
            f"Left and right cannot change places: the labels of {', '.join(lost)} would then be no region. "
            "Give the pairs of all regions with --left_right_pairs, or use --mirror_left_right off."
        )
    return tuple(sets.index(region) for region in swapped)


def image_order(plan: Plan, pairs: Pairs) -> tuple[int, ...]:
    """For each input channel the one that takes its place: those of a previous stage's labels do."""
    label = partners(tuple(pair for pair in pairs if max(pair) <= plan.prior_labels), plan.prior_labels + 1)
    prior = (plan.num_channels + value - 1 for value in label[1:])
    return (*range(plan.num_channels), *prior)


def with_left_right(plan: Plan, choice: str, named: Sequence[str] = ()) -> Plan:
    """The plan with its pairs of labels and with what mirroring does to them: swap, off or plain.

    `choice` is --mirror_left_right and `named` --left_right_pairs. The pairs are the named ones, else those
    that the dataset declares, else those that the names tell. `auto` swaps where there are pairs, mirrors
    like any other axis where there are none, and not at all where regions stand in the way. UserError for
    pairs that do not exist, and for a swap that is impossible.
    """
    pairs = _pairs(plan, named)
    if choice == AUTO:
        choice = _possible(plan, pairs) if pairs else PLAIN
    if choice == SWAP:
        if not pairs:
            raise UserError(
                "--mirror_left_right swap: no two labels are called left and right. Name them: "
                f"--left_right_pairs NAME{BETWEEN}NAME."
            )
        logit_order(plan, pairs)
    return replace(plan, left_right_pairs=pairs, left_right=choice)


def left_right_line(plan: Plan) -> str:
    """What a person should know of left and right in this training; empty where there is nothing to know."""
    pairs = [f"{plan.label_names[a]} and {plan.label_names[b]}" for a, b in plan.left_right_pairs or ()]
    if plan.left_right == SWAP:
        return f"Left and right: {', '.join(pairs)} change places in patches mirrored along x."
    if plan.left_right == OFF:
        return "Left and right: patches are not mirrored along x."
    names = pairs or lonely_names(plan.target_names)
    if not names:
        return ""
    advice = "" if pairs else " If that is wrong: --left_right_pairs, or --mirror_left_right off."
    return f"Left and right: {', '.join(names)} keep their labels in patches mirrored along x.{advice}"


def _pairs(plan: Plan, named: Sequence[str]) -> Pairs:
    if list(named) == [NO_PAIRS]:
        return ()
    names = plan.label_names[: plan.num_labels]
    if named:
        return declared_pairs([text.split(BETWEEN) for text in named], names, plan.regions, plan.region_names)
    if plan.left_right_pairs is not None:
        return _checked(plan.left_right_pairs, 1, plan.num_labels)
    if not plan.regions:
        return named_pairs(names)
    return label_pairs(named_pairs(plan.region_names), plan.regions)


def _possible(plan: Plan, pairs: Pairs) -> str:
    try:
        logit_order(plan, pairs)
    except UserError:
        return OFF
    return SWAP


def _checked(pairs: Iterable[tuple[int, int]], least: int, number: int) -> Pairs:
    """The pairs; UserError unless each value is from `least` to below `number` and occurs once."""
    found = tuple(pairs)
    values = list(chain.from_iterable(found))
    if len(set(values)) != len(values) or not all(least <= value < number for value in values):
        got = [list(pair) for pair in found]
        raise UserError(f"Pairs of left and right should name a label once, the background never; got {got}.")
    return found


def _words(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case."""
    return tuple(re.findall(r"[a-z0-9]+", CAMEL.sub(" ", name).lower()))
