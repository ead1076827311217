"""Small conversation files in LLaVA's form with their images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

MARK = "<image>"


def said(*texts: str) -> list[dict[str, str]]:
    """Messages from human and gpt in turn."""
    return [
        {"from": "human" if number % 2 == 0 else "gpt", "value": text}
        for number, text in enumerate(texts)
    ]


def item(image=None, *texts: str, name: str = "one") -> dict:
    """An item; `image` is a name, a list of names or None."""
    found = {"id": name, "conversations": said(*texts)}
    return found if image is None else {"id": name, "image": image, **found}


def picture(folder: Path, name: str, seed: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """A PNG of random colours, `size` is width and height."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def written(folder: Path, items: list, name: str = "mix.json", **how) -> Path:
    """The items as a JSON list, or as JSON lines where the name ends in `.jsonl`."""
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one, **how) + "\n" for one in items), encoding="utf-8")
    else:
        path.write_text(json.dumps(items, **how), encoding="utf-8")
    return path


def standard(folder: Path) -> list[dict]:
    """Four items: one image with two turns, none, two images, the mark behind the question."""
    for number, name in enumerate(("a.png", "coco/b.png", "c.png")):
        picture(folder, name, seed=number)
    return [
        item("a.png", f"{MARK}\nWhat?", "A cat.", "Which colour?", "Grey."),
        item(None, "Who are you?", "A model."),
        item(["coco/b.png", "c.png"], f"{MARK} and {MARK}: equal?", "No."),
        item("c.png", f"How many?\n{MARK}", "Three.", name="last"),
    ]
