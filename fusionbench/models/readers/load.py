"""Load a language model by name: `words`, `smollm2-135m`, `hf:<id or folder>`.

Importing this module loads neither torch nor transformers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionbench.api.errors import UserError, one_of, unknown

if TYPE_CHECKING:
    import torch

    from fusionbench.models.readers.language import LanguageModel

WORDS, SMOLLM2 = "words", "smollm2-135m"
_HUB = "hf:"
_FORMS = (WORDS, SMOLLM2, "hf:<id or folder>")


def check_language(name: str) -> str:
    """The name, if it is one of a language model; UserError with the nearest otherwise."""
    if name in (WORDS, SMOLLM2) or name.removeprefix(_HUB) != name != _HUB:
        return name
    raise unknown("language model", name, _FORMS)


def load_language(  # noqa: PLR0913
    name: str,
    *,
    texts: Iterable[str] = (),
    seed: int = 0,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    trained: str | None = None,
    template: str | None = None,
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    rank: int = 128,
    alpha: int = 256,
    checkpointing: bool = False,
) -> "LanguageModel":
    """A language model on `device` in `dtype` (float32 if None).

    `texts`: questions and answers of the training rows, whose words are the vocabulary of `words`;
    `layers`, `width` and `heads` are its size, `seed` draws its weights. `trained`: "none", "lora"
    of `rank` and `alpha`, or "full"; None is "full" for `words`, else "none". `template`: None is
    `words` for `words`, else the checkpoint's chat format, `llava15` if it has none.
    Raises UserError for an unknown name, for a checkpoint that lacks weights, and for one without
    a fast tokenizer; OSError for a checkpoint that is not here and cannot be fetched.
    """
    import torch

    check_language(name)
    if name == WORDS:
        language = _words(texts, seed=seed, template=template, shape=(layers, width, heads))
    else:
        language = _checkpoint(name, dtype=dtype or torch.float32, template=template)
    # Weights alone change their type: the angles of rotary positions stay in float32.
    for weight in language.parameters():
        weight.data = weight.data.to(dtype or torch.float32)
    language = language.to(device)
    chosen = trained or ("full" if name == WORDS else "none")
    train_language(language, chosen, rank=rank, alpha=alpha, seed=seed)
    if checkpointing:
        language.checkpoint_layers()
    return language


def train_language(
    language: "LanguageModel", trained: str, *, rank: int = 128, alpha: int = 256, seed: int = 0
) -> None:
    """Choose which weights get gradients; `lora` adds its own to every linear layer of the layers.

    Raises UserError for another word, or if `lora` is asked for without the package peft.
    """
    from fusionbench.models.readers.language import TRAINED

    try:
        one_of("trained", trained, TRAINED)
    except ValueError as error:
        raise UserError(str(error)) from error
    language.model.requires_grad_(trained == "full")
    if trained == "lora":
        _add_lora(language, rank=rank, alpha=alpha, seed=seed)


def _add_lora(language: "LanguageModel", *, rank: int, alpha: int, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "LoRA needs the package peft", "pip install 'layer-fusionbench[lora]'"
        ) from error
    import torch

    from fusionbench.api.seeding import seed_of

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules="all-linear"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("language", "lora", seed))
        inject_adapter_in_model(config, language.model)
    # peft gives them the type of the weights beside them; steps of AdamW vanish in bfloat16.
    for name, weight in language.model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()


def _words(
    texts: Iterable[str], *, seed: int, template: str | None, shape: tuple[int, int, int]
) -> "LanguageModel":
    from fusionbench.models.readers.language import LanguageModel
    from fusionbench.models.readers.template import build_template
    from fusionbench.models.readers.words import WordTokenizer, words_model

    tokenizer = WordTokenizer.of_texts(texts)
    layers, width, heads = shape
    model = words_model(len(tokenizer), seed=seed, layers=layers, width=width, heads=heads)
    return LanguageModel(model, tokenizer, build_template(template or WORDS, tokenizer), name=WORDS)


def _checkpoint(name: str, *, dtype: "torch.dtype", template: str | None) -> "LanguageModel":
    from fusionbench.models.readers.fetch import fetch_language
    from fusionbench.models.readers.language import LanguageModel
    from fusionbench.models.readers.template import build_template
    from fusionbench.models.readers.text import HubTokenizer

    folder = fetch_language(name)
    tokenizer = HubTokenizer.load(folder, name=name)
    model = _model(folder, name=name, dtype=dtype)
    table = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > table:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model's table {table} rows"
        )
    chosen = template or ("chat" if tokenizer.of_hub.chat_template else "llava15")
    return LanguageModel(
        model,
        tokenizer,
        build_template(chosen, tokenizer),
        name=name,
        fingerprint=weights_fingerprint(folder),
    )


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 of a checkpoint's weight files and configuration."""
    from fusionbench.models.encoders.snapshots import weight_files
    from fusionbench.models.readers.text import digest
    from fusionbench.records.files import file_hash

    files = [*weight_files(folder), folder / "config.json"]
    return digest([file_hash(path) for path in files])


def _model(folder: Path, *, name: str, dtype: "torch.dtype") -> Any:
    """The checkpoint's model, without dropout; UserError if weights are missing or damaged."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from fusionbench.models.encoders.snapshots import LOCAL, ON_DISK
    from fusionbench.models.encoders.towers import silent

    try:
        with silent():
            config = AutoConfig.from_pretrained(folder, **LOCAL)
            without_dropout(config)
            # Type checkers do not know that it returns two values.
            load: Any = AutoModelForCausalLM.from_pretrained
            model, report = load(
                folder,
                config=config,
                **ON_DISK,
                output_loading_info=True,
                dtype=dtype,
                attn_implementation="sdpa",
            )
    # Files of somebody else: any class of error may come.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: {folder} holds no causal language model: {reason}") from error
    if report["missing_keys"]:
        absent = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{name}: {folder} lacks weights of {type(model).__name__}: {absent}")
    return model.eval()


def without_dropout(config: Any) -> None:
    """Set every dropout rate of a configuration to zero."""
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in key):
            setattr(config, key, 0.0)
