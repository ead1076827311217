"""MMMU: college questions in 30 subjects, validation (Yue et al., CVPR 2024)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, UserError, benchmark
from fusionbench.metrics import mmmu as metric
from fusionbench.tasks._hub import hub_rows
from fusionbench.tasks._rows import Once, Row, group, lettered, literal
from fusionbench.tasks._tsv import tsv_rows

_CHOICE = "\n\nAnswer with the option's letter from the given choices directly."
_OPEN = "\nAnswer the question using a single word or phrase."
_ID = re.compile(r"[a-z]+_(.+)_\d+")
_VAL = ("", "val", "validation")


@benchmark("mmmu", version=1, family="mmmu", group="knowledge")
class MMMU(Benchmark):
    """Accuracy over all questions, by subject, and the number of letters drawn at random.

    The first image alone is shown, as in the authors' code for LLaVA; marks such as `<image 1>`
    stay in the text. A letter that cannot be parsed is drawn (seed 42, in the order of the file),
    so outcomes are those of the whole file; `judge` of one answer draws as for the first question.
    """

    folder = "MMMU/MMMU"
    files = {
        "Accounting/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Agriculture/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Architecture_and_Engineering/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Art/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Art_Theory/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Basic_Medical_Science/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Biology/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Chemistry/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Clinical_Medicine/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Computer_Science/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Design/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Diagnostics_and_Laboratory_Medicine/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Economics/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Electronics/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Energy_and_Power/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Finance/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Geography/": "https://huggingface.co/datasets/MMMU/MMMU",
        "History/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Literature/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Manage/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Marketing/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Materials/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Math/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Mechanical_Engineering/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Music/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Pharmacy/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Physics/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Psychology/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Public_Health/": "https://huggingface.co/datasets/MMMU/MMMU",
        "Sociology/": "https://huggingface.co/datasets/MMMU/MMMU",
    }
    tsv = "MMMU_DEV_VAL.tsv"
    hub = {"id": "lmms-lab/MMMU", "split": "validation"}

    def items(self, source: Source) -> Iterator[Item]:
        """Validation rows in the order of the source; subjects by name for the official files."""
        once = Once("id")
        rows = tsv_rows(source.root) if source.form == "tsv" else hub_rows(source, self.hub)
        for row in rows:
            if row.maybe("split") in _VAL:
                yield _item(row, once)

    def judge(self, text: str, item: Asked) -> float:
        """1 for the true letter or text; see the class for letters that cannot be parsed."""
        return metric.scores([_scored(text, item)])[0]

    def outcomes(self, answers: Sequence[Answer]) -> list[float]:
        """Outcomes with the draws in the order of the answers."""
        return metric.scores([_scored(one.text, one) for one in answers])

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy over all, without drawn letters, by subject."""
        return metric.measures([_scored(one.text, one) for one in answers])


def _item(row: Row, once: Once) -> Item:
    key = once(row.maybe("id") or row.text("index"), row.where)
    options = row.options() or tuple(row.texts("options") if row.maybe("options") else ())
    question, name = row.text("question").strip(), f"mmmu/{key}"
    images = (row.pictures("image_1") or row.pictures())[:1]
    found = _ID.fullmatch(key)
    item = Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=question + _OPEN,
        question=question,
        gold={"answer": _answers(row), "category": found[1] if found else row.maybe("category")},
    )
    if not options:
        return item
    row.letter("answer", options)
    prompt = f"{question}\n{lettered(options, '({}) {}')}{_CHOICE}"
    return replace(item, options=options, prompt=prompt)


def _answers(row: Row) -> str | list[str]:
    """The true answer, or several that are all right, written as a list."""
    text = row.text("answer")
    if not text.startswith("["):
        return text
    found = literal(text)
    if not isinstance(found, list) or not found:
        raise UserError(f"{row.where}: answer is no list", f"got {text:.80}")
    return [str(one) for one in found]


def _scored(text: str, item: Asked) -> metric.Answer:
    true = item.gold["answer"]
    return metric.Answer(
        question_type=metric.MULTIPLE_CHOICE if item.options else "open",
        options=item.options,
        answer=true if isinstance(true, str) else tuple(true),
        prediction=text,
        category=item.gold["category"],
    )
