"""Settings as people write them: `layer[index=4]`, `--set mema.reduction=2`, YAML values.

A setting's default decides its type; text is read as that type, and what does not fit is refused.
"""

import re
from collections.abc import Mapping
from typing import Any

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.register import Setting

_INLINE = re.compile(r"([^\[\]]+)\[(.*)\]")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a word",
    tuple: "integers such as (1,2,3)",
}


def split_inline(text: str) -> tuple[str, dict[str, str]]:
    """`mema[reduction=2,query=false]` -> the name (or glob) and its settings as text."""
    match = _INLINE.fullmatch(text.strip())
    if match is None or "=" not in match[2]:
        return text.strip(), {}
    settings = {}
    # A comma separates settings only where a `key=` follows: tuples have commas too.
    for part in re.split(r",(?=\s*\w+\s*=)", match[2]):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"cannot read {part!r} in {text!r}", "write name[key=value,key=value]")
        settings[key.strip()] = value.strip()
    return match[1].strip(), settings


def split_names(text: str) -> list[str]:
    """`last, mema[reduction=2,query=false]` -> two names: commas in brackets do not count."""
    parts = re.split(r",(?![^\[\]]*\])", text)
    return [part.strip() for part in parts if part.strip()]


def inline(name: str, settings: Mapping[str, object]) -> str:
    """Settings from a file as a person would type them: `layer[index=4]`."""
    typed = [f"{key}={shown(_plain(value))}" for key, value in settings.items()]
    return f"{name}[{','.join(typed)}]" if typed else name


def split_assignment(text: str) -> tuple[str, str, str]:
    """`mema.reduction=2` -> name, key, value as text."""
    target, equals, value = text.partition("=")
    name, dot, key = target.strip().partition(".")
    if not (equals and dot and name and key):
        raise UserError(f"cannot read --set {text!r}", "write --set method.key=value")
    return name, key.strip(), value.strip()


def checked(
    name: str, defaults: Mapping[str, Setting], given: Mapping[str, object]
) -> dict[str, Setting]:
    """`given` in the types of `defaults`. Raises UserError for an unknown key or a wrong type."""
    result = {}
    for key, value in given.items():
        if key not in defaults:
            known = ", ".join(f"{k}={shown(v)}" for k, v in defaults.items())
            raise unknown(
                "setting",
                f"{name}.{key}",
                [f"{name}.{k}" for k in defaults],
                (f"settings of {name}: {known}" if known else f"{name} has no settings"),
            )
        result[key] = coerce(f"{name}.{key}", value, type(defaults[key]))
    return result


def coerce(what: str, value: object, kind: type) -> Setting:
    """`value`, or the value that its text means, as `kind`. Raises UserError if it is none."""
    try:
        found = _read(value, kind)
    except ValueError:
        found = None
    if found is None:
        hint = "`fusionbench list methods` shows all settings with their defaults"
        raise UserError(f"{what} must be {_KINDS[kind]}, got {value!r}", hint)
    return found


def _plain(value: Any) -> Setting:
    """YAML's lists are tuples here."""
    return tuple(value) if isinstance(value, list) else value


def _read(value: Any, kind: type) -> Setting | None:
    """None for a value of the wrong type, ValueError for text that does not parse."""
    if kind is tuple:
        return _integers(value)
    if isinstance(value, str):
        if kind is bool:
            return _WORDS.get(value.lower())
        return value if kind is str else kind(value)
    if isinstance(value, bool) != (kind is bool):
        return None
    if kind is float and isinstance(value, int):
        return float(value)
    fits = isinstance(value, kind)
    return value if fits else None


def _integers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, str):
        return tuple(int(part) for part in value.strip("()[] ").split(",") if part.strip())
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(value)
    return None


def shown(value: Setting) -> str:
    """A setting as a person would type it: `false`, `(1,2)`, `0.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(str(item) for item in value)})"
    return str(value)


def label(name: str, defaults: Mapping[str, Setting], settings: Mapping[str, Setting]) -> str:
    """The name with the settings that differ from its own defaults: `mema[reduction=2]`."""
    changed = [
        f"{key}={shown(settings[key])}"
        for key in sorted(settings)
        if settings[key] != defaults[key]
    ]
    return f"{name}[{','.join(changed)}]" if changed else name
