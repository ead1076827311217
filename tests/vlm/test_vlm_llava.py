"""Parts of a LLaVA checkpoint, joined by its own method, compute what the library's model does."""

import numpy as np
import pytest
import torch
from llava_checkpoints import (
    IMAGE,
    PLAIN,
    PROMPTS,
    SHAPES,
    SIZE,
    Tiny,
    checkpoint,
    greedy,
    image_processor,
    logits,
    method_of,
    opened,
    original,
    pictures,
)
from PIL import Image

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.models.encoders.preprocessing import HALF, OPENAI, Preprocessing
from fusionbench.models.readers.labels import encode
from fusionbench.models.readers.llava.description import own_method
from fusionbench.models.readers.llava.pixels import padded, processed, reader
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.text import Turn
from fusionbench.vlm.batch import Batches, ImageStates
from fusionbench.vlm.llava import Reading, most_positions, positions
from fusionbench.vlm.model import VisionLanguageModel
from fusionbench.vlm.rows import TrainingRow

SIGLIP = {"tower": "siglip"}
CASES = {
    "CLIP, default, -2": (Tiny(), "penultimate"),
    "CLIP, default, -1": (Tiny(layer=-1), "last"),
    "CLIP, full, -2": (Tiny(select="full"), "penultimate"),
    "CLIP, full, -1": (Tiny(select="full", layer=-1), "last"),
    "CLIP, default, 2": (Tiny(layer=2), "layer[index=2]"),
    "CLIP, default, [-2, 2]": (Tiny(layer=(-2, 2)), "hf_list[blocks=4,layers=3,2]"),
    "CLIP, full, [0, -1, 1]": (
        Tiny(select="full", layer=(0, -1, 1)), "hf_list[blocks=4,layers=0,4,1]"
    ),
    "CLIP, default, [-2]": (Tiny(layer=(-2,)), "penultimate"),
    "SigLIP, full, -1": (Tiny(**SIGLIP, select="full", layer=-1), "last"),
    "SigLIP, full, -2": (Tiny(**SIGLIP, select="full"), "penultimate"),
    "SigLIP, default, -1": (Tiny(**SIGLIP, layer=-1), "last"),
    "SigLIP, default, -2": (Tiny(**SIGLIP), "penultimate"),
    "NeXT, CLIP, default, -2": (Tiny(kind="llava_next"), "penultimate"),
    "NeXT, SigLIP, full, -1": (Tiny(**SIGLIP, kind="llava_next", select="full", layer=-1), "last"),
    "NeXT, CLIP, [-2, 2]": (Tiny(kind="llava_next", layer=(-2, 2)), "hf_list[blocks=4,layers=3,2]"),
    "OneVision, -1": (
        Tiny(**SIGLIP, kind="llava_onevision", select="full", layer=-1), "last"
    ),
    "OneVision, shrunk": (
        Tiny(**SIGLIP, kind="llava_onevision", select="full", most=1), "penultimate"
    ),
    "tied embeddings": (Tiny(tied=True), "penultimate"),
    "weights of 4.36": (Tiny(names="4.36"), "penultimate"),
    "weights of 4.36, NeXT": (Tiny(kind="llava_next", names="4.36"), "penultimate"),
    "weights of 4.52": (Tiny(names="4.52"), "penultimate"),
    "weights of 4.52, NeXT": (Tiny(kind="llava_next", names="4.52"), "penultimate"),
}  # fmt: skip


@pytest.mark.few(5)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_those_of_the_whole_model(case):
    made, label = CASES[case]
    whole, parts = original(made), opened(made)
    assert own_method(parts.about) == label
    method = method_of(label, parts)
    right = whole.logits()
    assert right.std() > 0.5, "logits near 0 would prove little"
    torch.testing.assert_close(logits(parts, method, whole.batch), right, atol=1e-5, rtol=1e-5)
    assert torch.equal(greedy(parts, method, whole.batch), whole.greedy())


# A checkpoint inside the training's own classes answers as the library's model does.

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


@pytest.mark.few(1)
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


# From pictures to inputs of the tower: padded as published, or by the checkpoint's processor.

CLIP = Preprocessing(mean=OPENAI[0], std=OPENAI[1], interpolation="bicubic")
PIXELS_KINDS = {
    "llava": Tiny(),
    "llava, SigLIP": Tiny(tower="siglip", select="full", layer=-1),
    "llava_next": Tiny(kind="llava_next"),
    "llava_onevision": Tiny(kind="llava_onevision", tower="siglip", select="full", layer=-1),
}


def smooth(width: int, height: int) -> Image.Image:
    draw = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, 6, 6, generator=draw) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return Image.fromarray(fine[0].clamp(0, 255).round().to(torch.uint8).movedim(0, -1).numpy())


@pytest.mark.parametrize("shape", [(60, 41), (41, 60), (28, 28), (200, 13)])
def test_padding_is_that_of_the_librarys_own_processor(shape):
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    picture, square = smooth(*shape), {"height": SIZE, "width": SIZE}
    mine = padded(picture, CLIP, size=SIZE)
    assert mine.images.shape == (1, SIZE, SIZE, 3) and mine.size == (shape[1], shape[0])
    for cls, off in ((LlavaImageProcessorPil, 0), (LlavaImageProcessor, 1)):
        theirs = cls(do_pad=True, size={"shortest_edge": SIZE}, crop_size=square)(
            images=picture, do_rescale=False, do_normalize=False, return_tensors="pt"
        )["pixel_values"]
        levels = theirs.movedim(1, -1).float()
        assert (mine.images.float() - levels).abs().max() <= off, cls.__name__


def test_the_colour_of_the_padding_is_truncated_and_the_picture_stands_in_the_middle():
    picture = Image.new("RGB", (4, 1), (255, 0, 0))
    levels = padded(picture, CLIP, size=4).images[0]
    assert levels[0, 0].tolist() == [122, 116, 104]
    # One row of four: three are padding, one above and two below.
    assert levels[1].tolist() == [[255, 0, 0]] * 4
    grey = padded(picture, Preprocessing(mean=HALF[0], std=HALF[1]), size=4).images[0]
    assert grey[3, 2].tolist() == [127] * 3


@pytest.mark.parametrize("kind", PIXELS_KINDS)
def test_pixel_values_are_those_of_the_checkpoints_processor(kind):
    found = opened(PIXELS_KINDS[kind])
    for picture in pictures():
        whole = found.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        (views,) = reader(found, "processor")([picture])
        values = found.encoder.pixels(views.images)
        torch.testing.assert_close(values, whole.flatten(0, -4), atol=3e-6, rtol=1e-6)
        assert views.part == (len(values), (picture.height, picture.width))


@pytest.mark.parametrize("kind", PIXELS_KINDS)
def test_from_pictures_to_logits_nothing_is_lost(kind):
    whole, found = original(PIXELS_KINDS[kind]), opened(PIXELS_KINDS[kind])
    first, *others = pictures()
    read = reader(found, "processor")
    views = [*read([first]), *read(others)]
    inputs = found.encoder.pixels(torch.cat([one.images for one in views]))
    batch = dict(whole.batch)
    counts = [one.part[0] for one in views]
    if found.tiling is not None:
        most = max(counts)
        parts = inputs.split(counts)
        inputs = torch.stack(
            [torch.cat([one, one.new_zeros(most - len(one), *one.shape[1:])]) for one in parts]
        )
        assert [one.size for one in views] == [tuple(s) for s in batch["image_sizes"].tolist()]
    batch["pixel_values"] = inputs
    mine = logits(found, method_of(own_method(found.about), found), batch)
    torch.testing.assert_close(mine, whole.logits(), atol=1e-4, rtol=1e-4)


def test_padding_and_cropping_differ_and_only_padding_keeps_the_margins():
    found = opened()
    wide = Image.new("RGB", (60, 20))
    wide.paste((255, 255, 255), (0, 0, 5, 20))
    cropped, kept = (reader(found, how)([wide])[0].images for how in ("processor", "pad"))
    assert cropped.max() == 0 and kept.max() > 200


def test_other_words_and_padding_of_tiles_are_refused():
    with pytest.raises(UserError, match="pad or processor, got 'padd'; did you mean 'pad'"):
        reader(opened(), "padd")
    with pytest.raises(UserError, match="cuts pictures into tiles"):
        reader(opened(Tiny(kind="llava_next")), "pad")


def test_a_processor_that_changes_pixels_in_another_way_is_refused():
    class Darker:
        def __call__(self, *, images, **_):
            values = torch.tensor(np.asarray(images[0])).movedim(-1, 0)[None] * 0.5
            return {"pixel_values": values + 0.1}

    with pytest.raises(UserError, match="Darker changes pixel values in another way"):
        processed([smooth(28, 28)], Darker())


def test_pictures_that_are_not_rgb_are_converted():
    grey = smooth(40, 30).convert("L")
    for views in (padded(grey, CLIP, size=SIZE), *processed([grey], image_processor(PLAIN))):
        assert views.images.shape == (1, SIZE, SIZE, 3)


def test_the_prompts_of_these_tests_hold_as_many_marks_as_there_are_pictures():
    assert sum(text.count("<image>") for text in PROMPTS) == len(SHAPES)
