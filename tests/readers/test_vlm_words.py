"""The small language model from scratch and its vocabulary."""

import subprocess
import sys

import pytest
import torch

from fusionbench.api.errors import UserError
from fusionbench.models.readers.labels import encode
from fusionbench.models.readers.load import check_language, load_language
from fusionbench.models.readers.splice import splice
from fusionbench.models.readers.text import Turn
from fusionbench.models.readers.words import SPECIAL, WordTokenizer

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
