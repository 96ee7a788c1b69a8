"""Whether the processes of one training speak with each other, which a trial step of one of them must not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of the whole process: the way back may run on a thread of autograd's own, which sees no context variable.
_is_alone = False


def ranks_talk() -> bool:
    """True where sums are to be taken over all ranks: there are several, and none of them is by itself."""
    return not _is_alone and torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def by_itself() -> Iterator[None]:
    """What this process computes here is its own: it may fail without leaving the others waiting for it."""
    global _is_alone  # noqa: PLW0603 - see above
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before
