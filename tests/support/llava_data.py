"""A data root with the files that the recipes name: conversations, captions, images, POPE."""

import json
from pathlib import Path

from benchmark_cases import CASES
from conversation_files import MARK, item, picture, written

MIX = "llava_v1_5_mix665k.json"
CAPTIONS = "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"
_SHAPES = ((40, 30), (28, 28), (20, 70), (70, 20))


def data_root(folder: Path, *, captions: bool = True) -> Path:
    """The folder with 16 conversations (16 images, of them text alone and several images)."""
    written(folder, conversations(folder), MIX)
    if captions:
        home = folder / "LLaVA-Pretrain"
        for number in range(8):
            picture(home / "images", f"{number}.png", seed=50 + number, size=_SHAPES[number % 4])
        rows = [
            item(f"{number}.png", f"Describe the picture.\n{MARK}", f"There are {number} cubes.")
            for number in range(8)
        ]
        written(home, rows, Path(CAPTIONS).name)
    CASES["pope"].write("files", folder)
    return folder


def conversations(folder: Path) -> list[dict]:
    """One image and two turns, one image, two images, no image: four of each."""
    for number in range(16):
        picture(folder, f"coco/{number}.png", seed=number, size=_SHAPES[number % 4])
    rows = []
    for number in range(4):
        one, two, other = (f"coco/{number + first}.png" for first in (0, 4, 8))
        rows += [
            item(one, f"{MARK}\nWhat is in the picture?", "Two red cubes.", "And now?", "One."),
            item(two, f"How many cubes are there?\n{MARK}", f"There are {number}."),
            item([one, other], f"Compare {MARK} with {MARK}.", "The second is red."),
            item(None, f"What is {number} and one?", f"{number + 1}"),
        ]
    return rows


def rewrite(path: Path, edit) -> None:
    """Change a JSON file."""
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
