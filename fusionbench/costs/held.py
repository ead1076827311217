"""What tensors hold at most during a call, on a device whose allocator does not tell."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def most_held(run: Callable[[], object]) -> int:
    """Bytes of all storages made during the call that are alive at once, at the most.

    What a kernel takes for itself while it works is not seen.
    """
    with _Held() as held:
        kept = run()
    del kept
    return held.most


class _Held(TorchDispatchMode):
    """Follows each storage that an operation makes until it is freed."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._now = self.most = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(storage) for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            # A view, or what was written in place, holds nothing more.
            if id(storage) not in given and id(storage) not in self._alive:
                self._follow(storage)
        return found

    def _follow(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            self._now -= size
            del self._alive[name]

        self._alive[name] = weakref.ref(storage, freed)
        self._now += size
        self.most = max(self.most, self._now)


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
