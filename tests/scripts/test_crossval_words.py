"""Words of a command line from options, and options from a log."""

import json
from pathlib import Path

import pytest

from scripts.crossval_words import OWN, options_of, prediction_words, without, words_for_folds, words_of
from scripts.run_options import RunOptions
from scripts.run_recipes import read_command
from utils.options import describe

WORDS = ["--recipe", "nnunet", "--data", "/d", "--epochs", "3", "--no_tta", "--filters", "8", "16"]
WORDS += ["--branch", "none", "--results", "/r", "--folds", "1", "2", "--class_loss", "focal:gamma=1"]


def parsed(words: list[str]) -> RunOptions:
    return read_command(words, program="test", description="").options


def test_options_and_their_values_are_left_out() -> None:
    words = ["--a", "1", "2", "--no_b", "--c-d=3", "--e"]
    assert without(words, {"a", "b", "c_d"}) == ("--e",)
    assert without(words, {"e"}) == ("--a", "1", "2", "--no_b", "--c-d=3")


def test_a_fold_is_told_what_was_typed_or_stands_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('learning_rate = 0.5\nfolds = [3]\nresults = "/else"\n', encoding="utf-8")
    words = words_for_folds(["--config", str(file), "--recipe", "nnunet", "--folds", "1", "2", "--amp"])
    assert words == ("--learning_rate=0.5", "--recipe", "nnunet", "--amp")


def test_a_log_gives_the_options_back() -> None:
    options = parsed(WORDS)
    logged = json.loads(json.dumps(describe(options) | {"origins": {}, "of_a_later_program": 1}))
    assert options_of(logged, "a log") == options
    assert options_of({}, "an empty log") == RunOptions()


def test_the_words_of_options_are_short_and_mean_them() -> None:
    options = parsed(WORDS)
    assert parsed(list(words_of(options))) == options
    assert "--tta" not in words_of(options)
    assert words_of(parsed(["--recipe", "nnunet"])) == ("--recipe", "nnunet")
    assert "--results" not in words_of(options, but=OWN)
    assert words_of(RunOptions()) == ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], ()), (["--recipe", "nnunet"], ("--tta", "--amp")), (["--overlap", "0.25"], ("--overlap", "0.25"))],
)
def test_a_prediction_repeats_what_changes_predictions(words: list[str], expected: tuple[str, ...]) -> None:
    assert prediction_words(parsed([*words, "--epochs", "5"])) == expected
