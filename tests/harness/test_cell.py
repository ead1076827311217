"""Training and scoring of one cell: paired, deterministic, and blind to what it must not see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from in_process import fusionbench
from toy_cells import BUDGET, EVERY_TAP, BrightHalf, materials, named, shared_by, spec, train_cell
from toy_encoder import SHAPE

from fusionbench.api.errors import UserError
from fusionbench.api.fusion import Fusion
from fusionbench.api.tasks import require_outcomes
from fusionbench.api.types import Fused
from fusionbench.harness.cell import Tuned, choose_layer, choose_lr, own_examples, train_model
from fusionbench.harness.materials import QuestionTable, token_vector
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.passes import PassMember, evaluate_together, train_all
from fusionbench.harness.stepping import fuse, needs_encoder, taps_of
from fusionbench.harness.train import batches, drawn, evaluate, schedule
from fusionbench.models.readers.attentive import QuestionEncoder
from fusionbench.records.cell import TUNING_SEED
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import select_methods


class MiddleLayer(Fusion):
    """A stand-in method: reads one layer and has one weight."""

    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((2,),)
        self.scale = torch.nn.Parameter(torch.ones(shape.dim))

    def forward(self, hidden, query):
        return Fused(tokens=self.patches(hidden[0]) * self.scale)


def method(name):
    card = read_catalog().methods[name]
    return load_method(card), dict(card.settings)


def test_a_cell_learns_and_reports_what_it_did():
    record, scores = train_cell(MiddleLayer, steps=150)
    assert record.status == "done" and record.examples == len(scores) == 60
    assert record.score == pytest.approx(scores.mean()) and record.score > 0.8
    assert record.loss[0] > record.loss[-1]
    assert record.parameters["fusion"] == 16 and record.taps == ((2,),)


class Joined(MiddleLayer):
    """Two tokens become one behind the projector."""

    def forward(self, hidden, query):
        pairs = lambda tokens: tokens.unflatten(1, (-1, 2)).mean(dim=2)  # noqa: E731
        return Fused(tokens=super().forward(hidden, query).tokens, after_projector=pairs)


@pytest.mark.parametrize("reader", ["attentive", "ridge"])
def test_a_record_counts_the_answers_and_the_tokens_that_the_reader_gets(reader, monkeypatch):
    patches = SHAPE.grid[0] * SHAPE.grid[1]
    for answers, fusion, tokens in ((2, MiddleLayer, patches), (1, Joined, patches // 2)):

        def given(self, output, batch, classes=answers):
            return torch.arange(len(batch)) % classes

        monkeypatch.setattr(Model, "answers", given)
        record, _ = train_cell(fusion, reader=reader)
        assert (record.tokens, record.distinct) == (tokens, answers)
        assert record.id == replace(record, tokens=1, answers=5).id


def test_the_same_cell_twice_gives_the_same_bytes():
    (one, first), (two, second) = train_cell(MiddleLayer), train_cell(MiddleLayer)
    assert first.tobytes() == second.tobytes() and one.loss == two.loss


def test_the_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, _ = train_cell(MiddleLayer)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    two, _ = train_cell(MiddleLayer)
    assert one.loss == two.loss


def test_a_seed_redraws_resample_order_and_initialisation():
    one, two = (train_cell(MiddleLayer, seed)[0] for seed in (0, 1))
    assert one.loss != two.loss
    drawn = [np.concatenate([b.numpy() for b in batches("t", s, 50, BUDGET)]) for s in (0, 1)]
    assert (drawn[0] != drawn[1]).any()
    readers = [build_model(MiddleLayer, {}, materials(EVERY_TAP), s).reader for s in (0, 1)]
    assert not torch.equal(readers[0].keys.weight, readers[1].keys.weight)


def test_methods_share_the_order_and_the_reader_of_a_seed():
    last, settings = method("last")
    shared = materials(EVERY_TAP)
    one = build_model(MiddleLayer, {}, shared, 4).reader
    two = build_model(last, settings, shared, 4).reader
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_a_resample_draws_with_replacement_from_the_whole_pool():
    rows = np.concatenate([b.numpy() for b in batches("t", 0, 96, BUDGET)])
    assert len(rows) == BUDGET.steps * BUDGET.batch
    epoch = rows[:96]
    # A bootstrap of N leaves about N/e examples out.
    assert 0.5 * 96 < len(set(epoch)) < 0.75 * 96


def test_the_learning_rate_rises_and_falls_to_zero():
    shares = [schedule(step, BUDGET) for step in range(BUDGET.steps)]
    assert max(shares) == 1.0 and shares[0] > 0
    assert shares[-1] < 0.1 and shares[1:] == sorted(shares[1:], reverse=True)


def test_ties_between_learning_rates_go_to_the_smaller_and_edges_are_marked():
    tuned = choose_lr({1e-3: [0.5, 0.7], 3e-4: [0.7, 0.5], 1e-2: [0.1, 0.1]})
    assert tuned.lr == 3e-4 and tuned.at_edge
    assert not choose_lr({1e-3: [0.9], 3e-4: [0.7], 1e-2: [0.1]}).at_edge


def test_no_feedback_is_the_penultimate_layer_to_the_last_bit():
    mema, settings = method("mema-no_feedback")
    plain, _ = method("penultimate")
    record, scores = train_cell(mema, **settings)
    reference, expected = train_cell(plain)
    assert scores.tobytes() == expected.tobytes() and record.loss == reference.loss


@pytest.mark.thorough
def test_as_written_never_moves_its_feedback_and_the_other_starts_do():
    dead = {"spatial_gate.delta.0.weight", "spatial_gate.delta.0.bias"}
    dead |= {"spatial_gate.delta.2.weight"}
    # Its other modules may sleep too on so small a toy; the feedback's MLP can never wake.
    for name, asleep in (("mema-as_written", True), ("mema", False), ("mema-repaired", False)):
        mema, settings = method(name)
        record, _ = train_cell(mema, steps=40, **settings)
        assert dead <= set(record.unmoved) if asleep else not dead & set(record.unmoved), name


def test_two_names_of_one_class_score_alike():
    renamed = type("MiddleLayer", (MiddleLayer,), {})
    renamed.__qualname__ = MiddleLayer.__qualname__
    assert train_cell(MiddleLayer)[1].tobytes() == train_cell(renamed)[1].tobytes()


def test_an_in_encoder_method_needs_the_encoder_only_if_it_writes():
    shared = materials(EVERY_TAP)
    for name, expected in (("mema", True), ("mema-readout", False), ("last", False)):
        cls, settings = method(name)
        built = cls(shared.shape, **settings)
        assert needs_encoder(built) is expected
        assert taps_of(built)[0] == (0,) or name == "last"


def test_stepping_with_the_encoder_equals_the_cache_where_nothing_is_written():
    cls, settings = method("mema-repaired")
    shared = materials(EVERY_TAP)
    built = cls(shared.shape, **settings)
    rows = torch.arange(6)
    query = shared.queries[torch.zeros(6, dtype=torch.long)]
    fused = fuse(built, shared.states(rows), query, shared.encoder)
    penultimate = shared.states(rows)(((shared.shape.layers - 1,),))[0]
    assert torch.allclose(fused.tokens, built.patches(penultimate), atol=1e-5)


def test_the_encoder_gets_no_gradient_and_keeps_its_weights():
    shared = materials(EVERY_TAP)
    before = [p.clone() for p in shared.encoder.parameters()]
    cls, settings = method("mema")
    model = build_model(cls, settings, shared, 0)
    model.loss(shared.splits["train"].pick(torch.arange(8)), shared).backward()
    assert all(p.grad is None for p in shared.encoder.parameters())
    for old, new in zip(before, shared.encoder.parameters(), strict=True):
        assert torch.equal(old, new)


def test_the_reader_tells_the_order_of_words():
    table = QuestionTable.build(["is a left of b ?", "is b left of a ?"], 8)
    torch.manual_seed(0)
    one, two = QuestionEncoder(8, 16, 6)(table.tokens, table.mask)
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.allclose(table.mean()[0], table.mean()[1], atol=1e-6)


def test_padding_changes_no_question():
    short = QuestionTable.build(["one two"], 8)
    padded = QuestionTable.build(["one two", "one two three four"], 8)
    assert torch.allclose(short.mean()[0], padded.mean()[0], atol=1e-6)
    torch.manual_seed(0)
    reader = QuestionEncoder(8, 16, 4)
    alone = reader(short.tokens.new_zeros(1, 4, 8).index_copy(1, torch.arange(2), short.tokens),
                   torch.tensor([[True, True, False, False]]))  # fmt: skip
    assert torch.allclose(alone[0], reader(padded.tokens, padded.mask)[0], atol=1e-6)


def test_a_token_has_one_vector_for_ever():
    assert token_vector("circle", 4) == pytest.approx(token_vector("circle", 4))
    assert not np.allclose(token_vector("circle", 4), token_vector("square", 4))


def test_answers_never_reach_a_method_that_does_not_ask_for_them():
    shared = materials(EVERY_TAP)
    model = build_model(MiddleLayer, {}, shared, 0).train()
    batch = shared.splits["train"].pick(torch.arange(8))
    assert torch.equal(model.query(batch, shared), shared.queries[batch.questions])
    model.fusion.reads_answers = True
    assert not torch.allclose(model.query(batch, shared), shared.queries[batch.questions])
    model.eval()
    assert torch.equal(model.query(batch, shared), shared.queries[batch.questions])


def test_a_diverging_run_raises_instead_of_scoring():
    from fusionbench.harness.train import train

    shared = materials(EVERY_TAP)
    model = build_model(MiddleLayer, {}, shared, 0)
    with torch.no_grad():
        model.fusion.scale.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="learning rate"):
        train(model, shared, 0, 3e-3)


class NanInEval(MiddleLayer):
    """Finite in training, NaN when it is scored."""

    def forward(self, hidden, query):
        fused = super().forward(hidden, query)
        return fused if self.training else replace(fused, tokens=fused.tokens * float("nan"))


class InfiniteLastGradient(MiddleLayer):
    """All losses are finite, and the last step's gradient is not."""

    def forward(self, hidden, query):
        self.steps = getattr(self, "steps", 0) + self.training
        if self.training and self.steps == BUDGET.steps:
            self.scale.register_hook(lambda gradient: gradient * float("inf"))
        return super().forward(hidden, query)


class NanTrace(MiddleLayer):
    """Right but for its instrument."""

    def forward(self, hidden, query):
        trace = {"gate": torch.tensor([float("nan")])}
        return replace(super().forward(hidden, query), trace=trace)


@pytest.mark.fault(
    "stored data",
    "logits, weights or traces that are not finite",
    "the cell is `diverged`, counted, not scored",
)
@pytest.mark.parametrize(
    ("method", "said"),
    [(NanInEval, "logits of 60 of 60 test examples"), (InfiniteLastGradient, "infinite or NaN"),
     (NanTrace, "the trace 'gate'")],
)  # fmt: skip
def test_a_cell_with_a_value_that_is_not_finite_has_diverged_and_has_no_score(method, said):
    with pytest.raises(FloatingPointError, match=said):
        train_cell(method)


@pytest.mark.parametrize(
    ("found", "chance", "said"),
    [([7.5, 1.0], 0.5, "from 0 to 1, got 1 to 7.5"), ([1.0], 0.5, "must return 2 outcomes"),
     ([0.0, np.nan], 0.5, "from 0 to 1"), (["yes", "no"], 0.5, "must return numbers"),
     ([0.0, 1.0], np.nan, "chance must lie from 0"), ([0.0, 1.0], 1.0, "chance must lie from 0")],
)  # fmt: skip
def test_outcomes_and_chance_have_a_range(found, chance, said):
    with pytest.raises(ValueError, match=said):
        require_outcomes(found, 2, chance)


def test_a_task_that_gives_no_outcomes_fails_its_cell(monkeypatch):
    monkeypatch.setattr(BrightHalf, "score", lambda _, given, answers: np.full(len(given), 7.5))
    with pytest.raises(ValueError, match="from 0 to 1, got 7.5"):
        train_cell(MiddleLayer, steps=1)


def test_specs_of_tuning_runs_differ_from_those_of_evaluation():
    from dataclasses import replace

    from fusionbench.study.plan import tuning_specs

    tuned = replace(spec(), budget=replace(BUDGET, lrs=(1e-3, 3e-3), tuning_seeds=2))
    runs = tuning_specs(tuned)
    ids = {run.id for group in runs.values() for run in group}
    assert len(ids) == 4 and tuned.id not in ids
    assert {run.seed for group in runs.values() for run in group} == {1000, 1001}
    # All evaluation seeds share the tuning runs.
    again = tuning_specs(replace(tuned, seed=7))
    assert {run.id for group in again.values() for run in group} == ids


# Cells with the ridge reader: alone and in a pass, with and without trainable parameters.

RIDGE = replace(
    BUDGET, reader="ridge", resample="distinct", draw=60, vector_lr=0.1, steps=6, batch=16
)
NAMES = (
    "penultimate", "scalar_mix", "dense_connector-efficient", "mema", "mema-readout",
    "lsf_internal_modular", "qwen3vl_deepstack",
)  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_fits_and_scores_as_each_seed_alone(name):
    method, settings = named(name)
    shared = shared_by(method, settings, RIDGE)
    runs = [PassMember(seed=seed, lr=3e-3) for seed in (0, 1)]
    alone, together = (
        [build_model(method, settings, shared, run.seed) for run in runs] for _ in range(2)
    )
    expected = [train_model(m, shared, r.seed, r.lr, 64) for m, r in zip(alone, runs, strict=True)]
    logs, fits = train_all(together, shared, runs, 64)
    scored = evaluate_together(together, shared, "test", 64)
    for run, (log, fit) in enumerate(expected):
        assert logs[run].losses == pytest.approx(log.losses, abs=1e-4)
        assert {k: v for k, v in fits[run].items() if "kernel" in k} == {
            k: v for k, v in fit.items() if "kernel" in k
        }
        assert fits[run]["error"] == pytest.approx(fit["error"], abs=1e-4)
        same = evaluate(alone[run], shared, "test", 64)[0] == scored[run][0]
        assert same.mean() >= 0.98


def test_a_fusion_without_parameters_trains_nothing_and_one_with_parameters_moves():
    for name, trained in (("penultimate", False), ("scalar_mix", True)):
        method, settings = named(name)
        shared = shared_by(method, settings, RIDGE)
        model = build_model(method, settings, shared, 0)
        start = [p.detach().clone() for p in model.parameters()]
        log, fit = train_model(model, shared, 0, 3e-3, 64)
        assert bool(log.losses) == trained == ("kernel_before" in fit)
        moved = [not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True)]
        assert all(moved) and bool(moved) == trained


def test_a_decoder_keeps_its_layers_and_loses_its_classifier():
    method, settings = named("lsf_internal_modular")
    shared = shared_by(method, settings, RIDGE)
    model = build_model(method, settings, shared, 0)
    assert len(model.reader.layers) == 4
    assert not any("classify" in name or "embed" in name for name, _ in model.named_parameters())
    log, _ = train_model(model, shared, 0, 3e-3, 64)
    assert not log.unmoved


def test_seeds_draw_distinct_examples_and_differ():
    budget = replace(RIDGE, draw=40)
    first, second = (drawn("a task", seed, 100, budget) for seed in (0, 1))
    assert len(set(first)) == len(first) == 40
    assert set(first) != set(second)
    # A pool that is no larger than the draw still gives seeds that differ.
    assert len(drawn("a task", 0, 40, budget)) == 30


def test_the_drawn_examples_of_a_seed_are_those_that_it_trains_on():
    method, settings = named("scalar_mix")
    shared = shared_by(method, settings, RIDGE)
    batch = own_examples(shared, [0, 3])
    assert batch.rows.shape == (2, 60)
    pool = shared.splits["train"]
    rows = torch.from_numpy(drawn(shared.name, 3, len(pool), RIDGE))
    assert torch.equal(batch.rows[1], pool.rows[rows])


def test_weights_of_mixing_get_their_own_learning_rate():
    method, settings = named("scalar_mix")
    ends = []
    for rate in (0.0, 0.1):
        shared = shared_by(method, settings, replace(RIDGE, vector_lr=rate))
        model = build_model(method, settings, shared, 0)
        start = torch.cat([p.detach().flatten() for p in model.fusion.parameters()])
        train_model(model, shared, 0, 3e-3, 64)
        end = torch.cat([p.detach().flatten() for p in model.fusion.parameters()])
        ends.append(float((end - start).norm()))
    assert ends[1] > 5 * ends[0]


# `best_single`: the layer is chosen on val, by runs that are never evaluated, and all are kept.

CATALOG = read_catalog()


def tuned(lr, *scores):
    return Tuned(lr=lr, scores={f"{lr:g}": list(scores)})


def test_the_best_mean_on_val_wins_and_ties_go_to_the_first_layer():
    found = {3: tuned(1e-3, 0.75, 0.75), 1: tuned(3e-3, 1.0, 0.5), 2: tuned(1e-3, 0.9, 0.1)}
    chosen = choose_layer("index", found)
    assert chosen.settings == {"index": 1} and chosen.lr == 3e-3
    assert chosen.scores["index=3, 0.001"] == [0.75, 0.75] and len(chosen.scores) == 3
    assert chosen.notes == ("index=1: the best on val of 3 layers tried in 6 runs",)


def test_nobody_sets_the_layer_that_is_tried():
    assert CATALOG.methods["best_single"].settings == {}
    with pytest.raises(UserError, match="index"):
        select_methods(CATALOG, ["best_single[index=3]"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tried")
    study = folder / "tried.yaml"
    study.write_text(
        "preset: smoke\nmethods: [best_single]\ntasks: [planted_layer]\nseeds: 2\n"
        "budget: {steps: 25, batch: 32, train_items: 256, val_items: 64, tuning_seeds: 2}\n"
    )
    fusionbench("run", study, "--out", folder / "out", "--quiet")
    return Store.open(folder / "out")


@pytest.mark.thorough
def test_it_finds_the_layer_that_knows_and_keeps_what_all_others_scored(store):
    evaluated = list(store.records())
    assert len(evaluated) == 2
    for record in evaluated:
        means = {name: np.mean(values) for name, values in record.tuning.items()}
        assert len(means) == 8 and all(len(v) == 2 for v in record.tuning.values())
        (chosen,) = {layer for tap in record.taps for layer in tap}
        assert means[f"index={chosen}, 0.003"] == max(means.values())
        assert record.notes == (f"index={chosen}: the best on val of 8 layers tried in 16 runs",)


@pytest.mark.thorough
def test_the_runs_that_choose_are_never_evaluated_and_shared_by_all_seeds(store):
    tries = [store.find(path.stem) for path in (store.folder / "tuning").glob("*.json")]
    # 8 layers, 2 tuning seeds: once, not once a seed.
    assert len(tries) == 16
    assert all(record.spec.seed >= TUNING_SEED for record in tries)
    assert {record.spec.settings["index"] for record in tries} == set(range(1, 9))


def test_the_last_layer_with_its_norm_is_what_the_encoder_gives():
    shared = materials([*EVERY_TAP, (6,)])
    fusion = load_method(CATALOG.methods["last_norm"])(shared.shape)
    rows = torch.arange(5)
    hidden = shared.states(rows)(fusion.taps)
    last = shared.states(rows)(((shared.shape.layers,),))[0]
    tokens = fusion(hidden, torch.zeros(5, 6)).tokens
    torch.testing.assert_close(tokens, fusion.patches(shared.encoder.norm(last)))


@pytest.mark.parametrize("name", ["tgif", "igva", "mol-patch", "mema"])
def test_a_shuffled_query_says_nothing_about_what_is_asked(name):
    shared = materials(EVERY_TAP)
    chosen = select_methods(CATALOG, [name, f"{name}[question=shuffled]"])
    built = [build_model(load_method(c.card), c.settings, shared, 0) for c in chosen]
    plain, control = built
    # The same module, started alike: all that differs is what it is told.
    for ours, theirs in zip(plain.parameters(), control.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    batch = shared.splits["test"]
    asked, told = plain.query(batch, shared), control.query(batch, shared)
    # Two questions about one image: the fusion sees them apart, its control cannot.
    same_image = batch.rows[:, None] == batch.rows[None]
    assert torch.cdist(asked, asked)[same_image].any()
    assert not torch.cdist(told, told)[same_image].any()
    # It is a question all the same, and not always the same one; in training as at test.
    assert len(told.unique(dim=0)) == len(asked.unique(dim=0)) == 2
    assert torch.equal(control.train().query(batch, shared), told)


def test_one_shuffled_query_has_a_name():
    (named, inline) = select_methods(CATALOG, ["tgif-shuffled_query", "tgif[question=shuffled]"])
    assert named.settings == inline.settings and named.settings["question"] == "shuffled"
    with pytest.raises((UserError, ValueError), match="shuffled"):
        select_methods(CATALOG, ["tgif[question=shufled]"])
