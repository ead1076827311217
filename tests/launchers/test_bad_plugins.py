"""Plug-ins that misbehave in many ways beside good methods: nobody else's outcomes change."""

import subprocess
import sys

import bad_plugins
import in_process
import pytest

from fusionbench.records.store import Store

STUDY = ("run", "--preset", "smoke", "--seeds", "1", "--quiet", "--workers", "2")
GOOD = ("penultimate", "good", "scalar_mix")
QUICK = ("threads", "dtype_init", "patched_loss", "encoder_data", "states_written",
         "environment", "user_init", "exits_import")  # fmt: skip
"""Kinds that do not end the process."""


def outcomes(folder):
    """Bytes of the outcomes of the good methods, by method, and their notes."""
    found = {}
    for record in Store.open(folder).records():
        if record.label in GOOD:
            file = folder / "outcomes" / f"{record.id}.bin"
            found[record.label] = (file.read_bytes(), record.loss, record.score, record.notes)
    return found


def said_of(folder, kind):
    """What became of a kind's cell, and what its record or its failure says."""
    store = Store.open(folder)
    found = [*store.records(), *store.failures()]
    return next(
        (one.status, " ".join((*one.notes, one.reason)))
        for one in found
        if one.label == f"bad_{kind}"
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    home = tmp_path_factory.mktemp("alone")
    plugins = bad_plugins.write(home / "plugins")
    chosen = ("--methods", ",".join(GOOD), "--tasks", "planted_layer", "--plugin", plugins)
    in_process.fusionbench(*STUDY, *chosen, "--out", home / "out")
    found = outcomes(home / "out")
    assert set(found) == set(GOOD)
    return found


@pytest.mark.thorough
@pytest.mark.fault(
    "plug-ins and workers",
    "bad plug-ins beside good methods",
    "outcomes, losses and notes of the good ones are identical",
)
def test_in_one_process_each_method_starts_from_the_same_state(alone, tmp_path, injected):
    """No process apart: the guard alone sets back what the bad ones change."""
    plugins = bad_plugins.write(tmp_path / "plugins", *QUICK)
    chosen = ("--methods", ",".join((*(f"bad_{kind}" for kind in QUICK), *GOOD)))
    code, out, err = in_process.run(
        *STUDY, *chosen, "--tasks", "planted_layer", "--plugin", plugins, "--out", tmp_path / "out"
    )
    assert code == 1, out + err
    assert outcomes(tmp_path / "out") == alone
    for kind in QUICK:
        bad = bad_plugins.METHODS[kind]
        status, said = said_of(tmp_path / "out", kind)
        assert status == ("done" if bad.done else "failed"), (kind, status, said)
        assert bad.words in said, (kind, said)
    injected(len(QUICK))


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """One study with every kind of bad method and task beside good ones."""
    home = tmp_path_factory.mktemp("beside")
    plugins = bad_plugins.write(home / "plugins", *bad_plugins.METHODS, *bad_plugins.TASKS)
    methods = [*GOOD, *(f"bad_{kind}" for kind in bad_plugins.METHODS)]
    tasks = ["planted_layer", *(f"bad_{kind}" for kind in bad_plugins.TASKS)]
    done = subprocess.run(
        [sys.executable, "-m", "fusionbench", *STUDY, "--methods", ",".join(methods), "--tasks",
         ",".join(tasks), "--plugin", plugins, "--out", str(home / "out"), "--limit-cell", "60"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return home / "out", done


@pytest.mark.fault(
    "plug-ins and workers",
    "bad plug-ins beside good methods",
    "outcomes, losses and notes of the good ones are identical",
)
@pytest.mark.slow
def test_beside_all_kinds_of_bad_plugins_the_good_ones_are_byte_identical(beside, alone, injected):
    folder, done = beside
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(folder) == alone
    assert "Traceback" not in done.stdout
    injected(len(bad_plugins.METHODS) + len(bad_plugins.TASKS))


@pytest.mark.fault(
    "plug-ins and workers", "a bad method, by kind", "its record or failure names what it did"
)
@pytest.mark.slow
@pytest.mark.parametrize("kind", bad_plugins.METHODS)
def test_a_bad_method_is_named_with_what_it_did(kind, beside):
    folder, done = beside
    bad = bad_plugins.METHODS[kind]
    status, said = said_of(folder, kind)
    assert status == ("done" if bad.done else "failed"), (status, said)
    assert bad.words in said or any(bad.words in line for line in done.stderr.splitlines())


@pytest.mark.fault("plug-ins and workers", "a bad task, by kind", "left out with its reason")
@pytest.mark.slow
@pytest.mark.parametrize("kind", bad_plugins.TASKS)
def test_a_bad_task_is_left_out_with_its_reason(kind, beside):
    _, done = beside
    (line,) = [one for one in done.stdout.splitlines() if f"left out: bad_{kind}:" in one]
    assert bad_plugins.TASKS[kind].words in line
