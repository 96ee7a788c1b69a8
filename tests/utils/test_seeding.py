"""One seed gives every stream its own, the same everywhere."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.seeding import seed_everything, seed_for

ROOT = Path(__file__).resolve().parents[2]


def test_the_value_is_the_same_in_another_process() -> None:
    code = "from utils.seeding import seed_for; print(seed_for(1, 'patch', 7))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": "99"}, capture_output=True, check=True
    )
    assert int(answer.stdout) == seed_for(1, "patch", 7) == 3280871063698954387


def test_streams_do_not_collide_and_fit_63_bits() -> None:
    seeds = [seed_for(seed, name, i) for seed in range(5) for name in ("a", "b") for i in range(1000)]
    assert len(set(seeds)) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_number_a_text_and_their_grouping_are_told_apart() -> None:
    assert len({seed_for(1, 2), seed_for(1, "2"), seed_for(12), seed_for(1, 2, 0), seed_for(1, -2)}) == 5


def test_numpy_integers_count_as_integers() -> None:
    assert seed_for(1, int(np.int64(4))) == seed_for(1, np.int64(4))  # pyright: ignore[reportArgumentType]


def test_a_fraction_is_refused() -> None:
    with pytest.raises(TypeError):
        seed_for(0.5)  # pyright: ignore[reportArgumentType]


def test_every_global_generator_repeats_after_seeding() -> None:
    def draw() -> tuple[float, float]:
        seed_everything(seed_for(3))
        return random.random(), torch.rand(1).item()

    assert draw() == draw()
