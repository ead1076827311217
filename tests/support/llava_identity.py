"""A checkpoint's logits two ways: by the whole model of the library, and by its parts."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from llava_checkpoints import IMAGE, Tiny, checkpoint
from PIL import Image
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused
from fusionbench.harness.stepping import fuse
from fusionbench.models.readers.llava.checkpoint import Checkpoint, open_checkpoint
from fusionbench.records.cell import QUESTION, READER
from fusionbench.registry.catalog import Catalog, read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

ENGINE = (READER, QUESTION)
PROMPTS = (
    f"USER: {IMAGE}\nWhat is in the picture? ASSISTANT:",
    f"USER: {IMAGE}{IMAGE}\nCompare the first one with the second. ASSISTANT:",
    "USER: How many cubes are there? ASSISTANT:",
)
SHAPES = ((40, 30), (28, 28), (20, 70))
"""Width x height of the three pictures: one in the first row, two in the second."""


PLAIN = Tiny()


@functools.cache
def opened(made: Tiny = PLAIN) -> Checkpoint:
    """An unchanged checkpoint, opened once a process."""
    return open_checkpoint(f"llava:{checkpoint(made)}")


@functools.cache
def original(made: Tiny = PLAIN, *, side: str = "left") -> "Original":
    """The library's model of an unchanged checkpoint, loaded once a process."""
    return Original.of(checkpoint(made), side=side)


def pictures(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Image.Image]:
    draw = torch.Generator().manual_seed(11)
    return [
        Image.fromarray(
            torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8).numpy()
        )
        for width, height in shapes
    ]


@dataclass(frozen=True, kw_only=True)
class Original:
    """The library's model and the batch that its own processor makes."""

    model: Any
    batch: Any

    @staticmethod
    def of(folder: Path, *, side: str = "left", prompts: Sequence[str] = PROMPTS) -> "Original":
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(folder)
        processor.tokenizer.padding_side = side
        images = pictures()
        nested = [[images.pop(0) for _ in range(text.count(IMAGE))] for text in prompts]
        batch = processor(
            images=[row for row in nested if row],
            text=list(prompts),
            return_tensors="pt",
            padding=True,
        )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        return Original(model=model, batch=batch)

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.model(**self.batch, position_ids=positions(self.batch["attention_mask"])).logits

    @torch.no_grad()
    def greedy(self, limit: int = 8) -> Tensor:
        start = self.batch["input_ids"].shape[1]
        return self.model.generate(**self.batch, max_new_tokens=limit, do_sample=False)[:, start:]


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(0)


@functools.cache
def catalog() -> Catalog:
    return read_catalog()


def method_of(label: str, checkpoint: Checkpoint) -> Method:
    """A method by its label, built for the checkpoint's tower and language model."""
    (chosen,) = select_methods(catalog(), [label])
    settings = {key: value for key, value in chosen.settings.items() if key not in ENGINE}
    encoder, language = checkpoint.encoder, checkpoint.language.shape
    shape = replace(encoder.shape, mlp=encoder.mlp, query_dim=language.width, reader=language)
    torch.manual_seed(0)
    return load_method(chosen.card)(shape, **settings)


def fused_tokens(checkpoint: Checkpoint, method: Method, inputs: Tensor) -> Tensor:
    return fused(checkpoint, method, inputs).tokens


@torch.no_grad()
def fused(checkpoint: Checkpoint, method: Method, inputs: Tensor) -> Fused:
    encoder = checkpoint.encoder
    states = encoder.hidden_states(inputs)

    def state(index: int) -> Tensor:
        source, normed = encoder.shape.source(index)
        return encoder.norm(states[source]) if normed else states[source]

    def stacked(taps: Any) -> Tensor:
        return torch.stack([torch.stack([state(i) for i in tap]).mean(0) for tap in taps])

    draw = torch.Generator().manual_seed(2)
    query = torch.randn(len(inputs), checkpoint.language.shape.width, generator=draw)
    return fuse(method, stacked, query, encoder)


@torch.no_grad()
def embedded(checkpoint: Checkpoint, method: Method, batch: Any) -> Tensor:
    """Embeddings of a batch with the pictures' tokens in place of the processor's image marks."""
    values = batch["pixel_values"]
    if checkpoint.tiling is None:
        inputs, parts = values, [(1, (0, 0))] * len(values)
    else:
        sizes = [tuple(size) for size in batch["image_sizes"].tolist()]
        together = batch.get("batch_num_images", torch.ones(len(sizes))).tolist()
        alone = [several == 1 for several in together for _ in range(int(several))]
        counts = [checkpoint.tiling.inputs(size) if one else 1
                  for one, size in zip(alone, sizes, strict=True)]  # fmt: skip
        inputs = torch.cat([one[:count] for one, count in zip(values, counts, strict=True)])
        parts = list(zip(counts, sizes, strict=True))
    projected = checkpoint.projector(fused_tokens(checkpoint, method, inputs))
    tokens = torch.cat(checkpoint.image_tokens(projected, parts))
    marked = batch["input_ids"] == checkpoint.about.image_token_id
    assert int(marked.sum()) == len(tokens), "the processor counts other tokens"
    embeds = checkpoint.language.embed(batch["input_ids"])
    rows = []
    for row, marks in zip(embeds, marked, strict=True):
        count = int(marks.sum())
        mine, tokens = tokens[:count], tokens[count:]
        rows.append(torch.stack([mine[int(marks[:at].sum())] if marks[at] else row[at]
                                 for at in range(len(row))]))  # fmt: skip
    return torch.stack(rows)


@torch.no_grad()
def logits(checkpoint: Checkpoint, method: Method, batch: Any) -> Tensor:
    mask = batch["attention_mask"]
    found = checkpoint.language.model(
        inputs_embeds=embedded(checkpoint, method, batch),
        attention_mask=mask,
        position_ids=positions(mask),
    )
    return found.logits


@torch.no_grad()
def greedy(checkpoint: Checkpoint, method: Method, batch: Any, limit: int = 8) -> Tensor:
    return checkpoint.language.model.generate(
        inputs_embeds=embedded(checkpoint, method, batch),
        attention_mask=batch["attention_mask"],
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=4,
    )
