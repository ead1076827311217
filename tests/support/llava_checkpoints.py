"""Tiny random LLaVA checkpoints on disk, in the official format and with its peculiarities.

Every weight gets noise: the logits of a freshly initialised tiny model are so close to 0 that equal
logits would prove little.
"""

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmark_cases import CASES
from benchmark_files import MARK, item, picture, written
from encoder_families import randomised
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused
from fusionbench.harness.stepping import fuse
from fusionbench.models.readers.llava.checkpoint import Checkpoint, open_checkpoint
from fusionbench.records.cell import QUESTION, READER
from fusionbench.registry.catalog import Catalog, read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods

SIZE, PATCH, BLOCKS, DIM, WIDTH = 28, 7, 4, 32, 48
IMAGE = "<image>"
SPECIAL = ("<unk>", "<s>", "</s>", IMAGE, "<pad>")
TEXT = (
    "USER: What is in the picture? How many cubes are there? ASSISTANT: There are two red cubes.",
    "Answer the question using a single word or phrase. Compare the first one with the second.",
)
# Sides of a tile are those of the tower's input; rows x columns of tiles, in pixels.
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
CLASSES = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What a tiny checkpoint is made of."""

    kind: str = "llava"
    tower: str = "clip"
    select: str = "default"
    layer: int | tuple[int, ...] = -2
    most: int = 9
    """Number in OneVision's `vision_aspect_ratio`."""
    tied: bool = False
    text: str = "Llama"
    names: str = ""
    """Names of weights (and with 4.36, files) as a release stored them: "4.36", "4.52" or today."""


SCALED = Tiny(text="Cohere")
"""Its language model multiplies its logits by a factor, which LLaVA's class leaves out."""


@functools.cache
def _folder() -> Path:
    """One folder a test run, in the cache that `conftest` sets and clears."""
    from fusionbench.records.files import cache_dir

    root = cache_dir("tiny-llava")
    root.mkdir(parents=True, exist_ok=True)
    return root


@functools.cache
def checkpoint(made: Tiny = Tiny()) -> Path:
    """Folder of the checkpoint, made once a process. Copy it before you change a file."""
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    save(folder, made)
    return folder


def save(folder: Path, made: Tiny) -> None:
    """Write model, processor and tokenizer."""
    import transformers

    tokenizer = make_tokenizer()
    config = make_config(made, tokenizer)
    cls = getattr(transformers, f"{CLASSES[made.kind]}ForConditionalGeneration")
    model = randomised(cls(config))
    _attentive(model.model.language_model)
    if made.tied:
        model.tie_weights()
    generation = model.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id, generation.eos_token_id = 1, 2
    # Releases from 4.52 on stored the names of modules, older ones and today's the first names.
    model.save_pretrained(folder, save_original_format=made.names != "4.52")
    if made.names:
        _one_level_more(folder / "model.safetensors")
    make_processor(made, tokenizer).save_pretrained(folder)
    if made.names == "4.36":
        _as_in_the_past(folder)


def _attentive(language: Any) -> None:
    """Larger weights of attention: with smaller ones all pictures give the same greedy text."""
    for name, weight in language.named_parameters():
        if ".self_attn." in name:
            weight.data.mul_(3)


def make_tokenizer() -> Any:
    """A byte-level BPE with LLaVA's special tokens; 300 tokens at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE},
    )


def make_config(made: Tiny, tokenizer: Any) -> Any:
    """The configuration of the whole model."""
    import transformers

    more: dict[str, Any] = {} if made.kind == "llava" else {"image_grid_pinpoints": PINPOINTS}
    if made.kind == "llava_onevision":
        more["vision_aspect_ratio"] = f"anyres_max_{made.most}"
    cls = getattr(transformers, f"{CLASSES[made.kind]}Config")
    text = getattr(transformers, f"{made.text}Config")(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=made.tied,
    )
    return cls(
        vision_config=_tower(made.tower),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=list(made.layer) if isinstance(made.layer, tuple) else made.layer,
        vision_feature_select_strategy=made.select,
        tie_word_embeddings=made.tied,
        **more,
    )


def _tower(kind: str) -> Any:
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    sizes = {
        "hidden_size": DIM,
        "intermediate_size": 64,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    if kind == "clip":
        return CLIPVisionConfig(**sizes, projection_dim=16)
    # Checkpoints with a SigLIP tower leave its pooling head out.
    return SiglipVisionConfig(**sizes, vision_use_head=False)


def image_processor(made: Tiny) -> Any:
    """The library's image processor, with the settings of published checkpoints."""
    import transformers

    square = {"height": SIZE, "width": SIZE}
    if made.kind == "llava_onevision":
        cls = transformers.LlavaOnevisionImageProcessor
        return cls(size=square, image_grid_pinpoints=PINPOINTS)
    if made.kind == "llava_next":
        cropped = {"size": {"shortest_edge": SIZE}, "crop_size": square}
        return transformers.LlavaNextImageProcessor(**cropped, image_grid_pinpoints=PINPOINTS)
    if made.tower == "clip":
        return transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square)
    return transformers.SiglipImageProcessor(size=square)


def make_processor(made: Tiny, tokenizer: Any) -> Any:
    """Image processor and tokenizer in one, as the library's examples use it."""
    import transformers

    cls = getattr(transformers, f"{CLASSES[made.kind]}Processor")
    given = {
        "image_processor": image_processor(made),
        "tokenizer": tokenizer,
        "vision_feature_select_strategy": made.select,
        "image_token": IMAGE,
    }
    if made.kind == "llava_onevision":
        video = transformers.LlavaOnevisionVideoProcessor()
        given |= {"num_image_tokens": (SIZE // PATCH) ** 2, "video_processor": video}
        return cls(**given, vision_aspect_ratio=f"anyres_max_{made.most}")
    extra = 1 if made.tower == "clip" else 0
    return cls(**given, patch_size=PATCH, num_additional_image_tokens=extra)


def _one_level_more(path: Path) -> None:
    """Until 5.0 the weights of CLIP and SigLIP were one level down."""
    weights = load_file(path)
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): value
             for name, value in weights.items()}  # fmt: skip
    save_file(named, path, metadata={"format": "pt"})


def _as_in_the_past(folder: Path) -> None:
    """Two shards of fp16 weights, and processor settings in a file of their own."""
    old = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(old)
    parts = {"model-00001-of-00002.safetensors": names[::2],
             "model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for file, held in parts.items():
        save_file({name: old[name] for name in held}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    for default in ("rope_parameters", "hidden_act", "head_dim", "bos_token_id", "mlp_bias"):
        del text[default]
    edit(
        folder / "config.json",
        text_config=text,
        dtype=None,
        torch_dtype="float16",
        ignore_index=-100,
        pad_token_id=4,
        image_seq_length=None,
        multimodal_projector_bias=None,
    )
    whole = json.loads((folder / "processor_config.json").read_text())
    flat = whole.pop("image_processor")
    (folder / "preprocessor_config.json").write_text(json.dumps(flat))
    (folder / "processor_config.json").write_text(json.dumps(whole))


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# A data root with the files that the recipes name: conversations, captions, images, POPE.

MIX = "llava_v1_5_mix665k.json"
CAPTIONS = "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"
_SHAPES = ((40, 30), (28, 28), (20, 70), (70, 20))


def data_root(folder: Path, *, captions: bool = True) -> Path:
    """The folder with 16 conversations (16 images, of them text alone and several images)."""
    written(folder, conversations(folder), MIX)
    if captions:
        home = folder / "LLaVA-Pretrain"
        for number in range(8):
            picture(home / "images", f"{number}.png", seed=50 + number, size=_SHAPES[number % 4])
        rows = [
            item(f"{number}.png", f"Describe the picture.\n{MARK}", f"There are {number} cubes.")
            for number in range(8)
        ]
        written(home, rows, Path(CAPTIONS).name)
    CASES["pope"].write("files", folder)
    return folder


def conversations(folder: Path) -> list[dict]:
    """One image and two turns, one image, two images, no image: four of each."""
    for number in range(16):
        picture(folder, f"coco/{number}.png", seed=number, size=_SHAPES[number % 4])
    rows = []
    for number in range(4):
        one, two, other = (f"coco/{number + first}.png" for first in (0, 4, 8))
        rows += [
            item(one, f"{MARK}\nWhat is in the picture?", "Two red cubes.", "And now?", "One."),
            item(two, f"How many cubes are there?\n{MARK}", f"There are {number}."),
            item([one, other], f"Compare {MARK} with {MARK}.", "The second is red."),
            item(None, f"What is {number} and one?", f"{number + 1}"),
        ]
    return rows


def rewrite(path: Path, edit) -> None:
    """Change a JSON file."""
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


# A checkpoint's logits two ways: by the whole model of the library, and by its parts.

ENGINE = (READER, QUESTION)
PROMPTS = (
    f"USER: {IMAGE}\nWhat is in the picture? ASSISTANT:",
    f"USER: {IMAGE}{IMAGE}\nCompare the first one with the second. ASSISTANT:",
    "USER: How many cubes are there? ASSISTANT:",
)
SHAPES = ((40, 30), (28, 28), (20, 70))
"""Width x height of the three pictures: one in the first row, two in the second."""


PLAIN = Tiny()


@functools.cache
def opened(made: Tiny = PLAIN) -> Checkpoint:
    """An unchanged checkpoint, opened once a process."""
    return open_checkpoint(f"llava:{checkpoint(made)}")


@functools.cache
def original(made: Tiny = PLAIN, *, side: str = "left") -> "Original":
    """The library's model of an unchanged checkpoint, loaded once a process."""
    return Original.of(checkpoint(made), side=side)


def pictures(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Image.Image]:
    draw = torch.Generator().manual_seed(11)
    return [
        Image.fromarray(
            torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8).numpy()
        )
        for width, height in shapes
    ]


@dataclass(frozen=True, kw_only=True)
class Original:
    """The library's model and the batch that its own processor makes."""

    model: Any
    batch: Any

    @staticmethod
    def of(folder: Path, *, side: str = "left", prompts: Sequence[str] = PROMPTS) -> "Original":
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(folder)
        processor.tokenizer.padding_side = side
        images = pictures()
        nested = [[images.pop(0) for _ in range(text.count(IMAGE))] for text in prompts]
        batch = processor(
            images=[row for row in nested if row],
            text=list(prompts),
            return_tensors="pt",
            padding=True,
        )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        return Original(model=model, batch=batch)

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.model(**self.batch, position_ids=positions(self.batch["attention_mask"])).logits

    @torch.no_grad()
    def greedy(self, limit: int = 8) -> Tensor:
        start = self.batch["input_ids"].shape[1]
        return self.model.generate(**self.batch, max_new_tokens=limit, do_sample=False)[:, start:]


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(0)


@functools.cache
def catalog() -> Catalog:
    return read_catalog()


def method_of(label: str, checkpoint: Checkpoint) -> Method:
    """A method by its label, built for the checkpoint's tower and language model."""
    (chosen,) = select_methods(catalog(), [label])
    settings = {key: value for key, value in chosen.settings.items() if key not in ENGINE}
    encoder, language = checkpoint.encoder, checkpoint.language.shape
    shape = replace(encoder.shape, mlp=encoder.mlp, query_dim=language.width, reader=language)
    torch.manual_seed(0)
    return load_method(chosen.card)(shape, **settings)


def fused_tokens(checkpoint: Checkpoint, method: Method, inputs: Tensor) -> Tensor:
    return fused(checkpoint, method, inputs).tokens


@torch.no_grad()
def fused(checkpoint: Checkpoint, method: Method, inputs: Tensor) -> Fused:
    encoder = checkpoint.encoder
    states = encoder.hidden_states(inputs)

    def state(index: int) -> Tensor:
        source, normed = encoder.shape.source(index)
        return encoder.norm(states[source]) if normed else states[source]

    def stacked(taps: Any) -> Tensor:
        return torch.stack([torch.stack([state(i) for i in tap]).mean(0) for tap in taps])

    draw = torch.Generator().manual_seed(2)
    query = torch.randn(len(inputs), checkpoint.language.shape.width, generator=draw)
    return fuse(method, stacked, query, encoder)


@torch.no_grad()
def embedded(checkpoint: Checkpoint, method: Method, batch: Any) -> Tensor:
    """Embeddings of a batch with the pictures' tokens in place of the processor's image marks."""
    values = batch["pixel_values"]
    if checkpoint.tiling is None:
        inputs, parts = values, [(1, (0, 0))] * len(values)
    else:
        sizes = [tuple(size) for size in batch["image_sizes"].tolist()]
        together = batch.get("batch_num_images", torch.ones(len(sizes))).tolist()
        alone = [several == 1 for several in together for _ in range(int(several))]
        counts = [checkpoint.tiling.inputs(size) if one else 1
                  for one, size in zip(alone, sizes, strict=True)]  # fmt: skip
        inputs = torch.cat([one[:count] for one, count in zip(values, counts, strict=True)])
        parts = list(zip(counts, sizes, strict=True))
    projected = checkpoint.projector(fused_tokens(checkpoint, method, inputs))
    tokens = torch.cat(checkpoint.image_tokens(projected, parts))
    marked = batch["input_ids"] == checkpoint.about.image_token_id
    assert int(marked.sum()) == len(tokens), "the processor counts other tokens"
    embeds = checkpoint.language.embed(batch["input_ids"])
    rows = []
    for row, marks in zip(embeds, marked, strict=True):
        count = int(marks.sum())
        mine, tokens = tokens[:count], tokens[count:]
        rows.append(torch.stack([mine[int(marks[:at].sum())] if marks[at] else row[at]
                                 for at in range(len(row))]))  # fmt: skip
    return torch.stack(rows)


@torch.no_grad()
def logits(checkpoint: Checkpoint, method: Method, batch: Any) -> Tensor:
    mask = batch["attention_mask"]
    found = checkpoint.language.model(
        inputs_embeds=embedded(checkpoint, method, batch),
        attention_mask=mask,
        position_ids=positions(mask),
    )
    return found.logits


@torch.no_grad()
def greedy(checkpoint: Checkpoint, method: Method, batch: Any, limit: int = 8) -> Tensor:
    return checkpoint.language.model.generate(
        inputs_embeds=embedded(checkpoint, method, batch),
        attention_mask=batch["attention_mask"],
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=4,
    )
