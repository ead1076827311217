"""SmolLM2-135M itself: fetched by hash, and a study in which the frozen model learns to see.

Needs a network and about ten minutes of processor time.
"""

from pathlib import Path

import in_process
import pytest
from PIL import Image

from fusionbench.records.store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TASKS = {"digits", "animal_mnist", "scenes_count"}


@pytest.fixture(scope="module")
def fetched():
    pytest.importorskip("gguf")
    code, out, err = in_process.run("fetch", "smollm2-135m")
    if code and "no network" in err + out:
        pytest.skip("no network")
    assert not code, err


def test_it_answers_as_recorded(fetched):
    from fusionbench.models.readers.labels import encode
    from fusionbench.models.readers.load import load_language
    from fusionbench.models.readers.splice import splice
    from fusionbench.models.readers.text import Turn

    made = load_language("smollm2-135m")
    asked = [Turn("What is the capital of France?", "")]
    row = encode(made.tokenizer, made.template, asked, answer=False)
    prompt = splice(made, [row], [], side="left")
    assert made.generate(prompt, limit=16) == ["The capital of France is Paris."]


def test_it_learns_to_see_and_answers_in_words(fetched, tmp_path, record_property):
    out = tmp_path / "out"
    in_process.fusionbench("run", ROOT / "studies" / "mini_smollm2.yaml", "--out", out)
    found = {one.spec.task: one for one in Store.open(out).records() if one.label == "penultimate"}
    assert set(found) == TASKS
    for task, one in found.items():
        record_property(task, one.score)
        # Three standard errors of a guesser.
        error = (one.chance * (1 - one.chance) / one.examples) ** 0.5
        assert one.score > one.chance + 3 * error, (task, one.score, one.chance)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    record = found["scenes_count"]
    said = in_process.fusionbench("ask", record.id, picture, "How many cubes?", "--out", out)
    assert said.strip()
