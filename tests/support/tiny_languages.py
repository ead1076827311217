"""Tiny random language models of several families, and ways to run them."""

import inspect
from dataclasses import replace
from functools import cache

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from fusionbench.api.types import StackShape
from fusionbench.models.readers.labels import EncodedRow, encode
from fusionbench.models.readers.language import LanguageModel
from fusionbench.models.readers.splice import Spliced
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.text import HubTokenizer, Turn
from fusionbench.models.readers.words import WordTokenizer

WIDTH, LAYERS, HEADS = 32, 4, 4
STACK = StackShape(layers=24, dim=16, grid=(4, 4), prefix=1)
QUESTIONS = (
    "<image> what color is it?",
    "how many red and green cubes are there in <image> now?",
    "<image> is it red or blue, and is it a cube or a ball or a cone?",
)
ANSWERS = ("red", "two cubes", "blue")
_COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaConfig, {"intermediate_size": 48, "num_key_value_heads": 2}),
    "qwen2": (Qwen2Config, {"intermediate_size": 48, "num_key_value_heads": 2}),
    "gpt2": (GPT2Config, {}),
    # The window is shorter than the prompts, so that both kinds of its layers and caches are met.
    "gemma3": (
        Gemma3TextConfig,
        {
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "opt": (OPTConfig, {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
    "mistral": (MistralConfig, {"intermediate_size": 48, "num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}),
    "smollm3": (SmolLM3Config, {"intermediate_size": 48, "num_key_value_heads": 2}),
    "phi3": (Phi3Config, {"intermediate_size": 48, "num_key_value_heads": 2}),
    "granite": (GraniteConfig, {"intermediate_size": 48, "residual_multiplier": 0.5}),
    "neox": (GPTNeoXConfig, {"intermediate_size": 48}),
}
INJECTED = ("llama", "qwen2", "gpt2", "gemma3")
LLAMA_LIKE = ("llama", "qwen2")


@cache
def tokenizer() -> WordTokenizer:
    return WordTokenizer.of_texts(text for one in turns() for text in (one.question, one.answer))


def turns() -> list[Turn]:
    return [Turn(q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


@cache
def language(family: str) -> LanguageModel:
    """A model whose weights are so large that its tokens depend on everything it sees."""
    config_of, more = FAMILIES[family]
    config = config_of(
        **{**_COMMON, **more, "vocab_size": len(tokenizer())}, attn_implementation="sdpa"
    )
    for key in config.to_dict():
        if "drop" in key and isinstance(getattr(config, key), float):
            setattr(config, key, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=rng)
    model.requires_grad_(requires_grad=False)
    made = LanguageModel(
        model.eval(), tokenizer(), build_template("words", tokenizer()), name=family
    )
    return made.double()


def rows(*, answer: bool) -> list[EncodedRow]:
    template = build_template("words", tokenizer())
    return [encode(tokenizer(), template, [turn], answer=answer) for turn in turns()]


def projector(width: int, seed: int = 5) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(width, WIDTH).double()


def cache_name(model: nn.Module) -> str:
    takes = inspect.signature(model.forward).parameters
    return next(name for name in ("cache", "past_key_values") if name in takes)


def logits(made: LanguageModel, spliced: Spliced) -> Tensor:
    """Logits of one pass without a cache; rotary and learned positions count no padding."""
    named = {"position_ids": positions(spliced)} if takes_positions(made.model) else {}
    return made.model(
        inputs_embeds=spliced.embeds, attention_mask=spliced.mask.long(), use_cache=False, **named
    ).logits


def chunked(made: LanguageModel, spliced: Spliced, size: int) -> Tensor:
    """Logits of a pass over the prompt in chunks with a cache."""
    from transformers import DynamicCache

    kept, found = DynamicCache(config=made.model.config), []
    for start in range(0, spliced.embeds.shape[1], size):
        stop = start + size
        places = positions(spliced)[:, start:stop]
        named = {"position_ids": places} if takes_positions(made.model) else {}
        out = made.model(
            inputs_embeds=spliced.embeds[:, start:stop],
            attention_mask=spliced.mask[:, :stop].long(),
            use_cache=True,
            **{cache_name(made.model): kept},
            **named,
        )
        found.append(out.logits)
    return torch.cat(found, dim=1)


def followed_by(made: LanguageModel, spliced: Spliced, ids: Tensor) -> Spliced:
    """The batch with these tokens behind each row."""
    behind = torch.ones_like(ids, dtype=torch.bool)
    return replace(
        spliced,
        embeds=torch.cat([spliced.embeds, made.embed(ids)], dim=1),
        mask=torch.cat([spliced.mask, behind], dim=1),
    )


def without_cache(made: LanguageModel, spliced: Spliced, count: int, never: int) -> Tensor:
    """Greedy tokens, each from a pass over the prompt and all tokens so far.

    `generate` from embeddings turns its cache on whatever it is told. `never`: a token that is not
    chosen.
    """
    ids = torch.zeros(len(spliced.embeds), 0, dtype=torch.long)
    for _ in range(count):
        scores = logits(made, followed_by(made, spliced, ids))[:, -1]
        scores[:, never] = -torch.inf
        ids = torch.cat([ids, scores.argmax(dim=1, keepdim=True)], dim=1)
    return ids


def takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def positions(spliced: Spliced) -> Tensor:
    return (spliced.mask.cumsum(dim=1) - 1).clamp(min=0)


# Small tokenizers of the two common kinds, trained on a few lines.

LINES = [
    "What is the capital of France? The capital of France is Paris.",
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT:",
    "system user assistant You are a helpful AI assistant named SmolLM.",
    "Answer the question using a single word or phrase. What color is the cube? red blue green",
]
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def byte_level(template: str | None = CHATML) -> HubTokenizer:
    """As GPT-2's and SmolLM2's: bytes with a blank in front of each word, nothing put in front."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    found.chat_template = template
    return HubTokenizer(found, name="byte-level")


@cache
def metaspace() -> HubTokenizer:
    """As Llama's: blanks become a letter, and `<s>` is put in front."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = sorted({letter for line in LINES for letter in line} | {"\n", "\u2581"})
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=letters,
            show_progress=False,
        ),
    )
    made.add_special_tokens([AddedToken(mark, normalized=False) for mark in ("<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return HubTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ),
        name="metaspace",
    )
