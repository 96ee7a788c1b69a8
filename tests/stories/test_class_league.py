"""The league of branches on one frozen network: the same answers as a network that has the branch itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.class_league import answers, enter, league, look, train
from data_loading.loader import Shard
from nnunet.inference.sliding_window import predict_volume
from nnunet.network import MultiTaskUNet
from nnunet.training.checkpoint import TrainedModel, load_model
from scripts import train as training
from scripts.assemble import build_loss, build_training_loader, window_rule
from scripts.fold_data import read_fold
from scripts.model_run import find_checkpoint
from scripts.run_options import RunOptions
from utils.errors import UserError
from utils.storage import read_array

pytestmark = pytest.mark.story
CHOICES = ("bottleneck", "roi_pooled", "multi_scale", "roi_scaled", "memory_query")


@pytest.fixture(scope="module")
def options(run_options: Callable[..., RunOptions], tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    """Those of a short training of the segmentation alone, which is then done."""
    results = tmp_path_factory.mktemp("segmentation")
    chosen = run_options(
        results, "--learn", "segmentation", "--epochs", "1", "--ema", "0.5", "--learning_rate", "0.01"
    )
    training.run(chosen)
    return chosen


@pytest.fixture
def trained(options: RunOptions) -> TrainedModel:
    return load_model(find_checkpoint(options.results), torch.device("cpu"))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_branch_answers_as_a_network_that_has_it(
    options: RunOptions, trained: TrainedModel, choice: str
) -> None:
    fold = read_fold(options)
    entrants = [enter(choice, seed, trained.plan, trained.architecture, options) for seed in (0, 1)]
    (first, second), _ = answers(entrants, trained.network, options, fold)
    assert not np.allclose(first, second)
    whole = MultiTaskUNet(trained.plan, replace(trained.architecture, branch=choice)).eval()
    whole.encoder, whole.decoder = trained.network.encoder, trained.network.decoder
    whole.branch = entrants[1].averaged.module
    image = torch.from_numpy(np.array(read_array(fold.validation[0].image), np.float32)).unsqueeze(0)
    rule = window_rule(options.inference, fold.plan, mirror=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = predict_volume(whole, image, rule).class_probs
    assert alone is not None
    np.testing.assert_allclose(second[0], alone.numpy(), atol=2e-2)


def test_training_moves_the_branches_and_never_the_network(
    options: RunOptions, trained: TrainedModel
) -> None:
    fold = read_fold(options)
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    entrant = enter("roi_pooled", 0, trained.plan, trained.architecture, options)
    assert entrant.host.branch is not None
    start = [weight.clone() for weight in entrant.host.branch.parameters()]
    batches = build_training_loader(options, fold, 1, Shard(on_host=True, in_memory=True))
    train([entrant], trained.network, batches, build_loss(options.loss, fold), options)
    assert all(torch.equal(value, before[name]) for name, value in trained.network.state_dict().items())
    moved = list(entrant.host.branch.parameters())
    assert not any(torch.equal(one, other) for one, other in zip(start, moved, strict=True))
    assert len(entrant.losses) == len(batches) == 2


def test_the_shared_maps_are_those_of_the_network(trained: TrainedModel) -> None:
    image = torch.randn(1, 1, *trained.plan.patch)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(look(trained.network, image).logits, trained.network(image).label_logits[0])


def test_a_league_scores_every_branch_and_seed(options: RunOptions) -> None:
    checkpoint = find_checkpoint(options.results)
    result = league(checkpoint, ("bottleneck", "roi_pooled"), options, seeds=2)
    assert list(result["branches"]) == ["bottleneck", "roi_pooled"]
    for row in result["branches"].values():
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        assert row["macro_f1_mean"] == pytest.approx(np.mean(row["macro_f1_all"]))
        assert all(sum(map(sum, run["confusion"])) == result["held_out"] == 3 for run in row["runs"])


def test_held_out_cases_that_trained_the_network_are_refused(options: RunOptions, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(options.results)
    content = torch.load(checkpoint, weights_only=True)
    content["multitask_nnunet"]["training_cases"].append(read_fold(options).validation[0].case_id)
    torch.save(content, tmp_path / "seen.ckpt")
    with pytest.raises(UserError, match="1 of the held-out cases"):
        league(tmp_path / "seen.ckpt", ("bottleneck",), options, seeds=1)
