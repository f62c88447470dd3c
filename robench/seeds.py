"""Random seeds that follow from what they are for, the same in every process. Chunks' own are made of it in ``robench.evaluation.run_folder``."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A random seed that follows from ``parts`` alone, the same in every process; a non-negative int64."""
    text = " ".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
