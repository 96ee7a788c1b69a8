"""Batch Dice, and cross-entropy with an ignore label, in two processes are those of one with both batches."""

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.nnunet.losses.dice_ranks import (
    NUM_RANKS,
    PER_RANK,
    batch_of,
    gradients,
    loss_of_both,
    run_rank,
    small_network,
    step,
)

ALL = slice(0, NUM_RANKS * PER_RANK)


@pytest.mark.flag("batch_dice")
@pytest.mark.parametrize("ignore_label", [None, 3])
def test_two_ranks_step_as_one_process_with_both_batches(tmp_path: Path, ignore_label: int | None) -> None:
    weights = (1.0, 1.0, 1.0, 1.0)
    spawn(run_rank, (str(tmp_path), weights, ignore_label), nprocs=NUM_RANKS)
    network = small_network()
    expected = step(network, batch_of(ALL, weights, ignore_label), loss_of_both(ignore_label))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]
    # A cross-entropy without an ignore label stays that of a rank's own cases; the mean is that of all.
    assert torch.stack([rank["loss"] for rank in ranks]).mean() == pytest.approx(float(expected), rel=1e-6)
    for rank in ranks:
        for ours, theirs in zip(rank["gradients"], gradients(network), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    own, loss = batch_of(slice(0, PER_RANK), weights, ignore_label), loss_of_both(ignore_label).eval()
    assert float(ranks[0]["validated"]) == float(step(small_network(), own, loss))
