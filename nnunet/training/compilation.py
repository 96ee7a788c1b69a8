"""torch.compile where it works, plain execution with one warning where it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.contracts import ModelOutput
from utils.run_log import say


def compiled_or_plain(network: nn.Module) -> Callable[..., ModelOutput]:
    """A function like `network`, compiled at its first call; if that fails, it says so and goes on.

    Only errors of the compiler are caught: a mistake in the data or the network still surfaces as itself.
    """
    # Imported here: they take a second that only a compiled run should wait for.
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    state: dict[str, Callable[..., ModelOutput]] = {"function": torch.compile(network)}

    def forward(*inputs: Tensor | None) -> ModelOutput:
        try:
            return state["function"](*inputs)
        except (TorchDynamoException, InductorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"torch.compile failed ({reason}); training goes on without it.")
            state["function"] = network
            return network(*inputs)

    return forward
