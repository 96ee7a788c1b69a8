"""The command line, the TOML file and the defaults meet in one checked record."""

import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from utils import options
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How the weights move."""

    learning_rate: float = 0.1
    """Step length."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    warm_up: int | None = None

    def __post_init__(self) -> None:
        if self.learning_rate > 5:
            raise ValueError("learning_rate should be at most 5")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run."""

    folder: Path = field(metadata={"aliases": ("-i",)})
    """Where the cases are."""
    optimiser_options: Optimiser = field(default_factory=Optimiser)
    amp: bool = False
    """Mixed precision,
    which is faster."""
    flip: bool = field(default=False, metadata={"off_aliases": ("--unflipped",)})
    """Flips."""
    mirror: bool = True
    """Average mirrored views."""
    folds: tuple[int, ...] = (0,)
    patch: tuple[int, int, int] | None = None
    names: tuple[str, ...] = ()
    batch_dice: bool | None = None


def parse(*argv: str, toml: str | None = None, tmp_path: Path | None = None) -> Run:
    if toml is not None and tmp_path is not None:
        (tmp_path / "run.toml").write_text(toml, encoding="utf-8")
        argv = ("--config", str(tmp_path / "run.toml"), *argv)
    return options.parse(Run, argv, program="run", description="Runs.")


def test_nested_options_are_flat_on_the_command_line() -> None:
    run = parse(
        "--folder", "cases", "--learning_rate", "0.5", "--amp", "--folds", "1", "2", "--patch", "1", "2", "3"
    )
    assert run == Run(
        folder=Path("cases"),
        optimiser_options=Optimiser(learning_rate=0.5),
        amp=True,
        folds=(1, 2),
        patch=(1, 2, 3),
    )


def test_an_alias_stands_for_the_full_name() -> None:
    assert parse("-i", "cases") == parse("-i=cases") == parse("--folder", "cases")


def test_a_switch_that_is_on_can_be_turned_off() -> None:
    assert parse("-i", "cases", "--no_mirror").mirror is False


def test_the_file_wins_over_the_defaults_and_the_command_line_over_the_file(tmp_path: Path) -> None:
    toml = 'folder = "cases"\nlearning_rate = 2\namp = true\nmirror = false\nfolds = [3, 4]'
    run = parse("--no_amp", "--folds", "5", toml=toml, tmp_path=tmp_path)
    assert (run.optimiser_options.learning_rate, run.amp, run.mirror, run.folds) == (2.0, False, False, (5,))


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_with_a_third_state_can_stand_in_the_file(value: bool, tmp_path: Path) -> None:  # noqa: FBT001
    assert parse("-i", "cases").batch_dice is None
    assert (
        parse("-i", "cases", toml=f"batch_dice = {str(value).lower()}", tmp_path=tmp_path).batch_dice is value
    )


def test_of_two_files_the_later_one_wins(tmp_path: Path) -> None:
    for name, amp in (("first", "true"), ("second", "false")):
        (tmp_path / f"{name}.toml").write_text(f"amp = {amp}\nwarm_up = 3", encoding="utf-8")
    run = parse("-i=c", f"--config={tmp_path / 'first.toml'}", "--config", str(tmp_path / "second.toml"))
    assert (run.amp, run.optimiser_options.warm_up) == (False, 3)


def test_values_that_look_like_flags_survive_the_file(tmp_path: Path) -> None:
    run = parse(toml='folder = "-x y"\nlearning_rate = -1e-3\nfolds = [-1]', tmp_path=tmp_path)
    assert (run.folder, run.optimiser_options.learning_rate, run.folds) == (Path("-x y"), -1e-3, (-1,))


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("learning_rat = 1", "no option is called 'learning_rat'. Did you mean 'learning_rate'"),
        ("[optimiser_options]\nlearning_rate = 1", "options are flat"),
        ('learning_rate = "fast"', "learning_rate should be a number, got 'fast'"),
        ("learning_rate = true", "learning_rate should be a number, got True"),
        ("amp = 1", "amp should be true or false, got 1"),
        ("folds = [0.5]", "folds should be a list"),
        ("patch = [1, 2]", "patch should be a list of 3 values"),
        ("warm_up = true", "warm_up should be a whole number"),
        ('optimiser = "sdg"', "optimiser should be one of"),
        ('names = ["-a"]', "starts with a dash"),
        ("amp = ", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_reason(
    toml: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="run.toml") as caught:
        parse("-i", "cases", toml=toml, tmp_path=tmp_path)
    assert message in str(caught.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml cannot be read"):
        parse("-i", "cases", "--config", "nowhere.toml")


def test_config_without_a_path_is_refused() -> None:
    with pytest.raises(UserError, match="needs the path of a TOML file"):
        parse("-i", "cases", "--config")


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("-i", "c", "--learning_rat", "1"),
        ("-i", "c", "--patch", "1"),
        ("-i", "c", "--learning_rate", "6"),
    ],
    ids=["missing", "unknown", "too few values", "refused by the dataclass"],
)
def test_a_wrong_command_line_ends_with_status_2_and_points_to_help(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert "--help" in printed.err


def test_a_good_command_line_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    parse("-i", "cases")
    assert capsys.readouterr() == ("", "")


def shown_help(capsys: pytest.CaptureFixture[str], rules: options.OptionRules = options.NO_RULES) -> str:
    """What --help prints, without frame and line breaks."""
    with pytest.raises(SystemExit) as caught:
        options.parse(Run, ["--amp", "--help"], program="run", description="Runs.", rules=rules)
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_shows_a_switch_by_the_name_that_turns_it_on(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    assert "--amp Mixed precision, which is faster. (default: off)" in text
    assert "--no_amp" not in text


def test_help_shows_a_switch_that_is_on_by_both_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--mirror, --no_mirror Average mirrored views. (default: on)" in shown_help(capsys)


def test_help_tells_the_other_names_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    assert "Where the cases are. Also: -i. (required)" in text
    assert "Flips. Also: --unflipped (turns it off). (default: off)" in text


def test_help_calls_an_empty_list_unset(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    assert "--names [STR [STR ...]] (default: unset)" in text
    assert "--learning_rate FLOAT Step length. (default: 0.1)" in text


def test_the_same_name_in_two_groups_is_refused_at_once() -> None:
    @dataclass(frozen=True)
    class Clash:
        optimiser_options: Optimiser = field(default_factory=Optimiser)
        warm_up: int = 1

    with pytest.raises(ValueError, match="--warm_up occurs twice: in Optimiser and in Clash"):
        options.flatten(Clash)


def test_describe_is_flat_and_plain() -> None:
    described = options.describe(Run(folder=Path("cases"), folds=(1, 2)))
    assert described["learning_rate"] == 0.1
    assert (described["folder"], described["folds"], described["patch"]) == ("cases", [1, 2], None)
    assert "optimiser_options" not in described


def test_importing_the_module_imports_neither_tyro_nor_torch() -> None:
    code = "import sys, utils.options; print(sorted({'tyro', 'torch', 'nvidia'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_help_of_forty_flags_takes_less_than_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import make_dataclass

    many = make_dataclass("Many", [(f"flag_{i}", int, field(default=i)) for i in range(40)], frozen=True)
    start = time.process_time()  # a busy machine must not decide
    with pytest.raises(SystemExit):
        options.parse(many, ["--help"], program="many", description="Many.")
    assert time.process_time() - start < 1.0
    assert "--flag_39" in capsys.readouterr().out


RULES = options.OptionRules(
    preset="optimiser",
    usual_preset="sgd",
    presets={"sgd": {"warm_up": 5}, "adam": {"learning_rate": 0.5, "amp": True, "folds": [1, 2]}},
    refused={"bind": "--bind is not here: use --folder.", "optimiser=fused": "--optimiser fused is gone."},
)


def with_rules(*argv: str) -> Run:
    return options.parse(Run, ["-i", "c", *argv], program="run", description="Runs.", rules=RULES)


def test_a_preset_changes_defaults_and_loses_against_everything_else(tmp_path: Path) -> None:
    adam = with_rules("--optimiser", "adam")
    assert (adam.optimiser_options.learning_rate, adam.amp, adam.folds) == (0.5, True, (1, 2))
    assert with_rules("--optimiser=adam", "--no_amp", "--learning-rate", "3").amp is False
    path = tmp_path / "run.toml"
    path.write_text('learning_rate = 2\noptimiser = "adam"', encoding="utf-8")
    from_file = with_rules("--config", str(path))
    assert (from_file.optimiser_options.learning_rate, from_file.amp) == (2, True)


def test_without_a_choice_the_usual_preset_holds() -> None:
    assert (with_rules().optimiser_options.warm_up, with_rules("--optimiser", "sgd").amp) == (5, False)
    assert with_rules("--optimiser", "adam").optimiser_options.warm_up is None


def test_each_option_knows_who_set_it_last(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("amp = true\nwarm_up = 7\nmirror = false", encoding="utf-8")
    argv = ["-i", "c", "--optimiser=adam", "--config", str(path), "--no-mirror", "--patch", "1", "2", "3"]
    assert options.origins(options.option_layers(Run, argv, RULES)) == {
        "learning_rate": "optimiser adam",
        "amp": str(path),
        "folds": "optimiser adam",
        "warm_up": str(path),
        "mirror": "command line",
        "folder": "command line",
        "optimiser": "command line",
        "patch": "command line",
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bind"], "--bind is not here: use --folder"),
        (["--bind=x"], "--bind is not here"),
        (["--optimiser", "fused"], "--optimiser fused is gone"),
        (["--optimiser=fused"], "--optimiser fused is gone"),
    ],
)
def test_a_refused_option_says_what_to_use(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_rules(*argv)


@pytest.mark.parametrize(
    ("content", "message"), [('{"bind": true}', "--bind is not here"), ('{"optimiser": "fused"}', "is gone")]
)
def test_a_refused_option_is_refused_in_a_file_too(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        with_rules("--config", str(tmp_path / "run.json"))


def test_a_json_file_serves_as_well_and_null_leaves_an_option_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"warm_up": null, "amp": true, "folds": [3]}', encoding="utf-8")
    run = with_rules("--config", str(tmp_path / "run.json"))
    assert (run.optimiser_options.warm_up, run.amp, run.folds) == (5, True, (3,))


@pytest.mark.parametrize(
    ("content", "message"), [("[1]", "should hold one object"), ("{", r"run\.json is not valid JSON")]
)
def test_a_wrong_json_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        with_rules("--config", str(tmp_path / "run.json"))


def test_a_second_name_can_turn_a_switch_off() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Views:
        tta: bool = field(default=True, metadata={"off_aliases": ("--disable_tta",)})

    argv = ["--disable_tta"]
    assert options.parse(Views, argv, program="run", description="").tta is False
    assert options.origins(options.option_layers(Views, argv)) == {"tta": "command line"}


def test_help_tells_where_options_come_from_the_strongest_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    assert "--config FILE.toml" in text
    assert "counts in this order: the command line, --config (the last one first), the default." in text
    layered = replace(RULES, environment={"learning_rate": "RUN_RATE"})
    layers = "--config (the last one first), an environment variable, --optimiser, the default."
    assert f"counts in this order: the command line, {layers}" in shown_help(capsys, layered)


def test_the_environment_is_stronger_than_a_preset_and_weaker_than_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = replace(RULES, environment={"warm_up": "A_WARM_UP", "learning_rate": "A_RATE"})

    def read(*argv: str) -> tuple[int | None, dict[str, str]]:
        words = ["-i", "c", *argv]
        run = options.parse(Run, words, program="run", description="", rules=rules)
        return run.optimiser_options.warm_up, options.origins(options.option_layers(Run, words, rules))

    monkeypatch.delenv("A_WARM_UP", raising=False)
    monkeypatch.setenv("A_RATE", "")
    assert read()[0] == 5
    monkeypatch.setenv("A_WARM_UP", "8")
    warm_up, origins = read()
    assert (warm_up, origins["warm_up"]) == (8, "environment A_WARM_UP")
    assert "learning_rate" not in origins
    (tmp_path / "run.toml").write_text("warm_up = 9", encoding="utf-8")
    assert read("--config", str(tmp_path / "run.toml"))[0] == 9
    assert read("--warm_up", "10")[0] == 10
