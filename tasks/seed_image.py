"""SEED-Bench, image part: types 1 to 9, four options (Li et al., CVPR 2024)."""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, benchmark
from fusionbench.metrics import seed as metric
from fusionbench.tasks._files import json_rows
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import LETTER, LETTERS, Once, Row, group, image_file, lettered

_TYPES = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
)


@benchmark("seed_image", version=1, family="seed", group="general")
class SeedImage(Benchmark):
    """Three readings: the text is the letter (LLaVA), its first letter is, the option ranks first.

    The outcome is LLaVA's reading. Options are ranked by the loss of each text as the answer.
    """

    ranks_options = True
    folder = "seed_image"
    files = {
        "SEED-Bench.json": "https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
        "SEED-Bench-image/": "https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    }
    tsv = "SEEDBench_IMG.tsv"
    hub = {"id": "lmms-lab/SEED-Bench", "split": "test"}

    def items(self, source: Source) -> Iterator[Item]:
        """Questions about images, in the order of the source; those about videos are left out."""
        once = Once("question_id")
        if source.form == "files":
            for row in json_rows(source.root / "SEED-Bench.json", "questions"):
                if _type(row):
                    image = f"SEED-Bench-image/{row.text('data_id')}"
                    yield _item(row, once, (image_file(source.root, image, row.where),))
            return
        for row in table_rows(source, self.hub):
            if _type(row):
                yield _item(row, once, row.pictures())

    def judge(self, text: str, item: Asked) -> float:
        """1 if the text is the letter and nothing else."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """The three readings, the first one by question type too."""
        return metric.measures([_scored(one.text, one, one.ranked) for one in answers])


def _type(row: Row) -> str:
    """Name of the question type, empty for questions about videos."""
    if "question_type_id" not in row.values:
        return row.text("category")
    number = row.integer("question_type_id")
    return _TYPES[number - 1] if 1 <= number <= len(_TYPES) else ""


def _item(row: Row, once: Once, images: tuple[Picture, ...]) -> Item:
    key = once(row.maybe("question_id") or row.text("index"), row.where)
    options = row.options() or tuple(row.text(f"choice_{letter}") for letter in "abcd")
    question, name = row.text("question").strip(), f"seed_image/{key}"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=f"{question}\n{lettered(options)}{LETTER}",
        question=question,
        options=options,
        gold={"answer": LETTERS[row.letter("answer", options)], "type": _type(row)},
    )


def _scored(text: str, item: Asked, ranked: int | None = None) -> metric.Answer:
    return metric.Answer(
        prediction=text, answer=item.gold["answer"], type=item.gold["type"], ranked=ranked
    )
