"""A recorded model as a model of lmms-eval: `lmms-eval --model fusionbench --model_args cell=ID`.

Imported by lmms-eval alone (entry point `lmms_eval.models`); needs the extra `lmms`.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError, unknown
from fusionbench.records.imports import NAME, RESULTS, evaluated_record
from fusionbench.vlm.open import LIMIT, OpenModel, asked, open_model
from fusionbench.vlm.rows import TrainingRow

manifest = ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.FusionBench")
"""What the entry point gives to lmms-eval."""
_ARGUMENTS = ("cell", "results", "batch_size", "device")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An answer that a task asks for."""

    row: TrainingRow
    limit: int
    """Most new tokens."""
    until: tuple[str, ...]
    """Texts that end the answer."""


class FusionBench(lmms):
    """A recorded model of the track `vlm`; decoding is greedy.

    The fusion's query is the whole prompt of the task, since lmms-eval passes no question apart
    from it. Images stand in front of a prompt without marks `<image>`.
    """

    is_simple = True

    def __init__(
        self,
        cell: str = "",
        results: str = RESULTS,
        batch_size: int | str = 1,
        device: str | None = None,
        **others: object,
    ) -> None:
        """`cell`: an id or a file of the folder `results`, or a folder of results with one model.

        Raises UserError for other arguments, and for a cell without weights.
        """
        super().__init__()
        for name in others:
            if name != "max_batch_size":
                raise unknown("argument of model_args", name, _ARGUMENTS)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size must be a whole number from 1, got {batch_size!r}")
        record, home = evaluated_record(str(cell), Path(str(results)))
        self.batch_size = int(batch_size)
        self._model: OpenModel = open_model(
            record.id, home, device=_device(device), size=self.batch_size
        )

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The greedy answer to each request, cut in front of the first of its `until` texts."""
        return self._answers([request.args for request in requests])

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation its loss, and whether it is the greedy answer.

        The loss is the mean negative log-likelihood over the tokens of the continuation and its end
        mark, in nats. lmms-eval takes the option with the smallest number, whatever the name says.
        """
        found: list[tuple[float, bool]] = []
        said: dict[tuple[str, int, str], str] = {}
        for request in self._progress(requests):
            if len(request.args) != 6:
                raise UserError(
                    f"a request with {len(request.args)} arguments: likelihoods without an image "
                    "(acc_mutual_info) are not computed"
                )
            context, target, visual, number, task, split = request.args
            document = self.task_dict[task][split][number]
            told = target(document) if callable(target) else target
            row = _row(context, visual(document), task, number, answer=str(told).strip())
            (batch,) = self._model.told([row])
            tokens = len(batch.answers[0])
            (loss,) = self._model.losses_of(batch)
            key = (task, number, context)
            if key not in said:
                asks = _row(context, visual(document), task, number)
                said[key] = self._model.answers([asks], limit=_room(LIMIT, self._model, asks))[0]
            found.append((loss / tokens, said[key].strip() == row.turns[-1].answer))
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """The greedy answers of all rounds of each request; each round is a prompt of its own."""
        return [self._rounds(request.args) for request in self._progress(requests)]

    def _rounds(self, arguments: tuple[Any, ...]) -> list[str]:
        """Ask until the task's function `doc_to_text` says that the last round is over."""
        context, options, visual, following, number, task, split = arguments
        document = self.task_dict[task][split][number]
        images, said, notes = visual(document), list[str](), None
        while True:
            wanted = _wanted(context, images, options, task, number)
            said += self._said([wanted])
            images, context, over, outputs, notes = following(
                document, previous_output=said, round_idx=len(said), previous_round_info=notes
            )
            if over:
                return list(outputs)

    def _answers(self, arguments: Sequence[tuple[Any, ...]]) -> list[str]:
        found: list[str] = []
        size = self.batch_size
        for first in self._progress(range(0, len(arguments), size)):
            wanted = []
            for context, options, visual, number, task, split in arguments[first : first + size]:
                images = visual(self.task_dict[task][split][number])
                wanted.append(_wanted(context, images, options, task, number))
            found += self._said(wanted)
        return found

    def _said(self, wanted: Sequence[Wanted]) -> list[str]:
        """The answers; requests of one limit go through the model together."""
        found: list[str] = []
        for limit, group in groupby(wanted, key=lambda one: one.limit):
            same = list(group)
            rows = [one.row for one in same]
            room = min(_room(limit, self._model, row) for row in rows)
            texts = self._generated(rows, room)
            found += [_cut(text, one.until) for text, one in zip(texts, same, strict=True)]
        return found

    def _generated(self, rows: Sequence[TrainingRow], limit: int) -> Iterator[str]:
        model = self._model
        for batch in model.asking.batches(rows):
            with model.asking.autocast():
                texts, _ = model.built.model.answer(batch, limit=limit)
            yield from texts

    def _progress(self, requests: Sequence[Any]) -> Any:
        return tqdm(requests, disable=self.rank != 0, desc="Model Responding")


def _wanted(
    context: str, images: object, options: Mapping[str, Any], task: str, number: int
) -> Wanted:
    if options.get("do_sample") or (options.get("num_beams") or 1) > 1:
        warnings.warn(
            f"{task} asks for samples or beams; FusionBench decodes greedily", stacklevel=2
        )
    until = options.get("until") or ()
    return Wanted(
        row=_row(context, images, task, number),
        limit=int(options.get("max_new_tokens") or LIMIT),
        until=(until,) if isinstance(until, str) else tuple(until),
    )


def _row(context: str, images: object, task: str, number: int, answer: str = "") -> TrainingRow:
    """A prompt with its images. Raises UserError with task and document for what is no image."""
    name = f"{task}, document {number}"
    found = [] if images is None else images if isinstance(images, list | tuple) else [images]
    for image in found:
        if not isinstance(image, Image.Image):
            raise UserError(
                f"{name} shows {type(image).__name__}, which is no image",
                "video, sound and files are not supported",
            )
    pictures = [
        Picture(name=f"{name}, image {at}", content=image) for at, image in enumerate(found, 1)
    ]
    try:
        return asked(pictures, context, answer)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", error.hint) from error


def _room(limit: int, model: OpenModel, row: TrainingRow) -> int:
    """The limit, or what the context holds behind the prompt if that is less; at least 1."""
    return max(1, model.asking.room(row, limit))


def _cut(text: str, until: Sequence[str]) -> str:
    """The text in front of the first of the texts that end it."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text


def _device(device: str | None) -> str:
    """The device of lmms-eval's `--device`; of several processes each has its own GPU."""
    if device and device != "cuda":
        return device
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
