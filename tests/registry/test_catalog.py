"""Reading methods and tasks from source: the same facts as importing them, and no import."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_cases import CASES
from plugin_files import BROKEN, GOOD

import fusionbench
from fusionbench.api import encoder, method, task
from fusionbench.api.errors import UserError
from fusionbench.api.types import StackShape
from fusionbench.cli.listing import json_text, tasks_text
from fusionbench.harness.stepping import needs_encoder
from fusionbench.models.readers.decoder import decoder_shape
from fusionbench.registry import provenance
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import check_plugins, load_benchmark, load_method, load_task
from fusionbench.registry.selection import divide_tasks, select_tasks

CATALOG = read_catalog()
ROOT = Path(fusionbench.__file__).parent.parent


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize("name", sorted(CATALOG.methods))
def test_the_card_of_a_method_says_what_its_class_says(name):
    card = CATALOG.methods[name]
    cls = load_method(card)
    assert card.needs_query == cls.needs_query
    defaults = cls.__init__.__kwdefaults__ or {}
    settings = defaults | card.changes
    settings.pop(card.tries, None)
    assert card.settings == settings
    shape = StackShape(
        layers=8, dim=16, grid=(4, 4), prefix=1, query_dim=6, mlp=32, reader=decoder_shape(16, 4)
    )
    assert card.in_encoder == needs_encoder(cls(shape, **settings))


@pytest.mark.parametrize("name", sorted(CATALOG.tasks))
def test_the_card_of_a_task_names_its_class(name):
    card = CATALOG.tasks[name]
    assert type(load_task(card)).__name__ == card.cls


@pytest.mark.parametrize("decorator", [method, task, encoder])
def test_a_decorator_returns_the_class_unchanged(decorator):
    class Mine:
        pass

    needed = {
        name: 1
        for name, one in inspect.signature(decorator).parameters.items()
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    }
    before = dict(vars(Mine))
    assert decorator(**needed)(Mine) is Mine and dict(vars(Mine)) == before


def test_each_family_has_one_method_that_stands_for_it():
    chosen: dict[str, list[str]] = {}
    for name, card in CATALOG.methods.items():
        chosen.setdefault(card.family, []).extend([name] if card.representative else [])
    assert all(len(names) == 1 for names in chosen.values())
    assert chosen["mema"] == ["mema"]
    # Declared, since the alphabet or the order of the file would take another.
    assert chosen["dense_connector"] == ["dense_connector-dci"]
    # There is no plain one, and `all` means only this.
    assert chosen["lsf_external_direct"] == ["lsf_external_direct-3_18_23"]


def test_the_built_ins_have_no_problem():
    assert not CATALOG.problems
    assert CATALOG.methods and CATALOG.tasks


def test_reading_the_catalog_imports_no_method_and_no_heavy_package():
    code = (
        "import sys; from fusionbench.registry.catalog import read_catalog; read_catalog();"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')"
        " or m.startswith(('fusionbench.methods.', 'fusionbench.tasks.'))]; sys.exit(bool(bad))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_plugin_file_is_read_with_inherited_settings_variants_and_stacked_names(plugin):
    catalog = read_catalog([str(plugin)])
    wide = catalog.methods["blend-wide"]
    assert wide.settings == {"width": 16, "kind": "soft", "layers": (1, 2)}
    assert (wide.version, wide.changes, wide.control) == (3, {"width": 16}, "last")
    expected = {"paper": "x", "year": 2024, "needs": "query", "identity": False}
    assert wide.facts == expected
    assert wide.needs_query and not wide.in_encoder
    assert wide.source == str(plugin)
    assert not catalog.methods["blend_twin"].in_all
    assert catalog.methods["stepper"].in_encoder
    assert catalog.methods["stepper"].settings == {"rate": -0.5, "on": True}
    assert catalog.tasks["toy_task"].available
    assert catalog.tasks["far_task"].missing == ("no_such_package_here",)


def test_a_plugin_loads_as_the_same_class_each_time_and_as_what_its_card_says(plugin):
    card = read_catalog([str(plugin)]).methods["blend-wide"]
    assert load_method(card) is load_method(card)
    assert load_method(card).__init__.__kwdefaults__.keys() == card.settings.keys()


@pytest.mark.thorough
def test_a_plugin_class_is_unpickled_by_a_process_that_loaded_its_card(plugin, tmp_path):
    import pickle

    card = read_catalog([str(plugin)]).methods["blend"]
    (tmp_path / "card.pickle").write_bytes(pickle.dumps(card))
    (tmp_path / "class.pickle").write_bytes(pickle.dumps(load_method(card)))
    code = (
        "import pickle, sys, pathlib; from fusionbench.registry.plugins import load_method;"
        f"here = pathlib.Path({str(tmp_path)!r});"
        "cls = load_method(pickle.loads((here / 'card.pickle').read_bytes()));"
        "sys.exit(pickle.loads((here / 'class.pickle').read_bytes()) is not cls)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file that cannot be read or imported",
    "named with file and line; the others stay",
)
@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_plugin_is_a_problem_that_names_its_file_and_stops_nothing(tmp_path, message):
    file = tmp_path / "broken.py"
    file.write_text(BROKEN[message])
    catalog = read_catalog([str(file)])
    problem = "\n".join(str(problem) for problem in catalog.problems)
    assert message in problem and str(file) in problem
    assert catalog.methods.keys() == CATALOG.methods.keys()


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file that cannot be read or imported",
    "named with file and line; the others stay",
)
def test_one_broken_class_does_not_hide_its_neighbour(tmp_path):
    file = tmp_path / "half.py"
    bad = "\n@method('bad', version=1)\nclass Bad(Fusion):\n    def __init__(self, s, *, k): ...\n"
    file.write_text(GOOD + bad)
    catalog = read_catalog([str(file)])
    assert "blend" in catalog.methods and "bad" not in catalog.methods
    assert len(catalog.problems) == 1


def test_a_built_in_wins_over_a_plugin_of_the_same_name_and_both_are_named(tmp_path):
    file = tmp_path / "thief.py"
    file.write_text(GOOD.replace('"stepper"', '"last"'))
    catalog = read_catalog([str(file)])
    assert catalog.methods["last"].source == "built-in"
    problem = str(catalog.problems[0])
    assert str(file) in problem and "built-in" in problem and "'last'" in problem


def test_a_folder_of_plugins_is_read_without_its_underscored_files(tmp_path, plugin):
    (tmp_path / "_private.py").write_text("def (:")
    assert not read_catalog([str(tmp_path)]).problems
    assert "blend" in read_catalog([str(tmp_path)]).methods


def test_a_plugin_may_be_named_in_the_environment_and_twice(plugin, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_PLUGINS", os.pathsep.join([str(plugin), "/no/such/file"]))
    catalog = read_catalog([str(plugin)])
    assert "blend" in catalog.methods
    assert ["/no/such/file" in str(problem) for problem in catalog.problems] == [True]


def test_a_plugin_path_that_does_not_exist_is_the_users_mistake():
    with pytest.raises(UserError, match="no plug-in at"):
        read_catalog(["/no/such/file.py"])


def test_an_installed_plugin_is_found_by_its_entry_point_without_importing_its_parent(
    tmp_path, monkeypatch
):
    package = tmp_path / "strange_pack"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "ours.py").write_text(GOOD)
    info = tmp_path / "strange_pack-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-pack\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[fusionbench.plugins]\nany = strange_pack.deep.ours\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    card = read_catalog().methods["blend"]
    assert card.source == "strange-pack 1.2"
    assert card.module == "strange_pack.deep.ours"
    assert "strange_pack" not in sys.modules


@pytest.mark.fault(
    "plug-ins and workers",
    "a plug-in file that cannot be read or imported",
    "named with file and line; the others stay",
)
def test_an_import_that_fails_is_named_with_its_plugin(tmp_path):
    file = tmp_path / "explodes.py"
    file.write_text(GOOD + "\nraise RuntimeError('boom')\n")
    card = read_catalog([str(file)]).methods["blend"]
    for _ in range(2):
        with pytest.raises(UserError, match="RuntimeError: boom"):
            load_method(card)


def test_packed_tasks_need_none_of_their_packages(plugin):
    assert not read_catalog([str(plugin)]).tasks["far_task"].available
    assert read_catalog([str(plugin)], packed={"far_task"}).tasks["far_task"].available


def test_a_file_that_was_edited_between_two_readings_is_read_again(plugin):
    first = read_catalog([str(plugin)]).methods["blend"]
    # What a reader does with a card changes no other: texts are parsed once a process.
    dict.clear(first.settings)
    again = read_catalog([str(plugin)]).methods["blend"]
    assert again.settings and again.version == first.version
    text = plugin.read_text()
    plugin.write_text(text.replace(f"version={first.version}", "version=77"))
    assert read_catalog([str(plugin)]).methods["blend"].version == 77


# Benchmarks are declared, found, chosen and listed like tasks, and never trained on.

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


def benchmarks_plugin(tmp_path, text):
    file = tmp_path / "own.py"
    file.write_text(text)
    return file


def test_a_benchmark_of_a_plugin_is_found_and_used(tmp_path):
    catalog = read_catalog([str(benchmarks_plugin(tmp_path, OWN))])
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
    catalog = read_catalog([str(benchmarks_plugin(tmp_path, OWN.replace(old, new)))])
    problems = "\n".join(map(str, catalog.problems))
    assert said in problems
    assert catalog.tasks.keys() == CATALOG.tasks.keys()


@pytest.mark.parametrize(
    "change", ['folder = "mi" + "ne"', 'folder = "mine"\n    files = dict(a="b")']
)
def test_data_that_is_not_named_by_literals_is_refused_on_loading(tmp_path, change):
    text = OWN.replace('files = {"rows.json": "our drive"}', "").replace('folder = "mine"', change)
    card = read_catalog([str(benchmarks_plugin(tmp_path, text))]).benchmarks["own"]
    with pytest.raises(UserError, match="must be literals of its class"):
        load_benchmark(card)


def test_a_benchmark_that_names_no_data_is_a_problem(tmp_path):
    text = OWN.replace("files =", "a =").replace("tsv =", "b =").replace("hub =", "c =")
    catalog = read_catalog([str(benchmarks_plugin(tmp_path, text))])
    assert "names no data" in str(catalog.problems[0])


def test_a_task_of_a_plugin_does_not_take_the_name_of_a_benchmark(tmp_path):
    text = """
from fusionbench.api import Task, task

@task("pope", version=1, family="pope", group="fine")
class Pope(Task):
    chance = 0.5
"""
    catalog = read_catalog([str(benchmarks_plugin(tmp_path, text))])
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


# What a record says of the code that made it.


@pytest.fixture
def fresh():
    provenance.code_state.cache_clear()
    yield
    provenance.code_state.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_checkout_names_its_commit_and_whether_it_is_clean():
    state = provenance.code_state()
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert state["commit"] == head.stdout.strip() != ""
    assert isinstance(state["dirty"], bool)


@pytest.mark.usefixtures("fresh")
def test_a_wheel_has_a_version_and_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance.fusionbench, "__file__", str(tmp_path / "fusionbench/x.py"))
    assert provenance.code_state() == {"fusionbench": fusionbench.__version__, "commit": ""}
