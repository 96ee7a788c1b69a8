"""Features of a whole case, beside a reference in plain NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet.case_features import PredictedVolume, case_features, log_spread, pooled_features, weights_hash
from nnunet.inference.sliding_window import WindowRule, blend_weight, window_starts
from nnunet.label_coding import LabelCoding
from nnunet.layout import arrange
from nnunet.linear_classifier import FeatureRule
from nnunet.network import Architecture, MultiTaskUNet
from utils.contracts import Plan

WINDOWS = WindowRule(patch=(2, 4, 4), overlap=0.5, batch_size=3, coding=LabelCoding(num_labels=3))


def identity_and_halved(windows: Tensor) -> Sequence[Tensor]:
    """Two stages that look at nothing but a voxel, or a cell of 1x2x2, and at where it lies in the window."""
    place = torch.linspace(0, 1, windows.shape[-1])
    return windows, F.avg_pool3d(windows + place, (1, 2, 2))


def voxels_only(windows: Tensor) -> Sequence[Tensor]:
    return (windows,)


def never(windows: Tensor) -> Sequence[Tensor]:
    raise AssertionError(f"{len(windows)} windows were shown to the encoder.")


def random_case(shape: tuple[int, int, int], share: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 2, *shape, generator=generator)
    return image, (torch.rand(1, 1, *shape, generator=generator) < share).float()


def reference(image: np.ndarray, region: np.ndarray, windows: WindowRule) -> np.ndarray:
    """Of `identity_and_halved`: cells with their weights, cut out window by window."""
    patch, blend = windows.patch, blend_weight(windows).numpy().astype(float)
    starts = [
        window_starts(size, edge, windows.overlap) for size, edge in zip(region.shape, patch, strict=True)
    ]
    boxes = [tuple(slice(s, s + e) for s, e in zip(place, patch, strict=True)) for place in product(*starts)]
    covered = np.zeros(region.shape)
    for box in boxes:
        covered[box] += blend
    numbers = []
    for step in (1, 2):
        values, weights, supported = [], [], []
        for box in boxes:
            window, inside = image[(slice(None), *box)], region[box]
            if step == 2:
                window = window + np.linspace(0, 1, patch[-1])
            weight = inside * blend / covered[box]
            depth, height, width = patch[0], patch[1] // step, patch[2] // step
            for d, h, w in product(range(depth), range(height), range(width)):
                cell = (d, slice(h * step, (h + 1) * step), slice(w * step, (w + 1) * step))
                values.append(window[(slice(None), *cell)].mean(axis=(1, 2)))
                weights.append(weight[cell].sum())
                supported.append(inside[cell].any())
        table, share = np.array(values), np.array(weights) / np.sum(weights)
        mean = share @ table
        numbers += [mean, np.sqrt(share @ (table - mean) ** 2), table[supported].max(axis=0)]
    return np.concatenate(numbers)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(("shape", "share"), [((5, 9, 10), 0.1), ((2, 4, 4), 0.5), ((3, 7, 12), 1.0)])
def test_features_are_those_of_a_loop_over_cells(
    shape: tuple[int, int, int], share: float, blend: str
) -> None:
    image, region = random_case(shape, share)
    windows = replace(WINDOWS, blend=blend)
    found = pooled_features(identity_and_halved, image, region, (0, 1), windows)
    expected = reference(image[0].numpy().astype(float), region[0, 0].numpy(), windows)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(5, 9, 10), (1, 3, 30)])
def test_a_voxel_counts_once_however_many_windows_cover_it(
    shape: tuple[int, int, int], overlap: float
) -> None:
    image, region = random_case(shape, 0.3)
    found = pooled_features(voxels_only, image, region, (0,), replace(WINDOWS, overlap=overlap))
    inside = image[0][:, region[0, 0] > 0]
    expected = torch.cat([inside.mean(dim=1), inside.std(dim=1, correction=0), inside.amax(dim=1)])
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-5)


def test_only_windows_that_touch_the_region_are_shown_to_the_encoder() -> None:
    seen: list[int] = []

    def counted(windows: Tensor) -> Sequence[Tensor]:
        seen.append(len(windows))
        return (windows,)

    image, region = torch.randn(1, 1, 2, 4, 400), torch.zeros(1, 1, 2, 4, 400)
    region[..., 100] = 1
    pooled_features(counted, image, region, (0,), WINDOWS)
    assert sum(seen) == 2  # of 199
    region[:] = 1
    pooled_features(counted, image, region, (0,), WINDOWS)
    assert sum(seen) == 2 + 199
    assert max(seen) == WINDOWS.batch_size


def probabilities(lesion: Tensor, organ: Tensor) -> Tensor:
    """(1, 3, D, H, W): 0.4 for the lesion or the organ beside 0.3 twice, background elsewhere."""
    label = torch.where(lesion, 2, torch.where(organ, 1, 0))
    return F.one_hot(label, 3).permute(0, 4, 1, 2, 3) * 0.1 + 0.3


@pytest.mark.parametrize(
    ("predicted", "mean"), [("lesion and organ", 7.0), ("organ", 3.0), ("nothing", (7 * 2 + 3 * 4 + 2) / 32)]
)
def test_the_region_is_the_lesion_else_the_organ_else_everything(predicted: str, mean: float) -> None:
    image = torch.zeros(1, 1, 2, 4, 4)
    lesion, organ = (torch.zeros(1, 2, 4, 4, dtype=torch.bool) for _ in range(2))
    lesion[0, 0, 0, :2], organ[0, 1, 1] = True, True
    image[0][lesion], image[0][organ], image[0, 0, 0, 3, 3] = 7.0, 3.0, 2.0
    probs = probabilities(lesion & ("lesion" in predicted), organ & ("organ" in predicted))
    volume = PredictedVolume(image=image, label_probs=probs, spacing_mm=(5.0, 10.0, 10.0))
    features = case_features(voxels_only, volume, FeatureRule(stages=(0,)), WINDOWS)
    assert features[0] == pytest.approx(mean, rel=1e-5)
    voxels = {"lesion and organ": (4, 2), "organ": (4, 0), "nothing": (0, 0)}[predicted]
    np.testing.assert_allclose(features[3:], np.log([max(count * 0.5, 1e-3) for count in voxels]))


def test_with_regions_the_lesions_region_is_pooled_and_each_has_a_volume() -> None:
    image = torch.zeros(1, 1, 2, 4, 4)
    probs = torch.full((1, 2, 2, 4, 4), 0.1)
    probs[0, 0, 0], probs[0, 1, 0, 0, 0] = 0.9, 0.6
    image[0, 0, 0], image[0, 0, 0, 0, 0] = 2.0, 5.0
    windows = replace(WINDOWS, coding=LabelCoding(num_labels=3, regions=((1, 2), (2,))))
    volume = PredictedVolume(image=image, label_probs=probs, spacing_mm=(10.0, 10.0, 10.0))
    features = case_features(voxels_only, volume, FeatureRule(stages=(0,)), windows)
    np.testing.assert_allclose(features, [5, 0, 5, np.log(16), 0], atol=1e-5)


def box_case(shape: tuple[int, int, int], corner: tuple[int, int, int]) -> PredictedVolume:
    """A lesion of 2x3x1 voxels at `corner` with intensities 0 to 5 and 9 below, in a volume of 7."""
    image, lesion = torch.full((1, 2, *shape), 7.0), torch.zeros(1, *shape, dtype=torch.bool)
    inside = tuple(slice(start, start + edge) for start, edge in zip(corner, (2, 3, 1), strict=True))
    lesion[(0, *inside)] = True
    image[(0, 0, *inside)], image[(0, 1, *inside)] = torch.arange(6.0).view(2, 3, 1), 9.0
    probs = probabilities(lesion, torch.zeros_like(lesion))
    return PredictedVolume(image=image, label_probs=probs, spacing_mm=(3.0, 1.0, 0.5))


@pytest.mark.parametrize(
    ("shape", "corner"), [((2, 4, 4), (0, 0, 0)), ((5, 9, 10), (3, 2, 8)), ((2, 3, 1), (0, 0, 0))]
)
def test_image_and_shape_are_those_of_the_region_wherever_it_lies(
    shape: tuple[int, int, int], corner: tuple[int, int, int]
) -> None:
    volume, rule = box_case(shape, corner), FeatureRule(stages=(0,), image=True, shape=True)
    features = case_features(voxels_only, volume, rule, WINDOWS)
    means, deviations, maxima = (2.5, 9.0), ((35 / 12) ** 0.5, 0.0), (5.0, 9.0)
    edges_mm = (2 * 3.0, 3 * 1.0, 1 * 0.5)  # of a box they are its own
    np.testing.assert_allclose(features[8:], [*means, *deviations, *maxima, *np.log(edges_mm)], atol=1e-5)


def test_what_a_rule_leaves_away_is_missing_and_nothing_else_moves() -> None:
    volume, rule = box_case((5, 9, 10), (3, 2, 8)), FeatureRule(stages=(0,), image=True, shape=True)
    whole = case_features(voxels_only, volume, rule, WINDOWS)
    only_image, only_shape, neither = (
        case_features(voxels_only, volume, replace(rule, **parts), WINDOWS)
        for parts in ({"shape": False}, {"image": False}, {"image": False, "shape": False})
    )
    np.testing.assert_array_equal(only_image, whole[:-3])
    np.testing.assert_array_equal(only_shape, [*whole[:8], *whole[-3:]])
    np.testing.assert_array_equal(neither, whole[:8])


def test_a_region_of_two_far_voxels_is_spread_along_their_axis_only() -> None:
    region = torch.zeros(1, 1, 4, 1, 11)
    region[..., 1, 0, 0], region[..., 1, 0, 10] = 1, 1
    # Each voxel's own variance is 1/12, their distance of 10 adds 25: the box is sqrt(12 * 25 + 1) wide.
    expected = np.log([1.0, 1.0, 2 * 301**0.5])
    np.testing.assert_allclose(log_spread(region, (1.0, 1.0, 2.0)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_the_features_of_a_network_are_finite_and_as_many_as_its_channels(
    make_plan: Callable[..., Plan], *, flat: bool
) -> None:
    from nnunet.blocks import flatten_depth

    plan = make_plan(flat=flat)
    network = MultiTaskUNet(plan, Architecture()).eval()
    image = torch.randn(1, 1, 6, 20, 20, generator=torch.Generator().manual_seed(0))
    volume = PredictedVolume(image=image, label_probs=torch.rand(1, 3, 6, 20, 20), spacing_mm=(1.0, 1.0, 1.0))
    features = case_features(
        lambda windows: network.encoder(flatten_depth(windows, network.dims)),
        volume,
        FeatureRule(stages=(1, 2, 3), image=True, shape=True),
        replace(WINDOWS, patch=plan.patch),
    )
    assert features.shape == (3 * (6 + 8) + 2 + 3 + 3,)
    assert np.isfinite(features).all()


def test_the_hash_of_weights_changes_with_a_value_and_not_with_the_copy(
    make_plan: Callable[..., Plan],
) -> None:
    network, copy = (MultiTaskUNet(make_plan(), Architecture()) for _ in range(2))
    assert weights_hash(network) != weights_hash(copy)
    copy.load_state_dict(network.state_dict())
    assert weights_hash(network) == weights_hash(arrange(copy, "NDHWC"))
    with torch.no_grad():
        next(copy.parameters()).flatten()[0] += 1e-3
    assert weights_hash(network) != weights_hash(copy)
