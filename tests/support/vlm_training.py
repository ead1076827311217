"""A toy vision-language model, its rows, and what the processes of the tests run."""

import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionbench.api.errors import UserError
from fusionbench.api.seeding import stream
from fusionbench.records.cell import Budget
from fusionbench.vlm.checkpoint import whole
from fusionbench.vlm.train import Setup, TrainingHistory, train

WORDS, WIDTH, PIXELS = 11, 8, 6
BUDGET = Budget(steps=10, batch=7, lrs=(0.02,), weight_decay=0.1)
SETUP = Setup(budget=BUDGET, lr=0.02)


@dataclass(frozen=True)
class ToyRow:
    image: torch.Tensor | None
    ids: tuple[int, ...]
    answer: int
    """Position of the first labelled token."""


class ToyModel(nn.Module):
    """A frozen encoder, an adapter with dropout and a tiny language model."""

    def __init__(self, *, dropout=0.0, language=True, scalar=False, blank=True):
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Linear(PIXELS, WIDTH).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout))
        self.table = nn.Embedding(WORDS, WIDTH).requires_grad_(language)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.layers.requires_grad_(language)
        self.head = nn.Linear(WIDTH, WORDS).requires_grad_(language)
        self.never = nn.Parameter(torch.ones(WIDTH))
        self.gate = nn.Parameter(torch.ones(())) if scalar else None
        self.blank = blank

    def context(self, rows):
        images = [row.image for row in rows]
        seen = [image for image in images if image is not None]
        if not seen and self.blank:
            # Keeps the adapter in the graph of a batch without images.
            return 0 * self.adapter(torch.tanh(self.encoder(torch.zeros(1, PIXELS))))
        tokens = iter(self.adapter(torch.tanh(self.encoder(torch.stack(seen)))) if seen else [])
        return torch.stack([torch.zeros(WIDTH) if i is None else next(tokens) for i in images])

    def row_losses(self, rows):
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + (0,) * (longest - len(row.ids)) for row in rows])
        x = self.table(ids) + self.context(rows)[:, None]
        for layer in self.layers:
            past = x.cumsum(1) / torch.arange(1, longest + 1)[:, None]
            x = x + torch.tanh(layer(past))
        if self.gate is not None:
            x = x * self.gate
        losses = nn.functional.cross_entropy(
            self.head(x)[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        ).reshape(len(rows), longest - 1)
        at = torch.arange(1, longest)
        starts = torch.tensor([[row.answer, len(row.ids)] for row in rows])
        return (losses * ((at >= starts[:, :1]) & (at < starts[:, 1:]))).sum(1)

    def forward(self, rows, weights, share=1.0):
        return (weights * self.row_losses(rows)).sum() + share * self.own_loss(rows)

    def own_loss(self, rows):
        """A loss of the adapter, a mean over images."""
        seen = [row.image for row in rows if row.image is not None]
        if not seen:
            return 0.0
        return self.adapter(torch.tanh(self.encoder(torch.stack(seen)))).square().mean()


@dataclass
class ToyData:
    """Rows of unequal length; every fourth has no image, or all at odd places of a batch."""

    batch: int = BUDGET.batch
    text_only: bool = False
    poison: int = -1
    """Step whose first row has an image of NaN."""
    rows: list[ToyRow] = field(default_factory=list)

    def __post_init__(self):
        draw = stream("toy rows")
        for number in range(32):
            ids = tuple(int(i) for i in draw.integers(1, WORDS, size=4 + number % 7))
            image = torch.from_numpy(draw.normal(size=PIXELS)).float()
            missing = number % 2 if self.text_only else number % 4 == 3
            self.rows.append(ToyRow(None if missing else image, ids, 2 + number % 2))
        self.rows.append(replace(self.rows[0], image=torch.full((PIXELS,), float("nan"))))

    def order(self, step):
        drawn = [int(i) for i in stream("toy order", step).integers(0, 16, size=self.batch)]
        if self.text_only:
            return [2 * index + place % 2 for place, index in enumerate(drawn)]
        return [32, *drawn[1:]] if step == self.poison else drawn

    def labelled(self, index):
        return len(self.rows[index].ids) - self.rows[index].answer

    def images(self, index):
        return int(self.rows[index].image is not None)

    def fetch(self, indices):
        return [self.rows[index] for index in indices]


@dataclass(frozen=True)
class Case:
    """A training of the toy model."""

    setup: Setup = SETUP
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    every: int = 0
    fingerprint: str = "toy"


@dataclass
class Outcome:
    history: TrainingHistory
    weights: dict[str, torch.Tensor]
    frozen: dict[str, torch.Tensor]
    error: str = ""


def outcome(world, case, report=None):
    """Train the toy model; an error of divergence is returned, not raised."""
    model = ToyModel(**case.model)
    torch.manual_seed(17 + world.rank)
    history, error = TrainingHistory(), ""
    try:
        history = train(
            model, ToyData(**case.data), case.setup, world=world, folder=case.folder,
            every=case.every, fingerprint=case.fingerprint, units=list(model.layers),
            report=report,
        )  # fmt: skip
    except FloatingPointError as failed:
        error = str(failed)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert all(p.grad is None for p in frozen.values())
    kept = {name: getattr(p, "full_tensor", lambda p=p: p)().clone() for name, p in frozen.items()}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = {name: whole(p.detach()).cpu().clone() for name, p in trained.items()}
    return Outcome(history, weights, kept, error)


def outcomes(world, cases):
    return [outcome(world, case) for case in cases]


def killed(world, case, rank, step):
    """Train until a process is killed after a step, before it could say so."""

    def report(done, _):
        if (world.rank, done + 1) == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)

    return outcome(world, case, report)


def spoken(world, value):
    """What reaches each process."""
    world.barrier()
    return (
        world.rank, world.size, world.main, str(world.device),
        world.broadcast({"from": world.rank, "value": value}),
        world.gathered(world.rank * 10),
        world.total(torch.tensor([1.0, world.rank])),
        os.environ["WORLD_SIZE"], torch.get_num_threads(),
    )  # fmt: skip


def diverging(world):
    world.barrier()
    raise FloatingPointError("it diverged")


def failing(world, kind):
    """Rank 1 fails while the others wait for it."""
    if world.rank == 1:
        if kind == "user":
            raise UserError("no such image", "look again")
        raise KeyError("a bug")
    world.barrier()


def sleeping(world, folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
