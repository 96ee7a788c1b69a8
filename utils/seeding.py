"""One seed for the run becomes one seed per rank, per stream and per sample."""

import hashlib
import json
import operator
import random


def seed_for(seed: int, *stream: int | str) -> int:
    """A seed in [0, 2**63) that depends on `seed` and on every part of `stream`, and on nothing else.

    The same on every machine, in every process and Python version; neighbouring streams are unrelated.
    `seed_for(1, "patch", 7)` and `seed_for(1, "noise", 7)` may be drawn in any order.
    """
    parts = [
        operator.index(seed),
        *(part if isinstance(part, str) else operator.index(part) for part in stream),
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    # 63 bits: DALI and torch take signed 64-bit seeds, and DALI reads -1 as "choose one yourself".
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators that foreign code may use: Python's and, on every device, torch's.

    Our own code draws from generators that are passed in; NumPy's global generator stays untouched.
    """
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
