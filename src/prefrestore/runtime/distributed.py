"""One training in several processes: which part of a batch is whose, and who writes.

``torchrun`` and ``accelerate launch`` tell a process its rank in the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from prefrestore.errors import UserError


def is_writer() -> bool:
    """Tell whether this process writes files and shows progress: the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Part:
    """One of ``count`` equal parts that a step's batch is cut into, over processes and over accumulation.

    Random numbers are drawn for the whole batch and then cut, so results do not depend on how many parts there are.
    """

    index: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return which rows of a batch of ``size`` belong to this part.

        Raises:
            UserError: the batch cannot be cut evenly.
        """
        if size % self.count:
            raise UserError(
                f"a batch of {size} cannot be cut into {self.count} equal parts (processes x accumulation): "
                "change batch_size, accumulation or the number of processes"
            )
        share = size // self.count
        return slice(self.index * share, (self.index + 1) * share)
