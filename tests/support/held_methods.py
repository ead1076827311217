"""Methods that wait in their first step while a file is there: a test decides when they go on."""

import os
import time
from pathlib import Path

from fusionbench.api import Fused, Fusion, StackShape, method


@method("held_one", version=1)
@method("held_two", version=1)
@method("held_three", version=1)
@method("held_four", version=1)
class Held(Fusion):
    """One layer; waits while the file of FUSIONBENCH_TEST_HOLD exists."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = ((3,),)

    def forward(self, hidden, query):
        hold = Path(os.environ.get("FUSIONBENCH_TEST_HOLD", "/nonexistent"))
        while hold.exists():
            time.sleep(0.05)
        return Fused(tokens=self.patches(hidden[0]))
