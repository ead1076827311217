"""oneDNN's linear layers against PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusionbench.encoders import products
from fusionbench.encoders.products import by_onednn

pytestmark = pytest.mark.skipif(not products.available(), reason="this PyTorch has no oneDNN")
# Rows, inputs, outputs: large enough that oneDNN is asked.
SIZES = [(544, 96, 384), (300, 131, 77), (2048, 64, 192)]


def gradients(layer: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and all gradients of one pass, for the same incoming gradient."""
    x = x.clone().requires_grad_()
    out = layer(x)
    above = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(above.to(out.dtype))
    found = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    return {**found, "x": x.grad, "out": out.detach()}


def error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Largest deviation of a tensor, over its largest value."""
    assert found.keys() == exact.keys()
    return max(
        float((found[name] - exact[name]).abs().max() / exact[name].abs().max()) for name in exact
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_gradients_are_as_near_the_exact_ones_as_pytorchs_own(size, bias):
    rows, inner, outer = size
    torch.manual_seed(0)
    layer, x = nn.Linear(inner, outer, bias=bias), torch.randn(4, rows // 4, inner)
    twin = nn.Linear(inner, outer, bias=bias).double()
    twin.load_state_dict(layer.state_dict())
    exact = gradients(twin, x.double())
    plain = gradients(layer, x)
    with by_onednn(layer):
        fast = gradients(layer, x)
    assert error(plain, exact) < 2e-6
    assert error(fast, exact) < 2e-6


def test_it_is_really_another_product_and_only_within_the_block(monkeypatch):
    asked = []
    whole = products._multiply
    monkeypatch.setattr(products, "_multiply", lambda *x: asked.append(1) or whole(*x))
    layer, x = nn.Linear(128, 128), torch.randn(1024, 128)
    with by_onednn(layer):
        assert isinstance(layer, nn.Linear)
        gradients(layer, x)
    assert len(asked) == 3
    gradients(layer, x)
    assert len(asked) == 3
    assert type(layer) is nn.Linear


def test_classes_come_back_after_an_error():
    layer = nn.Linear(4, 4)
    with pytest.raises(KeyError), by_onednn(layer):
        raise KeyError
    assert type(layer) is nn.Linear


def test_frozen_weights_get_no_gradient():
    layer = nn.Linear(128, 128).requires_grad_(False)
    with by_onednn(layer):
        found = gradients(layer, torch.randn(512, 128))
    assert found.keys() == {"x", "out"}


def test_a_layer_with_a_forward_of_its_own_keeps_it():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = nn.Sequential(Doubled(128, 128))
    with by_onednn(layer):
        assert type(layer[0]) is Doubled


def test_autocast_small_layers_and_transforms_of_torch_func_run_as_before():
    layer, x = nn.Linear(128, 128), torch.randn(512, 128)
    with by_onednn(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with by_onednn(layer):
        few = layer(x[:2])
        batched = torch.func.vmap(layer)(x.view(4, 128, 128)).view(512, 128)
        slopes = torch.func.grad(lambda one: layer(one).sum())(x)
    assert torch.equal(few, F.linear(x[:2], layer.weight, layer.bias))
    torch.testing.assert_close(batched, layer(x))
    torch.testing.assert_close(slopes, layer.weight.sum(dim=0).expand_as(x))
