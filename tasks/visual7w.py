"""Visual7W, telling questions, validation (Zhu et al., CVPR 2016)."""

import random
from collections.abc import Iterator, Mapping, Sequence

from fusionbench.api import Answer, Asked, Benchmark, Item, Picture, Source, UserError, benchmark
from fusionbench.metrics import visual7w as metric
from fusionbench.tasks._files import json_rows, numbered
from fusionbench.tasks._rows import LETTER, Once, Row, group, image_file, lettered

_WRONG = 3


@benchmark("visual7w", version=1, family="visual7w", group="grounding")
class Visual7W(Benchmark):
    """Four options in an order drawn from the question's id: the published order is not known."""

    folder = "visual7w"
    files = {
        "dataset.json": "https://ai.stanford.edu/~yukez/visual7w, dataset_v7w_telling.zip",
        "images/": "https://ai.stanford.edu/~yukez/visual7w, visual7w_images.zip",
    }

    def items(self, source: Source) -> Iterator[Item]:
        """In the order of the file, image by image."""
        once = Once("qa_id")
        for image in json_rows(source.root / "dataset.json", "images"):
            if image.text("split") != "val":
                continue
            file = f"images/{image.text('filename')}"
            picture = image_file(source.root, file, image.where)
            for row in numbered(image.values.get("qa_pairs") or [], f"{image.where}, qa_pairs"):
                yield _item(row, once, (picture,))

    def judge(self, text: str, item: Asked) -> float:
        """1 if the option of the answered letter has the true text."""
        return metric.score(_scored(text, item))

    def measures(self, answers: Sequence[Answer]) -> Mapping[str, float | int | None]:
        """Accuracy over all and by question type."""
        return metric.measures([_scored(one.text, one) for one in answers])


def shuffled(options: Sequence[str], key: str) -> list[str]:
    """The options in an order that depends on `key` alone."""
    order = list(options)
    random.Random(f"visual7w/{key}").shuffle(order)
    return order


def _item(row: Row, once: Once, images: tuple[Picture, ...]) -> Item:
    key, true = once(row.text("qa_id"), row.where), row.text("answer")
    wrong = row.texts("multiple_choices")
    if len(wrong) != _WRONG:
        raise UserError(f"{row.where}: {len(wrong)} wrong choices instead of {_WRONG}")
    # The true option is at index 0; texts may be equal, so positions are shuffled.
    order = shuffled([str(index) for index in range(_WRONG + 1)], key)
    options = tuple([true, *wrong][int(index)] for index in order)
    question, name = row.text("question").strip(), f"visual7w/{key}"
    return Item(
        name=name,
        group=group(images, name),
        images=images,
        prompt=f"{question}\n{lettered(options)}{LETTER}",
        question=question,
        options=options,
        gold={"answer": order.index("0"), "type": row.maybe("type")},
    )


def _scored(text: str, item: Asked) -> metric.Answer:
    return metric.Answer(
        prediction=text,
        choices=item.options,
        answer=item.gold["answer"],
        type=item.gold["type"],
    )
