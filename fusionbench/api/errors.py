"""Errors for users: one line and a hint, printed by the command line without a traceback."""

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in a command, a study or a folder; `hint` names the remedy."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        """Pickle the hint as well, for errors of worker processes."""
        return type(self), (self.message, self.hint)


class FatalError(UserError):
    """What makes every further cell impossible: no disk, no such device. It ends a run."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A file or plug-in that was skipped, and why. Not an error."""

    source: str
    message: str
    hint: str = ""
    """The likely mend."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.source}: {self.message}" + (f"; {self.hint}" if self.hint else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'concat'?` for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(
    kind: str, name: str, known: Iterable[str], where: str = "", *, globs: bool = False
) -> UserError:
    """UserError for an unknown name with the nearest known one; `where` replaces the full list.

    `globs`: a glob is allowed in its place, and named where `name` starts several known names.
    """
    names = sorted(known)
    shown = ", ".join(names) if len(names) <= 30 else ", ".join(names[:30]) + ", ..."
    hint = where or f"known: {shown}"
    for mark in "-_" if globs else "":
        family = [one for one in names if one.startswith(f"{name}{mark}")]
        if len(family) > 1:
            return UserError(
                f"no {kind} {name!r}: it is the start of {len(family)} names",
                f"'{name}{mark}*' takes {', '.join(family)}",
            )
    return UserError(f"no {kind} {name!r}{did_you_mean(name, names)}", hint)


def disk_error(error: OSError, place: object) -> FatalError:
    """FatalError for a folder or file that cannot be read or written."""
    hint = "choose another folder with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FatalError(f"no space left on the disk of {place}", f"free some space, or {hint}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FatalError(f"no permission to write to {place}", hint)
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return FatalError(f"{place} is not a folder", hint)
    return FatalError(f"cannot use {place}: {error.strerror or error}", hint)


def one_of(setting: str, value: str, allowed: Sequence[str]) -> str:
    """Return `value` if it is allowed; else raise ValueError naming the setting and all values."""
    if value in allowed:
        return value
    near = did_you_mean(str(value), allowed)
    raise ValueError(f"{setting} must be one of {', '.join(allowed)}, got {value!r}{near}")


def at_least(least: float, **settings: float) -> None:
    """Raise ValueError naming the first of the settings that is below `least`."""
    for setting, value in settings.items():
        if not value >= least:
            raise ValueError(f"{setting} must be at least {least}, got {value}")
