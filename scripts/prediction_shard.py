"""A share of the cases to predict: several jobs, one folder, nothing in it written twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

from utils.errors import UserError

Case = TypeVar("Case")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionShard:
    """Part `number`, from 1, of `count`."""

    number: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str | None) -> PredictionShard:
        """`2/4` as number 2 of 4, None as the whole; UserError where it is neither."""
        if text is None:
            return PredictionShard()
        parts = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
        number, count = (int(part) for part in parts.groups()) if parts else (0, 0)
        if not 1 <= number <= count:
            raise UserError(f"--shard should be i/n with i from 1 to n, as 1/4, got {text!r}.")
        return PredictionShard(number=number, count=count)

    @property
    def is_whole(self) -> bool:
        """Whether there is no other part."""
        return self.count == 1

    def share_of(self, cases: Sequence[Case], name: Callable[[Case], str]) -> tuple[Case, ...]:
        """Every `count`-th of the cases in the order of their names, so that neighbours are spread."""
        return tuple(sorted(cases, key=name)[self.number - 1 :: self.count])

    def file_of(self, path: Path) -> Path:
        """The part's own file: predictions.csv is predictions_2of4.csv; of a whole it keeps its name."""
        if self.is_whole:
            return path
        return path.with_name(f"{path.stem}_{self.number}of{self.count}{path.suffix}")
