"""Small benchmarks in their official files, in VLMEvalKit's TSV and as rows of the hub."""

import base64
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fusionbench.api import Answer, Benchmark, Item, Source
from fusionbench.api.benchmarks import stream
from fusionbench.api.sources import find_source
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_benchmark

CARDS = read_catalog().benchmarks
S = "\nAnswer the question using a single word or phrase."
L = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One benchmark with the same questions in up to three forms."""

    name: str
    files: Callable[[Path], None] | None = None
    """Writes the official files below a folder."""
    tsv: list[dict] = field(default_factory=list)
    hub: dict[str, list[dict]] = field(default_factory=dict)
    """Configuration -> rows."""
    prompts: dict[str, str]
    """Name of an item -> prompt."""
    answers: dict[str, tuple[str, float]]
    """Name of an item -> text and its outcome, computed by hand."""
    measures: dict[str, float]

    @property
    def benchmark(self) -> Benchmark:
        return load_benchmark(CARDS[self.name])

    @property
    def forms(self) -> list[str]:
        return [form for form in ("files", "tsv", "hub") if getattr(self, form)]

    def write(self, form: str, root: Path) -> Path:
        """A data root with one form of the data; the parquet files of the hub are not written."""
        needs = CARDS[self.name].needs
        if form == "files":
            (root / needs.folder).mkdir(parents=True, exist_ok=True)
            self.files(root / needs.folder)
        elif form == "tsv":
            write_tsv(root / needs.tsv, self.tsv)
        return root

    def source(self, form: str, root: Path) -> Source:
        if form == "hub":
            return Source(form="hub", root=root / CARDS[self.name].needs.hub["id"])
        return find_source(self.name, CARDS[self.name].needs, self.write(form, root))

    def answered(self, items: list[Item]) -> list[Answer]:
        """The answers of the case to these items, with their outcomes."""
        return answered(self.benchmark, items, {k: text for k, (text, _) in self.answers.items()})


def answered(benchmark: Benchmark, items: list[Item], texts: dict[str, str]) -> list[Answer]:
    plain = [
        Answer(name=one.name, group=one.group, options=one.options, gold=one.gold,
               text=texts[one.name])
        for one in items
    ]  # fmt: skip
    outcomes = benchmark.outcomes(plain)
    return [Answer(**{**vars(one), "outcome": o}) for one, o in zip(plain, outcomes, strict=True)]


def read(name: str, root: Path) -> list[Item]:
    """The items of a benchmark below a data root."""
    card = CARDS[name]
    return list(stream(load_benchmark(card), find_source(name, card.needs, root)))


def image(number: int) -> Image.Image:
    """A small image that differs by number."""
    pixels = np.random.default_rng(number).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    opened = io.BytesIO()
    image(number).save(opened, "PNG")
    return opened.getvalue()


def b64(number: int) -> str:
    return base64.b64encode(png(number)).decode()


def put(root: Path, name: str, number: int) -> None:
    """Write an image; its name may say .jpg."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(png(number))


def put_json(root: Path, name: str, value: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(value, indent=1))


def put_lines(root: Path, name: str, rows: list[dict]) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tsv(file: Path, rows: list[dict]) -> None:
    """As pandas writes it: quotes where needed, empty cells for missing values."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, header, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# Small conversation files in LLaVA's form with their images.

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
