"""Small tokenizers of the two common kinds, trained on a few lines."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusionbench.models.readers.text import HubTokenizer

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
