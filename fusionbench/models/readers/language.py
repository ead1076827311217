"""A causal language model of transformers as a reader: loss, greedy answers, injections."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusionbench.api.errors import UserError
from fusionbench.api.types import Fused, ReaderShape, Unsupported
from fusionbench.models.readers.injection import (
    Inside,
    Projection,
    at_positions,
    decoder_layers,
    injected,
    require_form,
)
from fusionbench.models.readers.splice import IGNORED, Spliced
from fusionbench.models.readers.template import Template
from fusionbench.models.readers.text import Tokenizer

Trained = Literal["none", "lora", "full"]
TRAINED: tuple[Trained, ...] = ("none", "lora", "full")
_SAMPLED = 4096
"""Rows of the token table that its scale is measured on."""


class LanguageModel(nn.Module):
    """Any `…ForCausalLM` with a tokenizer and a template.

    Raises UserError for a model whose embeddings and layers differ in width, and Unsupported if its
    layers are not found.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        template: Template,
        *,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.template = template
        self.name = name
        self.fingerprint = fingerprint
        """SHA-256 of the weights; "" if they are drawn from a seed."""
        self.shape = language_shape(self.model)
        self.context = _context(self.model.config)
        """Most positions of a sequence."""
        self._plain_generation()
        self._left = ExitStack()
        self._patchable = False

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        found: nn.Module = self.model.get_decoder()
        return found

    @property
    def device(self) -> torch.device:
        """Where the token table is."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def scale(self) -> float:
        """Standard deviation of the token embeddings."""
        rows = len(self.tokenizer)
        ids = torch.arange(0, rows, max(1, rows // _SAMPLED), device=self.device)
        with torch.no_grad():
            return float(self.embed(ids[None]).float().std())

    def embed(self, ids: Int[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """Token embeddings as they enter the first layer."""
        found: Tensor = self.model.get_input_embeddings()(ids)
        return found

    def query(self, query_ids: Sequence[Sequence[int]]) -> Float[Tensor, "row width"]:
        """Mean token embedding of each row's query, detached; zeros for a query without tokens."""
        with torch.no_grad():
            flat = torch.tensor([i for ids in query_ids for i in ids], device=self.device)
            parts = torch.split(self.embed(flat.long()[None])[0], [len(ids) for ids in query_ids])
            return torch.stack([part.sum(dim=0) / max(len(part), 1) for part in parts])

    def require_room(self, positions: int, *, answer: int = 0) -> None:
        """Raise UserError unless the context holds a sequence and `answer` new tokens."""
        if positions + answer > self.context:
            behind = f" and {answer} of the answer" if answer else ""
            raise UserError(
                f"{self.name or 'the language model'} has a context of {self.context} tokens: too "
                f"short for {positions} of image and text{behind}",
                "take a language model with a longer context, or a method with fewer image tokens",
            )

    def inside(self, fused: Fused, spliced: Spliced, projector: Projection) -> Inside | None:
        """What a fusion does inside the layers for this batch; None if it does nothing there.

        The fusion's batch is the images of `spliced`, in their order. Raises Unsupported for a
        replaced layer where not every row has one image, or where the layers are not Llama's.
        """
        if not fused.reaches_inside:
            return None
        embeds, spots = spliced.embeds, spliced.spots
        if fused.patches and [row for row, _ in spots] != list(range(len(embeds))):
            raise Unsupported(
                "replaces a layer of the language model for one image a row, and a row has none "
                "or several"
            )
        if fused.patches and not self._patchable:
            require_form(self.decoder, self.shape.width)
            self._patchable = True
        return Inside(
            fused=fused,
            layers=self.shape.layers,
            place=lambda values: at_positions(values, spots, embeds),
            projector=projector,
        )

    @contextmanager
    def injected(self, inside: Inside | None) -> Iterator[None]:
        """Within this block, which `backward` belongs to, the layers run with `inside`."""
        self.release()
        with ExitStack() as stack:
            if inside is not None:
                stack.enter_context(injected(self.decoder, inside))
            yield

    def checkpoint_layers(self) -> None:
        """Store the layers' inputs alone and run the layers again in `backward`, in train mode."""
        # The newer name is from 5.24 on, the older goes with version 6.
        newer = getattr(self.model, "activation_checkpointing_enable", None)
        (newer or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def release(self) -> None:
        """Take the injections of the last `nll` out of the layers."""
        self._left.close()

    def nll(self, spliced: Spliced, inside: Inside | None = None) -> Float[Tensor, " row"]:
        """Negative log-likelihood of each row's labelled tokens, summed in float32.

        Injections stay in the layers until the next call of this class or `release`, since gradient
        checkpointing runs the layers again in `backward`.
        """
        self._enter(inside)
        wanted = spliced.labels[:, 1:] != IGNORED
        # Logits at these positions alone: the vocabulary is large.
        places = wanted.any(dim=0).nonzero()[:, 0]
        if not len(places):
            return spliced.embeds.new_zeros(len(spliced.embeds), dtype=torch.float32)
        logits = self._logits(spliced, places).float()
        labels = spliced.labels[:, places + 1]
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        return losses.sum(dim=1)

    @torch.no_grad()
    def generate(self, spliced: Spliced, inside: Inside | None = None, *, limit: int) -> list[str]:
        """Greedy answers of at most `limit` tokens to rows that are padded on the left."""
        if not bool(spliced.mask[:, -1].all()):
            raise ValueError("rows are padded on the right: splice them with side='left'")
        self.require_room(spliced.embeds.shape[1], answer=limit)
        self._enter(inside)
        try:
            found = self.model.generate(
                inputs_embeds=spliced.embeds,
                attention_mask=spliced.mask.long(),
                max_new_tokens=limit,
                eos_token_id=list(self.template.ends),
                pad_token_id=self.tokenizer.pad,
                do_sample=False,
            )
        finally:
            self.release()
        return [self.tokenizer.decode(self._until_end(row)) for row in found.tolist()]

    def _until_end(self, ids: Sequence[int]) -> list[int]:
        ends = [place for place, token in enumerate(ids) if token in self.template.ends]
        return list(ids[: ends[0]]) if ends else list(ids)

    def _enter(self, inside: Inside | None) -> None:
        self.release()
        if inside is not None:
            self._left.enter_context(injected(self.decoder, inside))

    def _logits(
        self, spliced: Spliced, places: Int[Tensor, " place"]
    ) -> Float[Tensor, "row place token"]:
        takes = _parameters(self.model)
        named: dict[str, Any] = {"use_cache": False}
        if "position_ids" in takes:
            # Without, a plain forward counts padding as positions.
            named["position_ids"] = (spliced.mask.cumsum(dim=1) - 1).clamp(min=0)
        if "logits_to_keep" in takes:
            named["logits_to_keep"] = places
        found: Tensor = self.model(
            inputs_embeds=spliced.embeds, attention_mask=spliced.mask.long(), **named
        ).logits
        return found if "logits_to_keep" in takes else found[:, places]

    def _plain_generation(self) -> None:
        """Greedy search without penalties, whatever the checkpoint suggests."""
        import transformers

        make: Any = transformers.GenerationConfig
        self.model.generation_config = make()


def language_shape(model: Any) -> ReaderShape:
    """Size of a language model's layers.

    Raises UserError if its embeddings have another width than its layers.
    """
    shape = config_shape(model.config)
    layers, width = len(decoder_layers(model.get_decoder())), shape.width
    entering = int(model.get_input_embeddings().weight.shape[1])
    if entering != width:
        raise UserError(
            f"{type(model).__name__} has embeddings of width {entering} and layers of {width}; "
            "image tokens need one width"
        )
    return replace(shape, layers=layers)


def config_shape(config: Any) -> ReaderShape:
    """Size of a language model's layers from its configuration."""
    text = config.get_text_config()
    width = int(text.hidden_size)
    mlp = (getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return ReaderShape(
        layers=int(text.num_hidden_layers),
        width=width,
        heads=int(text.num_attention_heads),
        mlp=int(next((size for size in mlp if size), 4 * width)),
    )


def _context(config: Any) -> int:
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 2**31)


def _parameters(model: nn.Module) -> Sequence[str]:
    import inspect

    return tuple(inspect.signature(model.forward).parameters)
