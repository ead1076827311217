"""One encoder on one device, and method after method beside it."""

import torch

from fusionbench.api.encoder import Encoder
from fusionbench.api.errors import UserError
from fusionbench.costs import flops
from fusionbench.costs.language import SHAPE, LanguageModel
from fusionbench.costs.measure import counted, timed
from fusionbench.costs.pipeline import Pipeline, build_pipeline
from fusionbench.costs.shapes import subject
from fusionbench.records.cost import Asked, Conditions, CostRecord
from fusionbench.registry.plugins import load_method
from fusionbench.registry.provenance import hardware
from fusionbench.registry.selection import Chosen

_DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16,
           "bfloat16": torch.bfloat16}  # fmt: skip
_META = torch.device("meta")


class Bench:
    """Built once, used for every method; checks the operation counter first."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.device = _device(asked.device)
        self._bare: dict[int, flops.Counted] = {}
        flops.check(_META)
        if self.device.type != "meta":
            flops.check(self.device)
        self.shape, self.weights = self._subject(_META)
        self.encoder = self.shape
        if self.device.type != "meta":
            self.encoder, _ = self._subject(self.device)
        self.model = self._language_model() if asked.language_model else None

    def profile(self, chosen: Chosen) -> CostRecord:
        """Count on no device, then measure on this one. Raises Unsupported."""
        pipeline = self._pipeline(chosen, meta=True)
        conditions = self.conditions(chosen)
        record = counted(pipeline, conditions, chosen.label, self._bare_of(pipeline))
        if self.device.type == "meta":
            return record
        there = self._pipeline(chosen, meta=False)
        # A graph is kept for each method otherwise, and with it the method's memory.
        torch.compiler.reset()
        return timed(there, record, self.model, blocks=self.asked.blocks)

    def conditions(self, chosen: Chosen) -> Conditions:
        """What a profile of this method is stored under."""
        asked = self.asked
        return Conditions(
            method=chosen.card.name,
            method_version=chosen.card.version,
            settings=chosen.settings,
            encoder=asked.encoder,
            weights=self.weights,
            image_size=self.shape.size,
            width=asked.width,
            mode=asked.mode,
            batch=asked.batch,
            dtype=str(_DTYPES[asked.dtype]).removeprefix("torch."),
            device=_name(self.device),
            compile=asked.compile,
            language_model=asked.language_model,
            threads=torch.get_num_threads() if self.device.type == "cpu" else 1,
        )

    def _bare_of(self, pipeline: Pipeline) -> flops.Counted:
        """Counted once for each number of blocks; all methods are compared with it."""
        depth = pipeline.blocks
        if depth not in self._bare:
            self._bare[depth] = flops.step(pipeline.bare, back=self.asked.mode == "train")
        return self._bare[depth]

    def _subject(self, device: torch.device) -> tuple[Encoder, str]:
        size, dtype = self.asked.image_size, _DTYPES[self.asked.dtype]
        return subject(self.asked.encoder, image_size=size, device=device, dtype=dtype)

    def _language_model(self) -> LanguageModel | None:
        """On the device, for its time; operations are counted without."""
        asked = self.asked
        if asked.mode == "train" or asked.width != SHAPE.width or asked.compile != "off":
            raise UserError(
                "a language model is timed in inference only, uncompiled, and is "
                f"{SHAPE.width} wide",
                f"leave out --mode and --compile, and give --width {SHAPE.width}",
            )
        if self.device.type == "meta":
            return None
        return LanguageModel(self.device, _DTYPES[asked.dtype])

    def _pipeline(self, chosen: Chosen, *, meta: bool) -> Pipeline:
        # One image is enough to count; a leak across the batch would not scale.
        return build_pipeline(
            load_method(chosen.card),
            dict(chosen.settings),
            self.shape if meta else self.encoder,
            width=self.asked.width,
            batch=1 if meta else self.asked.batch,
        )


def _device(name: str) -> torch.device:
    here = torch.cuda.is_available()
    device = torch.device(("cuda" if here else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not here:
        raise UserError(f"no CUDA device here, but --device {name} asks for one", "--device meta")
    return device


def _name(device: torch.device) -> str:
    if device.type == "meta":
        return "meta"
    found = hardware(str(device))
    return found.get("gpu") or found["cpu"]
