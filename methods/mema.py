"""Mema (first called SCVM): a memory that runs along the encoder's blocks and writes back.

Liu et al. 2026, arXiv:2603.00655. After every block, with modules shared by all blocks:
    y = W_y [mean_n x ; max_n x ; x_cls]
    s = ReLU(W_1 [LN(c) ; y ; t])            t = W_t query
    c = f * c + i * tanh(W_c s + b_c)        i, f = sigmoid(W s + b)
    h = LN(x + c)                            per token; LN without scale and shift
    x = x + sigmoid(a h) * tanh(W_2 gelu(W_1' h))
The tokens are `hs[L-1]` of the modified run. Parameters bear their official names.
"""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, InEncoderFusion, StackShape, method
from fusionbench.api.errors import at_least, one_of
from fusionbench.methods._mema import (
    TRACE,
    DynamicSharingUnit,
    SpatialGate,
    State,
    gated_blocks,
    initialise,
    looks_of,
)
from fusionbench.methods._sizes import inner_blocks


@method(
    "mema",
    version=1,
    idea="a memory along the blocks that writes back",
    variants={
        "": {},
        "no_memory": {"memory": "none"},
        "stateless": {"memory": "rebuilt"},
        "no_feedback": {"feedback": "none"},
        "no_query": {"query": False},
        "as_written": {"init": "as_written"},
        "repaired": {"init": "repaired"},
        "readout": {"feedback": "after"},
    },
    control="mema-readout",
    switches={
        "memory": ("none", "rebuilt"),
        "feedback": ("after", "none"),
        "query": (False,),
        "gates": ("none", "forget", "input"),
        "summary": ("mean", "max", "cls", "mean+max", "mean+cls", "max+cls"),
        "reduction": (1, 2, 8),
        "init": ("as_written", "repaired"),
        "every": (2, 3),
        "where": ("shallow", "deep"),
        "opening": ("scalar",),
        "alignment": (0.05, 0.1, 0.15, 0.3),
    },
    idle=(  # the question enters by the memory, the feedback shows it, "after" writes once
        ({"memory": "none"}, ("query", "gates", "summary", "reduction", "alignment")),
        ({"feedback": "after"}, ("every", "where")),
        ({"feedback": "none"}, ("opening", "every", "where")),
        ({"feedback": "none", "alignment": 0.0}, ("memory", "query", "gates")),
        ({"feedback": "none", "alignment": 0.0}, ("summary", "reduction", "init")),
    ),
    paper="arXiv:2603.00655",
    year=2026,
    parity="exact, but its alignment loss (weight 0.1 there) is off unless `alignment` is set",
    parameters="Q*D + 5*D*D + 6*D*D//reduction + D//reduction + 11*D + 1",
    details={
        "no_memory": {
            "parameters": "2*D*D + 3*D + 1",
            "needs": "encoder gradients",
            "unmatched": "parameters: a part of mema, against the control of the whole",
        },
        "stateless": {
            "parameters": "Q*D + 5*D*D + 4*D*D//reduction + D//reduction + 9*D + 1",
            "unmatched": "parameters: a part of mema, against the control of the whole",
        },
        "no_feedback": {
            "parameters": "0",
            "needs": "",
            "identity": True,
            "unmatched": "parameters: it has none",
        },
        "no_query": {
            "parameters": "5*D*D + 5*D*D//reduction + D//reduction + 10*D + 1",
            "needs": "encoder gradients",
            "unmatched": "parameters: those of the question",
        },
        "as_written": {"identity": True},
        "repaired": {"parity": "deviates: a start of ours that is alive", "identity": True},
        "readout": {"parity": "deviates: its matched control, of ours", "needs": "query"},
    },
)
class Mema(InEncoderFusion):
    """`memory`: "carried", "rebuilt" (nothing carried over), "none" (c = 0, so no query either).

    `feedback`: after "each_block"; once "after" the encoder, on `hs[L-1]` of cached states; "none":
    the memory reaches the alignment loss only. Modules that reach no loss at all are not built.
    `init`: "effective" is what the released training path starts from, N(0, 0.02) and zero biases,
    since `from_pretrained` re-draws what the LLaVA checkpoint lacks; "as_written" the source's
    values, with which both weights of the feedback's MLP stay zero for ever; "repaired" ours: the
    identity, but alive. `reduction`: r. `alignment`: weight of 1 - cos(projector(c_L), answer).
    Parts to switch off: `gates` "forget+input", one of them, or "none"; `summary`, any of mean, max
    and cls joined by "+"; `opening` of the feedback by "token" or one learned "scalar", written
    after every `every`-th block, in the "all", "shallow" or "deep" half (`where`) of 1..L-1.
    """

    needs_query = True
    silent_if = {"feedback": ("after", "none")}

    def __init__(  # noqa: PLR0913
        self,
        shape: StackShape,
        *,
        memory: str = "carried",
        feedback: str = "each_block",
        query: bool = True,
        init: str = "effective",
        reduction: int = 4,
        alignment: float = 0.0,
        gates: str = "forget+input",
        summary: str = "mean+max+cls",
        opening: str = "token",
        every: int = 1,
        where: str = "all",
    ) -> None:
        super().__init__(shape)
        at_least(0, alignment=alignment)
        inner_blocks(shape)
        one_of("memory", memory, ("carried", "rebuilt", "none"))
        self.writes = one_of("feedback", feedback, ("each_block", "after", "none")) == "each_block"
        # Block L could reach nothing but the final memory.
        self.depth = shape.layers if alignment else shape.layers - 1
        self.gated = gated_blocks(shape, every, where) if self.writes else (shape.layers - 1,)
        self.summary_weight = alignment
        self.identity_at_init = feedback == "none" or init != "effective"
        self.live_after_steps = 2 if init == "repaired" else 1
        self.remembers = memory != "none" and (feedback != "none" or alignment > 0)
        self.needs_query = self.remembers and query
        token_wise = one_of("opening", opening, ("token", "scalar")) == "token"
        gated = feedback != "none"
        self.spatial_gate = SpatialGate(shape.dim, token_wise=token_wise) if gated else None
        if self.remembers:
            self._build_memory(memory == "carried", reduction, gates, summary)
        elif alignment:
            raise ValueError("alignment compares the memory with the answer, but memory is 'none'")
        if init == "as_written":
            self.expected_failures = {"live": "as written: no gradient passes two layers of zeros"}
        initialise(self, one_of("init", init, ("effective", "as_written", "repaired")))

    def _build_memory(self, carried: bool, reduction: int, gates: str, summary: str) -> None:
        dim, asked = self.shape.dim, self.shape.dim if self.needs_query else 0
        if asked and not self.shape.query_dim:
            raise ValueError("mema needs a question's vector, but query_dim is 0; set query=False")
        if asked:
            self.text_global_proj = nn.Linear(self.shape.query_dim, dim)
        self.looks = looks_of(summary, self.shape)
        self.y_proj = nn.Linear(len(self.looks) * dim, dim)
        self.dsu = DynamicSharingUnit(dim, reduction, asked=asked, carried=carried, gates=gates)

    def start(
        self, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch query_dim"]
    ) -> State:
        """An empty memory, and the query in the encoder's width (no columns without one)."""
        asked = self.text_global_proj(query) if self.needs_query else query[:, :0]
        return State(tokens.new_zeros(tokens.shape[0], self.shape.dim), asked)

    def summarise(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch dim"]:
        """y; mean and maximum include CLS, as in the official code."""
        looks = [
            tokens[:, 0] if look == "cls" else reduce(tokens, "b n d -> b d", look)
            for look in self.looks
        ]
        return self.y_proj(torch.cat(looks, dim=-1))

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: State
    ) -> tuple[Float[Tensor, "batch token dim"], State]:
        """Update the memory; write it back, or at block L-1 into what is kept for the reader."""
        memory = state.memory
        if self.remembers:
            memory = self.dsu(self.summarise(tokens), state.query, memory)
        fused, looks = tokens, memory.new_zeros(memory.shape[0], len(TRACE) - 1)
        if self.spatial_gate is not None and block in self.gated:
            fused, looks = self.spatial_gate(tokens, memory)
        row = torch.cat([looks, memory.detach().norm(dim=-1, keepdim=True)], dim=-1)
        kept = (fused,) if block == self.shape.layers - 1 else state.kept
        after = State(memory, state.query, kept, (*state.trace, row))
        return (fused if self.writes else tokens), after

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: State) -> Fused:
        """The patches of block L-1, and c_L where it is aligned with the answer."""
        rows = torch.stack(state.trace).mean(dim=1)
        return Fused(
            tokens=self.patches(state.kept[0]),
            summary=state.memory if self.summary_weight else None,
            trace=dict(zip(TRACE, rows.unbind(dim=1), strict=True)),
        )
