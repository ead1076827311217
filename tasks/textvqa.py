"""TextVQA: questions about text in photographs, validation 0.5.1 (Singh et al., CVPR 2019).

Two benchmarks: OCR tokens in the prompt change the score by 12 points (58.2 and 45.5 for
LLaVA-1.5-7B), so that the two must not be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, UserError, benchmark
from fusionbench.metrics import textvqa as metric
from fusionbench.tasks._files import json_rows, line_rows
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import SHORT, Once, Row, image_file
from fusionbench.tasks._vqa import open_item, ten

_MARK = "Reference OCR token:"
_VAL = "TextVQA_0.5.1_val.json"
_OCR = "llava_textvqa_val_v051_ocr.jsonl"


@benchmark("textvqa", version=1, family="textvqa", group="text")
class TextVQA(Benchmark):
    """The question alone, as it is written; lmms-eval capitalises it."""

    folder = "textvqa"
    files = {
        "TextVQA_0.5.1_val.json": "https://textvqa.org/dataset/",
        "train_images/": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
    }
    tsv = "TextVQA_VAL.tsv"
    hub = {"id": "lmms-lab/textvqa", "split": "validation"}

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the source."""
        if source.form == "files":
            yield from (_item("textvqa", row, source.root) for row in _data(source.root))
            return
        for row in table_rows(source, self.hub):
            yield _item("textvqa", row)

    def judge(self, text: str, item: Asked) -> float:
        """Soft accuracy against ten references."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy and the number of questions."""
        return metric.measures([_scored(one.text, one) for one in answers])


@benchmark("textvqa_ocr", version=1, family="textvqa", group="text")
class TextVQAWithOCR(TextVQA):
    """With the OCR tokens of LLaVA's file (Rosetta) in the prompt; VLMEvalKit's file has none."""

    files = {
        "TextVQA_0.5.1_val.json": "https://textvqa.org/dataset/",
        "llava_textvqa_val_v051_ocr.jsonl": "LLaVA's eval.zip, docs/Evaluation.md, textvqa/",
        "train_images/": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
    }
    tsv = ""

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the source."""
        if source.form == "files":
            yield from _with_ocr(source.root)
            return
        for row in table_rows(source, self.hub):
            tokens = ", ".join(row.texts("ocr_tokens"))
            question = row.text("question").strip()
            yield _item("textvqa_ocr", row, prompt=f"{question}\n{_MARK} {tokens}{SHORT}")


def _data(root: Path) -> Iterator[Row]:
    once = Once("question_id")
    for row in json_rows(root / _VAL, "data"):
        once(row.text("question_id"), row.where)
        yield row


def _with_ocr(root: Path) -> Iterator[Item]:
    """Each question with LLaVA's prompt, found by image and question as LLaVA's scorer does."""
    prompts: dict[tuple[str, str], str] = {}
    for row in line_rows(root / _OCR):
        text = row.text("text").strip()
        prompts[row.text("question_id"), _question(text, row)] = text
    for row in _data(root):
        key = row.text("image_id"), row.text("question").strip().lower()
        if key not in prompts:
            raise UserError(f"{root / _OCR}: no prompt for {row.text('question')!r} of {key[0]}")
        yield _item("textvqa_ocr", row, root, prompt=prompts[key])


def _question(text: str, row: Row) -> str:
    """The question in a prompt: its first line, or the line behind the tokens."""
    lines = text.split("\n")
    marked = [line.startswith(_MARK) for line in lines[:-1]]
    # Without any token the question and the suffix are left.
    if len(lines) not in (2, 3) or sum(marked) != len(lines) - 2:
        raise UserError(
            f"{row.where}: text must be a question, {_MARK!r} and the suffix, a line each",
            f"got {text!r:.80}",
        )
    return lines[marked.index(False)].strip().lower()


def _item(task: str, row: Row, root: Path | None = None, prompt: str = "") -> Item:
    if root is None:
        images = row.pictures()
    else:
        images = (image_file(root, f"train_images/{row.text('image_id')}.jpg", row.where),)
    column = "answers" if "answers" in row.values else "answer"
    answers = ten(row, row.texts(column))
    key = row.maybe("question_id") or row.text("index")
    return open_item(f"{task}/{key}", row.text("question"), images, prompt, answers=answers)


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(prediction=text, answers=tuple(item.gold["answers"]))
