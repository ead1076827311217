r"""Templates that write a conversation as one text; only the last answer is trained on.

words     {q} <sep> {a} <end>
plain     <image>{a}\n                                  LLaVA's alignment stage: no question
llava15   LLaVA's `vicuna_v1` (haotian-liu/LLaVA c121f04, conversation.py): system prompt, then
          USER: {q} ASSISTANT: {a}</s> for each turn, <image>\n in front of the question
chat      the format that the tokenizer itself brings
The prompt ends in front of the blank before the answer ("ASSISTANT:"): with the blank its tokens
are no prefix of the tokens with the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fusionbench.api.errors import UserError, unknown
from fusionbench.models.readers.text import IMAGE, Span, Tokenizer, Turn

SEPARATOR = "<sep>"
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]
    """Characters of each answer with the blank before it and its end mark."""
    asks: bool
    """Whether the text ends where the last answer is to be generated."""


class Template(Protocol):
    """Writes conversations."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""

    @property
    def begins(self) -> bool:
        """Whether the tokenizer's `begin` goes in front."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens at which a generated answer ends."""

    def render(self, turns: Sequence[Turn], *, answer: bool) -> Rendered:
        """The text of the turns; without `answer` it stops where the last answer begins."""


def build_template(name: str, tokenizer: Tokenizer) -> Template:
    """The template of this name for a tokenizer; UserError for an unknown name."""
    if name not in TEMPLATES:
        raise unknown("template", name, TEMPLATES)
    return TEMPLATES[name](tokenizer)


@dataclass(frozen=True, kw_only=True)
class Concatenated:
    """Head and answer of each turn, one after the other."""

    name: str
    ends: tuple[int, ...]
    head: Callable[[str], str]
    """From a question to the text in front of its answer."""
    tail: str
    """The end mark."""
    system: str = ""
    between: str = ""
    """What stands between two turns."""
    blank: str = " "
    """What stands in front of an answer."""
    begins: bool = True
    turns: int | None = None
    """Most turns of a conversation."""

    def render(self, turns: Sequence[Turn], *, answer: bool) -> Rendered:
        """The text of the turns; without `answer` it stops where the last answer begins."""
        if self.turns is not None and len(turns) > self.turns:
            raise UserError(f"template {self.name} writes {self.turns} turn, not {len(turns)}")
        text, spans = self.system, []
        for number, turn in enumerate(turns):
            text += (self.between if number else "") + self.head(turn.question.strip())
            if answer or number < len(turns) - 1:
                first = len(text)
                text += self.blank + turn.answer.strip() + self.tail
                spans.append((first, len(text)))
        return Rendered(text=text, spans=tuple(spans), asks=not answer)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The tokenizer's own chat format; image marks stay where they are in the question."""

    tokenizer: Tokenizer
    tail: str
    ends: tuple[int, ...]
    blank: str = ""
    """What stands in front of an answer."""
    name: str = "chat"
    begins: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Chat":
        """Find the end mark: what the format puts behind an answer."""
        prompt = tokenizer.chat(_messages([Turn("q")])[:1], ask=True)
        full = tokenizer.chat(_messages([Turn("q", "answer")]), ask=False)
        blank, _, tail = full[len(prompt) :].partition("answer")
        if not full.startswith(prompt) or blank.strip() or not tail.strip():
            raise UserError(
                "the tokenizer's chat format puts other text before an answer than before the "
                "place where an answer is generated, or no mark behind it",
                "choose another template: llava15",
            )
        ids, offsets = tokenizer.encode_offsets(tail)
        # A blank before the mark is part of it: after a blank alone an answer may go on.
        last = next(row for row, (first, end) in enumerate(offsets) if tail[first:end].strip())
        mark = tail[: offsets[last][1]]
        ends = _distinct(tokenizer.end, ids[last])
        return cls(tokenizer=tokenizer, tail=mark, ends=ends, blank=blank)

    def render(self, turns: Sequence[Turn], *, answer: bool) -> Rendered:
        """The text of the turns; without `answer` it stops where the last answer begins."""
        messages = _messages(turns)
        last = len(messages) if answer else len(messages) - 1
        text = self.tokenizer.chat(messages[:last], ask=not answer)
        spans = [self._span(text, messages, turn) for turn in range(last // 2)]
        # What follows the last end mark is neither read nor trained on.
        return Rendered(
            text=text[: spans[-1][1]] if answer else text, spans=tuple(spans), asks=not answer
        )

    def _span(self, text: str, messages: Sequence[dict[str, str]], turn: int) -> Span:
        head = self.tokenizer.chat(messages[: 2 * turn + 1], ask=True)
        said = self.blank + messages[2 * turn + 1]["content"] + self.tail
        if not text.startswith(head + said):
            raise UserError(
                f"the tokenizer's chat format changes turn {turn + 1} where it is history",
                "choose another template: llava15",
            )
        return len(head), len(head) + len(said)


def _words(tokenizer: Tokenizer) -> Template:
    return Concatenated(
        name="words",
        ends=(tokenizer.end,),
        head=lambda question: f"{question} {SEPARATOR}",
        tail=f" {tokenizer.end_text}",
        between=" ",
    )


def _plain(tokenizer: Tokenizer) -> Template:
    newline, _ = tokenizer.encode_offsets("\n")
    return Concatenated(
        name="plain",
        ends=_distinct(tokenizer.end, *(newline if len(newline) == 1 else ())),
        head=lambda question: IMAGE * question.count(IMAGE),
        tail="\n",
        blank="",
        turns=1,
    )


def _llava15(tokenizer: Tokenizer) -> Template:
    return Concatenated(
        name="llava15",
        ends=(tokenizer.end,),
        system=_SYSTEM,
        head=lambda question: f"USER: {_images_first(question)} ASSISTANT:",
        tail=tokenizer.end_text,
    )


def _images_first(question: str) -> str:
    count = question.count(IMAGE)
    return (f"{IMAGE}\n" * count + question.replace(IMAGE, "").strip()).strip()


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text.strip()}
        for turn in turns
        for role, text in (("user", turn.question), ("assistant", turn.answer))
    ]


def _distinct(*ids: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


TEMPLATES: dict[str, Callable[[Tokenizer], Template]] = {
    "words": _words,
    "plain": _plain,
    "llava15": _llava15,
    "chat": Chat.of,
}
