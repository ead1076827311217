"""A checkpoint inside the training's own classes answers as the library's model does."""

import pytest
import torch
from llava_checkpoints import IMAGE, Tiny, checkpoint
from llava_identity import method_of, opened, pictures

from fusionbench.api.benchmarks import Picture
from fusionbench.models.readers.labels import encode
from fusionbench.models.readers.llava.description import own_method
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.text import Turn
from fusionbench.vlm.batch import Batches, ImageStates
from fusionbench.vlm.llava import Reading, most_positions, positions
from fusionbench.vlm.model import VisionLanguageModel
from fusionbench.vlm.rows import TrainingRow

KINDS = {
    "llava": Tiny(),
    "llava, two layers": Tiny(layer=(-2, 2)),
    "llava, SigLIP": Tiny(tower="siglip", select="full", layer=-1),
    "llava_next": Tiny(kind="llava_next"),
    "llava_onevision": Tiny(kind="llava_onevision", tower="siglip", select="full", layer=-1),
}
QUESTIONS = (
    f"{IMAGE}\nWhat is in the picture?",
    f"{IMAGE}{IMAGE}\nCompare the first one with the second.",
    "How many cubes are there?",
)


def rows() -> list[TrainingRow]:
    images = [Picture(name=f"{n}", content=one) for n, one in enumerate(pictures())]
    return [
        TrainingRow(name=text, images=tuple(images.pop(0) for _ in range(text.count(IMAGE))),
            turns=(Turn(text),))
        for text in QUESTIONS
    ]  # fmt: skip


def model_of(made: Tiny, label: str = "") -> VisionLanguageModel:
    found = opened(made)
    fusion = method_of(label or own_method(found.about), found)
    return VisionLanguageModel(fusion, found.projector, found.language, found.encoder, found).eval()


def batches(made: Tiny, held: list[TrainingRow]) -> Batches:
    found = opened(made)
    reading = Reading.of(found, "processor")
    states = ImageStates(
        keys={}, encoder=found.encoder, device=torch.device("cpu"), pixels=reading.alone,
        several=reading.several,
    )  # fmt: skip
    tokenizer = found.language.tokenizer
    template = build_template("llava15", tokenizer)
    return Batches(
        held, lambda row: encode(tokenizer, template, row.turns, answer=False), states, files=True
    )


def theirs(made: Tiny, held: list[TrainingRow], limit: int) -> list[str]:
    """Greedy answers of the library's model to the texts of our template."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint(made)
    processor = AutoProcessor.from_pretrained(folder)
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = opened(made).language.tokenizer
    template = build_template("llava15", tokenizer)
    found = []
    for row in held:
        text = template.render(row.turns, answer=False).text
        images = [picture.open() for picture in row.images]
        given = {"images": [images]} if images else {}
        batch = processor(text=[text], return_tensors="pt", **given)
        ids = whole.generate(**batch, max_new_tokens=limit, do_sample=False)
        new = ids[0, batch["input_ids"].shape[1] :].tolist()
        if 2 in new:
            new = new[: new.index(2)]
        found.append(tokenizer.decode(new))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_rows_with_one_two_and_no_image_are_the_librarys(kind):
    made, held = KINDS[kind], rows()
    reading = batches(made, held)
    reading.expect(range(3))
    mine, fused = model_of(made).answer(reading.fetch(range(3)), limit=6)
    assert mine == theirs(made, held, 6) and len(set(mine)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_a_row_are_those_that_it_takes(kind):
    made, held = KINDS[kind], rows()
    reading, model, found = batches(made, held), model_of(made), opened(made)
    for number, row in enumerate(held):
        batch = reading.fetch([number])
        fused = model.fused(batch)
        spliced, _ = model.spliced(batch, fused, side="right")
        taken = spliced.embeds.shape[1] - len(batch.rows[0].ids)
        assert positions(found, row, fused.tokens.shape[1]) == taken
        each = [len(one) for one in model.image_tokens(batch, fused)] if row.images else [0]
        assert model.most_tokens(batch, fused) == max(each) <= most_positions(found, 16)


def test_each_tile_of_a_picture_is_asked_with_the_query_of_its_row():
    held = rows()
    batch = batches(KINDS["llava_next"], held).fetch(range(3))
    counts = [inputs for inputs, _ in batch.pictures]
    assert batch.owners == (0, 1, 1) and min(counts) > 1
    assert batch.asking == (0,) * counts[0] + (1,) * (counts[1] + counts[2])


@pytest.mark.parametrize("label", ["mema[query=false]", "lsf_internal_direct", "mema"])
def test_an_image_of_a_batch_changes_no_other_rows_answer_of_tiles(label):
    made, held = KINDS["llava_next"], rows()
    model, reading = model_of(made, label), batches(made, rows())
    together, _ = model.answer(reading.fetch(range(3)), limit=6)
    alone = [model.answer(batches(made, held).fetch([n]), limit=6)[0][0] for n in range(3)]
    assert together == alone
