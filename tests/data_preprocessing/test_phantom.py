"""The phantom dataset: its folders, its anatomy, and where its subtype can and cannot be seen."""

import csv
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from data_preprocessing.phantom import (
    NOT_QUITE_ONE,
    PhantomOptions,
    complete,
    plan_cases,
    subtype_counts,
    write_phantom,
)
from data_preprocessing.phantom_anatomy import CROP_SIZES, SUBTYPES, PhantomCase, draw_case
from data_preprocessing.volume_io import read_volume
from utils.errors import UserError
from utils.storage import read_json

TINY = PhantomOptions(size="tiny", n_jobs=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom"), TINY)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Drawn cases and the subtype of each."""

    cases: tuple[PhantomCase, ...]
    subtypes: np.ndarray


@cache
def gallery() -> Gallery:
    subtypes = np.arange(60) % 3
    seeds = np.random.SeedSequence(7).spawn(len(subtypes))
    cases = tuple(
        draw_case(np.random.default_rng(seed), CROP_SIZES["small"], SUBTYPES[subtype])
        for seed, subtype in zip(seeds, subtypes, strict=True)
    )
    return Gallery(cases=cases, subtypes=subtypes)


def macro_f1(features: list[list[float]]) -> float:
    """Of a linear discriminant, cross-validated over the gallery."""
    truth = gallery().subtypes
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(LinearDiscriminantAnalysis(), np.asarray(features), truth, cv=folds)
    return float(f1_score(truth, predicted, average="macro"))


def lesion_features(case: PhantomCase) -> list[float]:
    """Mean, spread and gradient of the lesion; spread and sharpness of its core; core against rim."""
    image, lesion = case.image.astype(np.float64), case.label == 2
    core = np.asarray(ndimage.binary_erosion(lesion), dtype=bool)
    gradient = ndimage.gaussian_gradient_magnitude(image, 0.5)
    detail = image - ndimage.gaussian_filter(image, 1.0)
    return [
        image[lesion].mean(),
        image[lesion].std(),
        np.sqrt((gradient[lesion] ** 2).mean()),
        image[core].std(),
        detail[core].std(),
        image[core].mean() - image[lesion & ~core].mean(),
    ]


def test_the_subtype_can_be_learned_from_the_lesion() -> None:
    assert macro_f1([lesion_features(case) for case in gallery().cases]) > 0.85


def test_the_size_of_the_lesion_says_nothing_about_the_subtype() -> None:
    assert macro_f1([[np.log((case.label == 2).sum())] for case in gallery().cases]) < 0.5


def test_the_whole_image_says_little_about_the_subtype() -> None:
    features = [
        [case.image.mean(), case.image.std(), case.image[case.label == 1].mean()] for case in gallery().cases
    ]
    assert macro_f1(features) < 0.55


def test_every_case_has_one_lesion_that_touches_the_pancreas() -> None:
    for case in gallery().cases:
        regions = np.zeros(case.label.shape, dtype=np.int32)
        assert ndimage.label(case.label == 2, output=regions) == 1
        assert (ndimage.binary_dilation(case.label == 2) & (case.label == 1)).any()


def test_lesion_and_pancreas_are_apart_in_intensity() -> None:
    contrast = [
        case.image[case.label == 1].mean() - case.image[case.label == 2].mean() for case in gallery().cases
    ]
    assert min(contrast) > 25


def test_tissues_have_the_intensities_of_ct() -> None:
    pancreas = np.mean([np.median(case.image[case.label == 1]) for case in gallery().cases])
    background = np.mean([np.median(case.image[case.label == 0]) for case in gallery().cases])
    assert 65 < pancreas < 90
    assert -100 < background < -60


def test_calcifications_are_rare() -> None:
    calcified = sum((case.image > 500).any() for case in gallery().cases)
    assert 1 <= calcified <= 20


def test_the_subtypes_keep_the_ratio_of_the_challenge() -> None:
    assert subtype_counts(252) == (62, 106, 84)
    assert subtype_counts(36) == (9, 15, 12)
    assert min(subtype_counts(3)) == 1


@pytest.mark.flag("download:size")
def test_numbers_and_seeds_of_the_full_dataset_are_unique() -> None:
    cases = plan_cases(complete(PhantomOptions(size="full")))
    assert len(cases) == len({case.number for case in cases}) == 360
    assert max(case.number for case in cases) <= 999
    assert Counter(case.split for case in cases) == {"train": 252, "validation": 36, "test": 72}


def test_every_file_that_the_description_lists_exists(root: Path) -> None:
    description = read_json(root / "dataset.json")
    listed = [path for case in description["dataset"].values() for path in (*case["images"], case["label"])]
    listed += description["test"]
    assert len(listed) == 2 * 12 + 2
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.nii.gz")} == set(listed)


def test_classes_and_folds_cover_the_labelled_cases(root: Path) -> None:
    cases = set(read_json(root / "dataset.json")["dataset"])
    with (root / "classes.csv").open(newline="") as stream:
        classes = {row["case"]: row["subtype"] for row in csv.DictReader(stream)}
    (fold,) = read_json(root / "splits_final.json")
    assert set(classes) == cases == {*fold["train"], *fold["val"]}
    assert (len(fold["train"]), len(fold["val"])) == (9, 3)
    assert all(name.split("_")[1] == subtype for name, subtype in classes.items())


def test_images_and_masks_share_a_grid_that_runs_to_left_and_posterior(root: Path) -> None:
    for case in read_json(root / "dataset.json")["dataset"].values():
        image, label = read_volume(root / case["images"][0]), read_volume(root / case["label"])
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.voxels.shape == label.voxels.shape
        assert image.orientation == "LPS"
        assert np.abs(image.affine[:3, 3]).min() > 0


def test_most_masks_store_label_one_not_quite_as_one(root: Path) -> None:
    masks = [read_volume(path).voxels for path in root.glob("t*/subtype*/*_???.nii.gz")]
    shares = [np.isin(mask, (0, 1, 2)).all() for mask in masks]
    assert 0 < sum(shares) < len(masks) / 2
    assert all(np.isin(mask, (0, 1, float(NOT_QUITE_ONE), 2)).all() for mask in masks)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_jobs(root: Path, tmp_path: Path) -> None:
    again = write_phantom(tmp_path, replace(TINY, n_jobs=2))
    for path in root.rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(root)).read_bytes(), path.name


@pytest.mark.flag("download:seed")
def test_another_seed_gives_other_voxels() -> None:
    first, second = (plan_cases(complete(replace(TINY, seed=seed)))[0] for seed in (0, 1))
    drawn = [
        draw_case(np.random.default_rng(case.seed), CROP_SIZES["tiny"], SUBTYPES[0])
        for case in (first, second)
    ]
    assert not np.array_equal(drawn[0].image, drawn[1].image)


@pytest.mark.flag("download:num_train", "download:num_validation", "download:num_test")
def test_so_many_cases_of_each_split_are_planned() -> None:
    options = complete(replace(TINY, num_train=5, num_validation=4, num_test=1))
    splits = Counter(case.split for case in plan_cases(options))
    assert splits == {"train": 5, "validation": 4, "test": 1}


def test_a_finished_dataset_is_kept_and_another_one_is_not_overwritten(root: Path) -> None:
    before = (root / "dataset.json").stat().st_mtime_ns
    assert write_phantom(root.parent, TINY) == root
    assert (root / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another or an unfinished dataset"):
        write_phantom(root.parent, replace(TINY, seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(TINY, num_train=2), "--num_train is 2"),
        (replace(TINY, num_validation=0), "--num_validation is 0"),
        (replace(TINY, num_test=-1), "--num_test should be at least 0, got -1"),
        (replace(TINY, seed=-1), "--seed should be at least 0, got -1"),
        (replace(TINY, n_jobs=0), "--n_jobs is 0"),
    ],
)
def test_impossible_numbers_are_named(options: PhantomOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_phantom(tmp_path, options)
