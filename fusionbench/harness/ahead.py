"""Hidden states of the next steps, read while the device is at work on this one.

What does not fit on a GPU stays mapped from disk: a thread gathers the rows of the next batches
into pinned memory, from which the copy to the device waits for nobody.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusionbench.api.fusion import Tap
from fusionbench.harness.materials import Materials

_AHEAD = 3
"""Batches that wait at most: one is copied, one is ready, one is read."""
Hidden = Float[Tensor, "tap example token dim"]


def ahead(
    materials: Materials, taps: Sequence[Tap], rows: Sequence[Int[Tensor, " example"]]
) -> Iterator[Hidden]:
    """The hidden states of each step's images, in order, on the device in float32."""
    # Taps are placed one by one: some may have found room on the device.
    far = [tap for tap in taps if not materials.resident((tap,))]
    if not far:
        for picked in rows:
            yield materials.states(picked)(tuple(taps))
        return
    for picked, found in zip(rows, _read(materials, far, rows), strict=True):
        here = dict(zip(far, found, strict=True))
        near = [tap for tap in taps if tap not in here]
        states = materials.states(picked)(tuple(near)) if near else ()
        here |= dict(zip(near, states, strict=True))
        yield torch.stack([here[tap] for tap in taps])


def _read(
    materials: Materials, taps: Sequence[Tap], rows: Sequence[Int[Tensor, " example"]]
) -> Iterator[Hidden]:
    """What is mapped from disk, a few batches ahead of what is asked for."""
    pin = materials.device.type == "cuda"

    def gather(picked: Int[Tensor, " example"]) -> Hidden:
        found = materials.mapped(taps, picked)
        return found.pin_memory() if pin else found

    waiting: deque[Future[Hidden]] = deque()
    # On the host at once: a thread that waits for the device would wait for the step before.
    left = [picked.cpu() for picked in rows]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="features") as reader:
        for picked in left:
            waiting.append(reader.submit(gather, picked))
            if len(waiting) == _AHEAD:
                yield _moved(waiting.popleft().result(), materials.device)
        while waiting:
            yield _moved(waiting.popleft().result(), materials.device)


def _moved(found: Hidden, device: torch.device) -> Hidden:
    return found.to(device, non_blocking=True).to(torch.float32)
