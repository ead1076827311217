"""MME: two yes-or-no questions about each image, 14 tasks (Fu et al., 2023)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, UserError, benchmark
from fusionbench.api.benchmarks import Tallied
from fusionbench.metrics import mme as metric
from fusionbench.metrics import tallies
from fusionbench.tasks._files import text_lines
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import SHORT, Row, group, image_file

_ENDING = "Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")


@benchmark("mme", version=1, family="mme", group="general")
class MME(Benchmark):
    """Points of perception (2,000) and cognition (800); their sum is not reported.

    The score of a task is acc + acc+, which is no mean over questions. The ending "Please answer
    yes or no." and the blanks in front of it (one or two) are replaced by LLaVA's suffix.
    """

    chance = 0.5
    folder = "mme"
    files = {
        "existence/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "count/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "position/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "color/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "posters/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "celebrity/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "scene/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "landmark/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "artwork/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "OCR/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "commonsense_reasoning/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "numerical_calculation/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "text_translation/": "MME_Benchmark_release_version (github.com/BradyFU)",
        "code_reasoning/": "MME_Benchmark_release_version (github.com/BradyFU)",
    }
    tsv = "MME.tsv"
    hub = {"id": "lmms-lab/MME", "split": "test"}

    def annotations(self, source: Source) -> Sequence[Path]:
        """The text files of all tasks, or the TSV."""
        if source.form != "files":
            return source.files
        return [file for task in self.files for file in _texts(source.root / task)]

    def items(self, source: Source) -> Iterator[Item]:
        """Files task by task; the two questions of an image follow each other."""
        if source.form == "files":
            for task in self.files:
                yield from _official(source.root, task.rstrip("/"))
            return
        asked: Counter[tuple[str, str]] = Counter()
        for row in table_rows(source, self.hub):
            task = row.text("category")
            named = row.maybe("question_id") or row.maybe("image_path") or row.text("index")
            key = (task, Path(named).stem)
            yield _item(row, task, key[1], asked[key], row.pictures())
            asked[key] += 1

    def judge(self, text: str, item: Asked) -> float:
        """1 if the first four characters hold the label."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Perception and cognition in points, acc and acc+ of each task."""
        return metric.measures([_scored(one.text, one) for one in answers])

    def tally(self, answers: Sequence[Answer]) -> Tallied:
        """Counts for a bootstrap of points and acc+."""
        return tallies.mme_tally([_scored(one.text, one) for one in answers])


def _texts(folder: Path) -> list[Path]:
    """The text files of a task, which lie beside the images or in a folder of their own."""
    apart = folder / "questions_answers_YN"
    return sorted((apart if apart.is_dir() else folder).glob("*.txt"))


def _official(root: Path, task: str) -> Iterator[Item]:
    files = _texts(root / task)
    if not files:
        raise UserError(f"{root / task} holds no text file", "a task has *.txt beside its images")
    for file in files:
        picture = _picture(root, task, file)
        for number, row in enumerate(_pair(file)):
            yield _item(row, task, file.stem, number, (picture,))


def _pair(file: Path) -> list[Row]:
    """The two questions of a file. Raises UserError for another number, or a line without tab."""
    rows = []
    for line, where in text_lines(file):
        if line.count("\t") != 1:
            raise UserError(f"{where}: must be a question, a tab and Yes or No, got {line!r:.80}")
        question, answer = line.split("\t")
        rows.append(Row(values={"question": question, "answer": answer}, where=where))
    if len(rows) != 2:
        raise UserError(f"{file}: {len(rows)} questions instead of two", "is it complete?")
    return rows


def _picture(root: Path, task: str, file: Path) -> Picture:
    folder = f"{task}/images" if file.parent.name == "questions_answers_YN" else task
    names = [f"{folder}/{file.stem}{suffix}" for suffix in _SUFFIXES]
    found = next((name for name in names if (root / name).is_file()), names[0])
    return image_file(root, found, str(file))


def _item(row: Row, task: str, key: str, number: int, images: tuple[Picture, ...]) -> Item:
    question = row.text("question").strip()
    if question.endswith(_ENDING):
        question = question.removesuffix(_ENDING).strip()
    label = Row(values={"answer": row.text("answer").strip().rstrip(".")}, where=row.where)
    name = f"mme/{task}/{key}/{number + 1}"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=question + SHORT,
        question=question,
        gold={"task": task, "image": key, "label": label.one_of("answer", ("Yes", "No"))},
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    gold = item.gold
    return metric.Answer(
        task=gold["task"], image=gold["image"], label=gold["label"], prediction=text
    )
