"""Plug-ins as strangers write them: good ones and broken ones. Standard library only."""

import os
import sys
import time

GOOD = """
from fusionbench.api import Fused, Fusion, InEncoderFusion, Split, Task, TaskData, method, task


class _Shared(Fusion):
    def __init__(
        self, shape, *, width: int = 8, kind: str = "soft", layers: tuple[int, ...] = (1, 2)
    ):
        super().__init__(shape)
        self.taps = ((shape.layers,),)

    def forward(self, hidden, query):
        return Fused(tokens=hidden[0])


@method(
    "blend", version=3, variants={"": {}, "wide": {"width": 16}}, control="last", paper="x",
    year=2024,
)
@method("blend_twin", version=1, in_all=False)
class Blend(_Shared):
    needs_query = True


@method("stepper", version=1)
class Stepper(InEncoderFusion):
    def __init__(self, shape, *, rate: float = -0.5, on: bool = True):
        super().__init__(shape)

    def start(self, tokens, query): ...
    def after_block(self, block, tokens, state): ...
    def finish(self, tokens, state): ...


@task("toy_task", version=2, family="toy", group="fine")
class ToyTask(Task):
    chance = 0.5

    def load(self): ...


@task("far_task", version=1, family="toy", group="fine", needs=("no_such_package_here",),
      get="pip install no-such-package-here")
class FarTask(ToyTask): ...
"""

BLANK_ENCODER = """
@encoder("blank", version=1, layers=2, dim=8, patch=16, size=32)
class Blank(Encoder):
    size = 32
    shape = StackShape(layers=2, dim=8, grid=(2, 2))

    def embed(self, images):
        return images.float().mean(dim=(1, 2, 3))[:, None, None].expand(-1, 4, 8) / 255

    def block(self, index, tokens):
        return tokens * index

    def norm(self, tokens):
        return tokens
"""

BROKEN = {
    "syntax error": "def (:",
    "declares no method, task, benchmark or encoder": "x = 1",
    "must be a literal": (
        "from fusionbench.api import Fusion, method\nVERSION = 1\n"
        "@method('a', version=VERSION)\nclass A(Fusion): ...\n"
    ),
    "has no default": (
        "from fusionbench.api import Fusion, method\n@method('a', version=1)\n"
        "class A(Fusion):\n    def __init__(self, shape, *, k): ...\n"
    ),
    "missing a required argument: 'version'": (
        "from fusionbench.api import Fusion, method\n@method('a')\nclass A(Fusion): ...\n"
    ),
    "must descend from": (
        "from fusionbench.api import method\n@method('a', version=1)\nclass A: ...\n"
    ),
    "is a Task, not a method": (
        "from fusionbench.api import Task, method\n@method('a', version=1)\nclass A(Task): ...\n"
    ),
    "unknown setting 'j'": (
        "from fusionbench.api import Fusion, method\n"
        "@method('a', version=1, variants={'x': {'j': 1}})\nclass A(Fusion): ...\n"
    ),
    "version must be an integer": (
        "from fusionbench.api import Fusion, method\n"
        "@method('a', version='1')\nclass A(Fusion): ...\n"
    ),
    "is not a name": (
        "from fusionbench.api import Fusion, method\n"
        "@method('all', version=1)\nclass A(Fusion): ...\n"
    ),
    **{
        f"line 4: the default of 'k' is {shown}": (
            "from fusionbench.api import Fusion, method\n@method('a', version=1)\n"
            f"class A(Fusion):\n    def __init__(self, shape, *, k={default}): ...\n"
        )
        for shown, default in (
            ("[1, 2]", "[1, 2]"), ("{}", "{}"), ("None", "None"), ("inf", "1e400"),
            ("(1.5,)", "(1.5,)"), ("b'x'", "b'x'"), ("(True,)", "(True,)"),
        )
    },
    "line 2: 'k' of variant 'x' is [1]": (
        "from fusionbench.api import Fusion, method\n"
        "@method('a', version=1, variants={'x': {'k': [1]}})\n"
        "class A(Fusion):\n    def __init__(self, shape, *, k=(1,)): ...\n"
    ),
    "line 2: 'k' of switch 'k' is None": (
        "from fusionbench.api import Fusion, method\n"
        "@method('a', version=1, switches={'k': (None,)})\n"
        "class A(Fusion):\n    def __init__(self, shape, *, k=(1,)): ...\n"
    ),
    **{
        f"line 2: {what.partition('=')[0]} is {what.partition('=')[2]}": (
            "from fusionbench.api import Fusion, method\n"
            f"@method('a', version=1, {what})\n"
            "class A(Fusion):\n    def __init__(self, shape, *, k=1): ...\n"
        )
        for what in ("variants=['fast']", "variants={'fast': 3}", "switches={'k': 1}")
    },
}  # fmt: skip


def leaves(how):
    """A stranger's function in a child process: gives `how` back, or ends as it says."""
    if how == "raises":
        raise ValueError("on purpose")
    if how == "exits":
        sys.exit(0)
    if how == "dies":
        os._exit(0)
    if how == "hangs":
        time.sleep(600)
    return how
