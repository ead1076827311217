"""A method's cost on one encoder: counted without a device, then timed on one."""

import datetime
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench.costs import flops, language
from fusionbench.costs.pipeline import Pipeline, compiled, training_step
from fusionbench.costs.timing import BLOCKS, interleaved, peak_bytes
from fusionbench.records.cost import Conditions, CostRecord
from fusionbench.registry.provenance import hardware, software


def counted(
    pipeline: Pipeline, conditions: Conditions, label: str, bare: flops.Counted
) -> CostRecord:
    """Parameters and operations; the pipeline may lie on `meta`. `bare`: `Pipeline.bare`'s."""
    images, shape = len(pipeline.images), pipeline.encoder.shape
    found = flops.step(pipeline.fused, back=conditions.mode == "train")
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
    model: language.LanguageModel | None = None,
    *,
    blocks: int = BLOCKS,
) -> CostRecord:
    """The record with latency, throughput and memory, measured where the pipeline lies.

    With `model` a language model stands behind both.
    """
    device = pipeline.images.device
    conditions = record.conditions
    with nullcontext() if conditions.mode == "train" else torch.no_grad():
        method, bare = _calls(pipeline, conditions, model)
        times = interleaved(method, bare, device=device, blocks=blocks, threads=conditions.threads)
        # Compiled code on a CPU allocates where nobody looks.
        seen = device.type == "cuda" or conditions.compile == "off"
        memory = [peak_bytes(run, device) if seen else None for run in (method, bare)]
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
    pipeline: Pipeline, conditions: Conditions, model: language.LanguageModel | None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What is timed. Only what runs forward is compiled: the way back is compiled with it."""
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


def _language_model(pipeline: Pipeline, found: flops.Counted) -> int | None:
    """Of one image: what other tokens, and layers that run otherwise, cost a 7B model's prefill."""
    shape = pipeline.encoder.shape
    if pipeline.query.shape[1] != language.SHAPE.width:
        return None
    usual = language.operations(shape.tokens - shape.prefix)
    if not pipeline.reaches_inside:
        return language.operations(found.tokens) - usual
    model = language.nowhere(pipeline.query.dtype)
    with torch.no_grad():
        whole = flops.count(lambda: pipeline.prefilled(model))
    # What an injection costs the projector is in both.
    return (whole - found.forward) // len(pipeline.images) - usual


def _circumstances(device: torch.device) -> dict[str, Any]:
    values: dict[str, Any] = {
        "software": dict(software()),
        "hardware": dict(hardware(str(device))),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return values
