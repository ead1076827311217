"""Nothing that a user is handed is run: what `docs/security.md` says, checked in the source."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import fusionbench

ROOT = Path(fusionbench.__file__).resolve().parent.parent
FILES = [
    file for part in ("fusionbench", "methods", "tasks") for file in (ROOT / part).rglob("*.py")
]

# Calls that run or unpickle what they read, or unpack an archive by the names in it.
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
    "pickle.load", "torch.load", "torch.hub.load", "joblib.load", "dill.load", "dill.loads",
    "marshal.load", "marshal.loads", "shelve.open", "pd.read_pickle", "pandas.read_pickle",
    "tarfile.open", "shutil.unpack_archive", "tempfile.mktemp",
}  # fmt: skip
# A method's own copy, and messages of child processes through a pipe.
UNPICKLED = {"fusionbench/checks/transforms.py", "fusionbench/vlm/processes.py"}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def arguments(call: ast.Call) -> dict[str, str]:
    return {str(one.arg): ast.unparse(one.value) for one in call.keywords}


@pytest.mark.thorough
def test_nothing_that_is_read_is_run_or_unpickled():
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in FILES
        for name, call in calls(file)
        if name in FORBIDDEN
        or name.endswith((".extractall", ".extract"))
        or arguments(call).get("shell", "False") != "False"
        or arguments(call).get("allow_pickle", "False") != "False"
        or arguments(call).get("weights_only", "True") != "True"
        or (name == "yaml.load" and file.name != "yaml_files.py")
        or (name == "pickle.loads" and str(file.relative_to(ROOT)) not in UNPICKLED)
    ]
    assert len(FILES) > 200 and not found


def test_no_code_of_a_checkpoint_is_run_and_nothing_is_downloaded_by_the_way():
    from fusionbench.models.encoders.snapshots import LOCAL, ON_DISK

    assert LOCAL == {"local_files_only": True, "trust_remote_code": False}
    assert ON_DISK == {**LOCAL, "use_safetensors": True}
    count = 0
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"trust_remote_code\W+True", text), file
        if "from_pretrained" not in text.replace("save_pretrained", ""):
            continue
        loads = [call for name, call in calls(file) if name.endswith(".from_pretrained")]
        # Bound to a name of another type first: `load: Any = Auto....from_pretrained`.
        loads += [call for name, call in calls(file) if name == "load"]
        for call in loads:
            given = [ast.unparse(one.value) for one in call.keywords if one.arg is None]
            assert set(given) & {"LOCAL", "ON_DISK", "given"}, (file, ast.unparse(call))
            count += 1
    assert count >= 8


def test_a_checkpoint_with_code_of_its_own_is_loaded_without_it(tmp_path):
    from transformers import AutoConfig

    from fusionbench.models.encoders.snapshots import LOCAL

    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "sly", "auto_map": {"AutoConfig": "sly.Sly"},
    }))  # fmt: skip
    mark = tmp_path / "was-here"
    (tmp_path / "sly.py").write_text(f"open({str(mark)!r}, 'w')\nclass Sly: pass\n")
    with pytest.raises(ValueError):
        AutoConfig.from_pretrained(tmp_path, **LOCAL)
    assert not mark.exists()


def answered() -> set[tuple[str, str]]:
    """(test, file) of each row of the table in docs/security.md."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| (B\d+) \| (\S+) \| .+ \|$", text, re.MULTILINE))


@pytest.mark.slow
def test_bandit_finds_what_the_documentation_answers_and_nothing_else():
    if find_spec("bandit") is None and shutil.which("bandit") is None:
        pytest.skip("bandit is not installed (pip install bandit)")
    command = [sys.executable, "-m", "bandit"] if find_spec("bandit") else ["bandit"]
    done = subprocess.run(
        [*command, "-q", "-r", "fusionbench", "methods", "tasks", "-f", "json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {(one["test_id"], one["filename"]) for one in json.loads(done.stdout)["results"]}
    assert found == answered()


def test_every_file_that_the_answers_name_is_there():
    rows = answered()
    assert len(rows) > 20
    assert [file for _, file in rows if not (ROOT / file).is_file()] == []
