"""The chat format of a LLaVA checkpoint.

Its template often belongs to the processor, not to the tokenizer: it expects a message's content as
a list of parts (`{"type": "image"}`, `{"type": "text", "text": ...}`), lies in a file of its own,
and writes nothing at all, without an error, for a message whose content is a text.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError
from fusionbench.models.encoders.card import read_json
from fusionbench.models.readers.template import Template, build_template
from fusionbench.models.readers.text import IMAGE, HubTokenizer

_PROBE = "A4b9"
_ALONE = "chat_template.json"
LLAVA15 = "llava15"


class CheckpointTokenizer(HubTokenizer):
    """The tokenizer of a checkpoint, with the chat format of its processor."""

    @classmethod
    def of_folder(cls, folder: Path, *, name: str) -> "CheckpointTokenizer":
        """From a checkpoint's files.

        Raises UserError if they cannot be read or give no offsets of tokens.
        """
        found = cls(HubTokenizer.load(folder, name=name).of_hub, name=name)
        if not found.of_hub.chat_template and (folder / _ALONE).is_file():
            found.of_hub.chat_template = _alone(folder / _ALONE)
        return found

    def chat(self, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
        """The checkpoint's chat format; UserError if it has none."""
        if not (self.of_hub.chat_template and self.takes_parts):
            return super().chat(messages, ask=ask)
        return self._written(
            [{**one, "content": list(_parts(one["content"]))} for one in messages], ask=ask
        )

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template reads a message's content as a list of parts."""
        message = {"role": "user", "content": [{"type": "text", "text": _PROBE}]}
        # A template raises errors of its own for content that it does not read.
        try:
            text = self._written([message], ask=False)
        except Exception:
            return False
        # A template for texts alone may write the list as Python shows it.
        return _PROBE in text and "'type'" not in text

    def _written(self, messages: Sequence[Any], *, ask: bool) -> str:
        text: str = self.of_hub.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
        return text


def template_for(tokenizer: CheckpointTokenizer, name: str | None) -> Template:
    """The named template; for None the chat format, or `llava15` where it marks no answer's end.

    The chat format of LLaVA-1.5 in transformers ends an answer with a blank, so that the end of an
    answer could not be learnt.
    """
    if name is not None:
        return build_template(name, tokenizer)
    try:
        return build_template("chat", tokenizer)
    except UserError:
        return build_template(LLAVA15, tokenizer)


def _alone(path: Path) -> str:
    try:
        return str(read_json(path)["chat_template"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} has no chat_template") from error


def _parts(text: str) -> Iterator[dict[str, str]]:
    """Texts and images of a message in their order."""
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            yield {"type": "image"}
        if piece.strip():
            yield {"type": "text", "text": piece.strip()}
