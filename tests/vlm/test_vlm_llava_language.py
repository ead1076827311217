"""A LLaVA checkpoint asked through our templates, labels and splicing answers like the original."""

import json
import shutil

import pytest
import torch
from llava_checkpoints import IMAGE, Tiny, checkpoint
from llava_identity import fused, fused_tokens, method_of, opened, original, pictures

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, ReaderPatch, Unsupported
from fusionbench.models.readers.labels import encode
from fusionbench.models.readers.llava.checkpoint import open_checkpoint, projector_for
from fusionbench.models.readers.llava.description import own_method
from fusionbench.models.readers.llava.pixels import reader
from fusionbench.models.readers.splice import splice
from fusionbench.models.readers.text import Turn

NEXT = Tiny(kind="llava_next")
SIGLIP = Tiny(tower="siglip", select="full", layer=-1)
TURNS = (
    [Turn(f"{IMAGE}\nWhat is in the picture?", "two red cubes")],
    [Turn("How many cubes are there?", "two")],
    [Turn(f"{IMAGE}{IMAGE} Compare the first one with the second.", "There are cubes.")],
)
_BODY = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n"
    "{% endfor %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] " + _BODY + " [/INST]"
    "{% else %} " + _BODY + "</s>{% endif %}{% endfor %}"
)
"""Reads parts and marks the end of an answer, as that of LLaVA-NeXT with Mistral."""
UNMARKED = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}" + _BODY + "{{ ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Reads parts and ends an answer with a blank, as that of LLaVA-1.5."""
TEXTS = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def with_chat(folder, template, *, file="chat_template.jinja", made=NEXT):
    shutil.copytree(checkpoint(made), folder)
    text = template if file.endswith("jinja") else json.dumps({"chat_template": template})
    (folder / file).write_text(text)
    return folder


def seen(found):
    """Image tokens of the three pictures through the checkpoint's own method."""
    read, method = reader(found, "processor"), method_of(own_method(found.about), found)
    first, *others = pictures()
    views = [*read([first]), *read(others)]
    inputs = torch.cat([one.images for one in views])
    with torch.no_grad():
        projected = found.projector(fused_tokens(found, method, inputs))
        return found.image_tokens(projected, [one.part for one in views])


def asked_of_the_original(made, texts):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint(made))
    processor.tokenizer.padding_side = "left"
    first, *others = pictures()
    batch = processor(
        images=[[first], others], text=texts, return_tensors="pt", padding=True,
        add_special_tokens=False,
    )  # fmt: skip
    return original(made).model, batch


@pytest.mark.parametrize("made", [Tiny(), SIGLIP, NEXT])
def test_greedy_answers_are_those_of_the_original(made):
    found = opened(made)
    language = found.language
    assert language.template.name == "llava15"
    rows = [encode(language.tokenizer, language.template, turns, answer=False) for turns in TURNS]
    mine = language.generate(splice(language, rows, seen(found), side="left"), limit=8)
    texts = [language.template.render(turns, answer=False).text for turns in TURNS]
    model, batch = asked_of_the_original(made, texts)
    start = batch["input_ids"].shape[1]
    ids = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, start:]
    assert mine == [language.tokenizer.decode(row) for row in ids.tolist()]
    assert len(set(mine)) == 3


@pytest.mark.parametrize("made", [Tiny(), SIGLIP, NEXT])
def test_the_loss_of_the_answers_is_that_of_the_original(made):
    found = opened(made)
    language = found.language
    rows = [encode(language.tokenizer, language.template, turns, answer=True) for turns in TURNS]
    mine = language.nll(splice(language, rows, seen(found), side="right"))
    texts = [language.template.render(turns, answer=True).text for turns in TURNS]
    model, batch = asked_of_the_original(made, texts)
    with torch.no_grad():
        scores = model(**batch).logits.log_softmax(dim=-1)
    for row, encoded in enumerate(rows):
        count = sum(encoded.labelled)
        assert batch["input_ids"][row, -count:].tolist() == list(encoded.ids[-count:])
        wanted = batch["input_ids"][row, -count:, None]
        right = -scores[row, -count - 1 : -1].gather(1, wanted).sum()
        torch.testing.assert_close(mine[row], right, atol=1e-4, rtol=1e-5)


def test_injections_of_tiled_pictures_reach_the_positions_of_their_tokens():
    found = opened(NEXT)
    language, (first, *others) = found.language, pictures()
    views = [*reader(found, "processor")([first]), *reader(found, "processor")(others)]
    inputs, parts = torch.cat([one.images for one in views]), [one.part for one in views]
    given = fused(found, method_of("qwen3vl_deepstack", found), inputs)
    assert given.injections and given.tokens.shape[1] == 16
    projector, _ = projector_for(found, given.tokens.shape[-1])
    by_picture = found.by_picture(given, projector, parts)
    rows = [encode(language.tokenizer, language.template, turns, answer=True) for turns in TURNS]
    with torch.no_grad():
        tokens = found.image_tokens(projector(given.tokens), parts)
        batch = splice(language, rows, tokens, side="right")
        inside = language.inside(by_picture, batch, projector)
        with language.injected(inside), torch.no_grad():
            mine = language.model(inputs_embeds=batch.embeds).logits
        right = injected_by_hand(found, given, projector, parts, batch)
        without = language.model(inputs_embeds=batch.embeds).logits
    torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[1], without[1], atol=1e-5, rtol=1e-5)
    assert (mine - without)[[0, 2]].abs().max() > 1e-3


def injected_by_hand(found, given, projector, parts, batch):
    """Logits with the values of each picture's tiles added to the layers by hooks of our own."""
    hooks, zeros = [], torch.zeros(found.language.shape.width)
    for one in given.injections:
        values = projector(one.values) if one.through_projector else one.values
        added = torch.zeros_like(batch.embeds)
        split = values.split([count for count, _ in parts])
        for (row, at), mine, (_, size) in zip(batch.spots, split, parts, strict=True):
            joined = found.tiling.join(mine, size, zeros)
            added[row, at : at + len(joined)] = joined
        layer = found.language.decoder.layers[one.layer]
        if one.when == "before":
            hook = layer.register_forward_pre_hook(
                lambda _, args, added=added: (args[0] + added, *args[1:])
            )
        else:
            hook = layer.register_forward_hook(lambda _, args, out, added=added: out + added)
        hooks.append(hook)
    try:
        return found.language.model(inputs_embeds=batch.embeds).logits
    finally:
        for hook in hooks:
            hook.remove()


def test_a_replaced_layer_is_unsupported_where_pictures_have_tiles():
    found, tokens = opened(NEXT), torch.zeros(3, 16, 32)
    patched = Fused(tokens=tokens, patches=(ReaderPatch(layer=0, wrap=lambda layer: layer),))
    with pytest.raises(Unsupported, match="several tiles of each"):
        found.by_picture(patched, found.projector, [(3, (30, 40))])
    assert opened().by_picture(patched, found.projector, [(1, (30, 40))] * 3) is patched
    summed = Fused(tokens=tokens, summary=torch.arange(3.0)[:, None])
    parts = [(1, (30, 40)), (2, (30, 40))]
    assert found.by_picture(summed, found.projector, parts).summary.tolist() == [[0.0], [1.0]]


def test_all_parts_are_frozen_and_the_language_model_names_its_checkpoint():
    found = opened()
    assert not any(weight.requires_grad for weight in found.language.parameters())
    assert found.language.fingerprint == found.about.weights
    assert (found.language.shape.layers, found.language.shape.width) == (3, 48)


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_a_chat_format_of_the_processor_is_written_as_the_processor_writes_it(file, tmp_path):
    from transformers import AutoProcessor

    folder = with_chat(tmp_path / "chat", MARKED, file=file)
    template = open_checkpoint(f"llava:{folder}").language.template
    assert template.name == "chat"
    text = template.render([Turn(f"{IMAGE}\nWhat is it?", "a cube")], answer=True).text
    assert text == "[INST] <image>\nWhat is it? [/INST] a cube</s>"
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    processor = AutoProcessor.from_pretrained(folder)
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    assert template.render([Turn(f"{IMAGE}\nWhat is it?")], answer=False).text == theirs


def test_a_chat_format_without_an_end_of_the_answer_is_replaced_by_llava15(tmp_path):
    folder = with_chat(tmp_path / "chat", UNMARKED, made=Tiny())
    assert open_checkpoint(f"llava:{folder}").language.template.name == "llava15"
    with pytest.raises(UserError, match="no mark behind it"):
        open_checkpoint(f"llava:{folder}", template="chat")


def test_a_chat_format_for_texts_gets_texts(tmp_path):
    folder = with_chat(tmp_path / "chat", TEXTS)
    template = open_checkpoint(f"llava:{folder}").language.template
    text = template.render([Turn(f"{IMAGE} What is it?", "a cube")], answer=True).text
    assert text == "<s>user\n<image> What is it?</s><s>assistant\na cube</s>"


def test_a_chat_template_of_another_form_is_an_error_that_names_the_file(tmp_path):
    folder = with_chat(tmp_path / "chat", TEXTS, file="chat_template.json")
    (folder / "chat_template.json").write_text("{}")
    with pytest.raises(UserError, match=r"chat_template.json has no chat_template"):
        open_checkpoint(f"llava:{folder}")
