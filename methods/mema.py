"""Mema (first called SCVM): a memory that runs along the encoder's blocks and writes back.

Liu et al. 2026, arXiv:2603.00655. After every block, with modules shared by all blocks:
    y = W_y [mean_n x ; max_n x ; x_cls]
    s = ReLU(W_1 [LN(c) ; y ; t])            t = W_t query
    c = f * c + i * tanh(W_c s + b_c)        i, f = sigmoid(W s + b)
    h = LN(x + c)                            per token; LN without scale and shift
    x = x + sigmoid(a h) * tanh(W_2 gelu(W_1' h))
The tokens are `hs[L-1]` of the modified run. Parameters bear their official names.
"""

from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import Fused, InEncoderFusion, StackShape, Unsupported, method, one_of

_TRACE = ("gate_opening", "feedback_norm", "feedback_cosine", "memory_norm")


class State(NamedTuple):
    """What passes from block to block; `kept` are the tokens of block L-1, once there."""

    memory: Float[Tensor, "batch dim"]
    query: Float[Tensor, "batch asked"]
    kept: tuple[Float[Tensor, "batch token dim"], ...] = ()
    trace: tuple[Float[Tensor, "batch 4"], ...] = ()


class DynamicSharingUnit(nn.Module):
    """The memory update; not `carried`, it sees no memory. Officially, each bias exists twice."""

    def __init__(self, dim: int, *, reduction: int, asked: int, carried: bool) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.W1 = nn.Linear(dim * (1 + carried) + asked, hidden)
        self.Wc, self.Wi = nn.Linear(hidden, dim), nn.Linear(hidden, dim)
        self.bc, self.bi = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.Wf = nn.Linear(hidden, dim) if carried else None
        self.bf = nn.Parameter(torch.zeros(dim)) if carried else None

    def forward(
        self,
        summary: Float[Tensor, "batch dim"],
        query: Float[Tensor, "batch asked"],
        memory: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """The next memory; only its way into the gates is normalised."""
        seen = [] if self.Wf is None else [F.layer_norm(memory, memory.shape[-1:])]
        shared = torch.relu(self.W1(torch.cat([*seen, summary, query], dim=-1)))
        added = torch.sigmoid(self.Wi(shared) + self.bi) * torch.tanh(self.Wc(shared) + self.bc)
        if self.Wf is None:
            return added
        return torch.sigmoid(self.Wf(shared) + self.bf) * memory + added


class SpatialGate(nn.Module):
    """The feedback: each token, CLS too, takes its share of an MLP of (token + memory)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.delta = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.alpha_proj = nn.Linear(dim, 1)

    def forward(
        self, tokens: Float[Tensor, "batch token dim"], memory: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch 3"]]:
        """The new tokens; for the trace the opening, size and direction of the feedback."""
        seen = F.layer_norm(tokens + memory[:, None], tokens.shape[-1:])
        opening = torch.sigmoid(self.alpha_proj(seen))
        feedback = opening * torch.tanh(self.delta(seen))
        cosine = F.cosine_similarity(feedback.detach(), tokens.detach(), dim=-1)
        looks = [opening.detach()[..., 0], feedback.detach().norm(dim=-1), cosine]
        return tokens + feedback, torch.stack(looks, dim=-1).mean(dim=1)


@method(
    "mema",
    version=1,
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
    paper="arXiv:2603.00655",
    year=2026,
    parity="exact",
)
class Mema(InEncoderFusion):
    """`memory`: "carried", "rebuilt" (nothing carried over), "none" (c = 0, so no query either).

    `feedback`: after "each_block"; once "after" the encoder, on `hs[L-1]` of cached states; "none":
    the memory reaches the alignment loss only. Modules that reach no loss at all are not built.
    `init`: "effective" is what the released training path starts from, N(0, 0.02) and zero biases,
    since `from_pretrained` re-draws what the LLaVA checkpoint lacks; "as_written" the source's
    values, with which both weights of the feedback's MLP stay zero for ever; "repaired" ours: the
    identity, but alive. `reduction`: r. `alignment`: weight of 1 - cos(projector(c_L), answer).
    """

    needs_query = True

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
    ) -> None:
        super().__init__(shape)
        if shape.layers < 2:
            raise Unsupported("mema steps from block 1 to L-1, but this encoder has one block")
        one_of("memory", memory, ("carried", "rebuilt", "none"))
        self.writes = one_of("feedback", feedback, ("each_block", "after", "none")) == "each_block"
        # Block L could reach nothing but the final memory.
        self.depth = shape.layers if alignment else shape.layers - 1
        self.summary_weight = alignment
        self.identity_at_init = feedback == "none" or init != "effective"
        self.live_after_steps = 2 if init == "repaired" else 1
        self.remembers = memory != "none" and (feedback != "none" or alignment > 0)
        self.needs_query = self.remembers and query
        self.spatial_gate = SpatialGate(shape.dim) if feedback != "none" else None
        if self.remembers:
            self._build_memory(carried=memory == "carried", reduction=reduction)
        elif alignment:
            raise ValueError("alignment compares the memory with the answer, but memory is 'none'")
        self._initialise(one_of("init", init, ("effective", "as_written", "repaired")))

    def _build_memory(self, *, carried: bool, reduction: int) -> None:
        dim, asked = self.shape.dim, self.shape.dim if self.needs_query else 0
        if asked and not self.shape.query_dim:
            raise ValueError("mema needs a question's vector, but query_dim is 0; set query=False")
        if asked:
            self.text_global_proj = nn.Linear(self.shape.query_dim, dim)
        self.y_proj = nn.Linear((3 if self.shape.prefix else 2) * dim, dim)
        self.dsu = DynamicSharingUnit(dim, reduction=reduction, asked=asked, carried=carried)

    def _initialise(self, init: str) -> None:
        for name, parameter in self.named_parameters():
            if init == "effective" and parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif init == "effective":
                nn.init.zeros_(parameter)
            elif name == "dsu.bf":
                nn.init.ones_(parameter)
            elif name == "spatial_gate.alpha_proj.bias":
                nn.init.constant_(parameter, -2.2)
            elif name.startswith("spatial_gate") and not (init == "repaired" and "delta.0" in name):
                nn.init.zeros_(parameter)

    def start(
        self, tokens: Float[Tensor, "batch token dim"], query: Float[Tensor, "batch query_dim"]
    ) -> State:
        """An empty memory, and the query in the encoder's width (no columns without one)."""
        asked = self.text_global_proj(query) if self.needs_query else query[:, :0]
        return State(tokens.new_zeros(tokens.shape[0], self.shape.dim), asked)

    def summarise(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch dim"]:
        """y; mean and maximum include CLS, as in the official code, and are all where none is."""
        looks = [reduce(tokens, "b n d -> b d", how) for how in ("mean", "max")]
        looks += [tokens[:, 0]] * (self.shape.prefix > 0)
        return self.y_proj(torch.cat(looks, dim=-1))

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: State
    ) -> tuple[Float[Tensor, "batch token dim"], State]:
        """Update the memory; write it back, or at block L-1 into what is kept for the reader."""
        memory, last = state.memory, block == self.shape.layers - 1
        if self.remembers:
            memory = self.dsu(self.summarise(tokens), state.query, memory)
        fused, looks = tokens, memory.new_zeros(memory.shape[0], len(_TRACE) - 1)
        if self.spatial_gate is not None and (self.writes or last):
            fused, looks = self.spatial_gate(tokens, memory)
        row = torch.cat([looks, memory.detach().norm(dim=-1, keepdim=True)], dim=-1)
        kept = (fused,) if last else state.kept
        after = State(memory, state.query, kept, (*state.trace, row))
        return (fused if self.writes else tokens), after

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: State) -> Fused:
        """The patches of block L-1, and c_L where it is aligned with the answer."""
        rows = torch.stack(state.trace).mean(dim=1)
        return Fused(
            tokens=self.patches(state.kept[0]),
            summary=state.memory if self.summary_weight else None,
            trace=dict(zip(_TRACE, rows.unbind(dim=1), strict=True)),
        )
