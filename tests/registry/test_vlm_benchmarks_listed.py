"""Benchmarks are declared, found, chosen and listed like tasks, and never trained on."""

import json
import subprocess
import sys

import pytest
from benchmark_cases import CASES

from fusionbench.api import UserError
from fusionbench.cli.listing import json_text, tasks_text
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import check_plugins, load_benchmark, load_task
from fusionbench.registry.selection import divide_tasks, select_tasks

CATALOG = read_catalog()
OWN = """
from fusionbench.api import Answer, Benchmark, Item, benchmark

@benchmark("own", version=3, family="own", group="text")
class Own(Benchmark):
    folder = "mine"
    files = {"rows.json": "our drive"}
    tsv = "Own.tsv"
    hub = {"id": "us/own", "split": "test"}

    def items(self, source):
        yield Item(name="1", group="1", images=(), prompt="p", question="q", gold={"answer": "a"})

    def judge(self, text, item):
        return float(text == item.gold["answer"])
"""


def plugin(tmp_path, text):
    file = tmp_path / "own.py"
    file.write_text(text)
    return file


def test_a_benchmark_of_a_plugin_is_found_and_used(tmp_path):
    catalog = read_catalog([str(plugin(tmp_path, OWN))])
    card = catalog.benchmarks["own"]
    assert (card.version, card.needs.folder, card.needs.tsv) == (3, "mine", "Own.tsv")
    assert card.needs.files == {"rows.json": "our drive"} and not catalog.problems
    built = load_benchmark(card)
    assert built.needs == card.needs and built.max_new_tokens == 128
    (checked,) = check_plugins(catalog)
    assert checked.sound and checked.declares == ("benchmark own",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"split": "test"', '"part": "test"', "hub must have id, split"),
        ("(Benchmark)", "(Task)", "class Own is a Task, not a benchmark"),
        ("version=3", 'version="3"', "version must be an integer"),
        ('"own", v', '"digits", v', "benchmark 'digits' is already built-in, which is kept"),
        ('"own", v', '"pope", v', "benchmark 'pope' is already built-in, which is kept"),
    ],
)
def test_a_declaration_that_is_wrong_is_a_problem_of_its_file(tmp_path, old, new, said):
    catalog = read_catalog([str(plugin(tmp_path, OWN.replace(old, new)))])
    problems = "\n".join(map(str, catalog.problems))
    assert said in problems
    assert catalog.tasks.keys() == CATALOG.tasks.keys()


@pytest.mark.parametrize(
    "change", ['folder = "mi" + "ne"', 'folder = "mine"\n    files = dict(a="b")']
)
def test_data_that_is_not_named_by_literals_is_refused_on_loading(tmp_path, change):
    text = OWN.replace('files = {"rows.json": "our drive"}', "").replace('folder = "mine"', change)
    card = read_catalog([str(plugin(tmp_path, text))]).benchmarks["own"]
    with pytest.raises(UserError, match="must be literals of its class"):
        load_benchmark(card)


def test_a_benchmark_that_names_no_data_is_a_problem(tmp_path):
    text = OWN.replace("files =", "a =").replace("tsv =", "b =").replace("hub =", "c =")
    catalog = read_catalog([str(plugin(tmp_path, text))])
    assert "names no data" in str(catalog.problems[0])


def test_a_task_of_a_plugin_does_not_take_the_name_of_a_benchmark(tmp_path):
    text = """
from fusionbench.api import Task, task

@task("pope", version=1, family="pope", group="fine")
class Pope(Task):
    chance = 0.5
"""
    catalog = read_catalog([str(plugin(tmp_path, text))])
    assert "pope" not in catalog.tasks
    assert "task 'pope' is already built-in" in str(catalog.problems[0])


def test_a_benchmark_is_no_task_and_a_task_no_benchmark():
    with pytest.raises(UserError, match="not a Task"):
        load_task(CATALOG.benchmarks["pope"])
    with pytest.raises(UserError, match="not a Benchmark"):
        load_benchmark(CATALOG.tasks["digits"])


@pytest.mark.parametrize("pattern", ["all", "*"])
def test_all_and_a_star_choose_no_benchmark_to_train_on(pattern):
    here, left_out = select_tasks(CATALOG, [pattern])
    names = {card.name for card in here} | {one.card.name for one in left_out}
    assert names == CATALOG.tasks.keys()


@pytest.mark.parametrize("pattern", ["pope", "mm*", "textvqa"])
def test_a_benchmark_among_the_tasks_of_a_probe_study_belongs_to_the_track_vlm(pattern):
    with pytest.raises(UserError) as refused:
        select_tasks(CATALOG, ["digits", pattern])
    assert "track `vlm`" in refused.value.message and pattern in refused.value.message
    assert "--data-root" in refused.value.hint


def test_names_are_divided_into_tasks_and_benchmarks():
    tasks, benchmarks = divide_tasks(CATALOG, ["all", "pope", "mm*", "scenes_*", "pope"])
    assert tasks == ("all", "scenes_*")
    assert [card.name for card in benchmarks] == ["pope", "mmbench", "mme", "mmmu"]
    assert divide_tasks(CATALOG, ["pope"])[0] == ()
    with pytest.raises(UserError, match="no task 'popr'; did you mean 'pope'"):
        divide_tasks(CATALOG, ["popr"])


def test_the_list_names_each_benchmark_with_what_it_needs():
    text = tasks_text(CATALOG, long=True)
    for name, card in CATALOG.benchmarks.items():
        assert f"\n{name}  version {card.version}" in text
        # Long lines are wrapped between words.
        words = " ".join(text.split())
        for part in (*card.needs.files, *card.needs.files.values(), card.needs.tsv):
            assert part in words
    assert "needs one of" in text and "found:" not in text


def test_the_list_says_whether_the_data_is_below_a_root(tmp_path):
    CASES["pope"].write("files", tmp_path)
    CASES["mme"].write("tsv", tmp_path)
    found = {row["name"]: row["found"] for row in rows(str(tmp_path))}
    assert found.pop("pope") == "files" and found.pop("mme") == "tsv"
    assert set(found.values()) == {""}
    text = tasks_text(CATALOG, str(tmp_path))
    assert "\n  found: files" in text and "\n  not found\n" in text
    assert {row["found"] for row in rows("")} == {None}


def rows(root):
    listed = json.loads(json_text("tasks", CATALOG, root))
    return [row for row in listed if row.get("benchmark")]


def test_benchmarks_load_no_torch_and_no_image_library_before_an_image_is_opened():
    code = """
import sys
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_benchmark
built = [load_benchmark(card) for card in read_catalog().benchmarks.values()]
assert len(built) > 14
sys.exit(str({"torch", "PIL", "datasets", "pandas"} & sys.modules.keys() or ""))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n"
