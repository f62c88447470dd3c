"""Which of several processes this one is. Importing this module imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def here(cls):
        e = os.environ
        if "WORLD_SIZE" not in e:
            return cls()
        return cls(int(e["RANK"]), int(e["WORLD_SIZE"]), int(e["LOCAL_RANK"]), int(e["LOCAL_WORLD_SIZE"]))
