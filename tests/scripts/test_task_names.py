"""Which dataset `--task` means: preprocess.py finds the raw folder, main.py the prepared one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_preprocessing.dataset import find_dataset
from scripts.fold_data import prepared_folder
from scripts.run_options import RunOptions
from utils.contracts import Plan
from utils.errors import DatasetError, UserError
from utils.prepared_folder import PLAN
from utils.storage import write_json

MakePlan = Callable[..., Plan]


def found(data: Path, task: str) -> str:
    return prepared_folder(RunOptions(data=data, task=task)).name


def write_folders(data: Path, plan: Plan, *names: str) -> None:
    for name in names:
        (data / name).mkdir(parents=True)
        write_json(data / name / PLAN, plan)


@pytest.mark.flag("task")
@pytest.mark.parametrize(
    ("task", "folder"),
    [
        *((task, "010_3d") for task in ("10", "010", "Dataset010_LIDCNodules", "Task10_Colon", "Dataset010")),
        *((task, "04_3d") for task in ("4", "04", "004", "Task04_Hippocampus", "Dataset004_Hippocampus")),
        *((task, "04_3d") for task in ("raw/Task04_Hippocampus", "raw/Task04_Hippocampus/", "04_3d")),
        *((task, "my_scans2_3d") for task in ("my_scans2", "raw/my_scans2")),
        *((task, "2024_scans_3d") for task in ("2024_scans", "raw/2024_scans")),
    ],
)
def test_a_number_a_folder_name_and_a_path_name_the_prepared_folder(
    tmp_path: Path, make_plan: MakePlan, task: str, folder: str
) -> None:
    write_folders(tmp_path, make_plan(), "010_3d", "04_3d", "my_scans2_3d", "2024_scans_3d")
    assert found(tmp_path, task) == folder


@pytest.mark.flag("task")
@pytest.mark.parametrize(
    "task", ["5.00", "5_00", "5e2", "+500", "500.0", "\uff15\uff10\uff10", "\u0665\u0660\u0660"]
)
def test_what_is_not_written_as_a_whole_number_is_no_number(
    tmp_path: Path, make_plan: MakePlan, task: str
) -> None:
    write_folders(tmp_path, make_plan(), "500_3d")
    with pytest.raises(DatasetError, match="no preprocessed folder"):
        found(tmp_path, task)
    (tmp_path / "Dataset500_Made").mkdir()
    with pytest.raises(UserError, match="No dataset for task"):
        find_dataset(tmp_path, task)


def test_two_folders_of_one_number_are_told_apart_by_how_it_is_written(
    tmp_path: Path, make_plan: MakePlan
) -> None:
    write_folders(tmp_path, make_plan(), "04_3d", "004_3d")
    assert found(tmp_path, "04") == found(tmp_path, "Task04_Hippocampus") == "04_3d"
    assert found(tmp_path, "004") == found(tmp_path, "Dataset004_Other") == "004_3d"
    with pytest.raises(UserError, match="--task 4 is ambiguous: .* has 04_3d, 004_3d"):
        found(tmp_path, "4")


def test_a_folder_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no preprocessed folder 010_3d.*--task Dataset010_X --dim 3"):
        found(tmp_path, "Dataset010_X")
