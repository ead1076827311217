"""MP-DocVQA: questions about documents of several pages, validation (Tito et al., 2023)."""

from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Source, UserError, benchmark
from fusionbench.metrics import anls as metric
from fusionbench.tasks._files import json_rows
from fusionbench.tasks._hub import table_rows
from fusionbench.tasks._rows import Once, Row, image_file
from fusionbench.tasks._vqa import open_item, references


@benchmark("mp_docvqa", version=1, family="mp_docvqa", group="text")
class MPDocVQA(Benchmark):
    """The page with the answer alone is shown; which pages published numbers saw is unknown."""

    metric = "anls"
    folder = "mp_docvqa"
    files = {
        "val.json": "https://rrc.cvc.uab.es/?ch=17&com=downloads, task 4",
        "images/": "https://rrc.cvc.uab.es/?ch=17&com=downloads, task 4",
    }
    hub = {"id": "lmms-lab/MP-DocVQA", "split": "val"}

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the source."""
        official, once = source.form == "files", Once("questionId")
        if official:
            rows = json_rows(source.root / "val.json", "data")
        else:
            rows = table_rows(source, self.hub)
        for row in rows:
            key = once(row.text("questionId"), row.where)
            pages, shown = row.texts("page_ids"), _page(row)
            if official:
                images = (image_file(source.root, f"images/{pages[shown]}.jpg", row.where),)
            else:
                images = row.pictures(f"image_{shown + 1}")
            gold = {"answers": references(row, "answers"), "page": pages[shown]}
            yield open_item(f"mp_docvqa/{key}", row.text("question"), images, **gold)

    def judge(self, text: str, item: Asked) -> float:
        """ANLS against the nearest reference."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """ANLS and accuracy with their variants."""
        return metric.measures([_scored(one.text, one) for one in answers])


def _page(row: Row) -> int:
    """Index of the answer's page. Raises UserError outside the document's pages."""
    pages, found = row.texts("page_ids"), row.integer("answer_page_idx")
    if not 0 <= found < len(pages):
        raise UserError(
            f"{row.where}: answer_page_idx {found} is outside the pages", f"there are {len(pages)}"
        )
    return found


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(prediction=text, answers=tuple(item.gold["answers"]))
