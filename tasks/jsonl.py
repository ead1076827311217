"""Own questions in LLaVA's JSON lines: `question.jsonl` and, if apart, `answer.jsonl`.

A question line has `question_id`, `text`, `image` (a name, a list, or absent) and perhaps `answer`
and `category`; an answer line has `question_id` and `answer` (or `text`), one or a list.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, UserError, benchmark
from fusionbench.tasks._files import line_rows
from fusionbench.tasks._rows import Once, Row, image_file
from fusionbench.tasks._vqa import open_item

_QUESTIONS, _ANSWERS = "question.jsonl", "answer.jsonl"


@benchmark("jsonl", version=1, family="jsonl", group="own", in_suite=False)
class JsonLines(Benchmark):
    """The text is asked as it stands; an answer is right if it equals one of the true ones.

    Case, white space and one dot at the end do not matter.
    """

    folder = "jsonl"
    files = {"question.jsonl": "your own file, in the format of LLaVA's question files"}

    def annotations(self, source: Source) -> Sequence[Path]:
        """The question file and the answer file, if there is one."""
        answers = source.root / _ANSWERS
        return [*source.files, *([answers] if answers.is_file() else [])]

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the question file. Raises UserError for a question without answer."""
        rows, once = list(line_rows(source.root / _QUESTIONS)), Once("question_id")
        asked = {row.text("question_id") for row in rows}
        answers = _answers(source.root / _ANSWERS, asked)
        for row in rows:
            key = once(row.text("question_id"), row.where)
            true = answers.get(key) or _several(row, "answer")
            if not true:
                raise UserError(
                    f"{row.where}: no answer to question {key}",
                    f"add `answer` to the line, or a line to {_ANSWERS}",
                )
            names = _several(row, "image")
            images = tuple(image_file(source.root, name, row.where) for name in names)
            text = row.text("text").replace("<image>", "").strip()
            category = row.maybe("category")
            yield open_item(f"jsonl/{key}", text, images, text, answers=true, category=category)

    def judge(self, text: str, item: Asked) -> float:
        """1 if the text is one of the true answers."""
        return float(_plain(text) in [_plain(one) for one in item.gold["answers"]])

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy over all and by category."""
        found: dict[str, float | int | None] = {"questions": len(answers)}
        groups = {"accuracy": list(answers)}
        for one in answers:
            if category := one.gold["category"]:
                groups.setdefault(f"accuracy/{category}", []).append(one)
        for name, group in groups.items():
            found[name] = sum(self.judge(one.text, one) for one in group) / len(group)
        return found


def _answers(file: Path, asked: Collection[str]) -> dict[str, list[str]]:
    """Question id -> true answers; none without the file. Raises UserError for an unknown id."""
    found, once = dict[str, list[str]](), Once("question_id")
    for row in line_rows(file) if file.is_file() else ():
        key = once(row.text("question_id"), row.where)
        if key not in asked:
            raise UserError(
                f"{row.where}: {_QUESTIONS} has no question {key}", "remove the line, or ask it"
            )
        found[key] = _several(row, "answer") or _several(row, "text") or [row.text("text")]
    return found


def _several(row: Row, column: str) -> list[str]:
    """One value or a list of them as texts; none where it is missing. Raises UserError."""
    value = row.values.get(column)
    many = value if isinstance(value, list) else [value] if row.maybe(column) else []
    for one in many:
        if not isinstance(one, str | int | float) or not str(one).strip():
            raise UserError(
                f"{row.where}: {column} must be a text or a list of texts, got {value!r:.80}",
                "none may be empty",
            )
    return [str(one) for one in many]


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().casefold()
