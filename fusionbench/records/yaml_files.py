"""YAML files that people write: every error names the file, the line and the nearest known key."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError, did_you_mean


class YamlMapping(dict[str, Any]):
    """A mapping of a YAML file with the line of each key, counted from 1."""

    source = ""
    line = 0
    lines: Mapping[str, int] = {}

    def at(self, key: str = "") -> str:
        """`study.yaml, line 3`: where a key, or the mapping itself, starts."""
        return f"{self.source}, line {self.lines.get(key, self.line)}"

    def check_keys(self, known: Collection[str], *, needed: Collection[str] = ()) -> None:
        """Raise UserError for a key that is not in `known` or one of `needed` that is missing."""
        allowed = f"known: {', '.join(sorted(known))}"
        for key in self:
            if key not in known:
                near = did_you_mean(str(key), known)
                raise UserError(f"{self.at(key)}: unknown key {key!r}{near}", allowed)
        for key in needed:
            if key not in self:
                raise UserError(f"{self.at()}: {key} is missing", f"needed: {', '.join(needed)}")


def read_section(path: str | Path, what: str, *, hint: str) -> YamlMapping:
    """The mapping in a file; `what` ("study", "claims") and `hint` are used in the errors.

    Raises UserError if the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the {what} {path}: {error}", hint) from error
    return parse_section(text, str(path), what, hint=hint)


def _refuse_twice(node: Any, source: str) -> None:
    """UserError for a key that stands twice in one mapping, where YAML keeps the last value."""
    first: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in first and name != "<<":
            raise UserError(
                f"{source}, line {line}: {name} stands twice, first on line {first[name]}",
                "the last one would win: keep one of them",
            )
        first[name] = line


_BASE_8_OR_60 = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*|.*:.*")


def _refuse_other_bases(text: str, value: float, where: str) -> None:
    """Raise UserError for a number with a leading zero (base 8) or a colon (base 60)."""
    if _BASE_8_OR_60.fullmatch(text):
        hint = "write it without a leading zero or a colon, or as text in quotes"
        raise UserError(f"{where}: YAML reads {text} as {value}", hint)


def _loader(source: str) -> Any:
    """A SafeLoader whose mappings know their lines.

    It refuses keys twice, NaN and infinity, and numbers that YAML 1.1 reads otherwise than people:
    `010` is 8 there, and `1:30` is 90.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> YamlMapping:
        _refuse_twice(node, source)
        loader.flatten_mapping(node)
        section = YamlMapping(loader.construct_mapping(node, deep=True))
        section.source, section.line = source, node.start_mark.line + 1
        section.lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
        return section

    def number(loader: Any, node: Any) -> float:
        value = float(loader.construct_yaml_float(node))
        where = f"{source}, line {node.start_mark.line + 1}"
        if not math.isfinite(value):
            hint = "leave the key out for its default"
            raise UserError(f"{where}: {node.value} is not a finite number", hint)
        _refuse_other_bases(node.value, value, where)
        return value

    def integer(loader: Any, node: Any) -> int:
        value = int(loader.construct_yaml_int(node))
        _refuse_other_bases(node.value, value, f"{source}, line {node.start_mark.line + 1}")
        return value

    Loader.add_constructor("tag:yaml.org,2002:float", number)
    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def parse_section(text: str, source: str, what: str, *, hint: str) -> YamlMapping:
    """The mapping in a text; `source` names the file in errors. Raises UserError as above."""
    import yaml

    try:
        values = yaml.load(text, _loader(source))  # noqa: S506  (a SafeLoader with line numbers)
    except UserError:
        raise
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(
            f"{source} is not YAML: {line}", "text with a colon needs quotes"
        ) from error
    except RecursionError as error:
        raise UserError(f"{source} holds no {what}: nested too deep", hint) from error
    # A day or a number that Python has no value for.
    except ValueError as error:
        raise UserError(f"{source}: {error}", "write it as text, in quotes") from error
    if not isinstance(values, YamlMapping):
        raise UserError(f"{source} holds no {what}", hint)
    return values
