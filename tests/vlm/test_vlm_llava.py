"""Parts of a LLaVA checkpoint, joined by its own method, compute what the library's model does."""

import pytest
import torch
from llava_checkpoints import Tiny
from llava_identity import greedy, logits, method_of, opened, original

from fusionbench.models.readers.llava.description import own_method

SIGLIP = {"tower": "siglip"}
CASES = {
    "CLIP, default, -2": (Tiny(), "penultimate"),
    "CLIP, default, -1": (Tiny(layer=-1), "last"),
    "CLIP, full, -2": (Tiny(select="full"), "penultimate"),
    "CLIP, full, -1": (Tiny(select="full", layer=-1), "last"),
    "CLIP, default, 2": (Tiny(layer=2), "layer[index=2]"),
    "CLIP, default, [-2, 2]": (Tiny(layer=(-2, 2)), "hf_list[blocks=4,layers=3,2]"),
    "CLIP, full, [0, -1, 1]": (
        Tiny(select="full", layer=(0, -1, 1)), "hf_list[blocks=4,layers=0,4,1]"
    ),
    "CLIP, default, [-2]": (Tiny(layer=(-2,)), "penultimate"),
    "SigLIP, full, -1": (Tiny(**SIGLIP, select="full", layer=-1), "last"),
    "SigLIP, full, -2": (Tiny(**SIGLIP, select="full"), "penultimate"),
    "SigLIP, default, -1": (Tiny(**SIGLIP, layer=-1), "last"),
    "SigLIP, default, -2": (Tiny(**SIGLIP), "penultimate"),
    "NeXT, CLIP, default, -2": (Tiny(kind="llava_next"), "penultimate"),
    "NeXT, SigLIP, full, -1": (Tiny(**SIGLIP, kind="llava_next", select="full", layer=-1), "last"),
    "NeXT, CLIP, [-2, 2]": (Tiny(kind="llava_next", layer=(-2, 2)), "hf_list[blocks=4,layers=3,2]"),
    "OneVision, -1": (
        Tiny(**SIGLIP, kind="llava_onevision", select="full", layer=-1), "last"
    ),
    "OneVision, shrunk": (
        Tiny(**SIGLIP, kind="llava_onevision", select="full", most=1), "penultimate"
    ),
    "tied embeddings": (Tiny(tied=True), "penultimate"),
    "weights of 4.36": (Tiny(names="4.36"), "penultimate"),
    "weights of 4.36, NeXT": (Tiny(kind="llava_next", names="4.36"), "penultimate"),
    "weights of 4.52": (Tiny(names="4.52"), "penultimate"),
    "weights of 4.52, NeXT": (Tiny(kind="llava_next", names="4.52"), "penultimate"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_those_of_the_whole_model(case):
    made, label = CASES[case]
    whole, parts = original(made), opened(made)
    assert own_method(parts.about) == label
    method = method_of(label, parts)
    right = whole.logits()
    assert right.std() > 0.5, "logits near 0 would prove little"
    torch.testing.assert_close(logits(parts, method, whole.batch), right, atol=1e-5, rtol=1e-5)
    assert torch.equal(greedy(parts, method, whole.batch), whole.greedy())
