"""Profile methods on one encoder and device."""

import datetime
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import UserError
from fusionbench.harness import measure
from fusionbench.harness import pipeline as pipelines
from fusionbench.harness.measure import BLOCKS, interleaved, peak_bytes
from fusionbench.harness.pipeline import (
    SHAPE,
    Pipeline,
    RandomLlama,
    build_pipeline,
    compiled,
    subject,
    training_step,
)
from fusionbench.models.encoders.catalog import recorded_name
from fusionbench.records.cost import Conditions, CostRecord, ProfileOptions
from fusionbench.registry.plugins import load_method
from fusionbench.registry.provenance import hardware, software
from fusionbench.registry.selection import Chosen


def counted(
    pipeline: Pipeline, conditions: Conditions, label: str, bare: measure.Counted
) -> CostRecord:
    """Record with parameters and operations; the pipeline may be on `meta`."""
    images, shape = len(pipeline.images), pipeline.encoder.shape
    found = measure.step(pipeline.fused, back=conditions.mode == "train")
    record = CostRecord(
        conditions=conditions,
        label=label,
        layers=shape.layers,
        dim=shape.dim,
        tokens=shape.tokens,
        in_encoder=pipeline.in_encoder(),
        parameters=_parameters(pipeline),
        tokens_out=found.tokens,
        flops_encoder=bare.forward // images,
        flops_over_encoder=(found.forward - bare.forward) // images,
        flops_language_model_over=_language_model(pipeline, found),
        notes=(f"the bare encoder runs {pipeline.blocks} of {shape.layers} blocks too",),
    )
    if found.backward is None or bare.backward is None:
        return record
    return replace(record, flops_backward_over_encoder=(found.backward - bare.backward) // images)


def timed(
    pipeline: Pipeline,
    record: CostRecord,
    model: RandomLlama | None = None,
    *,
    blocks: int = BLOCKS,
) -> CostRecord:
    """The record with latency, throughput and memory on the pipeline's device.

    With `model` a language model follows both pipelines.
    """
    device = pipeline.images.device
    conditions = record.conditions
    with nullcontext() if conditions.mode == "train" else torch.no_grad():
        method, bare = _calls(pipeline, conditions, model)
        times = interleaved(method, bare, device=device, blocks=blocks, threads=conditions.threads)
        memory = [peak_bytes(run, device) for run in (method, bare)]
    images = len(pipeline.images)
    over = None if memory[0] is None or memory[1] is None else memory[0] - memory[1]
    return replace(
        record,
        latency_ms=times.method,
        latency_encoder_ms=times.bare,
        latency_over_encoder_ms=times.difference,
        throughput=1000 * images / times.method.median,
        throughput_encoder=1000 * images / times.bare.median,
        peak_memory_bytes=memory[0],
        peak_memory_over_encoder_bytes=over,
        measured=_circumstances(device),
    )


def _calls(
    pipeline: Pipeline, conditions: Conditions, model: RandomLlama | None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The timed calls (method, bare); compiling the forward pass compiles the backward pass."""
    fused, bare = (_compiled(run, conditions.compile) for run in (pipeline.fused, pipeline.bare))
    if conditions.mode == "train":
        return (
            training_step(fused, pipeline.trained()),
            training_step(bare, pipeline.trained(bare=True)),
        )
    if model is None:
        return fused, bare
    return (lambda: pipeline.prefilled(model)), (lambda: pipeline.bare_prefilled(model))


def _compiled(run: Callable[[], Tensor], mode: str) -> Callable[[], Tensor]:
    return run if mode == "off" else compiled(run, mode=mode)


def _parameters(pipeline: Pipeline) -> dict[str, int]:
    parts = (pipeline.fusion, pipeline.projector, pipeline.alone)
    fusion, projector, alone = (_size(part) for part in parts)
    return {
        "fusion": fusion,
        "projector": projector,
        "over_projector": fusion + projector - alone,
        "encoder": sum(p.numel() for p in pipeline.encoder.parameters()),
    }


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _language_model(pipeline: Pipeline, found: measure.Counted) -> int | None:
    """Operations that the method adds to the prefill of a 7B model, per image."""
    shape = pipeline.encoder.shape
    if pipeline.query.shape[1] != pipelines.SHAPE.width:
        return None
    usual = pipelines.operations(shape.tokens - shape.prefix)
    if not pipeline.reaches_inside:
        return pipelines.operations(found.tokens) - usual
    model = pipelines.nowhere(pipeline.query.dtype)
    with torch.no_grad():
        whole = measure.count(lambda: pipeline.prefilled(model))
    # The projection of injections is in both.
    return (whole - found.forward) // len(pipeline.images) - usual


def _circumstances(device: torch.device) -> dict[str, Any]:
    values: dict[str, Any] = {
        "software": dict(software()),
        "hardware": dict(hardware(str(device))),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return values


_DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16,
           "bfloat16": torch.bfloat16}  # fmt: skip
_META = torch.device("meta")


class Bench:
    """Encoder and device of a profile, shared by all methods; checks the counter first."""

    def __init__(self, asked: ProfileOptions) -> None:
        self.asked = asked
        self.device = _device(asked.device)
        self._bare: dict[int, measure.Counted] = {}
        measure.check(_META)
        if self.device.type != "meta":
            measure.check(self.device)
        self.shape, self.weights = self._subject(_META)
        self.encoder = self.shape
        if self.device.type != "meta":
            self.encoder, _ = self._subject(self.device)
        self.model = self._language_model() if asked.language_model else None

    def profile(self, chosen: Chosen) -> CostRecord:
        """Count on `meta`, then measure on the device. Raises Unsupported."""
        pipeline = self._pipeline(chosen, meta=True)
        conditions = self.conditions(chosen)
        record = counted(pipeline, conditions, chosen.label, self._bare_of(pipeline))
        if self.device.type == "meta":
            return record
        there = self._pipeline(chosen, meta=False)
        # Otherwise compiled graphs keep the memory of earlier methods.
        torch.compiler.reset()
        return timed(there, record, self.model, blocks=self.asked.blocks)

    def conditions(self, chosen: Chosen) -> Conditions:
        """Conditions of the profile, which give its id."""
        asked = self.asked
        return Conditions(
            method=chosen.card.name,
            method_version=chosen.card.version,
            settings=chosen.settings,
            encoder=recorded_name(asked.encoder),
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

    def _bare_of(self, pipeline: Pipeline) -> measure.Counted:
        """Count of the bare encoder, once per number of blocks."""
        depth = pipeline.blocks
        if depth not in self._bare:
            self._bare[depth] = measure.step(pipeline.bare, back=self.asked.mode == "train")
        return self._bare[depth]

    def _subject(self, device: torch.device) -> tuple[Encoder, str]:
        size, dtype = self.asked.image_size, _DTYPES[self.asked.dtype]
        return subject(self.asked.encoder, image_size=size, device=device, dtype=dtype)

    def _language_model(self) -> RandomLlama | None:
        """A language model on the device, for timing only."""
        asked = self.asked
        if asked.mode == "train" or asked.width != SHAPE.width or asked.compile != "off":
            raise UserError(
                "a language model is timed in inference only, uncompiled, and is "
                f"{SHAPE.width} wide",
                f"leave out --mode and --compile, and give --width {SHAPE.width}",
            )
        if self.device.type == "meta":
            return None
        return RandomLlama(self.device, _DTYPES[asked.dtype])

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
