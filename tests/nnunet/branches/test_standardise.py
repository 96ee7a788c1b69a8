"""Running statistics of features, beside NumPy's over all cases seen."""

import pytest
import torch

from nnunet.branches.standardise import LARGEST, MEMORY, RunningStandardiser


def cases(number: int, seed: int = 0) -> torch.Tensor:
    """(number, 3): means 5, 0 and -2, deviations 0.01, 1 and 30."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(number, 3, generator=generator)
    return drawn * torch.tensor([0.01, 1.0, 30.0]) + torch.tensor([5.0, 0.0, -2.0])


def test_the_statistics_are_those_of_all_cases_whatever_the_batches() -> None:
    seen, module = cases(60), RunningStandardiser([3])
    for batch in seen.split([1, 2, 7, 20, 30]):
        module(batch)
    torch.testing.assert_close(module.mean, seen.mean(dim=0))
    torch.testing.assert_close(module.variance, seen.var(dim=0, correction=0))


def test_old_cases_fade() -> None:
    module = RunningStandardiser([3])
    for _ in range(100):
        module(cases(50, seed=1) + 100)
    for _ in range(int(5 * MEMORY / 50)):
        module(cases(50, seed=2))
    torch.testing.assert_close(module.mean, cases(50, seed=2).mean(dim=0), atol=0.8, rtol=0)


def test_features_of_every_scale_leave_with_deviation_one() -> None:
    module, seen = RunningStandardiser([3]), cases(400)
    module(seen)
    result = module.eval()(seen)
    torch.testing.assert_close(result.mean(dim=0), torch.zeros(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(result.std(dim=0), torch.ones(3), atol=2e-2, rtol=0)


def test_every_origin_weighs_the_same_however_many_features_it_has() -> None:
    module = RunningStandardiser([1, 4]).eval()
    squares = module(torch.ones(1, 5)).square()[0]
    assert squares[0] == pytest.approx(squares[1:].sum().item())


def test_a_case_does_not_depend_on_its_batch_and_evaluation_learns_nothing() -> None:
    module, seen = RunningStandardiser([3]), cases(50)
    module(seen)
    before = module.mean.clone()
    alone = module.eval()(seen[:1])
    assert torch.equal(module(seen)[:1], alone)
    assert torch.equal(module.mean, before)


def test_an_outlier_and_the_very_first_case_stay_in_range() -> None:
    module = RunningStandardiser([3])
    assert module(cases(1)).abs().max() == 0
    assert module(torch.full((1, 3), 1e6)).abs().max() <= LARGEST
    assert module(torch.full((1, 3), 1e6)).isfinite().all()


def test_the_gradient_is_that_of_a_fixed_scale() -> None:
    module, seen = RunningStandardiser([3]), cases(50)
    module(seen)
    module.eval()
    one = seen[:1].clone().requires_grad_()
    module(one).sum().backward()
    assert one.grad is not None
    torch.testing.assert_close(one.grad[0], 1 / module.variance.sqrt())
