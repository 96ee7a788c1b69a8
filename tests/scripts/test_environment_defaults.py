"""Variables of other systems are the weakest defaults but for a recipe's, and of training alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.environment_defaults import refuse_other_class_count
from scripts.run_recipes import RunCommand, read_command, training_script_rules
from utils.contracts import Plan
from utils.errors import DatasetError, UserError

WEIGHT, CHECKPOINT, CLASSES = (
    "NNUNETV2_MT_LOSS_WEIGHT",
    "NNUNETV2_PRE_CHECKPOINT_PATH",
    "NNUNETV2_MT_NUM_CLS",
)


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEIGHT, CHECKPOINT, CLASSES):
        monkeypatch.delenv(name, raising=False)


def command(*words: str, program: str = "main.py") -> RunCommand:
    return read_command(words, program=program, description="")


def test_a_variable_is_stronger_than_a_recipe_and_weaker_than_a_file_or_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(WEIGHT, "0.7")
    recipe = command("--recipe", "CLSHeadSum")
    assert recipe.options.loss.class_loss_weight == 0.7
    assert recipe.origins["class_loss_weight"] == f"environment {WEIGHT}"
    (tmp_path / "run.toml").write_text("class_loss_weight = 0.8", encoding="utf-8")
    words = ["--config", str(tmp_path / "run.toml")]
    assert command(*words).options.loss.class_loss_weight == 0.8
    typed = command(*words, "--class_loss_weight", "0.9")
    assert typed.options.loss.class_loss_weight == 0.9
    assert typed.origins["class_loss_weight"] == "command line"


def test_a_checkpoint_to_start_from_counts_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECKPOINT, "first.ckpt")
    found = command()
    assert found.options.ckpt_path == Path("first.ckpt")
    assert found.origins["ckpt_path"] == f"environment {CHECKPOINT}"
    assert command("--ckpt_path", "other.ckpt").options.ckpt_path == Path("other.ckpt")
    for words in (["--exec_mode", "predict"], ["--exec_mode", "evaluate"], ["--benchmark"]):
        assert command(*words).options.ckpt_path is None
    assert command(program="inference.py").options.ckpt_path is None
    assert command("--resume_training").options.ckpt_path is None


def test_the_training_script_reads_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHT, "0.7")
    rules = training_script_rules([])
    options = read_command([], program="train.py", description="", rules=rules).options
    assert (options.loss.class_loss_weight, options.training.epochs) == (0.7, 300)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHT, "")
    found = command()
    assert found.options.loss.class_loss_weight == 0.3
    assert "class_loss_weight" not in found.origins


def test_a_weight_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHT, "much")
    with pytest.raises(UserError, match=f"{WEIGHT} should be a number, got 'much'"):
        command()


@pytest.mark.parametrize("value", ["", "2"])
def test_the_datasets_number_of_classes_passes(
    monkeypatch: pytest.MonkeyPatch, make_plan: Callable[..., Plan], value: str
) -> None:
    monkeypatch.setenv(CLASSES, value)
    refuse_other_class_count(make_plan())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", f"{CLASSES} is 3, but Dataset001_Tiny has 2 classes: benign, malignant"),
        ("two", f"{CLASSES} should be a whole number, got 'two'"),
    ],
)
def test_another_number_of_classes_is_refused(
    monkeypatch: pytest.MonkeyPatch, make_plan: Callable[..., Plan], value: str, message: str
) -> None:
    monkeypatch.setenv(CLASSES, value)
    with pytest.raises(UserError, match=message):
        refuse_other_class_count(make_plan())


def test_a_dataset_without_classes_has_none(
    monkeypatch: pytest.MonkeyPatch, make_plan: Callable[..., Plan]
) -> None:
    monkeypatch.setenv(CLASSES, "2")
    with pytest.raises(DatasetError, match="has 0 classes. The number"):
        refuse_other_class_count(make_plan(num_classes=0, class_names=()))
