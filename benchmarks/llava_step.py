"""A training step of a fusion inside a model of the size of LLaVA-1.5-7B, adapters only.

    python benchmarks/llava_step.py --device cuda

Random weights: CLIP ViT-L/14-336 in float32, a Llama of 7B in bfloat16 and the projector, frozen,
and the fusion between them, trained by AdamW under bfloat16 autocast. A row has one image (576
tokens), 64 tokens of text and an answer of 16 tokens. The plain way keeps the activations of the
language model's layers; ours computes them again on the way back. Rows: rows per second, and peak
memory above the weights.
Without a GPU nothing is measured and the question stays open. `--shrink` makes everything small
enough for a CPU: to see that the script runs, not to be reported.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rows import Row, chosen_device, finish, parser_of
from workload import find

from fusionbench.harness.measure import interleaved, peak_bytes
from fusionbench.models.encoders.preprocessing import Preprocessing
from fusionbench.models.encoders.towers import HfEncoder
from fusionbench.models.readers.labels import EncodedRow
from fusionbench.models.readers.language import LanguageModel
from fusionbench.models.readers.splice import LanguageProjector
from fusionbench.models.readers.template import build_template
from fusionbench.models.readers.words import WordTokenizer
from fusionbench.vlm.batch import RowBatch, encoded
from fusionbench.vlm.model import VisionLanguageModel

_PIXELS = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_TEXT, _ANSWER = 64, 16
OPEN = "open: a training step at the size of LLaVA-1.5-7B needs a GPU (--device cuda)"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shapes of the tower and of the language model, as transformers names them."""

    tower: dict[str, int]
    language: dict[str, int]


SEVEN = Size(
    tower={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
           "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
    language={"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
              "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
              "max_position_embeddings": 4096},
)  # fmt: skip
SHRUNK = Size(
    tower={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
           "num_attention_heads": 4, "image_size": 28, "patch_size": 7},
    language={"vocab_size": 128, "hidden_size": 48, "intermediate_size": 96,
              "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
              "max_position_embeddings": 256},
)  # fmt: skip


def main() -> None:
    """Print and write the rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--method", default="mema")
    parser.add_argument("--shrink", action="store_true")
    asked = parser.parse_args()
    device = chosen_device(asked.device)
    if device.type != "cuda" and not asked.shrink:
        print(OPEN)
        return
    model = model_of(SHRUNK if asked.shrink else SEVEN, asked.method, device)
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch = batch_of(model, asked.batch, device)
    step = step_of(model, batch)
    plain, ours = (partial(step, again=again) for again in (False, True))
    note = f"{asked.method}, {trained / 1e6:.1f} M trained, batch {asked.batch}"
    times = interleaved(ours, plain, device=device, blocks=asked.blocks)
    rows = [
        Row(target="llava-step", plain=1000 * asked.batch / times.bare.median,
            ours=1000 * asked.batch / times.method.median, unit="rows/s", note=note)
    ]  # fmt: skip
    memory = [peak_bytes(one, device) for one in (plain, ours)]
    if None not in memory:
        rows.append(
            Row(target="llava-memory", plain=memory[0] / 2**30, ours=memory[1] / 2**30,
                unit="GiB", note=f"{note}; weights {held:.1f} GiB more")
        )  # fmt: skip
    finish("llava_step-shrunk" if asked.shrink else "llava_step", rows, device)


def model_of(size: Size, name: str, device: torch.device) -> VisionLanguageModel:
    """Tower, fusion, projector and language model; the fusion alone has gradients."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        tower = CLIPVisionModel(CLIPVisionConfig(**size.tower))
        before = torch.get_default_dtype()
        # 7B weights in float32 would need the memory of two devices for a moment.
        torch.set_default_dtype(torch.bfloat16)
        try:
            llama: Any = LlamaForCausalLM(LlamaConfig(**size.language))
        finally:
            torch.set_default_dtype(before)
    inner = getattr(tower, "vision_model", tower)
    encoder = HfEncoder(inner, family="clip", size=size.tower["image_size"], images=_PIXELS)
    encoder.freeze()
    encoder.to(device)
    llama.requires_grad_(False)
    tokenizer = WordTokenizer.of_texts(["a question and its answer"])
    language = LanguageModel(llama, tokenizer, build_template("words", tokenizer))
    method, settings = find(name)
    shape = replace(
        encoder.shape, mlp=encoder.mlp, query_dim=language.shape.width, reader=language.shape
    )
    fusion = method(shape, **settings).to(device)
    projector = LanguageProjector(
        fusion.out_dim, language.shape.width, kind="plain", scale=language.scale
    )
    projector.to(device).requires_grad_(False)
    return VisionLanguageModel(fusion, projector, language, encoder)


def batch_of(model: VisionLanguageModel, count: int, device: torch.device) -> RowBatch:
    """Rows with one random image, text and an answer each."""
    encoder = model._encoder[0]
    draw = torch.Generator().manual_seed(0)
    side = encoder.size
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=draw)
    most = model.language.model.config.vocab_size
    ids = tuple(number % most for number in range(4, 4 + _TEXT + _ANSWER))
    labelled = (False,) * _TEXT + (True,) * _ANSWER
    row = EncodedRow(ids=ids, labelled=labelled, images_at=(8,), query_ids=ids[:_TEXT])
    return RowBatch(
        rows=(row,) * count,
        owners=tuple(range(count)),
        states=encoded(encoder, images.to(device).split(1)),
        queries=(row.query_ids,) * count,
        answers=(ids[_TEXT:],) * count,
    )


def step_of(model: VisionLanguageModel, batch: RowBatch) -> Callable[..., None]:
    """One step; with `again` the language model's layers run again on the way back."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)
    weights = torch.full((len(batch),), 1 / (len(batch) * _ANSWER), device=model.device)
    model.train()

    def step(*, again: bool) -> None:
        if again:
            model.language.checkpoint_layers()
        else:
            model.language.model.gradient_checkpointing_disable()
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(batch, weights)
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
