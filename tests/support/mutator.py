"""A seeded mutator of files: bytes, spans, JSON values, and other things in a file's place."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

OTHER_VALUES = (
    *(None, True, False, 0, 1, -1, 7.5, 1e308, 10**400, float("nan")),
    *("", "x", [], {}, [[]]),
)


def mutate(file: Path, original: bytes, rng: random.Random) -> str:
    """Replace the file by a damaged version of its original; returns the kind of damage.

    In half of the cases size and time of change look as before, where the size allows it.
    """
    kind = rng.choice(sorted(KINDS))
    before = file.stat() if file.exists() else None
    clear(file)
    changed = KINDS[kind](file, original, rng)
    if changed is not None:
        file.write_bytes(changed)
        if before is not None and rng.random() < 0.5:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return kind


def clear(file: Path) -> None:
    """Remove whatever stands in the file's place."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _span(text: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(text) + 1)
    return start, min(len(text), start + rng.choice((1, 2, 5, 20, 100, len(text))))


def _flip(_: Path, text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    return text[:at] + bytes([text[at] ^ (1 << rng.randrange(8))]) + text[at + 1 :]


def _byte(_: Path, text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]


def _digit(_: Path, text: bytes, rng: random.Random) -> bytes:
    places = [at for at, byte in enumerate(text) if 48 <= byte < 58] or [0]
    at = rng.choice(places)
    return text[:at] + str(rng.randrange(10)).encode() + text[at + 1 :]


def _truncate(_: Path, text: bytes, rng: random.Random) -> bytes:
    return text[: rng.randrange(len(text))]


def _delete(_: Path, text: bytes, rng: random.Random) -> bytes:
    start, stop = _span(text, rng)
    return text[:start] + text[stop:]


def _repeat(_: Path, text: bytes, rng: random.Random) -> bytes:
    start, stop = _span(text, rng)
    return text[:stop] + text[start:stop] + text[stop:]


def _zeros(_: Path, text: bytes, rng: random.Random) -> bytes:
    start, stop = _span(text, rng)
    return text[:start] + bytes(stop - start) + text[stop:]


def _swap(_: Path, text: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(text) + 1) for _ in range(3))
    return text[:a] + text[b:c] + text[a:b] + text[c:]


def _insert(_: Path, text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.randbytes(rng.choice((1, 4, 64))) + text[at:]


def _noise(_: Path, text: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 16, len(text))))


def _line(_: Path, text: bytes, rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    return b"".join(rng.choice((lines[:at] + lines[at + 1 :], lines + lines[at : at + 1])))


def _value(_: Path, text: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in the JSON, which stays well-formed; a digit where there is none."""
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    for candidate, join in ((text, False), (lines[at], True)):
        try:
            values = json.loads(candidate)
        except (ValueError, UnicodeDecodeError):
            continue
        changed = json.dumps(_changed(values, rng), sort_keys=True).encode()
        return b"\n".join([*lines[:at], changed, *lines[at + 1 :]]) if join else changed
    return _digit(_, text, rng)


def _changed(values: object, rng: random.Random) -> object:
    if isinstance(values, dict) and values and rng.random() < 0.9:
        key = rng.choice(sorted(values))
        if rng.random() < 0.1:
            return {name: value for name, value in values.items() if name != key}
        return values | {key: _changed(values[key], rng)}
    if isinstance(values, list) and values and rng.random() < 0.9:
        at = rng.randrange(len(values))
        return [*values[:at], _changed(values[at], rng), *values[at + 1 :]]
    return rng.choice(OTHER_VALUES)


def _deep(_: Path, text: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"[", b'{"a":')) * 20_000


def _nothing(file: Path, text: bytes, rng: random.Random) -> None:
    file.symlink_to(file.with_name("gone"))


def _loop(file: Path, text: bytes, rng: random.Random) -> None:
    file.symlink_to(file.name)


def _folder(file: Path, text: bytes, rng: random.Random) -> None:
    file.mkdir()


def _pipe(file: Path, text: bytes, rng: random.Random) -> None:
    os.mkfifo(file)


KINDS: dict[str, Callable[[Path, bytes, random.Random], bytes | None]] = {
    "bit": _flip, "byte": _byte, "digit": _digit, "truncated": _truncate, "deleted": _delete,
    "repeated": _repeat, "zeros": _zeros, "swapped": _swap, "inserted": _insert, "noise": _noise,
    "line": _line, "value": _value, "deep": _deep, "link to nothing": _nothing,
    "link to itself": _loop, "folder": _folder, "pipe": _pipe,
}  # fmt: skip
