"""The HTML report: one file, nothing executable, every number where a reader looks for it."""

import re
from pathlib import Path

import numpy as np
import pytest

from nnunet.evaluation.bootstrap import Resampling
from nnunet.evaluation.classification import ClassificationSummary, auc_of_score, summarise_classification
from nnunet.evaluation.overlap import CaseOverlap, evaluate_case, overlap_rules
from nnunet.evaluation.report import (
    Fact,
    Overlay,
    ReportPage,
    extreme_cases,
    read_curves,
    render_report,
    write_report,
)
from nnunet.evaluation.summary import SegmentationSummary, summarise_segmentation

FEW = Resampling(num_resamples=50)


def cases(count: int, label: str = "pancreas") -> list[CaseOverlap]:
    """Case i finds i of `count` voxels."""
    rules = overlap_rules(["background", label, "lesion"])
    truth = np.ones(count, dtype=np.int16)
    found = [np.where(np.arange(count) < index, 1, 0) for index in range(count)]
    return [evaluate_case(f"case_{i}", truth, predicted, rules) for i, predicted in enumerate(found)]


def segmentation(label: str = "pancreas") -> SegmentationSummary:
    return summarise_segmentation(cases(4, label), resampling=FEW)


def classification() -> ClassificationSummary:
    target = np.repeat([0, 1, 2], [9, 15, 12])
    return summarise_classification(target, np.eye(3)[[1] * 36], ["s0", "s1", "s2"], resampling=FEW)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    overlay = Overlay(rank="Best", case_id="case_3", dice=0.9, png=b"png")
    page = ReportPage(title="t", segmentation=segmentation(), overlays=(overlay,))
    write_report(tmp_path / "report.html", page)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "http://" not in html
    assert "https://" not in html
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)"', html))


def test_names_from_the_data_cannot_become_markup() -> None:
    html = render_report(
        ReportPage(title="<b>t</b>", segmentation=segmentation("<img src=x onerror=alert(1)>"))
    )
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
    assert "<b>t</b>" not in html


@pytest.mark.parametrize(("empty", "sentence"), [("nan", "left out of its mean"), ("one", "has Dice 1.")])
def test_the_page_states_the_rule_for_empty_cases(empty: str, sentence: str) -> None:
    summary = summarise_segmentation(cases(3), empty="one" if empty == "one" else "nan", resampling=FEW)
    assert sentence in render_report(ReportPage(title="t", segmentation=summary))


def test_a_collapsed_classifier_stands_beside_the_constant_that_equals_it() -> None:
    html = render_report(ReportPage(title="t", classification=classification()))
    assert "best constant answer: 0.196" in html
    assert html.count("0.196") >= 3  # the tile's baseline, the value, and the row of "always s1"
    assert "always “s1”" in html


def test_an_undefined_number_is_a_dash_not_nan() -> None:
    html = render_report(ReportPage(title="t", segmentation=segmentation()))
    assert not re.search(r">\s*nan\b", html)
    assert "<td>–</td>" in html


def test_notes_facts_and_the_volume_baseline_are_shown() -> None:
    page = ReportPage(
        title="t",
        facts=(Fact(name="Cases", value="36"),),
        notes=("1 case has no prediction: a17",),
        classification=classification(),
        volume_auroc=auc_of_score(np.array([0, 1]), np.array([1.0, 2.0])),
    )
    html = render_report(page)
    assert "a17" in html
    assert "<td>Cases</td><td>36</td>" in html
    assert "predicted volume alone" in html


def test_best_median_and_worst_are_chosen_by_mean_dice() -> None:
    chosen = [(item.rank, item.case.case_id) for item in extreme_cases(cases(5))]
    assert chosen == [("Best", "case_4"), ("Median", "case_2"), ("Worst", "case_0")]


@pytest.mark.parametrize(("count", "ranks"), [(1, ["Best"]), (2, ["Best", "Worst"])])
def test_no_case_is_shown_twice(count: int, ranks: list[str]) -> None:
    assert [item.rank for item in extreme_cases(cases(count))] == ranks


def test_curves_come_from_the_epochs_of_the_log(tmp_path: Path) -> None:
    lines = (
        '{"type": "LOG", "step": "PARAMETER", "data": {"val/dsc": 9}}',
        '{"type": "LOG", "step": [0], "data": {"val/dsc": 0.1, "other": 5}}',
        '{"type": "LOG", "step": [1, 7], "data": {"val/dsc": 9}}',
        '{"type": "LOG", "step": [1], "data": {"val/dsc": null}}',
        '{"type": "LOG", "step": [2], "data": {"val/dsc": 0.3}}',
        '{"type": "LOG", "step": [2], "data": {"val/dsc": 0.4}}',
        '{"type": "METADATA", "metric": "val/dsc", "metadata": {}}',
    )
    path = tmp_path / "logs.json"
    path.write_text("".join(f"DLLL {line}\n" for line in lines), encoding="utf-8")
    (curve,) = read_curves(path, ["val/dsc", "absent"])
    assert (curve.epochs, curve.values) == ((0, 2), (0.1, 0.4))
    assert "Training curve" in render_report(ReportPage(title="t", curves=(curve,)))
