"""A method's cost on one encoder: counted without a device, then timed on one."""

import datetime
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fusionbench.costs import flops
from fusionbench.costs.pipeline import LANGUAGE_MODEL, Pipeline, training_step
from fusionbench.costs.records import Conditions, CostRecord
from fusionbench.costs.timing import BLOCKS, interleaved, peak_bytes
from fusionbench.provenance import hardware, software

_INSIDE = "its layers inside the language model count as parameters, not as operations or time"


def counted(pipeline: Pipeline, conditions: Conditions, label: str) -> CostRecord:
    """Parameters and operations; the pipeline may lie on `meta`."""
    parts = (pipeline.fusion, pipeline.projector, pipeline.alone)
    fusion, projector, alone = (_size(part) for part in parts)
    counts = {"fusion": fusion, "projector": projector}
    counts["over_projector"] = fusion + projector - alone
    images = len(pipeline.images)
    with torch.no_grad():
        method, bare = flops.count(pipeline.fused), flops.count(pipeline.bare)
        tokens = pipeline.fused().shape[1]
    shape = pipeline.encoder.shape
    ran = f"the bare encoder runs {pipeline.blocks} of {shape.layers} blocks too"
    notes = (ran, _INSIDE) if pipeline.reaches_inside else (ran,)
    record = CostRecord(
        conditions=conditions,
        label=label,
        layers=shape.layers,
        dim=shape.dim,
        tokens=shape.tokens,
        in_encoder=pipeline.in_encoder(),
        parameters=counts,
        tokens_out=tokens,
        flops_encoder=bare // images,
        flops_over_encoder=(method - bare) // images,
        flops_language_model_over=_language_model(
            conditions.width, tokens, shape.tokens - shape.prefix
        ),
        notes=notes,
    )
    if conditions.mode == "inference":
        return record
    steps = [flops.count(step) for step in _steps(pipeline)]
    return replace(
        record,
        flops_backward_over_encoder=(steps[0] - method - (steps[1] - bare)) // images,
    )


def timed(pipeline: Pipeline, record: CostRecord, *, blocks: int = BLOCKS) -> CostRecord:
    """The record with latency, throughput and memory, measured where the pipeline lies."""
    device = pipeline.images.device
    conditions = record.conditions
    train = conditions.mode == "train"
    with nullcontext() if train else torch.no_grad():
        method, bare = _steps(pipeline) if train else (pipeline.fused, pipeline.bare)
        if conditions.compile != "off":
            method, bare = (_compiled(run, conditions.compile) for run in (method, bare))
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


def _steps(pipeline: Pipeline) -> tuple[Callable[[], None], Callable[[], None]]:
    return (
        training_step(pipeline.fused, pipeline.trained()),
        training_step(pipeline.bare, pipeline.trained(bare=True)),
    )


def _compiled(run: Callable[[], Any], mode: str) -> Callable[[], Any]:
    return torch.compile(run, mode=None if mode == "default" else mode)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _language_model(width: int, tokens: int, usual: int) -> int | None:
    if width != LANGUAGE_MODEL.width:
        return None
    if tokens == usual:
        return 0
    return flops.language_model(tokens) - flops.language_model(usual)


def _circumstances(device: torch.device) -> dict[str, Any]:
    values: dict[str, Any] = {
        "software": dict(software()),
        "hardware": dict(hardware(str(device))),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return values
