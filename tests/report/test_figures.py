"""Figures: what they show is what the records say, in the same bytes every time."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from toy_records import put, record, spec
from toy_suite import write_study

from fusionbench.records.cell import Stage, Training
from fusionbench.records.cost import Conditions, CostRecord, Spread
from fusionbench.records.probes import ProbeMap
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.report.build import collect
from fusionbench.report.figures.cost import (
    comparable_profiles,
    draw_cost,
    pareto,
    set_cost_axis,
)
from fusionbench.report.figures.curves import draw_learning, steps_of
from fusionbench.report.figures.layers import (
    dead_parts,
    draw_layers,
    layer_means,
    layer_scores,
    rank_correlation,
    trace_curves,
    traces,
)
from fusionbench.report.figures.panels import FigureData, representatives
from fusionbench.report.figures.ranks import draw_ranks
from fusionbench.report.figures.scores import draw_runs
from fusionbench.report.figures.style import Drawing, house_style, save
from fusionbench.report.figures.write import figure_data, write_figures

METHODS = ("penultimate", "last", "mema", "mema-as_written", "mema-no_feedback", "scalar_mix",
           "layer[index=2]", "layer[index=5]", "layer[index=9]", "token_packer-coarse")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), methods=METHODS, tasks=4)


def read(folder):
    """What a report knows of a folder."""
    return collect(Store.open(folder))


@pytest.fixture(scope="module")
def data(folder):
    (found,) = figure_data(read(folder))
    return replace(found, planned=())


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    write_figures(read(folder), out)
    return out


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.thorough
def test_every_figure_is_an_svg_and_its_data_and_the_first_a_bitmap_too(drawn):
    note = json.loads((drawn / "figures.json").read_text())
    assert set(note["figures"]) == {
        "heatmap", "differences", "differences-tasks", "cost", "scores", "profile", "ranks",
        "layers", "instruments", "learning",
    }  # fmt: skip
    files = {f"{name}.{end}" for name in note["figures"] for end in ("svg", "csv")}
    assert set(contents(drawn)) == files | {"differences.png", "figures.json"}
    for name, one in note["figures"].items():
        assert len(one["reading"]) > 80, name
        assert rows(drawn / f"{name}.csv"), name
        assert b"<dc:date>" not in (drawn / f"{name}.svg").read_bytes()


@pytest.mark.thorough
def test_the_note_names_what_decides_the_bytes(drawn):
    import matplotlib
    import seaborn
    from matplotlib import ft2font

    versions = json.loads((drawn / "figures.json").read_text())["versions"]
    assert versions == {
        "matplotlib": matplotlib.__version__, "seaborn": seaborn.__version__,
        "freetype": ft2font.__freetype_version__,
    }  # fmt: skip


@pytest.mark.slow
def test_another_process_with_another_hash_seed_and_style_gives_the_same_bytes(
    folder, drawn, tmp_path
):
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.grid: True\nsavefig.dpi: 40\n")
    code = (
        "import sys; from pathlib import Path; import numpy; numpy.random.seed(1)\n"
        "from test_figures import read, write_figures\n"
        "write_figures(read(sys.argv[1]), Path(sys.argv[2]))"
    )
    places = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parent.parent / "support"), *sys.path]
    )
    rc = str(tmp_path / "matplotlibrc")
    variables = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": rc, "PYTHONPATH": places}
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "out")],
        env=os.environ | variables, check=True,
    )  # fmt: skip
    first, second = contents(drawn), contents(tmp_path / "out")
    assert [name for name in first if first[name] != second.get(name)] == []


def test_the_last_bits_of_the_layout_do_not_reach_the_file(tmp_path):
    from matplotlib.figure import Figure

    def file(nudge):
        figure = Figure(figsize=(2, 2))
        figure.add_axes((0.2 + nudge, 0.2, 0.7, 0.7 - nudge)).plot([0, 1], [0, 1])
        drawing = Drawing(name="x", title="", reading="", figure=figure, rows=pd.DataFrame())
        with house_style():
            save(drawing, tmp_path / "x")
        return (tmp_path / "x.svg").read_bytes()

    assert file(0.0) == file(1e-13)
    assert file(0.0) != file(1e-2)


@pytest.mark.thorough
def test_a_figure_that_is_no_longer_drawn_goes_and_a_foreign_file_stays(folder, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mine.svg").write_text("mine")
    write_figures(replace(read(folder), analyses=()), tmp_path)
    assert set(contents(tmp_path)) == {"figures.json", "mine.svg"}


@pytest.mark.thorough
def test_the_data_of_the_heat_map_are_the_means_and_a_skipped_cell_is_named(drawn, data):
    table = data.table
    found = {(row["method"], row["task"]): row for row in rows(drawn / "heatmap.csv")}
    assert len(found) == len(table.methods) * len(table.tasks)
    for (method, task), row in found.items():
        m, t = data.row(method), [one.name for one in table.tasks].index(task)
        mean = table.values[m, t].mean()
        if np.isnan(mean):
            assert (row["mean"], row["status"]) == ("", "skipped")
        else:
            assert float(row["mean"]) == pytest.approx(mean, abs=1e-6)
    assert sum(row["status"] == "skipped" for row in found.values()) == 1


def test_the_pareto_front_holds_who_is_beaten_by_nobody():
    price = np.array([0.0, 0.0, 5.0, 9.0, 9.0, 2.0, np.nan])
    value = np.array([50.0, 40.0, 60.0, 60.0, 70.0, 50.0, 99.0])
    assert pareto(price, value).tolist() == [True, False, True, False, True, False, False]
    # Two that are alike in both are both on it.
    assert pareto(np.array([1.0, 1.0]), np.array([5.0, 5.0])).all()


def test_the_legend_names_the_curves_that_are_drawn(data):
    cells = {
        key: replace(one, loss=()) if key[0] == 0 else one for key, one in data.table.cells.items()
    }
    drawing = draw_learning(replace(data, table=replace(data.table, cells=cells)))
    (legend,) = drawing.figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    shown = [data.labels[row] for row in representatives(data)]
    assert named == [*shown[1:], "all others"] and shown[0] == data.labels[0]
    looks = {line.get_label(): line for line in legend.get_lines()}
    for line in drawing.figure.axes[0].lines:
        points = np.column_stack([line.get_xdata(), line.get_ydata()])
        mine = drawing.rows[drawing.rows["task"] == data.table.tasks[0].name]
        (name,) = [
            name
            for name, curve in mine.groupby("method")
            if np.array_equal(curve[["step", "loss"]].to_numpy(), points)
        ]
        assert line.get_color() == looks[name].get_color()
        assert line.get_marker() == looks[name].get_marker()
    assert len(drawing.figure.axes[0].lines) == len(named) - 1


def test_losses_of_several_stages_lie_over_the_steps_of_all_of_them(data):
    stage = Stage(parts=("a",), rows="r", count=9, template="plain", trained=("projector",))
    stages = (replace(stage, steps=60), stage, replace(stage, steps=500, trained=()))
    training = Training(language="words", language_weights="w", stages=stages)
    condition = replace(data.table.condition, training=training)
    drawing = draw_learning(replace(data, table=replace(data.table, condition=condition)))
    assert drawing.rows["step"].min() == 1
    assert drawing.rows["step"].max() == 60 + condition.budget.steps


def profile(method, mode="inference", batch=8, ms=1.0):
    conditions = Conditions(
        method=method, method_version=1, settings={}, encoder="nano", weights="w", image_size=0,
        width=64, mode=mode, batch=batch, dtype="fp32", device="cpu",
    )  # fmt: skip
    return CostRecord(
        conditions=conditions, label=method, layers=12, dim=8, tokens=5, in_encoder=False,
        parameters={"fusion": 0}, tokens_out=4,
        latency_ms=Spread(median=90 + ms, q1=90.0, q3=99.0, blocks=9),
        latency_over_encoder_ms=Spread(median=ms, q1=ms - 0.5, q3=ms + 0.5, blocks=9),
    )  # fmt: skip


def test_cost_reads_measured_profiles_of_equal_conditions_only():
    found = [*(profile(name, "train", ms=9) for name in "abc"), profile("a", ms=1),
             profile("b", ms=2), profile("c", batch=32, ms=3)]  # fmt: skip
    conditions, profiles = comparable_profiles(found, "latency_over_encoder_ms")
    medians = {name: one.latency_over_encoder_ms.median for name, one in profiles.items()}
    assert medians == {("a", 1): 1, ("b", 1): 2}
    assert conditions == "inference, cpu, batch 8"
    assert comparable_profiles(found, "flops_over_encoder") == ("", {})


def test_a_profile_adds_a_panel_and_its_spread(data):
    profiles = [profile(name, ms=2.0 + i) for i, name in enumerate(METHODS[:5])]
    drawing = draw_cost(replace(data, profiles=profiles))
    measured = drawing.rows[drawing.rows["cost"] == "latency_over_encoder_ms"]
    by_method = measured.set_index("method")[["q1", "value", "q3"]]
    assert by_method.loc["last"].tolist() == [2.5, 3.0, 3.5]
    assert by_method.loc["scalar_mix"].isna().all()
    assert set(measured["method"][measured["on_front"]]) <= set(METHODS[:5])
    # The same methods on an encoder that is not this table's.
    far = [replace(one, conditions=replace(one.conditions, encoder="far")) for one in profiles]
    elsewhere = draw_cost(replace(data, profiles=far))
    assert "latency_over_encoder_ms" not in set(elsewhere.rows["cost"])


@pytest.mark.parametrize(
    ("cost", "scale", "first", "ticks"),
    [((0.1, 10.0), "log", 0.1, ["0.1", "1", "10"]), ((0.0, 3.0, 4e3), "symlog", 0.0, None),
     ((2e3, 4e3), "linear", 2e3, None), ((-0.5, 80.0), "linear", -0.5, None)],
)  # fmt: skip
def test_costs_over_a_power_of_ten_have_a_logarithmic_axis_with_0_at_its_left(
    cost, scale, first, ticks
):
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    set_cost_axis(panel, np.array([*cost, np.nan]))
    low, high = panel.get_xlim()
    assert panel.get_xscale() == scale and low < first < max(cost) < high
    assert ticks is None or [text.get_text() for text in panel.get_xticklabels()] == ticks


def test_without_any_profile_or_parameter_the_axis_stays_linear():
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    set_cost_axis(panel, np.zeros(3))
    assert panel.get_xscale() == "linear"


def test_rank_correlation_is_spearmans_over_common_layers_and_asks_for_four():
    rng = np.random.default_rng(0)
    first = {float(i): float(v) for i, v in enumerate(rng.normal(size=9).round(1))}
    second = {float(i): float(v) for i, v in enumerate(rng.normal(size=7).round(1))}
    common = sorted(first.keys() & second.keys())
    expected = spearmanr([first[i] for i in common], [second[i] for i in common]).statistic
    first, second = pd.Series(first), pd.Series(second)
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert np.isnan(rank_correlation(pd.Series({1.0: 1, 2.0: 2, 3.0: 3}), first))
    assert np.isnan(rank_correlation(first * 0, first))


def test_probes_stand_beside_the_weights_with_their_correlation(data):
    probes = [
        ProbeMap(encoder="nano", weights="w", image_size=0, task=task.name, task_version=1,
                 data="d", group="fine", metric="accuracy", chance=0.1, val=(), n=9, n_train=9,
                 n_val=9, provenance={}, layers=tuple(0.2 + 0.01 * i for i in range(13)))
        for task in data.table.tasks
    ]  # fmt: skip
    drawing = draw_layers(replace(data, probes=probes))
    labels = [panel.get_xlabel() for panel in drawing.figure.axes]
    weights = drawing.rows[drawing.rows["method"] == "scalar_mix"]
    assert set(weights["instrument"]) == {"layer_weights"}
    assert any("with the probe" in label and "with single layers" not in label for label in labels)
    titles = [panel.get_title() for panel in drawing.figure.axes]
    assert "each layer, linear probe" in " ".join(titles).replace("\n", " ")


def test_weights_of_groups_are_not_those_of_layers(tmp_path):
    taps = tuple((n,) for n in range(1, 13))
    with Store.create(tmp_path) as store:
        for index in range(1, 7):
            cell = spec("layer", settings={"index": index})
            put(store, cell, index / 10, label=f"layer[index={index}]", taps=((index,),))
        put(store, spec("igva"), 0.6, taps=taps, trace={"layer_weights": (0.1, 0.2, 0.3, 0.4)})
        put(store, spec("alf"), 0.5, taps=taps,
            trace={"layer_weights": tuple(n / 78 for n in range(1, 13))})  # fmt: skip
    (found,) = figure_data(read(tmp_path))
    panels = draw_layers(found).figure.axes
    labels = {panel.get_title(): panel.get_xlabel() for panel in panels if panel.get_title()}
    assert labels["igva"] == "group"
    assert labels["alf"].startswith("layer\nrho +1.00")


def test_layer_scores_are_drawn_without_traces_and_no_cost_where_no_method_is_complete(tmp_path):
    with Store.create(tmp_path) as store:
        for index in range(1, 5):
            cell = spec("layer", settings={"index": index})
            put(store, cell, index / 10, label=f"layer[index={index}]", taps=((index,),))
        put(store, spec("mema", "scenes_count"), 0.5)
    (found,) = figure_data(read(tmp_path))
    drawing = draw_layers(found)
    assert drawing.rows["median"].tolist() == pytest.approx([10, 20, 30, 40])
    assert draw_cost(found) is None


def test_runs_with_other_taps_are_not_averaged_at_the_layers_of_the_others(tmp_path):
    with Store.create(tmp_path) as store:
        for seed in range(3):
            taps = ((3,), (8,)) if seed else ((2,), (5,))
            put(
                store,
                spec("scalar_mix", seed=seed),
                0.5,
                taps=taps,
                trace={"layer_weights": [1, 2]},
            )
    (found,) = figure_data(read(tmp_path))
    drawn = traces(found)
    assert {*drawn["layer"]} == {3.0, 8.0} and {*drawn["seed"]} == {1, 2}


def test_a_layer_left_out_is_found_from_two_cells_of_one_method(tmp_path):
    with Store.create(tmp_path) as store:
        for seed in range(2):
            for names, taps, share in (
                ("3,8,13", ((3,), (8,), (11,)), 0.7),
                ("3,8", ((3,), (8,)), 0.6),
                ("3", ((3,),), 0.5),
            ):
                cell = spec("mmfuser", seed=seed, settings={"layers": names, "heads": 1})
                put(store, cell, share, label=f"mmfuser[layers={names}]", taps=taps)
            odd = spec("mmfuser", seed=seed, settings={"layers": "3,13", "heads": 2})
            put(store, odd, 0.1, label="odd", taps=((3,), (11,)))
    (found,) = figure_data(read(tmp_path))
    # One layer alone is not drawn; `odd` differs in more than its layers.
    assert layer_scores(found).empty
    with Store.create(tmp_path) as store:
        for seed in range(2):
            cell = spec("mmfuser", seed=seed, settings={"layers": "8,13", "heads": 1})
            put(store, cell, 0.4, label="mmfuser[layers=8,13]", taps=((8,), (11,)))
    (found,) = figure_data(read(tmp_path))
    scores = layer_scores(found)
    assert set(scores["method"]) == {"mmfuser[layers=3,8,13]"}
    assert layer_means(scores).to_dict() == {3.0: pytest.approx(30), 11.0: pytest.approx(10)}


def test_the_alarm_names_what_is_dead_and_nothing_else(data):
    curves = trace_curves(traces(data))

    def alarms(method):
        row = data.row(method)
        return dead_parts(data, row, curves[curves["row"] == row])

    assert alarms("mema") == []
    assert alarms("mema-as_written") == [
        "no gradient in 12 of 12 cells: spatial_gate.delta.0.weight"
    ]
    silent = " ".join(alarms("mema-no_feedback"))
    assert all(word in silent for word in ("memory is 0", "feedback is 0", "gate is closed"))


@pytest.mark.thorough
def test_instruments_show_the_median_over_seeds_of_the_mean_over_tasks(data, drawn):
    row = data.row("mema")
    values = np.array([
        [run.trace["gate_opening"] for run in data.table.runs(row, task)] for task in range(4)
    ])  # fmt: skip
    found = [r for r in rows(drawn / "instruments.csv")
             if (r["method"], r["instrument"]) == ("mema", "gate_opening")]  # fmt: skip
    by_seed = values.mean(axis=0)
    np.testing.assert_allclose(
        [float(r["median"]) for r in found], np.median(by_seed, 0), atol=1e-6
    )
    np.testing.assert_allclose([float(r["low"]) for r in found], by_seed.min(0), atol=1e-6)
    np.testing.assert_allclose([float(r["high"]) for r in found], by_seed.max(0), atol=1e-6)


def test_representatives_are_one_per_family_at_most_ten_and_chosen_by_name(data):
    chosen = [data.table.methods[row] for row in representatives(data)]
    assert chosen == ["last", "layer[index=2]", "mema", "penultimate", "scalar_mix",
                      "token_packer-coarse"]  # fmt: skip
    table = replace(data.table, values=1 - data.table.values)
    assert [table.methods[row] for row in representatives(replace(data, table=table))] == chosen
    planned = replace(data, planned=["mema-as_written"])
    assert "mema-as_written" in [table.methods[row] for row in representatives(planned)]
    many = [record(spec(f"m{i}"), np.ones(4)) for i in range(14)]
    (table,) = score_tables(many)
    assert len(representatives(FigureData(table=table, results=data.results))) == 10


def test_ranks_of_a_single_run_have_no_band(tmp_path):
    with Store.create(tmp_path) as store:
        for number, method in enumerate(("last", "penultimate", "scalar_mix")):
            for task in ("digits", "scenes_count"):
                put(store, spec(method, task), 0.3 + number / 10, draw=number)
    (data,) = figure_data(read(tmp_path))
    drawn = draw_ranks(data)
    assert drawn.rows["method"].tolist() == ["scalar_mix", "penultimate", "last"]
    assert drawn.rows[["low", "high"]].isna().all(axis=None)


def test_the_steps_of_a_curve_are_those_at_which_training_noted_its_loss():
    for steps in (60, 1000, 7, 2):
        noted = np.unique(np.linspace(0, steps - 1, 21).round().astype(int)) + 1
        assert steps_of(len(noted), steps).tolist() == noted.tolist()


@pytest.mark.thorough
def test_many_runs_are_drawn_as_a_range_not_one_by_one(data):
    ones = np.ones(2)
    cells = [record(spec(m, t, s), ones * (s % 2)) for m in "abcde" for t in "xyzuv"
             for s in range(250)]  # fmt: skip
    (table,) = score_tables(cells)
    drawing = draw_runs(FigureData(table=table, results=data.results))
    panels = drawing.figure.axes
    points = sum(len(line.get_xdata()) for panel in panels for line in panel.lines)
    points += sum(len(one.get_offsets()) for panel in panels for one in panel.collections)
    assert table.values.size == 6250 and points < 200
    assert len(drawing.rows) == 6250


@pytest.mark.thorough
def test_with_many_conditions_details_are_drawn_for_the_first_and_the_others_say_so(tmp_path):
    with Store.create(tmp_path) as store:
        for encoder in ("a", "b", "c", "d"):
            for method in ("penultimate", "mema"):
                for seed in range(2):
                    put(store, spec(method, "digits", seed, encoder=encoder), 0.5, loss=(2.0, 1.0))
    found = write_figures(read(tmp_path), tmp_path / "figures")
    names = [one.stem.name for one in found]
    assert {"scores", "learning", "differences-tasks", "heatmap-4", "differences-4"} <= set(names)
    assert not {"scores-2", "learning-2", "differences-tasks-2"} & set(names)
    for kind in ("heatmap", "differences"):
        stems = [kind, *(f"{kind}-{number}" for number in (2, 3, 4))]
        said = [one.reading for one in found if one.stem.name in stems]
        assert ["for the first one only" in one for one in said] == [False, True, True, True]
