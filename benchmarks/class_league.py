"""Branches side by side on one frozen segmentation network: equal steps, the same patches, several seeds.

python benchmarks/class_league.py --out FILE.json --checkpoint SEGMENTATION.ckpt --steps 800 --seeds 3 \\
    [--branch CHOICE ...] -- OPTIONS_OF_MAIN_PY

The network runs once per batch and once per window; all branches learn from, and are asked about, the same
features. That is what `main.py --learn classification --freeze backbone` does for one branch at a time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_loading.loader import Shard, TrainingLoader  # noqa: E402
from nnunet.blocks import flatten_depth, restore_depth  # noqa: E402
from nnunet.evaluation.baselines import volume_baseline  # noqa: E402
from nnunet.evaluation.bootstrap import Resampling  # noqa: E402
from nnunet.evaluation.classification import summarise_classification  # noqa: E402
from nnunet.inference.sliding_window import predict_volume  # noqa: E402
from nnunet.losses.multi_task import MultiTaskLoss  # noqa: E402
from nnunet.network import Architecture, MultiTaskUNet  # noqa: E402
from nnunet.training.checkpoint import load_model  # noqa: E402
from nnunet.training.optimisers import (  # noqa: E402
    ParameterGroup,
    build_optimiser,
    build_schedule,
    set_learning_rate,
)
from scripts.assemble import build_loss, build_training_loader, window_rule  # noqa: E402
from scripts.benchmark_record import machine_record  # noqa: E402
from scripts.fold_data import FoldCases, read_fold  # noqa: E402
from scripts.model_run import planned_voxel_ml  # noqa: E402
from scripts.run_options import RunOptions  # noqa: E402
from scripts.run_recipes import read_command  # noqa: E402
from utils.contracts import ModelOutput, Plan  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.run_log import progress, say  # noqa: E402
from utils.storage import read_array, write_json  # noqa: E402

SCHEMA = 1
CHOICES = (
    "bottleneck",
    "simple",
    "multi_scale",
    "roi_scaled",
    "memory_query",
    "roi_pooled",
    "roi_pooled:target_share=0",
    "roi_pooled:target_share=1",
    "roi_pooled:image=false,shape=false",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backbone:
    """What a frozen network says of a batch, for branches that read different parts of it."""

    features: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    image: Tensor
    logits: Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class Entrant:
    """One branch with one seed: its module, the average of its weights, and what it has cost."""

    choice: str
    seed: int
    host: MultiTaskUNet  # a whole network for its branch alone: what the branch reads is decided there
    averaged: AveragedModel
    optimiser: torch.optim.Optimizer
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def logits(self, branch: nn.Module, seen: Backbone, guide: Tensor | None = None) -> Tensor:
        """(B, K) of `branch`, the entrant's own or its average."""
        read = (*seen.features, *(seen.maps if self.host.reads_decoder else ()))
        return branch((*read, seen.image) if self.host.reads_image else read, seen.logits, guide)


def enter(choice: str, seed: int, plan: Plan, trained: Architecture, options: RunOptions) -> Entrant:
    """A new branch in a network of the trained one's shape; only the branch learns."""
    torch.manual_seed(seed)
    host = MultiTaskUNet(plan, replace(trained, branch=choice))
    branch = host.branch
    assert branch is not None
    host.encoder = host.decoder = nn.Identity()  # the shared network stands for them
    averaging = get_ema_multi_avg_fn(options.optimiser.ema)
    group = ParameterGroup(part="branch", parameters=tuple(branch.parameters()))
    return Entrant(
        choice=choice,
        seed=seed,
        host=host,
        averaged=AveragedModel(branch, multi_avg_fn=averaging, use_buffers=True).eval(),
        optimiser=build_optimiser([group], options.optimiser, fused=False),
    )


@torch.no_grad()
def look(network: MultiTaskUNet, image: Tensor) -> Backbone:
    """The frozen network's maps and label logits for (B, C, D, H, W)."""
    flat = flatten_depth(image, network.dims)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.encoder(flat)
        logits, maps = network.decoder.decode(features, keep_maps=True)
    return Backbone(features=tuple(features), maps=tuple(maps), image=flat, logits=logits[0])


def train(
    entrants: Sequence[Entrant],
    network: MultiTaskUNet,
    batches: TrainingLoader,
    loss: MultiTaskLoss,
    options: RunOptions,
) -> None:
    """Each batch passes through the network once and moves every branch by one step."""
    schedule, total = build_schedule(options.optimiser), len(batches)
    clip = options.optimiser.gradient_clip_val
    for step, batch in enumerate(progress(batches, total=total, label="Steps")):
        loss.progress = step / total
        seen = look(network, batch.image)
        guide = flatten_depth(batch.label[0], network.dims)
        for entrant in entrants:
            started = time.perf_counter()
            branch = entrant.host.branch
            assert branch is not None
            set_learning_rate(entrant.optimiser, schedule.factor(loss.progress, step))
            logits = entrant.logits(branch.train(), seen, guide)
            output = ModelOutput(
                label_logits=(restore_depth(seen.logits, network.dims),), class_logits=logits
            )
            terms = loss(output, batch)
            entrant.optimiser.zero_grad()
            terms.total.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(branch.parameters(), clip)
            entrant.optimiser.step()
            entrant.averaged.update_parameters(branch)
            entrant.losses.append(float(terms.classification))
            entrant.seconds += time.perf_counter() - started


def answers(
    entrants: Sequence[Entrant], network: MultiTaskUNet, options: RunOptions, fold: FoldCases
) -> tuple[list[np.ndarray], np.ndarray]:
    """Per entrant (N, K) class probabilities of the held-out cases; (N, labels) predicted millilitres."""
    rule = window_rule(options.inference, fold.plan, mirror=False)
    probs: list[list[np.ndarray]] = [[] for _ in entrants]
    volumes = []
    for case in progress(fold.validation, total=len(fold.validation), label="Held-out cases"):
        volume = torch.from_numpy(np.array(read_array(case.image), dtype=np.float32)).unsqueeze(0)
        seen: list[Backbone] = []
        for place, entrant in enumerate(entrants):
            output = predict_volume(_asked(entrant, network, seen), volume, rule)
            assert output.class_probs is not None
            probs[place].append(output.class_probs.numpy())
            if place == 0:
                label = output.label_logits.argmax(dim=0)
                counts = torch.bincount(label.flatten(), minlength=fold.plan.num_labels)[1:]
                volumes.append(counts.numpy() * planned_voxel_ml(case.footprint))
    return [np.stack(rows) for rows in probs], np.stack(volumes)


def _asked(entrant: Entrant, network: MultiTaskUNet, seen: list[Backbone]) -> Callable[[Tensor], ModelOutput]:
    """The network with the entrant's averaged branch; windows come in the same order for every entrant."""
    calls = iter(range(10**9))

    def network_with_branch(windows: Tensor) -> ModelOutput:
        call = next(calls)
        if call == len(seen):
            seen.append(look(network, windows))
        return ModelOutput(
            label_logits=(restore_depth(seen[call].logits, network.dims),),
            class_logits=entrant.logits(entrant.averaged.module.eval(), seen[call]),
        )

    return network_with_branch


def row_of(found: Sequence[tuple[Entrant, np.ndarray]], fold: FoldCases) -> dict[str, Any]:
    """The seeds of one branch: macro-F1 of each, their mean, and the scores of the mean answer of a seed."""
    target = np.array([case.class_target for case in fold.validation])
    runs = []
    for entrant, probs in found:
        summary = summarise_classification(
            target, probs, fold.plan.class_names, resampling=Resampling(seed=0)
        ).to_json()
        kept = ("macro_f1", "balanced_accuracy", "auroc", "nll", "ece", "collapse")
        last = entrant.losses[-max(len(entrant.losses) // 10, 1) :]
        runs.append(
            {
                "seed": entrant.seed,
                **{name: summary[name] for name in kept},
                "macro_f1_interval": summary["intervals"]["macro_f1"],
                "confusion": summary["confusion"]["counts"],
                "train_class_loss_at_end": float(np.mean(last)),
                "seconds_of_branch": round(entrant.seconds, 1),
            }
        )
    scores = [run["macro_f1"] for run in runs]
    host = found[0][0].host
    return {
        "parameters": sum(weight.numel() for weight in host.branch.parameters()) if host.branch else 0,
        "macro_f1_mean": float(np.mean(scores)),
        "macro_f1_all": scores,
        "runs": runs,
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Branches on one frozen network, at equal steps.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a segmentation network")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--branch", action="append", help="instead of all; may be repeated")
    parser.add_argument("--note", default="", help="what else has to be known about the runs")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="-- options of main.py")
    return parser.parse_args()


def league(checkpoint: Path, choices: Sequence[str], options: RunOptions, *, seeds: int) -> dict[str, Any]:
    """Train all branches on the frozen network of `checkpoint`, ask them, and score them."""
    fold = read_fold(options)
    trained = load_model(checkpoint, torch.device("cpu"))
    seen = set(trained.training_cases) & {case.case_id for case in fold.validation}
    if seen:
        raise UserError(f"{len(seen)} of the held-out cases have trained {checkpoint}. Give its --fold.")
    entrants = [
        enter(choice, seed, trained.plan, trained.architecture, options)
        for choice in choices
        for seed in range(seeds)
    ]
    batches = build_training_loader(options, fold, 1, Shard(on_host=True, in_memory=True))
    drawn_evenly = options.loader.balance_classes
    loss = build_loss(options.loss, fold, drawn_evenly=drawn_evenly, segmentation_learns=False)
    started = time.perf_counter()
    train(entrants, trained.network, batches, loss, options)
    seconds = time.perf_counter() - started
    probs, volumes = answers(entrants, trained.network, options, fold)
    found = list(zip(entrants, probs, strict=True))
    target = np.array([case.class_target for case in fold.validation])
    patients = [case.patient_id for case in fold.validation]
    return {
        "network": {
            "training_cases": len(trained.training_cases),
            "parameters": sum(weight.numel() for weight in trained.network.parameters()),
        },
        "steps": len(batches),
        "batch_size": batches.rule.batch_size,
        "seconds_of_all": round(seconds, 1),
        "held_out": len(fold.validation),
        "volume_alone": volume_baseline(target, volumes, fold.plan.class_names, patients=patients),
        "branches": {
            choice: row_of([pair for pair in found if pair[0].choice == choice], fold) for choice in choices
        },
    }


def main() -> None:
    """Train, ask, write."""
    chosen = parse_arguments()
    words = [option for option in chosen.options if option != "--"]
    read = read_command(words, program="class_league.py", description=__doc__ or "")
    loader = replace(read.options.loader, steps_per_epoch=chosen.steps)
    options = replace(read.options, loader=loader)
    result = league(chosen.checkpoint, tuple(chosen.branch or CHOICES), options, seeds=chosen.seeds)
    about = {"schema": SCHEMA, "machine": machine_record(None), "note": chosen.note}
    write_json(chosen.out, about | result)
    for choice, row in sorted(result["branches"].items(), key=lambda item: -item[1]["macro_f1_mean"]):
        scores = ", ".join(f"{score:.3f}" for score in row["macro_f1_all"])
        say(f"{row['macro_f1_mean']:.3f}  {choice}  ({scores})")


if __name__ == "__main__":
    main()
