"""Token ids, labels and query of a conversation.

The text is cut at its image marks and each piece is tokenised alone, without special tokens. A
token is labelled if its last character lies inside the last answer or the answer's end mark.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusionbench.api.errors import UserError, one_of
from fusionbench.models.readers.template import Rendered, Template
from fusionbench.models.readers.text import Span, Tokenizer, Turn, pieces, without_images
from fusionbench.records.cell import QUERIES


class TooLong(UserError):
    """A row has more tokens than the limit."""


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """One row's text as token ids, without tokens for images."""

    ids: tuple[int, ...]
    labelled: tuple[bool, ...]
    """Per id; all False where an answer is asked for."""
    images_at: tuple[int, ...]
    """Number of ids in front of each image."""
    query_ids: tuple[int, ...]
    unknown: int = 0
    """Ids that stand for words outside the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    ids: tuple[int, ...]
    ends: tuple[Span, ...]
    images_at: tuple[int, ...]


def encode(  # noqa: PLR0913
    tokenizer: Tokenizer,
    template: Template,
    turns: Sequence[Turn],
    *,
    answer: bool,
    query: str = "question",
    limit: int | None = None,
    later: Sequence[Turn] = (),
) -> EncodedRow:
    """Encode a conversation; with `answer` the last turn's answer is labelled.

    `limit`: most text tokens. `later`: the turns that follow in the conversation; `prompt` and
    `conversation` have their questions in the query. Raises TooLong, and UserError if the tokens
    of the prompt are no prefix of the tokens with the answer, or if the answer is empty.
    """
    one_of("query", query, QUERIES)
    asked = _tokens(tokenizer, template, template.render(turns, answer=False))
    row = asked
    labelled = (False,) * len(asked.ids)
    if answer:
        row, labelled = _answered(tokenizer, template, turns, asked)
    if limit is not None and len(row.ids) > limit:
        raise TooLong(
            f"{len(row.ids)} text tokens, at most {limit} fit: {_shown(turns[-1].question)!r}"
        )
    return EncodedRow(
        ids=row.ids,
        labelled=labelled,
        images_at=row.images_at,
        query_ids=tuple(_query(tokenizer, template, turns, later, query)),
        unknown=0 if tokenizer.unknown is None else row.ids.count(tokenizer.unknown),
    )


def _answered(
    tokenizer: Tokenizer, template: Template, turns: Sequence[Turn], asked: _Tokens
) -> tuple[_Tokens, tuple[bool, ...]]:
    """The row with its answer, and which of its ids are labelled."""
    if not turns[-1].answer.strip():
        raise UserError(f"the answer to {_shown(turns[-1].question)!r} is empty")
    rendered = template.render(turns, answer=True)
    row = _tokens(tokenizer, template, rendered)
    first, stop = rendered.spans[-1]
    labelled = tuple(first < end <= stop for _, end in row.ends)
    prompt = len(asked.ids)
    whole = (False,) * prompt + (True,) * (len(row.ids) - prompt)
    if row.ids[:prompt] != asked.ids or labelled != whole or not any(labelled):
        raise UserError(
            f"template {template.name} does not fit this tokenizer: the tokens in front of the "
            f"answer to {_shown(turns[-1].question)!r} change with the answer",
            "choose another template",
        )
    return row, labelled


def _tokens(tokenizer: Tokenizer, template: Template, rendered: Rendered) -> _Tokens:
    ids = _start(tokenizer, template)
    ends: list[Span] = [(0, 0)] * len(ids)
    images_at: list[int] = []
    for place, piece in pieces(rendered.text):
        if place:
            images_at.append(len(ids))
        found, offsets = tokenizer.encode_offsets(piece)
        ids += found
        ends += [(place + first, place + stop) for first, stop in offsets]
    return _Tokens(ids=tuple(ids), ends=tuple(ends), images_at=tuple(images_at))


def _start(tokenizer: Tokenizer, template: Template) -> list[int]:
    begin = tokenizer.begin if template.begins else None
    return [] if begin is None else [begin]


def _query(
    tokenizer: Tokenizer,
    template: Template,
    turns: Sequence[Turn],
    later: Sequence[Turn],
    query: str,
) -> Iterable[int]:
    """Ids of the query's text. Each part is tokenised alone, so that no answer can change it."""
    if query == "prompt":
        rendered = template.render([*turns, *later], answer=True)
        return _start(tokenizer, template) + _ids(tokenizer, _unanswered(rendered))
    asked = [turns[-1]] if query == "question" else [*turns, *later]
    return _ids(tokenizer, (without_images(turn.question) for turn in asked))


def _unanswered(rendered: Rendered) -> Iterable[str]:
    """The text between the answers, cut at image marks."""
    start = 0
    for first, stop in rendered.spans:
        yield from (piece for _, piece in pieces(rendered.text[start:first]))
        start = stop
    yield from (piece for _, piece in pieces(rendered.text[start:]))


def _ids(tokenizer: Tokenizer, texts: Iterable[str]) -> list[int]:
    return [token for text in texts for token in tokenizer.encode_offsets(text)[0]]


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
