"""A method survives being stored, copied and sent to another process."""

import copy
import pickle

import torch

from fusionbench.api.fusion import Method
from fusionbench.checks.compare import ROUNDING, expect_equal
from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import SHAPE, Subject, told
from fusionbench.checks.suite import check
from fusionbench.checks.toy import draw


@check
def state_dict(subject: Subject) -> None:
    """Its state_dict makes one of another seed give the same outputs: nothing lies outside it."""
    method, other = subject.jittered(seed=0).eval(), subject.jittered(seed=5).eval()
    other.load_state_dict(method.state_dict())
    _expect_same(method, other, "after load_state_dict")


@check
def safetensors(subject: Subject) -> None:
    """So do its weights as a safetensors file."""
    from safetensors.torch import load, save

    method, other = subject.jittered(seed=0).eval(), subject.jittered(seed=5).eval()
    other.load_state_dict(load(save(method.state_dict())))
    _expect_same(method, other, "from safetensors")


@check
def deepcopy(subject: Subject) -> None:
    """A deep copy gives the same outputs, and training the copy leaves the original alone."""
    method = subject.jittered().eval()
    twin = copy.deepcopy(method)
    _expect_same(method, twin, "a deep copy")
    before = told(method, *draw(SHAPE))
    with torch.no_grad():
        for values in (*twin.parameters(), *twin.buffers()):
            values.add_(1)
    expect_equal(before, told(method, *draw(SHAPE)), "while its copy trains", tolerance=ROUNDING)


@check
def pickled(subject: Subject) -> None:
    """A pickled copy gives the same outputs."""
    method = subject.jittered().eval()
    try:
        twin = pickle.loads(pickle.dumps(method))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CheckFailed(f"cannot be pickled: {error}") from error
    _expect_same(method, twin, "pickled")


def _expect_same(method: Method, twin: Method, what: str) -> None:
    given = draw(SHAPE)
    expect_equal(told(method, *given), told(twin, *given), what, tolerance=ROUNDING)
