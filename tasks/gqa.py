"""GQA: compositional questions, test-dev, balanced (Hudson and Manning, CVPR 2019)."""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, UserError, benchmark
from fusionbench.metrics import gqa as metric
from fusionbench.tasks._files import keyed_rows
from fusionbench.tasks._hub import hub_rows
from fusionbench.tasks._rows import Once, Row, image_file, literal
from fusionbench.tasks._tsv import tsv_rows
from fusionbench.tasks._vqa import open_item

_QUESTIONS = "testdev_balanced_questions.json"
_IMAGES = "testdev_balanced_images"


@benchmark("gqa", version=1, family="gqa", group="general")
class GQA(Benchmark):
    """Exact match after LLaVA's conversion, which strips dots at the end only.

    VLMEvalKit's file has no structural types: its measures have no open and binary part.
    """

    folder = "gqa"
    files = {
        "testdev_balanced_questions.json": "https://cs.stanford.edu/people/dorarad/gqa",
        "images/": "https://cs.stanford.edu/people/dorarad/gqa",
    }
    tsv = "GQA_TestDev_Balanced.tsv"
    hub = {"id": "lmms-lab/GQA", "config": "testdev_balanced_instructions", "split": "testdev"}

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the source."""
        if source.form == "files":
            for key, row in keyed_rows(source.root / _QUESTIONS):
                image = image_file(source.root, f"images/{row.text('imageId')}.jpg", row.where)
                yield _item(key, row, (image,))
        elif source.form == "tsv":
            for row in tsv_rows(source.root):
                yield _item(row.text("index"), row, row.pictures())
        else:
            yield from self._of_hub(source)

    def _of_hub(self, source: Source) -> Iterator[Item]:
        """Questions and images are two configurations of the set."""
        images = {row.text("id"): row.pictures() for row in hub_rows(source, self.hub, _IMAGES)}
        once = Once("id")
        for row in hub_rows(source, self.hub):
            key, image = once(row.text("id"), row.where), row.text("imageId")
            if image not in images:
                raise UserError(f"{row.where}: there is no image {image} in {_IMAGES}")
            yield _item(key, row, images[image])

    def judge(self, text: str, item: Asked) -> float:
        """1 if the converted text is the answer."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy over all, open and binary, and lmms-eval's exact match."""
        found = metric.measures([_scored(one.text, one) for one in answers])
        if all(one.gold["structural"] for one in answers):
            return found
        unknown = {"accuracy_open", "accuracy_binary", "accuracy/", "questions/"}
        return {name: value for name, value in found.items() if name not in unknown}


def _item(key: str, row: Row, images: tuple[Picture, ...]) -> Item:
    gold = {"answer": row.text("answer"), "structural": _structural(row)}
    return open_item(f"gqa/{key}", row.text("question"), images, **gold)


def _structural(row: Row) -> str:
    """The structural type, empty without one; `types` may be text. Raises UserError."""
    if not row.maybe("types"):
        return ""
    types = row.values["types"]
    found = literal(types) if isinstance(types, str) else types
    name = (found.get("structural") or "") if isinstance(found, Mapping) else None
    if not isinstance(name, str):
        hint = "for example {'structural': 'query'}"
        raise UserError(f"{row.where}: types must be an object of texts, got {types!r:.80}", hint)
    return name


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(
        prediction=text, answer=item.gold["answer"], structural=item.gold["structural"]
    )
