"""DocVQA: questions about scanned documents, validation (Mathew et al., WACV 2021)."""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, benchmark
from fusionbench.metrics import anls as metric
from fusionbench.tasks._files import json_rows
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import Once, image_file
from fusionbench.tasks._vqa import open_item, references


@benchmark("docvqa", version=1, family="docvqa", group="text")
class DocVQA(Benchmark):
    """Single-page documents; `mp_docvqa` is another benchmark with another score."""

    metric = "anls"
    folder = "docvqa"
    files = {
        "val_v1.0_withQT.json": "https://rrc.cvc.uab.es/?ch=17&com=downloads",
        "documents/": "https://rrc.cvc.uab.es/?ch=17&com=downloads",
    }
    tsv = "DocVQA_VAL.tsv"
    hub = {"id": "lmms-lab/DocVQA", "config": "DocVQA", "split": "validation"}

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the source."""
        official, once = source.form == "files", Once("questionId")
        if official:
            rows = json_rows(source.root / "val_v1.0_withQT.json", "data")
        else:
            rows = table_rows(source, self.hub)
        for row in rows:
            key = once(row.maybe("questionId") or row.text("index"), row.where)
            if official:
                images = (image_file(source.root, row.text("image"), row.where),)
            else:
                images = row.pictures()
            answers = references(row, "answers" if "answers" in row.values else "answer")
            yield open_item(f"docvqa/{key}", row.text("question"), images, answers=answers)

    def judge(self, text: str, item: Asked) -> float:
        """ANLS against the nearest reference."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """ANLS and accuracy with their variants."""
        return metric.measures([_scored(one.text, one) for one in answers])


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(prediction=text, answers=tuple(item.gold["answers"]))
