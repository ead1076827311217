"""From pictures to inputs of the tower: padded as published, or by the checkpoint's processor."""

import numpy as np
import pytest
import torch
from llava_checkpoints import SIZE, Tiny, image_processor
from llava_identity import PLAIN, PROMPTS, SHAPES, logits, method_of, opened, original, pictures
from PIL import Image

from fusionbench.api.errors import UserError
from fusionbench.models.encoders.preprocessing import HALF, OPENAI, Preprocessing
from fusionbench.models.readers.llava.description import own_method
from fusionbench.models.readers.llava.pixels import padded, processed, reader

CLIP = Preprocessing(mean=OPENAI[0], std=OPENAI[1], interpolation="bicubic")
KINDS = {
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


@pytest.mark.parametrize("kind", KINDS)
def test_pixel_values_are_those_of_the_checkpoints_processor(kind):
    found = opened(KINDS[kind])
    for picture in pictures():
        whole = found.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        (views,) = reader(found, "processor")([picture])
        values = found.encoder.pixels(views.images)
        torch.testing.assert_close(values, whole.flatten(0, -4), atol=3e-6, rtol=1e-6)
        assert views.part == (len(values), (picture.height, picture.width))


@pytest.mark.parametrize("kind", KINDS)
def test_from_pictures_to_logits_nothing_is_lost(kind):
    whole, found = original(KINDS[kind]), opened(KINDS[kind])
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
