"""What a person got wrong, said in one line with a hint; the command line prints no traceback."""

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in a command, a study or a folder; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        """Keep the hint on the way from a worker process."""
        return type(self), (self.message, self.hint)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was found and could not be used, and why; it stops nothing."""

    source: str
    message: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.source}: {self.message}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'concat'?`, or nothing where no known name is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that does not exist: the nearest one and where all of them stand."""
    names = sorted(known)
    shown = ", ".join(names) if len(names) <= 30 else ", ".join(names[:30]) + ", ..."
    hint = where or f"known: {shown}"
    return UserError(f"no {kind} {name!r}{did_you_mean(name, names)}", hint)


def disk_error(error: OSError, place: object) -> UserError:
    """Say in words why a folder or file cannot be written or read."""
    hint = "choose another folder with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left on the disk of {place}", f"free some space, or {hint}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"no permission to write to {place}", hint)
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return UserError(f"{place} is not a folder", hint)
    return UserError(f"cannot use {place}: {error.strerror or error}", hint)


# Settings with a few allowed words.


def one_of(setting: str, value: str, allowed: Sequence[str]) -> str:
    """Give the value back, or raise ValueError that names the setting and what is allowed."""
    if value in allowed:
        return value
    close = get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{setting} must be one of {', '.join(allowed)}, got {value!r}{hint}")
