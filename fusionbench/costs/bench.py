"""One encoder on one device, and method after method beside it."""

import torch

from fusionbench.costs import flops
from fusionbench.costs.asked import Asked
from fusionbench.costs.measure import counted, timed
from fusionbench.costs.pipeline import Pipeline, build_pipeline
from fusionbench.costs.records import Conditions, CostRecord
from fusionbench.costs.shapes import subject
from fusionbench.encoders.contract import Encoder
from fusionbench.errors import UserError
from fusionbench.plugins import load_method
from fusionbench.provenance import hardware
from fusionbench.selection import Chosen

_DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16,
           "bfloat16": torch.bfloat16}  # fmt: skip
_META = torch.device("meta")


class Bench:
    """Built once, used for every method; checks the operation counter first."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.device = _device(asked.device)
        flops.check(_META)
        if self.device.type != "meta":
            flops.check(self.device)
        self.shape, self.weights = self._subject(_META)
        self.encoder = self.shape
        if self.device.type != "meta":
            self.encoder, _ = self._subject(self.device)

    def profile(self, chosen: Chosen) -> CostRecord:
        """Count on no device, then measure on this one. Raises Unsupported."""
        asked = self.asked
        conditions = Conditions(
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
            threads=torch.get_num_threads() if self.device.type == "cpu" else 1,
        )
        record = counted(self._pipeline(chosen, meta=True), conditions, chosen.label)
        if self.device.type == "meta":
            return record
        return timed(self._pipeline(chosen, meta=False), record, blocks=asked.blocks)

    def _subject(self, device: torch.device) -> tuple[Encoder, str]:
        size, dtype = self.asked.image_size, _DTYPES[self.asked.dtype]
        return subject(self.asked.encoder, image_size=size, device=device, dtype=dtype)

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
