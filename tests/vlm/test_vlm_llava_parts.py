"""Parts of a LLaVA checkpoint behind our contracts: tower, projector, joined tiles."""

import json
import shutil

import pytest
import torch
from llava_checkpoints import (
    IMAGE,
    PINPOINTS,
    SIZE,
    Tiny,
    checkpoint,
    fused,
    fused_tokens,
    greedy,
    logits,
    method_of,
    opened,
    original,
    pictures,
)
from method_sizes import names

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, ReaderPatch, Unsupported
from fusionbench.models.readers.injection import project
from fusionbench.models.readers.labels import encode
from fusionbench.models.readers.llava.checkpoint import FRESH, open_checkpoint, projector_for
from fusionbench.models.readers.llava.description import own_method, unfit
from fusionbench.models.readers.llava.pixels import reader
from fusionbench.models.readers.llava.tiles import Tiling, best
from fusionbench.models.readers.splice import splice
from fusionbench.models.readers.text import Turn
from fusionbench.study.training import describe_language

TILING = Tiling(pinpoints=tuple(map(tuple, PINPOINTS)), side=SIZE, grid=4)
SIZES = [(30, 40), (28, 28), (20, 70), (70, 20), (1, 1), (1, 500), (57, 83), (56, 56), (29, 85)]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_hidden_states_are_the_towers(tower):
    found = opened(Tiny(tower=tower, select="full"))
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=draw)
    library = original(Tiny(tower=tower, select="full")).model.model.vision_tower
    theirs = library(pixels, output_hidden_states=True)
    mine = found.encoder.hidden_states(pixels)
    assert len(mine) == len(theirs.hidden_states) == 5
    for one, other in zip(mine, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if tower == "siglip":
        normed = found.encoder.norm(mine[-1])
        torch.testing.assert_close(normed, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_another_layer_selection_or_padding_gives_other_logits_where_it_should():
    whole, found = original(), opened()
    right = whole.logits()
    labels = ("last", "layer[index=2]", "last_norm")
    for label in labels:
        other = logits(found, method_of(label, found), whole.batch)
        assert (other - right)[:2].abs().max() > 0.05, label
        # The third row has no picture.
        torch.testing.assert_close(other[2], right[2], atol=1e-5, rtol=1e-5)
    right_padded = original(side="right")
    own = method_of("penultimate", found)
    mask = right_padded.batch["attention_mask"].bool()
    mine = logits(found, own, right_padded.batch)
    torch.testing.assert_close(mine[mask], right_padded.logits()[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[mask], right[whole.batch["attention_mask"].bool()],
                               atol=1e-4, rtol=1e-4)  # fmt: skip


def test_methods_that_write_into_the_tower_run_and_leave_it_as_it_is():
    found = opened()
    assert not any(weight.requires_grad for weight in found.encoder.parameters())
    assert not any(weight.requires_grad for weight in found.projector.parameters())
    method = method_of("mema[query=false]", found)
    inputs = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    tokens = fused_tokens(found, method, inputs)
    assert tokens.shape == (2, 16, 32) and tokens.isfinite().all()


def test_a_method_as_wide_as_the_projector_keeps_a_copy_of_the_trained_one():
    found = opened()
    projector, note = projector_for(found, 32)
    assert note == "" and projector is not found.projector
    tokens = torch.randn(2, 3, 32)
    assert torch.equal(projector(tokens), found.projector(tokens))
    projector.linear_1.weight.data.zero_()
    assert found.projector.linear_1.weight.any()


def test_a_wider_method_gets_a_fresh_projector_at_the_scale_of_the_token_embeddings():
    found = opened()
    torch.manual_seed(0)
    projector, note = projector_for(found, 96)
    assert note == FRESH and all(weight.requires_grad for weight in projector.parameters())
    assert {name: tuple(weight.shape) for name, weight in projector.state_dict().items()} == {
        "linear_1.weight": (48, 96), "linear_1.bias": (48,),
        "linear_2.weight": (48, 48), "linear_2.bias": (48,),
    }  # fmt: skip
    table = found.language.model.get_input_embeddings().weight.std()
    assert 0.9 * table < projector(torch.randn(500, 96)).std() < 1.1 * table
    tokens = torch.randn(500, 96) * 30 + 5
    projector, _ = projector_for(found, 96, tokens)
    torch.testing.assert_close(projector(tokens).std(), table, rtol=0.01, atol=0)
    torch.manual_seed(0)
    first, again = (projector_for(found, 96)[0].linear_1.weight for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(projector_for(found, 96)[0].linear_1.weight, first)
    assert not torch.equal(first, again)


def test_a_checkpoint_of_two_layers_keeps_its_projector_for_two_layers_only():
    found = opened(Tiny(layer=(-2, 2)))
    assert projector_for(found, 64)[1] == "" and projector_for(found, 32)[1] == FRESH


@pytest.mark.parametrize("size", SIZES)
def test_tiles_and_tokens_are_counted_as_the_library_counts_them(size):
    from transformers import AutoProcessor
    from transformers.image_processing_utils import select_best_resolution

    processor = AutoProcessor.from_pretrained(checkpoint(Tiny(kind="llava_next")))
    assert best(size, TILING.pinpoints) == tuple(select_best_resolution(size, PINPOINTS))
    count = processor._get_num_multimodal_tokens(image_sizes=[size])
    assert TILING.tokens(size) == count["num_image_tokens"][0]
    joined = TILING.join(torch.zeros(TILING.inputs(size), 16, 3), size, torch.ones(3))
    assert len(joined) == TILING.tokens(size)


@pytest.mark.few(12)
@pytest.mark.parametrize("most", [0, 1, 2, 9])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_joined_as_the_library_joins_them(most, size):
    kind = "llava_onevision" if most else "llava_next"
    made = Tiny(kind=kind, tower="siglip", select="full", layer=-1)
    library = original(made).model.model
    tiling = Tiling(pinpoints=TILING.pinpoints, side=SIZE, grid=4, most=most)
    tokens = torch.randn(tiling.inputs(size), 16, 48)
    newline = torch.randn(48)
    given = {"vision_aspect_ratio": f"anyres_max_{most}"} if most else {
        "vision_feature_select_strategy": "full"}  # fmt: skip
    (theirs,), _ = library.pack_image_features(
        [tokens], torch.tensor([size]), image_newline=newline, **given
    )
    mine = tiling.join(tokens, size, newline)
    assert len(mine) == tiling.tokens(size)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_one_input_alone_gets_one_newline():
    tokens, newline = torch.randn(1, 16, 3), torch.ones(3)
    joined = TILING.join(tokens, (20, 70), newline)
    assert torch.equal(joined, torch.cat([tokens[0], newline[None]]))


def test_a_method_that_changes_the_number_of_tokens_is_unsupported_where_tiles_are_joined():
    plain, tiled = opened(), opened(Tiny(kind="llava_next"))
    size = (30, 40)
    inputs = torch.randn(tiled.tiling.inputs(size), 3, SIZE, SIZE)
    for label in ("token_packer", "concat_all-pooled", "token_concat"):
        fewer = fused_tokens(plain, method_of(label, plain), inputs)
        assert fewer.shape[1] != 16
        assert len(plain.image_tokens(fewer, [(1, size)] * len(inputs))) == len(inputs)
        with pytest.raises(Unsupported, match=f"16 to {fewer.shape[1]}"):
            tiled.image_tokens(fewer, [(len(inputs), size)])


@pytest.mark.few(1)
@pytest.mark.parametrize("made", [Tiny(), Tiny(select="full"), Tiny(kind="llava_next")])
def test_every_method_runs_behind_the_tower_or_says_why_it_does_not_fit(made):
    found, size = opened(made), (30, 40)
    tiled = found.tiling is not None
    count = found.tiling.inputs(size) if tiled else 2
    parts = [(count, size)] if tiled else [(1, size)] * count
    inputs = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    ran, left_out = [], {}
    for name in names():
        try:
            method = method_of(name, found)
            reason = unfit(found.about, needs_grid=method.needs_grid)
            given = None if reason else fused(found, method, inputs)
            if given is not None:
                projector, _ = projector_for(found, method.out_dim)
                projected = project(given, projector)
                reason = unfit(found.about, tokens=projected.shape[1])
        except Unsupported as why:
            reason = str(why)
        if reason:
            left_out[name] = reason
            continue
        tokens = found.image_tokens(projected, parts)
        assert len(tokens) == len(parts) and all(one.shape[1] == 48 for one in tokens), name
        ran.append(name)
    assert {"penultimate", "mema", "lsf_internal_direct", "dense_connector-dci"} <= set(ran)
    packer = "token_packer"
    assert (packer in left_out) == (tiled or made.select == "full")
    assert ("dense_connector-efficient" in left_out) == (packer in left_out)


def test_injected_values_of_tiles_are_placed_like_the_tokens_with_zeros_at_the_newlines():
    tiled = opened(Tiny(kind="llava_next"))
    parts = [(tiled.tiling.inputs(size), size) for size in SIZES[:2]]
    values = torch.rand(sum(count for count, _ in parts), 16, 48) + 1
    placed = tiled.image_tokens(values, parts, newline=torch.zeros(48))
    trained = tiled.image_tokens(values, parts)
    for one, other in zip(placed, trained, strict=True):
        zeros = (one == 0).all(dim=1)
        assert torch.equal(one[~zeros], other[~zeros]) and zeros.any()
        assert torch.equal(other[zeros], tiled.newline.expand(int(zeros.sum()), -1))


def test_dropout_of_the_configuration_is_switched_off(tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = config["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    found = open_checkpoint(f"llava:{folder}")
    inputs = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    still = found.encoder.hidden_states(inputs)[-1]
    found.encoder.train()
    assert torch.equal(found.encoder.hidden_states(inputs)[-1], still)
    ids = torch.tensor([[5, 6, 7]])
    still = found.language.model(ids).logits
    assert torch.equal(found.language.train().model(ids).logits, still)


def test_half_precision_opens_and_computes_in_its_type():
    found = open_checkpoint(f"llava:{checkpoint()}", dtype=torch.bfloat16)
    assert found.encoder.hidden_states(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))[
        0
    ].dtype == (torch.bfloat16)
    assert found.language.model.dtype == found.projector.linear_1.weight.dtype == torch.bfloat16


def test_gradients_reach_the_fused_tokens_through_projector_and_language_model():
    found = opened()
    inputs = original().batch["pixel_values"]
    tokens = fused_tokens(found, method_of("penultimate", found), inputs)
    tokens.requires_grad_()
    embeds = found.projector(tokens)
    found.language.model(inputs_embeds=embeds).logits.logsumexp(-1).sum().backward()
    assert tokens.grad.abs().min(dim=-1).values.max() > 0


def test_greedy_tokens_follow_the_picture():
    found = opened()
    own = method_of("penultimate", found)
    batch = dict(original().batch)
    texts = greedy(found, own, batch)
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    other = greedy(found, own, batch)
    assert not any(torch.equal(texts[row], other[row]) for row in (0, 1))
    assert torch.equal(texts[2], other[2])


# A LLaVA checkpoint asked through our templates, labels and splicing answers like the original.

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


def test_the_id_of_a_checkpoint_covers_its_template_and_its_image_processor(tmp_path):
    folder = with_chat(tmp_path / "chat", TEXTS)
    ids = {describe_language("", f"llava:{folder}", download=False).weights}
    for name in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja"):
        old = (folder / name).read_text() if (folder / name).is_file() else "{}"
        (folder / name).write_text(old + "\n")
        ids.add(describe_language("", f"llava:{folder}", download=False).weights)
    assert len(ids) == 4
