"""Results and samples as lmms-eval writes them, read and checked; standard library only.

<date>_results.json           numbers of each task, the model and its arguments
<date>_samples_<task>.jsonl   one line for each document (`--log_samples`)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError

TOOL = "lmms-eval"
_END = "_results.json"
_OF_SAMPLE = {
    "doc_id", "target", "filtered_resps", "resps", "doc_hash", "input", "token_counts",
    "input_media",
}  # fmt: skip
"""Keys of a sample that are no metric."""
_SCORE, _QUESTION = "score", ("question_id", "questionId")
_HASHED = ("dataset_path", "dataset_name", "test_split", "validation_split", "num_fewshot")
_AGAIN = "run lmms-eval again, or leave the file out of the folder"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document: what was asked and answered, and the numbers of its metrics."""

    document: int
    question: str
    """`question_id` of a metric's dictionary; empty without one."""
    prompt: str
    target: str
    text: str
    """The answer after the task's filters."""
    numbers: Mapping[str, float]
    """Metric -> number; metrics that are no number are left out."""
    others: tuple[str, ...]
    """Metrics that are no number, by name."""


@dataclass(frozen=True, kw_only=True)
class LmmsEvaluation:
    """One task of one run of lmms-eval."""

    file: Path
    """The file of results."""
    task: str
    version: str
    """The task's version as lmms-eval has it."""
    tool: str
    """`lmms_eval_version` of the file: branch and commit of the folder that it ran in."""
    date: str
    model: str
    arguments: Mapping[str, str]
    """`model_args` by name."""
    model_name: str
    """The model as its arguments name it; empty where they do not."""
    measures: Mapping[str, float]
    """All numbers of the task; filters other than `none` are part of the name."""
    filters: tuple[str, ...]
    facts: Mapping[str, Any]
    """Data set, split and number of examples in the prompt."""
    examples: int
    samples: tuple[Sample, ...] = field(repr=False)
    """In the order of the documents; empty without a file of samples."""


def read_folder(folder: Path) -> list[LmmsEvaluation]:
    """All evaluations below a folder of lmms-eval, the newest first.

    Raises UserError for a folder without results, and with file and line for what cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", f"the folder of {TOOL}'s --output_path")
    files = sorted(folder.rglob(f"*{_END}"), key=lambda file: (file.name, file), reverse=True)
    if not files:
        raise UserError(
            f"no file *{_END} in {folder}", f"{TOOL} --output_path {folder} --log_samples"
        )
    return [found for file in files for found in read_results(file)]


def read_results(file: Path) -> Iterator[LmmsEvaluation]:
    """The tasks of a file of results, groups of tasks left out. Raises UserError."""
    values = _object(_content(file), str(file))
    results = _part(values, "results", file)
    config = _part(values, "config", file)
    if not isinstance(config.get("model"), str):
        raise UserError(f"{file}: config.model is no name: {config.get('model')!r}", _AGAIN)
    groups = {name for name, own in (values.get("group_subtasks") or {}).items() if own}
    groups |= set(values.get("groups") or {})
    for task, found in results.items():
        if task not in groups:
            yield _evaluation(file, values, config, task, _part(results, task, file, found))


def _evaluation(
    file: Path, values: Mapping[str, Any], config: Mapping[str, Any], task: str,
    found: Mapping[str, Any],
) -> LmmsEvaluation:  # fmt: skip
    measures = dict(_numbers(found))
    if not measures:
        raise UserError(f"{file}: results.{task} holds no number", _AGAIN)
    own = (values.get("configs") or {}).get(task) or {}
    counts = (values.get("n-samples") or {}).get(task) or {}
    effective = int(counts.get("effective") or 0)
    samples = file.with_name(f"{file.name.removesuffix(_END)}_samples_{task}.jsonl")
    filters = tuple(dict.fromkeys(k.rpartition(",")[2] for k in found if "," in k))
    read = read_samples(samples, own.get("score_key") or _SCORE) if samples.exists() else ()
    if read and len(read) < effective and not config.get("offset"):
        raise UserError(f"{samples}: {len(read)} of {effective} samples: truncated", _AGAIN)
    return LmmsEvaluation(
        file=file,
        task=task,
        version=str((values.get("versions") or {}).get(task, "")),
        tool=str(values.get("lmms_eval_version") or ""),
        date=str(values.get("date") or file.name.removesuffix(_END)),
        model=config["model"],
        arguments=_arguments(config.get("model_args"), file),
        model_name=str(values.get("model_name") or ""),
        measures=measures,
        filters=filters,
        facts={key: own.get(key) for key in _HASHED},
        examples=len({one.document for one in read}) or effective,
        samples=read,
    )


def read_samples(file: Path, score: str = _SCORE) -> tuple[Sample, ...]:
    """The samples of a file, sorted by document.

    `score`: the key of the number in a metric that is a dictionary. Raises UserError with the line
    for one that is truncated, and for a sample without a document.
    """
    found = []
    # Not `splitlines`: an answer may hold U+2028, which JSON leaves as it is.
    for number, line in enumerate(_content(file).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        values = _object(line, place)
        document = values.get("doc_id")
        if not isinstance(document, int) or isinstance(document, bool):
            raise UserError(f"{place}: doc_id must be a whole number, got {document!r}", _AGAIN)
        found.append(_sample(document, values, score))
    if not found:
        raise UserError(f"{file}: holds no sample", _AGAIN)
    return tuple(sorted(found, key=lambda one: one.document))


def _sample(document: int, values: Mapping[str, Any], score: str) -> Sample:
    metrics = {name: value for name, value in values.items() if name not in _OF_SAMPLE}
    numbers = {name: _number(value, score) for name, value in metrics.items()}
    asked = values.get("input")
    return Sample(
        document=document,
        question=_question(metrics),
        prompt=asked if isinstance(asked, str) else json.dumps(asked, sort_keys=True),
        target=str(values.get("target", "")),
        text=_text(values.get("filtered_resps")),
        numbers={name: value for name, value in numbers.items() if value is not None},
        others=tuple(name for name, value in numbers.items() if value is None),
    )


def _number(value: object, score: str) -> float | None:
    """The number of a metric, or of its dictionary; None if there is none."""
    if isinstance(value, Mapping):
        value = value.get(score)
    if isinstance(value, bool | int | float) and isfinite(value):
        return float(value)
    return None


def _question(metrics: Mapping[str, Any]) -> str:
    for value in metrics.values():
        for key in _QUESTION:
            if isinstance(value, Mapping) and isinstance(value.get(key), str | int):
                return str(value[key])
    return ""


def _text(answer: object) -> str:
    """An answer as text; of several, or of losses, their JSON."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    return answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)


def _numbers(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each finite number, nested ones as `metric/part`."""
    for key, value in found.items():
        name = before + key.removesuffix(",none")
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            yield name, float(value)


def _arguments(given: object, file: Path) -> dict[str, str]:
    """`model_args` by name: `a=1,b=2`, or an object."""
    if isinstance(given, Mapping):
        return {str(key): str(value) for key, value in given.items()}
    if not isinstance(given, str | None):
        raise UserError(f"{file}: config.model_args must be text, got {given!r}", _AGAIN)
    parts = [part.partition("=") for part in (given or "").split(",") if part.strip()]
    return {key.strip(): value.strip() for key, _, value in parts}


def _part(
    values: Mapping[str, Any], key: str, file: Path, found: object = None
) -> Mapping[str, Any]:
    part = values.get(key) if found is None else found
    if not isinstance(part, dict) or not part:
        raise UserError(f"{file}: {key!r} is missing or no object", f"a file of {TOOL}?")
    return part


def _content(file: Path) -> str:
    """The text of a file. Raises UserError for one that cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}", _AGAIN) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", _AGAIN) from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        line = f" (line {error.lineno})" if ", line " not in place else ""
        raise UserError(f"{place}: truncated or not JSON{line}: {error.msg}", _AGAIN) from error
    except RecursionError as error:
        raise UserError(f"{place}: JSON that is nested too deep", _AGAIN) from error
    if not isinstance(values, dict):
        raise UserError(f"{place}: not an object but {type(values).__name__}", _AGAIN)
    return values
