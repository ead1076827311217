"""ScienceQA: school questions with options, with or without an image (Lu et al., NeurIPS 2022)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, UserError, benchmark
from fusionbench.metrics import scienceqa as metric
from fusionbench.tasks._files import keyed_rows, read_json
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import LETTER, LETTERS, Once, Row, group, image_file, lettered

_FROM = "https://github.com/lupantech/ScienceQA, data/scienceqa"


@benchmark("scienceqa", version=1, family="scienceqa", group="knowledge")
class ScienceQA(Benchmark):
    """The test split: all questions, and those with an image as a second measure.

    VLMEvalKit's file holds the questions with an image only. The set of the hub has no ids: its
    items are named by row. The published files are CC BY-NC-SA.
    """

    max_new_tokens = 1024
    folder = "scienceqa"
    files = {
        "problems.json": "https://github.com/lupantech/ScienceQA, data/scienceqa",
        "pid_splits.json": "https://github.com/lupantech/ScienceQA, data/scienceqa",
        "images/test/": "https://github.com/lupantech/ScienceQA, tools/download.sh",
    }
    tsv = "ScienceQA_TEST.tsv"
    hub = {"id": "lmms-lab/ScienceQA", "config": "ScienceQA-FULL", "split": "test"}

    def items(self, source: Source) -> Iterator[Item]:
        """Files in the order of the test split."""
        if source.form == "files":
            yield from _official(source.root)
            return
        for number, row in enumerate(table_rows(source, self.hub), start=1):
            if source.form == "tsv":
                options = row.options()
                key, answer = row.text("index"), row.letter("answer", options)
            else:
                options = tuple(row.texts("choices"))
                key, answer = str(number), _index(row, options)
            yield _item(row, key, options, answer, row.pictures())

    def judge(self, text: str, item: Asked) -> float:
        """1 for the letter of the true choice, read by LLaVA's rules."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy over all and over questions with an image."""
        return metric.measures([_scored(one.text, one) for one in answers])


def _official(root: Path) -> Iterator[Item]:
    rows = dict(keyed_rows(root / "problems.json"))
    splits = read_json(root / "pid_splits.json")
    if not isinstance(splits, dict) or not isinstance(splits.get("test"), list):
        raise UserError(f"{root / 'pid_splits.json'}: no list 'test'", f"get it from {_FROM}")
    once = Once("id")
    for pid in map(str, splits["test"]):
        once(pid, f"{root / 'pid_splits.json'}, test")
        if pid not in rows:
            raise UserError(f"{root / 'problems.json'}: no question {pid}, which pid_splits names")
        row = rows[pid]
        options, image = tuple(row.texts("choices")), row.maybe("image")
        images = (image_file(root, f"images/test/{pid}/{image}", row.where),) if image else ()
        yield _item(row, pid, options, _index(row, options), images)


def _index(row: Row, options: Sequence[str]) -> int:
    """The answer as an index. Raises UserError outside the options."""
    return int(row.one_of("answer", [str(index) for index in range(len(options))]))


def _item(
    row: Row, key: str, options: tuple[str, ...], answer: int, images: tuple[Picture, ...]
) -> Item:
    if len(options) > len(LETTERS):
        raise UserError(f"{row.where}: {len(options)} options", "at most 26 have a letter")
    hint, question = row.maybe("hint").strip(), row.text("question").strip()
    context = f"Context: {hint}\n" if hint else ""
    name = f"scienceqa/{key}"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=f"{context}{question}\n{lettered(options)}{LETTER}",
        question=question,
        options=options,
        gold={"answer": answer, "image": bool(images)},
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(
        prediction=text,
        choices=len(item.options),
        answer=item.gold["answer"],
        image=item.gold["image"],
    )
