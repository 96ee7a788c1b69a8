"""Every branch inside the network: gradients, target, checkpoint, compilation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnunet.branches import BRANCHES
from nnunet.network import Architecture, MultiTaskUNet
from nnunet.training.checkpoint import MODEL_KEY, load_model, model_card
from utils.contracts import ModelOutput, Plan

REGIONS = ((1, 2), (2,))
NAMES = [spec.name for spec in BRANCHES]


def network_of(plan: Plan, branch: str, encoder: str = "plain") -> MultiTaskUNet:
    torch.manual_seed(0)
    return MultiTaskUNet(plan, Architecture(encoder=encoder, branch=branch, num_outputs=2))


def image_of(plan: Plan) -> Tensor:
    return torch.randn(2, 1, *plan.patch, generator=torch.Generator().manual_seed(1))


def class_logits_of(output: ModelOutput) -> Tensor:
    assert output.class_logits is not None
    return output.class_logits


@pytest.mark.parametrize("encoder", ["plain", "residual", "attention_gated:balance=1"])
@pytest.mark.parametrize("branch", [*NAMES, "roi_pooled:stages=0", "multi_scale:stages=1,arms=encoder"])
@pytest.mark.parametrize("regions", [(), REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("flat", [False, True])
def test_every_parameter_takes_part_in_a_training_step(
    make_plan: Callable[..., Plan],
    encoder: str,
    branch: str,
    regions: tuple[tuple[int, ...], ...],
    *,
    flat: bool,
) -> None:
    """Several processes wait for the gradient of each parameter."""
    plan = make_plan(flat=flat, regions=regions)
    network = network_of(plan, branch, encoder)
    guide = torch.zeros(2, len(regions) or 1, *plan.patch, dtype=torch.int16)
    output = network(image_of(plan), guide)
    assert [level.shape[1] for level in output.label_logits] == [plan.num_logits] * 2
    loss = torch.stack([level.square().mean() for level in output.label_logits]).sum()
    (loss + class_logits_of(output).square().sum()).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("branch", NAMES)
def test_a_checkpoint_brings_the_branch_back(
    make_plan: Callable[..., Plan], branch: str, tmp_path: Path
) -> None:
    plan = make_plan()
    choice = f"{branch}:detach_features=true,dropout=0.2"
    architecture = Architecture(encoder="attention_gated", branch=choice)
    network = MultiTaskUNet(plan, architecture).eval()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, MODEL_KEY: model_card(plan, architecture)}, tmp_path / "model.ckpt")
    loaded = load_model(tmp_path / "model.ckpt", torch.device("cpu"))
    assert loaded.architecture == architecture
    image = image_of(plan)
    assert torch.equal(class_logits_of(loaded.network(image)), class_logits_of(network(image)))


@pytest.mark.parametrize("encoder", ["plain", "attention_gated:balance=1"])
@pytest.mark.parametrize("branch", NAMES)
def test_the_label_logits_do_not_depend_on_the_branch(
    make_plan: Callable[..., Plan], branch: str, encoder: str
) -> None:
    plan = make_plan()
    network, alone = network_of(plan, branch, encoder), network_of(plan, "none")
    assert not alone.load_state_dict(network.state_dict(), strict=False).missing_keys
    found, expected = (part(image_of(plan)).label_logits for part in (network, alone))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_branch_of_the_decoder_sees_its_maps(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    network = network_of(plan, "multi_scale:arms=decoder,stages=0").eval()
    before = class_logits_of(network(image_of(plan)))
    with torch.no_grad():
        for weight in network.decoder.stages[-1].parameters():
            weight.mul_(2)
    assert not torch.allclose(class_logits_of(network(image_of(plan))), before)


def test_the_target_reaches_a_branch_that_takes_it_in_training_alone(
    make_plan: Callable[..., Plan],
) -> None:
    plan = make_plan()
    network = network_of(plan, "roi_scaled:target_share=1,dropout=0")
    guide = torch.zeros(2, 1, *plan.patch, dtype=torch.int16)
    guide[..., :2, :4, :4] = 2
    assert network.takes_guide
    guided, blind = (class_logits_of(network(image_of(plan), seen)) for seen in (guide, None))
    assert not torch.allclose(guided, blind)
    network.eval()
    guided, blind = (class_logits_of(network(image_of(plan), seen)) for seen in (guide, None))
    assert torch.equal(guided, blind)


def gradients_of(network: MultiTaskUNet, forward: Callable[..., ModelOutput], plan: Plan) -> list[Tensor]:
    output = forward(image_of(plan), torch.zeros(2, 1, *plan.patch, dtype=torch.int16))
    loss = torch.stack([level.square().mean() for level in output.label_logits]).sum()
    (loss + class_logits_of(output).square().sum()).backward()
    return [weight.grad for weight in network.parameters() if weight.grad is not None]


@pytest.mark.story
@pytest.mark.parametrize(
    ("branch", "encoder"), [*((name, "plain") for name in NAMES), ("roi_pooled", "attention_gated:balance=1")]
)
# Of torch, inside its own compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_training_step_captured_as_one_graph_has_the_gradients_of_a_plain_one(
    make_plan: Callable[..., Plan], branch: str, encoder: str
) -> None:
    plan, choice = make_plan(), f"{branch}:dropout=0"
    torch.compiler.reset()
    plain, captured = network_of(plan, choice, encoder), network_of(plan, choice, encoder)
    expected = gradients_of(plain, plain, plan)
    found = gradients_of(captured, torch.compile(captured, fullgraph=True, backend="aot_eager"), plan)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
