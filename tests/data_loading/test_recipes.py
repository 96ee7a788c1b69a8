"""Recipes: what the presets hold, how a user changes one, and what a whole one does to a labelled volume."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from data_loading.augmentations import AUGMENTATIONS
from data_loading.augmentations.rotate_scale import RotateScale
from data_loading.catalogue import Entry, ForegroundTable
from data_loading.loader import Shard, TrainingLoader
from data_loading.patches import SamplingRule
from data_loading.recipes import PRESETS, build_recipe
from data_loading.sources import SourceSettings, WindowSource
from data_loading.targets import TargetRule
from utils.contracts import Batch, Plan, Shape
from utils.errors import UserError
from utils.registry import UnknownPartError
from utils.storage import write_array

NNUNET = [
    "rotate_scale",
    "noise",
    "blur",
    "brightness",
    "contrast",
    "low_resolution",
    "inverted_gamma",
    "gamma",
    "mirror",
    "zero_outside",
]
# Per sample, from the table of nnU-Net v2.8; of two channels blur and low resolution need one at least.
RATES = {
    "rotate_scale": 0.36,
    "noise": 0.1,
    "blur": 0.2 * 0.75,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25 * 0.75,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
    "mirror": 0.875,
    "zero_outside": 1.0,
}


def names(*choices: str) -> list[str]:
    return [part.name for part in build_recipe(choices)]


def test_presets_are_the_published_orders() -> None:
    assert names("nnunet") == NNUNET
    assert names("nvidia") == ["zoom", "mirror", "noise", "blur", "brightness", "contrast"]
    assert names("none") == names() == []
    assert {name for preset in PRESETS for name in names(preset)} == {spec.name for spec in AUGMENTATIONS}


def test_a_recipe_can_be_changed_part_by_part() -> None:
    assert names("nnunet", "no_blur", "no_gamma") == [n for n in NNUNET if n not in ("blur", "gamma")]
    changed = build_recipe(["nnunet", "noise:probability=0.4,max_std=0.2"])
    assert [part.name for part in changed] == NNUNET
    assert repr(changed[1]) == "Noise(probability=0.4, max_std=0.2)"
    assert names("nnunet", "zoom")[-1] == "zoom"
    assert names("mirror", "noise") == ["mirror", "noise"]
    assert names("none", "mirror") == ["mirror"]


def test_none_empties_the_list_and_a_second_preset_is_refused() -> None:
    assert names("nnunet", "none") == []
    assert names("nvidia", "none", "mirror") == ["mirror"]
    with pytest.raises(UserError, match="one preset at a time"):
        build_recipe(["nnunet", "nvidia"])


@pytest.mark.parametrize("order", [("blur", "rotate_scale"), ("nvidia", "rotate_scale")])
def test_a_part_that_reads_more_than_the_patch_has_to_come_first(order: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="rotate_scale reads more than the patch and has to come first"):
        build_recipe(order)
    assert names(*reversed(order))[0] == "rotate_scale"


def test_what_does_not_exist_is_said() -> None:
    with pytest.raises(UnknownPartError, match="blurr"):
        build_recipe(["blurr"])
    with pytest.raises(UserError, match="there is no zoom to leave out"):
        build_recipe(["nnunet", "no_zoom"])
    with pytest.raises(UnknownPartError, match="strength"):
        build_recipe(["noise:strength=1"])


def test_the_plan_decides_which_channels_are_zeroed_and_which_labels_exist(
    make_plan: Callable[..., Plan],
) -> None:
    plan = make_plan(uses_mask=(False, True), num_channels=2, num_labels=5, ignore_label=5)
    recipe = {part.name: part for part in build_recipe(["nnunet"], plan)}
    assert recipe["zero_outside"].channels == (1,)  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe["rotate_scale"].largest_label == 5  # pyright: ignore[reportAttributeAccessIssue]


# --- ten thousand samples ----------------------------------------------------------------------------------


def entry_of(folder: Any, name: str, image: np.ndarray, label: np.ndarray) -> Entry:
    """A case on disk, without the rest of a preprocessed folder."""
    write_array(folder / f"{name}_x.npy", image)
    write_array(folder / f"{name}_y.npy", label)
    positions = np.argwhere(label[0] == 1).astype(np.int32)
    case: Any = SimpleNamespace(
        case_id=name, image=folder / f"{name}_x.npy", label=folder / f"{name}_y.npy", class_target=0
    )
    table = ForegroundTable(labels=(1,), starts=(0,), stops=(len(positions),), positions=positions)
    _, depth, height, width = label.shape
    return Entry(case=case, shape=(depth, height, width), image_type=image.dtype.name, foreground=table)


def rule_for(patch: Shape, batch_size: int = 2) -> SamplingRule:
    return SamplingRule(
        patch=patch, batch_size=batch_size, world_size=1, steps_per_epoch=10, foreground_share=0.33, seed=3
    )


def test_every_part_happens_as_often_in_the_samples_as_in_the_table(tmp_path) -> None:
    """Drawn by the source itself, one after the other from the stream of each sample."""
    random = np.random.default_rng(0)
    label = np.ones((1, 8, 8, 8), np.int16)
    entry = entry_of(tmp_path, "a", random.normal(size=(2, 8, 8, 8)).astype(np.float32), label)
    recipe, patch = build_recipe(["nnunet", "zero_outside:channels=0"]), (8, 8, 8)
    source = WindowSource([entry], rule_for(patch), recipe, TargetRule(shapes=(patch,)), SourceSettings())
    drawn = [source.make(number)[4:] for number in range(10_000)]
    happened = np.array([[values[0] > 0 for values in sample] for sample in drawn])
    for part, rate in zip(recipe, happened.mean(axis=0), strict=True):
        expected = RATES[part.name]
        if part.name == "low_resolution":  # a factor that rounds to the whole patch changes nothing
            assert expected * 0.8 < rate <= expected + 0.016
        else:
            assert abs(rate - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(drawn)), part.name
    random_parts = happened[:, :-1]  # all but zero_outside, which is certain
    alike = np.corrcoef(random_parts.T) - np.eye(len(recipe) - 1)
    assert np.abs(alike).max() < 4.5 / np.sqrt(len(drawn))  # one part's choice says nothing of another's


# --- image = f(label), through the whole loader ------------------------------------------------------------

PATCHES = {"solid": (20, 24, 22), "slab": (6, 24, 22), "slice": (1, 24, 22)}
SPATIAL = ("rotate_scale:rotation_probability=1,scale_probability=1", "zoom:probability=1", "mirror")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """Blobs of labels 1 and 2, voxels outside the mask at one side, and an image of 100 x label."""
    field = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(40, 44, 42)), 4)
    label = np.digitize(field / field.std(), [0.3, 1.2]).astype(np.int16)[None]
    label[:, :, :, :3] = -1
    image = 100.0 * np.maximum(label, 0)
    return entry_of(tmp_path_factory.mktemp("cases"), "blobs", image.astype(np.float16), label)


def take(entry: Entry, recipe: Sequence[str], patch: Shape, number: int, *, on_host: bool) -> list[Batch]:
    parts = [replace(p, largest_label=2) if isinstance(p, RotateScale) else p for p in build_recipe(recipe)]
    loader = TrainingLoader(
        [entry],
        rule_for(patch),
        parts,
        TargetRule(shapes=(patch,)),
        Shard(num_threads=1, on_host=on_host),
    )
    return list(itertools.islice(iter(loader), number))


@pytest.mark.parametrize("on_host", [False, True], ids=["graph", "host"])
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES.keys())
@pytest.mark.parametrize(
    "recipe",
    [choice for number in (1, 2, 3) for choice in itertools.combinations(SPATIAL, number)],
    ids=lambda choice: "+".join(part.partition(":")[0] for part in choice),
)
def test_image_and_label_stay_together_through_every_combination(
    labelled: Entry, recipe: tuple[str, ...], patch: Shape, on_host
) -> None:
    """Away from borders of labels, by half a voxel and the reach of interpolation, the image is f(label)."""
    for batch in take(labelled, recipe, patch, 3, on_host=on_host):
        for image, label in zip(batch.image[:, 0].numpy(), batch.label[0][:, 0].numpy(), strict=True):
            reach = [min(3, size) for size in label.shape]
            flat = ndimage.maximum_filter(label, reach) == ndimage.minimum_filter(label, reach)
            assert flat.mean() > 0.2
            error = np.abs(image - 100.0 * label)[flat]
            assert (error < 51).mean() > 0.999  # half a step between two labels
            assert np.median(error) < 2


@pytest.mark.parametrize("preset", ["nnunet", "nvidia"])
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES.keys())
def test_whole_presets_agree_between_graph_and_host(labelled: Entry, preset: str, patch: Shape) -> None:
    """All but the noise, whose numbers two generators make."""
    recipe = [preset, "no_noise"]
    pairs = [take(labelled, recipe, patch, 6, on_host=on_host) for on_host in (False, True)]
    for graph, host in zip(*pairs, strict=True):
        assert graph.case_ids == host.case_ids
        assert (graph.label[0] != host.label[0]).float().mean() < 0.002
        difference = (graph.image - host.image).abs()
        assert float(difference.quantile(0.99)) < 0.5  # of a range of 200; a resampled edge may round
        assert float(difference.mean()) < 0.2


def test_a_part_without_a_twin_runs_in_the_graph_behind_those_with_one(labelled: Entry, monkeypatch) -> None:
    whole = take(labelled, ["nvidia", "no_noise"], (20, 24, 22), 4, on_host=True)
    blur = type(AUGMENTATIONS.build("blur"))
    monkeypatch.setattr(blur, "has_twin", False)
    split = take(labelled, ["nvidia", "no_noise"], (20, 24, 22), 4, on_host=True)
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(one.image, other.image, atol=0.05)
        np.testing.assert_array_equal(one.label[0], other.label[0])
