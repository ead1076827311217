"""Floating-point operations, counted as they are dispatched; one multiply-add is two.

`FlopCounterMode` has no entry for the CPU's fused attention and would count it as nothing; the
entry is added here. `check` compares a count with the sum that anyone can do by hand, and every
profile starts with it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fusionbench.encoders.contract import Encoder
from fusionbench.encoders.vit import ViT, ViTConfig

LARGEST_ERROR = 0.01
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# torch leaves these two without types.
_COUNT: Callable[..., int] = sdpa_flop_count
_COUNT_BACKWARD: Callable[..., int] = sdpa_backward_flop_count
_REFERENCE = ViTConfig(layers=2, dim=128, heads=4, patch=16, grid=8, size=128, mlp=512)


def count(run: Callable[[], object]) -> int:
    """Operations of everything that `run` dispatches, backward passes included."""
    mapping = {_ATTENTION: _attention, _ATTENTION_BACKWARD: _attention_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return int(counter.get_total_flops())


def analytic(encoder: Encoder, *, blocks: int) -> int:
    """Forward of one image by hand: patches, Linear layers, and the two products of attention.

    4 T^2 D for the attention of a block on T tokens, 2 T i o for a Linear from i to o.
    """
    tokens, dim = encoder.shape.tokens, encoder.shape.dim
    total = 0
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            patches = encoder.shape.grid[0] * encoder.shape.grid[1]
            total += 2 * patches * module.weight.numel()
        elif isinstance(module, nn.Linear):
            total += 2 * tokens * module.weight.numel() * blocks // encoder.shape.layers
    return total + blocks * 4 * tokens**2 * dim


def check(device: torch.device) -> float:
    """Relative error of the count of a small ViT on this device.

    Raises ValueError beyond 1 %: then this release of PyTorch counts something else.
    """
    with device:
        encoder = ViT(_REFERENCE)
        images = torch.zeros(2, 128, 128, 3, dtype=torch.uint8)
    found = count(lambda: encoder.hidden_states(images)) / 2
    expected = analytic(encoder, blocks=_REFERENCE.layers)
    error = abs(found / expected - 1)
    if error > LARGEST_ERROR:
        raise ValueError(
            f"the operation counter is off by {error:.1%} on {device}: {found:.4g} counted, "
            f"{expected:.4g} by hand"
        )
    return error


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return _COUNT(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any) -> int:
    return _COUNT_BACKWARD(grad, query, key, value)


def language_model(visual_tokens: int, *, text_tokens: int = 64) -> int:
    """Prefill of a LLaVA-1.5-7B-shaped language model (Vicuna), counted on no device at all."""
    from transformers import LlamaConfig, LlamaModel

    # LlamaConfig's defaults are the 7B model's.
    with torch.device("meta"), torch.no_grad():
        config = LlamaConfig()
        config._attn_implementation = "sdpa"
        model = LlamaModel(config)
        length = visual_tokens + text_tokens
        tokens: Tensor = torch.zeros(1, length, model.config.hidden_size)
        # A mask that is there already: building one looks at values, and there are none.
        mask = torch.zeros(1, 1, length, length)
        return count(lambda: model(inputs_embeds=tokens, attention_mask=mask, use_cache=False))
