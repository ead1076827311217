"""Ways to run a frozen encoder that change its speed and memory, and nothing else."""

import pytest
import torch
from toy_cells import BUDGET, materials
from toy_encoder import ToyEncoder, draw

from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.train import train
from fusionbench.models.encoders.vit import ViT, ViTConfig
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method

METHODS = ("mema", "dla")


def losses(name, change=lambda encoder: encoder):
    card = read_catalog().methods[name]
    shared = materials([(0,), (1,)], BUDGET)
    shared.encoder = change(shared.encoder)
    model = build_model(load_method(card), card.settings, shared, 0)
    return train(model, shared, 0, 3e-3).losses


def compiled(encoder):
    # The graph is captured and differentiated as for a GPU; its code is not generated here.
    torch._dynamo.reset()
    assert compile_blocks(encoder, backend="aot_eager")
    return encoder


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("change", [Checkpointed, compiled])
def test_the_training_is_the_same(name, change):
    plain = losses(name)
    assert losses(name, change) == pytest.approx(plain, abs=1e-5)


def test_blocks_of_one_encoder_share_one_graph():
    encoder = ViT(ViTConfig(layers=6, dim=16, heads=2, patch=4, grid=2, size=8, mlp=32))
    encoder.freeze()
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_blocks(encoder, backend=count)
    encoder.hidden_states(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert len(graphs) == 1


def kept(encoder):
    """Numbers that wait for the way back through one block, its weights apart."""
    saved = []
    tokens, _ = draw()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        encoder.block(1, tokens.clone().requires_grad_())
    weights = {id(p) for p in encoder.parameters()}
    return sum(x.numel() for x in saved if id(x) not in weights)


def test_a_checkpointed_block_keeps_no_more_than_its_input():
    assert kept(Checkpointed(ToyEncoder())) <= draw()[0].numel() < kept(ToyEncoder())
