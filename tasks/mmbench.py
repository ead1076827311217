"""MMBench, English, dev, version 1.0: one option of up to four (Liu et al., ECCV 2024)."""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, UserError, benchmark
from fusionbench.api.benchmarks import Tallied
from fusionbench.metrics import mmbench as metric
from fusionbench.metrics import tallies
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import LETTER, LETTERS, Row, group, lettered
from fusionbench.tasks._tsv import tsv_rows

_OFFICIAL = "mmbench_dev_20230712.tsv"


@benchmark("mmbench", version=1, family="mmbench", group="general")
class MMBench(Benchmark):
    """Plain accuracy and, where the file has rotations, CircularEval.

    Rows from index 1,000,000 on are rotations. The outcome is that of a row; no remote judge is
    asked, so an answer without a letter or an option's text is wrong.
    """

    max_new_tokens = 1024
    folder = "mmbench"
    files = {
        "mmbench_dev_20230712.tsv": "https://download.openmmlab.com/mmclassification/datasets/mmbench"
    }
    tsv = "MMBench_DEV_EN.tsv"
    hub = {"id": "lmms-lab/MMBench", "config": "en", "split": "dev"}

    def items(self, source: Source) -> Iterator[Item]:
        """One item a row, in the order of the file."""
        if source.form == "files":
            rows = tsv_rows(source.root / _OFFICIAL)
        else:
            rows = table_rows(source, self.hub)
        return map(_item, rows)

    def judge(self, text: str, item: Asked) -> float:
        """1 if VLMEvalKit's letter of the text is that of the row."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy plain, circular and over all rows, also by category."""
        return metric.measures([_scored(one.text, one) for one in answers])

    def tally(self, answers: Sequence[Answer]) -> Tallied:
        """Counts for a bootstrap of the circular accuracy."""
        return tallies.mmbench_tally([_scored(one.text, one) for one in answers])


def _item(row: Row) -> Item:
    options, index = row.options(), row.integer("index")
    if len(options) < 2:
        raise UserError(f"{row.where}: {len(options)} options", "columns A, B, ... hold them")
    question, hint = row.text("question").strip(), row.maybe("hint").strip()
    images, name = row.pictures(), f"mmbench/{index}"
    # LLaVA's rule; an option that says "None" stays an option here.
    lead = "" if hint.lower() in ("", "none") else f"{hint}\n"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=f"{lead}{question}\n{lettered(options)}{LETTER}",
        question=question,
        options=options,
        gold={
            "index": index,
            "answer": LETTERS[row.letter("answer", options)],
            "category": row.maybe("category"),
        },
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(
        index=item.gold["index"],
        options=item.options,
        answer=item.gold["answer"],
        category=item.gold["category"],
        prediction=text,
    )
