"""POPE: is an object in the image? (Li et al., EMNLP 2023; images of COCO val2014.)"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, benchmark
from fusionbench.api.benchmarks import Tallied
from fusionbench.metrics import pope as metric
from fusionbench.metrics import tallies
from fusionbench.tasks._files import line_rows
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import SHORT, Once, Row, group, image_file


@benchmark("pope", version=1, family="pope", group="hallucination")
class Pope(Benchmark):
    """Yes or no; measures for three categories, as mean and pooled.

    Ids repeat between the categories and are named with them. The random file has 2,910 or 3,000
    questions, by version; the number is among the measures. In VLMEvalKit's file one row may stand
    for several categories: it is asked once in each.
    """

    chance = 0.5
    folder = "pope"
    files = {
        "coco/coco_pope_random.json": "https://github.com/AoiDragon/POPE, output/coco",
        "coco/coco_pope_popular.json": "https://github.com/AoiDragon/POPE, output/coco",
        "coco/coco_pope_adversarial.json": "https://github.com/AoiDragon/POPE, output/coco",
        "val2014/": "http://images.cocodataset.org/zips/val2014.zip",
    }
    tsv = "POPE.tsv"
    hub = {"id": "lmms-lab/POPE", "split": "test"}

    def items(self, source: Source) -> Iterator[Item]:
        """Files in the order random, popular, adversarial; tables in their own order."""
        if source.form == "files":
            yield from _official(source.root)
            return
        for row in table_rows(source, self.hub):
            key = row.maybe("question_id") or row.text("index")
            for category in row.text("category").split(","):
                yield _item(
                    row, category.strip(), key, row.text("question"), "answer", row.pictures()
                )

    def judge(self, text: str, item: Asked) -> float:
        """LLaVA's reading of the first sentence against the label."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy, F1, precision, recall and share of yes; see `fusionbench.metrics.pope`."""
        return metric.measures([_scored(one.text, one) for one in answers])

    def tally(self, answers: Sequence[Answer]) -> Tallied:
        """Counts for a bootstrap of F1."""
        return tallies.pope_tally([_scored(one.text, one) for one in answers])


def _official(root: Path) -> Iterator[Item]:
    for category in metric.CATEGORIES:
        once = Once("question_id")
        for row in line_rows(root / f"coco/coco_pope_{category}.json"):
            key = once(row.text("question_id"), row.where)
            picture = image_file(root, f"val2014/{row.text('image')}", row.where)
            yield _item(row, category, key, row.text("text"), "label", (picture,))


def _item(  # noqa: PLR0913  (each argument is a part of the item)
    row: Row, category: str, key: str, question: str, label: str, images: tuple[Picture, ...]
) -> Item:
    lower = Row(values={label: row.text(label).strip().lower()}, where=row.where)
    name = f"pope/{category}/{key}"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=question.strip() + SHORT,
        question=question.strip(),
        gold={"label": lower.one_of(label, ("yes", "no")), "category": category},
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(prediction=text, label=item.gold["label"], category=item.gold["category"])
