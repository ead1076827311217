"""ZeroBench: hard visual puzzles, 100 main questions and 334 parts (Roberts et al., 2025)."""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, benchmark
from fusionbench.metrics import zerobench as metric
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import Once, Row, group

_STEPS = (
    "\n\n\nLet's think step by step and give the final answer in curly braces, "
    "like this: {final answer}"
)


@benchmark("zerobench", version=1, family="zerobench", group="reasoning")
class ZeroBench(Benchmark):
    """The main questions, with all images of each; seven readings of one answer."""

    max_new_tokens = 2048
    folder = "zerobench"
    tsv = "ZEROBench.tsv"
    hub = {"id": "jonathan-roberts1/zerobench", "split": "zerobench"}

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the source."""
        once = Once("question_id")
        return (_item(row, once) for row in table_rows(source, self.hub))

    def judge(self, text: str, item: Asked) -> float:
        """1 if the content of the last braces is the answer."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """The share accepted in each reading."""
        return metric.measures([_scored(one.text, one) for one in answers])


@benchmark("zerobench_sub", version=1, family="zerobench", group="reasoning")
class ZeroBenchParts(ZeroBench):
    """The parts into which the main questions are divided."""

    tsv = "ZEROBench_sub.tsv"
    hub = {"id": "jonathan-roberts1/zerobench", "split": "zerobench_subquestions"}


def _item(row: Row, once: Once) -> Item:
    key = once(row.maybe("question_id") or row.text("index"), row.where)
    of_hub = "question_text" in row.values
    images = row.pictures("question_images_decoded" if of_hub else "image")
    question = row.text("question_text" if of_hub else "question").strip()
    name = f"zerobench/{key}"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=question + _STEPS,
        question=question,
        gold={"answer": row.text("question_answer" if of_hub else "answer")},
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(prediction=text, answer=item.gold["answer"])
