"""Parts of the cases to predict: disjoint, complete, in files of their own."""

from pathlib import Path

import pytest

from scripts.prediction_shard import PredictionShard
from utils.errors import UserError


@pytest.mark.parametrize("count", [1, 2, 4, 13, 20])
def test_the_parts_are_disjoint_and_complete_whatever_the_order_of_the_cases(count: int) -> None:
    names = [f"case_{number:02d}" for number in (3, 1, 12, 0, 7, 5, 2, 4, 6, 11, 8, 10, 9)]
    parts = [
        PredictionShard.parse(f"{number}/{count}").share_of(order, str)
        for number, order in zip(range(1, count + 1), [names, names[::-1]] * count, strict=False)
    ]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_file_of_a_part_names_it() -> None:
    table = Path("out") / "predictions.csv"
    assert PredictionShard.parse("1/4").file_of(table) == Path("out") / "predictions_1of4.csv"
    assert PredictionShard.parse(None).file_of(table) == PredictionShard.parse("1/1").file_of(table) == table


@pytest.mark.parametrize("text", ["0/4", "5/4", "a", "", "1", "1/0", "-1/4", "1/4/2", "1.0/4"])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="i/n with i from 1 to n"):
        PredictionShard.parse(text)
