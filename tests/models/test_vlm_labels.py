"""Templates, labels by characters, image places and queries of conversations."""

import subprocess
import sys

import pytest
import torch
from tiny_languages import byte_level, metaspace
from transformers import PreTrainedTokenizerFast

from fusionbench.api.errors import UserError
from fusionbench.models.readers.labels import TooLong, encode
from fusionbench.models.readers.load import check_language, load_language
from fusionbench.models.readers.splice import splice
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.text import IMAGE, HubTokenizer, Turn, images_in, without_images
from fusionbench.models.readers.words import SPECIAL, WordTokenizer
from fusionbench.records.cell import QUERIES

TURNS = [
    Turn(f"{IMAGE}\nWhat is the capital?", "Paris."),
    Turn("What color is the cube?", "red"),
]
WORDS = WordTokenizer.of_texts(text for turn in TURNS for text in (turn.question, turn.answer))
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
PAIRS = {
    "words": ("words", WORDS),
    "llava15, bytes": ("llava15", byte_level()),
    "llava15, metaspace": ("llava15", metaspace()),
    "chat": ("chat", byte_level()),
    "plain": ("plain", byte_level()),
}


@pytest.fixture(params=PAIRS, ids=str)
def pair(request):
    name, tokenizer = PAIRS[request.param]
    return tokenizer, build_template(name, tokenizer)


def conversation(template):
    return TURNS[:1] if template.name == "plain" else TURNS


def text_of(tokenizer, ids):
    return tokenizer.of_hub.decode(ids) if isinstance(tokenizer, HubTokenizer) else None


def test_llava15_is_llavas_v1():
    """Written out by hand from haotian-liu/LLaVA, llava/conversation.py at c121f04."""
    template = build_template("llava15", metaspace())
    assert template.render(TURNS, answer=True).text == (
        f"{SYSTEM} USER: <image>\nWhat is the capital? ASSISTANT: Paris.</s>"
        "USER: What color is the cube? ASSISTANT: red</s>"
    )
    assert template.render(TURNS, answer=False).text == (
        f"{SYSTEM} USER: <image>\nWhat is the capital? ASSISTANT: Paris.</s>"
        "USER: What color is the cube? ASSISTANT:"
    )
    last = Turn(f"What is it?\n{IMAGE}", "red")
    assert "USER: <image>\nWhat is it? ASSISTANT:" in template.render([last], answer=True).text


def test_plain_is_the_image_and_the_caption():
    template = build_template("plain", byte_level())
    row = Turn(f"Describe it briefly. {IMAGE}", " A red cube. ")
    assert template.render([row], answer=True).text == "<image>A red cube.\n"
    assert template.render([row], answer=False).text == "<image>"
    with pytest.raises(UserError, match="writes 1 turn, not 2"):
        template.render(TURNS, answer=True)


def test_chat_is_the_tokenizers_own_format():
    template = build_template("chat", byte_level())
    head = "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\n"
    assert template.render(TURNS[:1], answer=True).text == (
        f"{head}<image>\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\nParis.<|im_end|>"
    )
    assert template.tail == "<|im_end|>" and template.ends == (byte_level().end,)


def test_a_blank_before_the_end_mark_is_no_end(monkeypatch):
    """The format of Llama 2: a blank, then the end of the sequence."""
    of_llama = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
    )
    tokenizer = metaspace()
    monkeypatch.setattr(tokenizer.of_hub, "chat_template", of_llama)
    template = build_template("chat", tokenizer)
    assert template.tail == " </s>" and template.ends == (tokenizer.end,)
    row = encode(tokenizer, template, TURNS[1:], answer=True)
    assert row.ids[-1] == tokenizer.end and row.labelled[-1]


@pytest.mark.parametrize(("template", "said"), [
    ("{% for m in messages %}{{ m['content'] }};{% endfor %}"
     "{% if add_generation_prompt %}<think>{% endif %}", "puts other text before"),
    ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no mark behind it"),
])  # fmt: skip
def test_a_chat_format_that_hides_where_an_answer_begins_is_refused(template, said):
    with pytest.raises(UserError, match=said):
        build_template("chat", byte_level(template))


def test_a_tokenizer_without_a_chat_format_says_so():
    with pytest.raises(UserError, match="no chat format"):
        build_template("chat", metaspace())
    with pytest.raises(UserError, match="no chat format"):
        build_template("chat", WORDS)
    with pytest.raises(UserError, match="did you mean 'llava15'"):
        build_template("llava", WORDS)


def test_the_labelled_tokens_are_the_last_answer_and_its_end(pair):
    tokenizer, template = pair
    turns = conversation(template)
    row = encode(tokenizer, template, turns, answer=True)
    said = [token for token, labelled in zip(row.ids, row.labelled, strict=True) if labelled]
    assert tokenizer.decode(said).strip() == turns[-1].answer
    assert said[-1] in template.ends
    # All of them stand at the end, and the prompt is what stands in front.
    prompt = encode(tokenizer, template, turns, answer=False)
    assert row.ids == (*prompt.ids, *said) and not any(prompt.labelled)
    assert row.images_at == prompt.images_at and len(row.images_at) == images_in(turns) == 1


def test_the_text_between_images_is_tokenised_piece_by_piece():
    tokenizer = byte_level()
    template = build_template("chat", tokenizer)
    turn = Turn(f"{IMAGE} and {IMAGE}{IMAGE}: What color?", "red")
    row = encode(tokenizer, template, [turn], answer=True)
    text = template.render([turn], answer=True).text
    cuts = (0, *row.images_at, len(row.ids))
    parts = [tokenizer.of_hub.decode(row.ids[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert parts == text.split(IMAGE) and parts[2] == ""


def test_a_row_without_an_image_is_text_alone():
    row = encode(WORDS, build_template("words", WORDS), [TURNS[1]], answer=True)
    assert row.images_at == ()


def test_begin_is_put_in_front_once_and_only_by_tokenizers_that_do():
    tokenizer = metaspace()
    row = encode(tokenizer, build_template("llava15", tokenizer), TURNS, answer=True)
    assert row.ids[0] == tokenizer.begin and row.ids.count(tokenizer.begin) == 1
    assert byte_level().begin is None
    # LLaVA's own way: each piece with <s>, which is then taken off all but the first.
    text = build_template("llava15", tokenizer).render(TURNS, answer=True).text
    pieces = [tokenizer.of_hub(piece).input_ids for piece in text.split(IMAGE)]
    assert list(row.ids) == pieces[0] + [i for piece in pieces[1:] for i in piece[1:]]
    assert row.images_at == (len(pieces[0]),)


def test_no_answer_reaches_a_query(pair):
    tokenizer, template = pair
    turns = conversation(template)
    other = [Turn(turn.question, "green cube") for turn in turns]
    for query in QUERIES:
        for answer in (True, False):
            one, two = (
                encode(tokenizer, template, each, answer=answer, query=query, later=each[:1])
                if template.name != "plain"
                else encode(tokenizer, template, each, answer=answer, query=query)
                for each in (turns, other)
            )
            assert one.query_ids == two.query_ids
            assert tokenizer.decode(one.query_ids).count("green cube") == 0


def test_each_query_is_the_text_that_it_is_said_to_be():
    tokenizer = byte_level()
    template = build_template("chat", tokenizer)
    later = [Turn("A later question?", "yes")]

    def text(query, turns):
        row = encode(tokenizer, template, turns, answer=True, query=query, later=later)
        return tokenizer.of_hub.decode(row.query_ids)

    first, second = (without_images(turn.question) for turn in TURNS)
    assert text("question", TURNS) == second and text("question", TURNS[:1]) == first
    assert text("conversation", TURNS) == first + second + "A later question?"
    whole = template.render([*TURNS, *later], answer=True).text.replace(IMAGE, "")
    for said in ("Paris.<|im_end|>", "red<|im_end|>", "yes<|im_end|>"):
        whole = whole.replace(said, "")
    assert text("prompt", TURNS) == whole and "helpful AI assistant" in whole


def test_a_query_of_another_name_is_refused():
    with pytest.raises(ValueError, match="did you mean 'prompt'"):
        encode(WORDS, build_template("words", WORDS), TURNS, answer=True, query="prompts")


def test_what_cannot_be_trained_on_is_refused():
    template = build_template("words", WORDS)
    with pytest.raises(UserError, match="answer to 'What is it\\?' is empty"):
        encode(WORDS, template, [Turn("What is it?", " ")], answer=True)
    row = encode(WORDS, template, TURNS, answer=True)
    with pytest.raises(TooLong, match=f"{len(row.ids)} text tokens, at most 5 fit"):
        encode(WORDS, template, TURNS, answer=True, limit=5)
    assert encode(WORDS, template, TURNS, answer=True, limit=len(row.ids)) == row


def test_a_prompt_whose_tokens_change_with_the_answer_is_refused():
    class Merging:
        """Reads a colon and the blank behind it as one token."""

        pad = end = 0
        begin = unknown = None
        end_text, fingerprint = ".", ""

        def encode_offsets(self, text):
            found = text.replace(": ", ":_")
            spans, at = [], 0
            while at < len(found):
                size = 2 if found[at : at + 2] == ":_" else 1
                spans.append((at, at + size))
                at += size
            return [hash(found[a:b]) % 1000 for a, b in spans], spans

    tokenizer = Merging()
    with pytest.raises(UserError, match="change with the answer"):
        encode(tokenizer, build_template("llava15", tokenizer), TURNS, answer=True)


def test_a_tokenizer_without_offsets_or_end_is_refused():
    class Slow:
        is_fast, name_or_path = False, "slow"

    with pytest.raises(UserError, match="slow has no fast tokenizer"):
        HubTokenizer(Slow())
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level().of_hub.backend_tokenizer)
    with pytest.raises(UserError, match="no end-of-text token"):
        HubTokenizer(bare, name="bare")


# The small language model from scratch and its vocabulary.

TEXTS = ("<image> What color is it?", "red", "don't know", "3 of 4", "is it red or blue?")


def test_the_vocabulary_is_the_words_of_the_texts():
    made = WordTokenizer.of_texts(TEXTS)
    assert made.words[:4] == SPECIAL
    assert set(made.words[4:]) == {
        *("What color is it red don know of or blue 3 4".split()),
        *("##? ##' ##t".split()),
    }
    assert not any("image" in word for word in made.words)


@pytest.mark.parametrize("text", ["don't know", "is it red?", "3 of 4", "red"])
def test_decoding_returns_the_text(text):
    made = WordTokenizer.of_texts(TEXTS)
    ids, spans = made.encode_offsets(f"  {text} ")
    assert made.decode(ids) == text
    assert spans[0][0] == 2 and spans[-1][1] == 2 + len(text)


def test_the_fingerprint_is_that_of_the_words_alone():
    one, two = WordTokenizer.of_texts(TEXTS), WordTokenizer.of_texts(reversed(TEXTS * 2))
    assert one.words == two.words and one.fingerprint == two.fingerprint
    assert WordTokenizer.of_texts((*TEXTS, "new")).fingerprint != one.fingerprint


def test_a_word_outside_the_vocabulary_is_unknown_and_counted():
    language = load_language("words", texts=TEXTS)
    turn = Turn("<image> What shape is it?")
    row = encode(language.tokenizer, language.template, [turn], answer=False)
    assert row.unknown == 1 and row.ids.count(language.tokenizer.unknown) == 1
    assert (
        encode(language.tokenizer, language.template, [Turn(TEXTS[0])], answer=False).unknown == 0
    )


def test_no_words_is_an_error():
    with pytest.raises(UserError, match="no words"):
        load_language("words", texts=["<image>", ""])


def test_the_weights_are_those_of_the_seed():
    def weights(seed):
        before = torch.random.get_rng_state()
        made = load_language("words", texts=TEXTS, seed=seed, layers=1, width=16)
        assert torch.equal(before, torch.random.get_rng_state())
        return torch.cat([weight.flatten() for weight in made.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_it_is_a_llama_of_the_size_asked_for():
    made = load_language("words", texts=TEXTS, layers=3, width=32, heads=2)
    shape = made.shape
    assert (shape.layers, shape.width, shape.heads, shape.mlp) == (3, 32, 2, 64)
    assert all(weight.requires_grad for weight in made.parameters())
    assert made.scale == pytest.approx(1, rel=0.1)
    with pytest.raises(UserError, match="multiple of 8"):
        load_language("words", texts=TEXTS, width=20)


def test_names_of_language_models():
    assert check_language("hf:a/b") == "hf:a/b"
    for wrong, said in (("word", "did you mean 'words'"), ("hf:", "no language model 'hf:'")):
        with pytest.raises(UserError, match=said):
            check_language(wrong)


def test_vocabulary_and_labels_load_no_torch():
    modules = ("load", "fetch", "words", "labels", "template", "text")
    loads = "; ".join(f"import fusionbench.models.readers.{name}" for name in modules)
    code = f"{loads}; import sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_learns_to_answer_from_image_and_question():
    language = load_language("words", texts=TEXTS, layers=1, width=32, seed=3)
    rng = torch.Generator().manual_seed(0)
    seen = torch.randn(2, 2, 32, generator=rng)
    turns = [Turn("<image> is it red or blue?", answer) for answer in ("red", "blue don't")]
    rows = [encode(language.tokenizer, language.template, [t], answer=True) for t in turns]
    asked = [encode(language.tokenizer, language.template, [t], answer=False) for t in turns]
    optimiser = torch.optim.AdamW(language.parameters(), lr=1e-2)
    for _ in range(40):
        loss = language.nll(splice(language, rows, list(seen), side="right")).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = language.generate(splice(language, asked, list(seen), side="left"), limit=6)
    assert found == ["red", "blue don't"]
