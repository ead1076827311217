"""Layers side by side in the channels, in front of a wider projector.

vip_llava            LN [hs 23; 20; 17; 14; 6]                        Cai et al., CVPR 2024
hf_list              the `vision_feature_layer` list of Hugging Face's Llava; its layers here
                     are Granite Vision's -24, -20, -12, -1 of SigLIP's 27 blocks
lsf_external_direct  Lin et al., CVPR 2025, arXiv:2503.06063: the final feature last. Their
                     "3-18" and "3-18-23" are the same concatenation
mllama               Llama 3.2 Vision: five layers interleaved channel by channel, behind the
                     final output; its second, global encoder has no place here
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, method, paper_taps


@method(
    "vip_llava",
    version=1,
    idea="five layers side by side, normalised",
    variants={"": {"layers": "23,20,17,14,6", "norm": True}},
    control="repeat_like-vip_llava",
    paper="arXiv:2312.00784",
    year=2024,
    parity="not compared: no recorded case",
    parameters="4*D*H + 10*D",
    switches={"norm": (False,)},
)
@method(
    "hf_list",
    version=1,
    idea="four layers side by side (Granite Vision)",
    variants={"": {"layers": "4,8,16,27", "blocks": 27}},
    control="repeat_like-hf_list",
    paper="Granite Vision, arXiv:2502.09927",
    year=2025,
    parity="not compared: no recorded case",
    parameters="3*D*H",
)
@method(
    "lsf_external_direct",
    version=1,
    idea="chosen layers side by side",
    in_all=("3_18_23",),
    variants={
        "18": {"layers": "18,23"},
        "3_18": {"layers": "3,18,23"},
        "3_18_23": {"layers": "3,18,23"},
        "former": {"layers": "1..12,23"},
        "latter": {"layers": "13..24,23"},
        "all": {"layers": "1..12,13..24,23"},
    },
    control="repeat",
    paper="arXiv:2503.06063",
    year=2025,
    parity="exact",
    parameters="D*H",
    details={
        "18": {"control": "repeat_like-lsf_external_direct-18"},
        "former": {"control": "repeat_like-lsf_external_direct-18"},
        "latter": {"control": "repeat_like-lsf_external_direct-18"},
        "3_18": {
            "parameters": "2*D*H",
            "parity": "not compared: the official code cannot build it apart from 3-18-23",
        },
        "3_18_23": {"parameters": "2*D*H"},
        "all": {"parameters": "2*D*H"},
    },
    switches={
        "layers": ("23", "18,23", "3,18,23", "1..12,23", "13..24,23", "1..12,13..24,23"),
        "norm": (True,),
    },
)
@method(
    "mllama",
    version=1,
    idea="five layers and the last, interleaved",
    variants={"": {"layers": "32,3,7,15,23,30", "blocks": 32, "interleaved": True}},
    control="repeat_like-mllama",
    paper="arXiv:2407.21783",
    year=2024,
    parity="deviates: hs[L] stands for the output of the global encoder",
    parameters="5*D*H",
    switches={"interleaved": (False,)},
)
class Concat(Fusion):
    """`layers` of an encoder with `blocks` blocks ("a..b" is averaged), in this order.

    `norm`: an affine LayerNorm over all channels. `interleaved`: all but the first, by channel.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        layers: str = "3,18,23",
        blocks: int = 24,
        norm: bool = False,
        interleaved: bool = False,
    ) -> None:
        super().__init__(shape)
        self.taps = self.paper_taps(layers, blocks=blocks)
        self.out_dim = shape.dim * len(self.taps)
        self.interleaved = interleaved
        self.norm = nn.LayerNorm(self.out_dim) if norm else nn.Identity()
        alone = self.taps == paper_taps(shape, "23")
        self.identity_at_init = alone and not norm

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Concatenate the patches of all taps."""
        patches = hidden[:, :, self.shape.prefix :]
        if self.interleaved:
            # Interleaving reorders channels only; the first tap stays in front, as it is.
            rest = rearrange(patches[1:], "tap b n d -> b n (d tap)")
            return Fused(tokens=self.norm(torch.cat([patches[0], rest], dim=-1)))
        return Fused(tokens=self.norm(rearrange(patches, "tap b n d -> b n (tap d)")))
