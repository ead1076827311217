"""VQAv2, validation (Goyal et al., CVPR 2017). Published test-dev scores come from a server."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, UserError, benchmark
from fusionbench.metrics import vqav2 as metric
from fusionbench.tasks._files import json_rows
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import Once, Row, image_file
from fusionbench.tasks._vqa import open_item, ten

_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@benchmark("vqav2", version=1, family="vqav2", group="general")
class VQAv2(Benchmark):
    """Soft accuracy of LLaVA's submission text against ten references."""

    folder = "vqav2"
    files = {
        "v2_OpenEnded_mscoco_val2014_questions.json": "https://visualqa.org/download.html",
        "v2_mscoco_val2014_annotations.json": "https://visualqa.org/download.html",
        "val2014/": "http://images.cocodataset.org/zips/val2014.zip",
    }
    hub = {"id": "lmms-lab/VQAv2", "split": "validation"}

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the questions."""
        if source.form == "files":
            yield from _official(source.root)
            return
        once = Once("question_id")
        for row in table_rows(source, self.hub):
            once(row.text("question_id"), row.where)
            yield _item(row, row, row.pictures())

    def judge(self, text: str, item: Asked) -> float:
        """Soft accuracy against ten references."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """LLaVA's pipeline, the authors' script alone, lmms-eval; by type."""
        return metric.measures([_scored(one.text, one) for one in answers])


def _official(root: Path) -> Iterator[Item]:
    once, annotations = Once("question_id"), {}
    for row in json_rows(root / _ANNOTATIONS, "annotations"):
        annotations[once(row.text("question_id"), row.where)] = row
    once = Once("question_id")
    for row in json_rows(root / _QUESTIONS, "questions"):
        key = once(row.text("question_id"), row.where)
        if key not in annotations:
            raise UserError(f"{root / _ANNOTATIONS}: no answers for question {key}")
        file = f"val2014/COCO_val2014_{row.integer('image_id'):012d}.jpg"
        yield _item(row, annotations[key], (image_file(root, file, row.where),))


def _item(row: Row, annotation: Row, images: tuple[Picture, ...]) -> Item:
    given = annotation.values.get("answers")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise UserError(f"{annotation.where}: answers must be a list of objects with `answer`")
    answers = ten(annotation, [str(one.get("answer", "")) for one in given])
    return open_item(
        f"vqav2/{row.text('question_id')}",
        row.text("question"),
        images,
        answers=answers,
        question_type=annotation.maybe("question_type"),
        answer_type=annotation.maybe("answer_type"),
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(
        prediction=text,
        answers=tuple(item.gold["answers"]),
        question_type=item.gold["question_type"],
        answer_type=item.gold["answer_type"],
    )
