"""Open questions with several reference answers: what the VQA benchmarks share."""

from collections.abc import Sequence

from fusionbench.api import Item, Picture, UserError
from fusionbench.tasks._rows import SHORT, Row, group

REFERENCES = 10


def references(row: Row, column: str) -> list[str]:
    """The reference answers of a row without empty ones, at least one. Raises UserError."""
    row.text(column)
    if not (found := [text for text in row.texts(column) if text.strip()]):
        raise UserError(f"{row.where}: {column} is empty", "each question needs a reference")
    return found


def ten(row: Row, found: Sequence[str]) -> list[str]:
    """The references. Raises UserError if there are not ten."""
    if len(found) != REFERENCES:
        raise UserError(
            f"{row.where}: {len(found)} reference answers instead of ten",
            "the metric compares with ten; is this the split with answers?",
        )
    return list(found)


def open_item(
    name: str, question: str, images: tuple[Picture, ...], prompt: str = "", **gold: object
) -> Item:
    """A question without options; the prompt is the question with LLaVA's suffix, or as given."""
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=prompt or question.strip() + SHORT,
        question=question.strip(),
        gold=gold,
    )
