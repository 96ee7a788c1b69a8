"""Temperature scaling: a known overconfidence is found, and the gain is measured on cases outside the fit."""

import numpy as np
import pytest
from scipy.special import softmax

from nnunet.evaluation import calibration
from nnunet.evaluation.calibration import calibrate, fit_temperature, scale_probabilities
from utils.errors import DatasetError

NAMES = ("a", "b", "c")


def overconfident(factor: float, count: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Targets drawn from honest probabilities, and those with logits `factor` times as large."""
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 1.5, (count, 3))
    target = np.array([generator.choice(3, p=row) for row in softmax(logits, axis=1)])
    return target, softmax(factor * logits, axis=1)


@pytest.mark.parametrize("factor", [3.0, 0.5])
def test_the_temperature_undoes_a_known_distortion(factor: float) -> None:
    assert fit_temperature(*overconfident(factor)) == pytest.approx(factor, rel=0.15)


def test_scaling_keeps_the_answer_and_lowers_the_held_out_loss() -> None:
    target, probs = overconfident(3.0, 200)
    fitted = calibrate(target, probs, NAMES)
    assert fitted.after is not None
    assert fitted.after.nll < fitted.before.nll
    assert fitted.after.ece < fitted.before.ece
    scaled = scale_probabilities(probs, fitted.temperature)
    np.testing.assert_array_equal(scaled.argmax(axis=1), probs.argmax(axis=1))


def test_a_case_is_never_scaled_by_a_fit_that_saw_its_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    target = np.tile([0, 1], 10)
    patients = [str(index // 2) for index in range(20)]
    # The first column marks the patient, so that each fit tells whom it saw.
    probs = np.stack([0.5 + np.arange(20) // 2 / 100, 0.5 - np.arange(20) // 2 / 100], axis=1)
    seen: list[set[float]] = []
    held_out: list[set[float]] = []

    def spy_fit(_: np.ndarray, fitted: np.ndarray) -> float:
        seen.append(set(fitted[:, 0].tolist()))
        return 1.0

    def spy_scale(scaled: np.ndarray, _: float) -> np.ndarray:
        held_out.append(set(scaled[:, 0].tolist()))
        return scaled

    monkeypatch.setattr(calibration, "fit_temperature", spy_fit)
    monkeypatch.setattr(calibration, "scale_probabilities", spy_scale)
    calibrate(target, probs, ("a", "b"), patients=patients)
    assert len(held_out) == 5
    assert all(not fit & rest for fit, rest in zip(seen, held_out, strict=False))


def test_probabilities_of_zero_and_one_stay_finite() -> None:
    fitted = calibrate(np.array([0, 1, 0, 1, 0, 0]), np.eye(2)[[0, 1, 0, 1, 0, 1]], ("a", "b"))
    assert np.isfinite(fitted.temperature)
    assert fitted.after is not None
    assert np.isfinite(fitted.after.nll)


def test_an_answer_that_is_always_right_has_no_finite_optimum_and_says_so() -> None:
    target = np.tile([0, 1], 5)
    fitted = calibrate(target, np.where(np.eye(2)[target] == 1, 0.8, 0.2), ("a", "b"))
    assert "outside the range" in fitted.reason
    assert fitted.temperature < 0.06


@pytest.mark.parametrize("target", [[0], [1, 1, 1]], ids=["one case", "one class"])
def test_without_two_patients_and_two_classes_nothing_is_fitted(target: list[int]) -> None:
    fitted = calibrate(np.array(target), np.tile([0.4, 0.6], (len(target), 1)), ("a", "b"))
    assert (fitted.temperature, fitted.after) == (1.0, None)
    assert "two patients and two classes" in fitted.reason


def test_rows_that_do_not_sum_to_one_are_an_error() -> None:
    with pytest.raises(DatasetError, match="sum to 1"):
        calibrate(np.array([0, 1]), np.array([[0.5, 0.4], [0.5, 0.5]]), ("a", "b"))
