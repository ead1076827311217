"""Each training starts from the same state of its process, and what it changes is in its record.

After a pass the state is compared and set back. Tensors that trainings share are read again where
somebody wrote to them. A process that cannot be set back runs no other pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Protocol

import torch

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import FatalError
from fusionbench.harness.guard import Changes, Guard, Sealed, reseed, versions
from fusionbench.harness.materials import Materials


class Spoiled(Exception):
    """The process is unfit for another training."""


class Forget(Protocol):
    """Drops shared tensors, and with `encoders` the encoders too."""

    def __call__(self, *, encoders: bool) -> None: ...


class ProcessState:
    """Guards the state of this process and the tensors that trainings share."""

    def __init__(self, forget: Forget, *, compiles: bool = False) -> None:
        """`compiles`: PyTorch's compiler, which changes much of a process, is at work here."""
        self.spoiled = ""
        """Why no other pass may run here; empty if one may."""
        self._forget, self._compiles = forget, compiles
        self._guard = Guard()
        self._stranger = False
        self._changes, self._imported = Changes(), Changes()
        self._sealed: list[Sealed] = []
        self._shared: tuple[Materials, tuple[int, ...]] | None = None

    def enter(self, *, stranger: bool) -> None:
        """A job begins; `stranger`: it runs code of a plug-in, which is compared more closely."""
        if stranger and not self._stranger:
            self._guard.renew()
        self._stranger, self.spoiled = stranger, ""
        self._changes = Changes()
        self.restore()
        if stranger:
            for one in self._sealed:
                one.deepen()

    def seal(self, encoder: Encoder) -> None:
        """Watch an encoder that was just made."""
        self._sealed.append(Sealed(encoder, thorough=self._stranger))

    def share(self, materials: Materials) -> None:
        """Watch materials that were just made."""
        self._shared = (materials, versions(materials.tensors()))

    def restore(self) -> Changes:
        """Set the state back; what cannot be set back is what passes start from."""
        found = self._guard.restore(thorough=self._thorough)
        if found.lasting:
            self._guard.accept()
        return found

    @property
    def _thorough(self) -> bool:
        return self._stranger and not self._compiles

    @contextmanager
    def kept(self, *names: str | int) -> Iterator[None]:
        """One pass: it starts from the first state and from random streams of these names.

        Raises Spoiled where an earlier pass left what cannot be set back.
        """
        if self.spoiled:
            raise Spoiled(self.spoiled)
        if self._stranger:
            # What the import of a plug-in has changed, which happens once in a process.
            self._imported = self._imported + self.restore()
        self._changes = self._imported
        reseed(*names)
        lost = ""
        try:
            yield
        except torch.AcceleratorError as error:
            # No later kernel of this process runs after one has failed.
            lost = str(error).partition("\n")[0]
            raise
        finally:
            found = self._guard.restore(thorough=self._thorough) + self._tensors()
            self._changes = self._changes + found
            self.spoiled = "; ".join(filter(None, (*found.lasting, lost)))

    def notes(self) -> tuple[str, ...]:
        """What the last pass changed, for the records of its cells."""
        return self._changes.notes()

    def _tensors(self) -> Changes:
        """Shared tensors that were written to; they are read again."""
        broken = any(one.broken(thorough=self._stranger) for one in self._sealed)
        materials, before = self._shared or (None, ())
        now = versions(materials.tensors()) if materials is not None else ()
        # Hidden states that were read since come last, and nobody has written to them.
        written = now != (*before, *[0] * (len(now) - len(before)))
        if broken:
            self._sealed = []
        if broken or written or self._stranger:
            self._shared = None
            self._forget(encoders=broken)
        names = [
            *(["the encoder"] if broken else []),
            *(["hidden states or questions of the task"] if written else []),
        ]
        return Changes(reset=tuple(names))


@contextmanager
def contained() -> Iterator[None]:
    """Turn what would end the process or the run into a plain error: a plug-in may raise anything.

    Ctrl-C is kept in the process that the user started; workers do not get it.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"sys.exit({error.code!r}) was called") from error
    except FatalError as error:
        raise RuntimeError(error.message) from error
    except KeyboardInterrupt as error:
        if parent_process() is None:
            raise
        raise RuntimeError("KeyboardInterrupt was raised") from error
