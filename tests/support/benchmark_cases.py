"""The questions of `benchmark_files`: every benchmark, its prompts, answers and scores."""

from pathlib import Path

from benchmark_files import Case, L, S, b64, image, put, put_json, put_lines

TEN = ["red"] * 8 + ["dark red"] * 2
FEW = ["7"] * 1 + ["seven"] * 1 + ["9"] * 8
"""The normal form of "seven" is "7": two of ten agree."""


def _pope(root: Path) -> None:
    for category, (label, number) in {
        "random": ("yes", 1), "popular": ("yes", 1), "adversarial": ("no", 2),
    }.items():  # fmt: skip
        row = {"question_id": 1, "image": f"COCO_val2014_{number}.jpg",
               "text": "Is there a dog in the image?", "label": label}  # fmt: skip
        put_lines(root, f"coco/coco_pope_{category}.json", [row])
        put(root, f"val2014/COCO_val2014_{number}.jpg", number)


_DOG = "Is there a dog in the image?"
POPE = Case(
    name="pope",
    files=_pope,
    tsv=[
        {"index": 1, "question": _DOG, "answer": "Yes", "category": "random,popular",
         "image": b64(1)},
        {"index": 2, "question": _DOG, "answer": "No", "category": "adversarial", "image": b64(2),
         "question_id": 1},
    ],
    hub={"": [
        {"question_id": "1", "question": _DOG, "answer": label, "category": category,
         "image": image(number)}
        for category, label, number in
        (("random", "yes", 1), ("popular", "yes", 1), ("adversarial", "no", 2))
    ]},
    prompts={f"pope/{c}/1": _DOG + S for c in ("random", "popular", "adversarial")},
    answers={"pope/random/1": ("Yes, there is.", 1), "pope/popular/1": ("No.", 0),
             "pope/adversarial/1": ("There is not", 1)},
    measures={"f1/random": 1, "f1/popular": 0, "accuracy_mean": 2 / 3, "accuracy_pooled": 2 / 3,
              "f1_pooled": 2 / 3, "questions": 3},
)  # fmt: skip


def _scienceqa(root: Path) -> None:
    problems = {
        "11": {"question": "Which is a rock?", "choices": ["basalt", "oak"], "answer": 0,
               "hint": "Rocks are minerals.", "image": "image.png", "split": "test"},
        "12": {"question": "2 + 2?", "choices": ["3", "5", "4"], "answer": 2, "hint": "",
               "image": None, "split": "test"},
        "13": {"question": "For training?", "choices": ["a", "b"], "answer": 1, "hint": "",
               "image": None, "split": "train"},
    }  # fmt: skip
    put_json(root, "problems.json", problems)
    put_json(root, "pid_splits.json", {"train": ["13"], "test": ["11", "12"]})
    put(root, "images/test/11/image.png", 3)


SCIENCEQA = Case(
    name="scienceqa",
    files=_scienceqa,
    tsv=[
        {"index": 11, "question": "Which is a rock?", "hint": "Rocks are minerals.", "A": "basalt",
         "B": "oak", "C": "", "answer": "A", "image": b64(3)},
        {"index": 12, "question": "2 + 2?", "hint": "", "A": "3", "B": "5", "C": "4",
         "answer": "C", "image": ""},
    ],
    hub={"ScienceQA-FULL": [
        {"image": image(3), "question": "Which is a rock?", "choices": ["basalt", "oak"],
         "answer": 0, "hint": "Rocks are minerals."},
        {"image": None, "question": "2 + 2?", "choices": ["3", "5", "4"], "answer": 2, "hint": ""},
    ]},
    prompts={
        "scienceqa/11": f"Context: Rocks are minerals.\nWhich is a rock?\nA. basalt\nB. oak{L}",
        "scienceqa/12": f"2 + 2?\nA. 3\nB. 5\nC. 4{L}",
    },
    answers={"scienceqa/11": ("A. basalt", 1), "scienceqa/12": ("c", 0)},
    measures={"accuracy": 0.5, "accuracy_img": 1, "questions_img": 1},
)  # fmt: skip


def _textvqa_json(root: Path) -> None:
    rows = [
        {"question": "what colour?", "question_id": 5, "image_id": "aa", "answers": TEN},
        {"question": "what number?", "question_id": 6, "image_id": "aa", "answers": FEW},
    ]
    put_json(root, "TextVQA_0.5.1_val.json", {"data": rows})
    put(root, "train_images/aa.jpg", 4)


TEXTVQA = Case(
    name="textvqa",
    files=_textvqa_json,
    tsv=[
        {"index": 5, "question": "what colour?", "answer": str(TEN), "image": b64(4)},
        {"index": 6, "question": "what number?", "answer": str(FEW), "image": 5},
    ],
    hub={"": [
        {"image_id": "aa", "question_id": 5, "question": "what colour?", "image": image(4),
         "answers": TEN, "ocr_tokens": ["STOP", "7"]},
        {"image_id": "aa", "question_id": 6, "question": "what number?", "image": image(4),
         "answers": FEW, "ocr_tokens": ["STOP", "7"]},
    ]},
    prompts={"textvqa/5": "what colour?" + S, "textvqa/6": "what number?" + S},
    answers={"textvqa/5": ("Red", 1), "textvqa/6": ("Seven.", 0.6)},
    measures={"accuracy": 0.8, "questions": 2},
)  # fmt: skip


def _textvqa_ocr(root: Path) -> None:
    _textvqa_json(root)
    rows = [
        {"question_id": "aa", "image": "aa.jpg",
         "text": f"what {what}?\nReference OCR token: STOP, 7{S}", "category": "default"}
        for what in ("number", "colour")
    ]  # fmt: skip
    put_lines(root, "llava_textvqa_val_v051_ocr.jsonl", rows)


TEXTVQA_OCR = Case(
    name="textvqa_ocr",
    files=_textvqa_ocr,
    hub=TEXTVQA.hub,
    prompts={
        "textvqa_ocr/5": f"what colour?\nReference OCR token: STOP, 7{S}",
        "textvqa_ocr/6": f"what number?\nReference OCR token: STOP, 7{S}",
    },
    answers={"textvqa_ocr/5": ("blue", 0), "textvqa_ocr/6": ("9", 1)},
    measures={"accuracy": 0.5},
)


def _docvqa(root: Path) -> None:
    rows = [{"questionId": 9, "question": "what is the date?", "image": "documents/d_1.png",
             "answers": ["May 1, 1990", "May 1"]}]  # fmt: skip
    put_json(root, "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})
    put(root, "documents/d_1.png", 5)


DOCVQA = Case(
    name="docvqa",
    files=_docvqa,
    tsv=[{"index": 9, "question": "what is the date?", "answer": "['May 1, 1990', 'May 1']",
          "image": b64(5)}],
    hub={"DocVQA": [{"questionId": "9", "question": "what is the date?", "image": image(5),
                     "answers": ["May 1, 1990", "May 1"]}]},
    prompts={"docvqa/9": "what is the date?" + S},
    answers={"docvqa/9": ("may 2", 0.8)},
    measures={"anls": 0.8, "accuracy": 0},
)  # fmt: skip


def _mp_docvqa(root: Path) -> None:
    rows = [{"questionId": 3, "question": "who signed?", "page_ids": ["p0", "p1"],
             "answer_page_idx": 1, "answers": ["Ann"], "doc_id": "p"}]  # fmt: skip
    put_json(root, "val.json", {"data": rows})
    put(root, "images/p0.jpg", 6)
    put(root, "images/p1.jpg", 7)


MP_DOCVQA = Case(
    name="mp_docvqa",
    files=_mp_docvqa,
    hub={"": [{"questionId": "3", "question": "who signed?", "page_ids": "['p0', 'p1']",
               "answer_page_idx": "1", "answers": "['Ann']", "image_1": image(6),
               "image_2": image(7), "image_3": None}]},
    prompts={"mp_docvqa/3": "who signed?" + S},
    answers={"mp_docvqa/3": ("ann", 1)},
    measures={"anls": 1, "questions": 1},
)  # fmt: skip

_TASKS = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR", "commonsense_reasoning", "numerical_calculation", "text_translation",
    "code_reasoning",
)  # fmt: skip
_APART = ("artwork", "celebrity")


def _mme_questions(task: str) -> list[tuple[str, str]]:
    blank = "  " if task == "count" else " "
    return [(f"Is {task} here?{blank}Please answer yes or no.", "Yes"),
            (f"Is no {task} here? Please answer yes or no.", "No")]  # fmt: skip


def _mme(root: Path) -> None:
    for number, task in enumerate(_TASKS):
        texts, images = (f"{task}/questions_answers_YN", f"{task}/images") if task in _APART else (
            task, task)  # fmt: skip
        lines = [f"{question}\t{answer}" for question, answer in _mme_questions(task)]
        put(root, f"{images}/0001.jpg", number + 20)
        (root / texts).mkdir(exist_ok=True)
        (root / texts / "0001.txt").write_text("\n".join(lines) + "\n")


def _mme_rows(picture: object, key: str, name: str) -> list[dict]:
    return [
        {"index": 2 * number + turn, "category": task, key: f"{task}/0001{name}",
         "question": question, "answer": answer, "image": picture(number + 20)}
        for number, task in enumerate(_TASKS)
        for turn, (question, answer) in enumerate(_mme_questions(task))
    ]  # fmt: skip


MME = Case(
    name="mme",
    files=_mme,
    tsv=_mme_rows(b64, "image_path", ".jpg"),
    hub={"": _mme_rows(image, "question_id", ".png")},
    prompts={f"mme/{task}/0001/{turn}": text + S for task in _TASKS for turn, text in
             ((1, f"Is {task} here?"), (2, f"Is no {task} here?"))},
    # Right twice in three tasks of perception and one of cognition, else only the first.
    answers={f"mme/{task}/0001/{turn}": ("Yes", 1) if turn == 1 else
             (("No", 1) if task in ("count", "OCR", "color", "code_reasoning") else ("yes", 0))
             for task in _TASKS for turn in (1, 2)},
    measures={"perception": 3 * 200 + 7 * 50, "cognition": 200 + 3 * 50, "score/OCR": 200,
              "acc": 18 / 28, "acc_plus": 4 / 14},
)  # fmt: skip

_SKY = {"question": "What is in the sky?", "hint": "Look up.", "category": "object"}
_MMBENCH = [
    {"index": 1, **_SKY, "A": "bird", "B": "car", "C": "", "D": "", "answer": "A", "image": b64(8)},
    {"index": 1_000_001, **_SKY, "A": "car", "B": "bird", "C": "", "D": "", "answer": "B",
     "image": 1},
    {"index": 2, "question": "Which colour?", "hint": "None", "A": "red", "B": "green", "C": "blue",
     "D": "None", "answer": "D", "category": "colour", "image": b64(9)},
]  # fmt: skip

MMBENCH = Case(
    name="mmbench",
    tsv=_MMBENCH,
    hub={"en": [
        {**row, "hint": row["hint"] or "nan", "image": image(number)}
        | {letter: row[letter] or "nan" for letter in "ABCD"}
        for row, number in zip(_MMBENCH, (8, 8, 9), strict=True)
    ]},
    prompts={
        "mmbench/1": f"Look up.\nWhat is in the sky?\nA. bird\nB. car{L}",
        "mmbench/1000001": f"Look up.\nWhat is in the sky?\nA. car\nB. bird{L}",
        "mmbench/2": f"Which colour?\nA. red\nB. green\nC. blue\nD. None{L}",
    },
    answers={"mmbench/1": ("A", 1), "mmbench/1000001": ("A", 0), "mmbench/2": ("D", 1)},
    measures={"accuracy": 1, "accuracy_circular": 0.5, "accuracy_rows": 2 / 3, "rotations": 1},
)  # fmt: skip


def _gqa_row(number: int) -> dict:
    question, answer, structural = (("Is it red?", "yes", "verify"), ("What is it?", "cat", "query")
                                    )[number]  # fmt: skip
    return {"imageId": "n1", "question": question, "answer": answer,
            "types": {"structural": structural}}  # fmt: skip


def _gqa(root: Path) -> None:
    rows = {"201": _gqa_row(0), "202": _gqa_row(1)}
    put_json(root, "testdev_balanced_questions.json", rows)
    put(root, "images/n1.jpg", 10)


GQA = Case(
    name="gqa",
    files=_gqa,
    tsv=[
        {"index": 201, "question": "Is it red?", "answer": "yes", "image": b64(10)},
        {"index": 202, "question": "What is it?", "answer": "cat", "image": 201},
    ],
    hub={
        "testdev_balanced_instructions": [{"id": str(201 + n), **_gqa_row(n)} for n in (0, 1)],
        "testdev_balanced_images": [{"id": "n1", "image": image(10)}],
    },
    prompts={"gqa/201": "Is it red?" + S, "gqa/202": "What is it?" + S},
    answers={"gqa/201": ("Yes.", 1), "gqa/202": ("a cat", 0)},
    measures={"accuracy": 0.5, "questions": 2},
)


def _vqa_row(number: int) -> dict:
    question, references, kind = (("What colour?", TEN, "other"), ("How many?", FEW, "number"))[
        number
    ]
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": i + 1}
               for i, text in enumerate(references)]  # fmt: skip
    return {"question": question, "question_id": 40 + number, "image_id": 42, "answers": answers,
            "question_type": "what", "answer_type": kind}  # fmt: skip


def _vqav2(root: Path) -> None:
    rows = [_vqa_row(0), _vqa_row(1)]
    put_json(root, "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": rows})
    put_json(root, "v2_mscoco_val2014_annotations.json", {"annotations": rows[::-1]})
    put(root, "val2014/COCO_val2014_000000000042.jpg", 11)


VQAV2 = Case(
    name="vqav2",
    files=_vqav2,
    hub={"": [_vqa_row(number) | {"image": image(11)} for number in (0, 1)]},
    prompts={"vqav2/40": "What colour?" + S, "vqav2/41": "How many?" + S},
    answers={"vqav2/40": ("red", 1), "vqav2/41": ("9", 1)},
    measures={"accuracy": 1, "questions": 2},
)

_DRAWN = ["X", "Y", "Z"]
_ACCOUNT = {"id": "validation_Accounting_1", "question": "Read <image 1>. Profit?"}
_MUSIC = {"id": "validation_Music_3", "question": "How many bars in <image 1>?"}

MMMU = Case(
    name="mmmu",
    tsv=[
        {"index": 0, "split": "dev", "id": "dev_Music_1", "question": "no", "A": "a", "B": "b",
         "answer": "A", "image": b64(1)},
        {"index": 1, "split": "validation", **_ACCOUNT, "A": "X", "B": "Y", "C": "Z",
         "answer": "B", "image": str([b64(12), b64(13)])},
        {"index": 2, "split": "validation", **_MUSIC, "A": "", "B": "", "C": "",
         "answer": "['8', 'eight']", "image": b64(14)},
    ],
    hub={"": [
        {**_ACCOUNT, "options": "['X', 'Y', 'Z']", "answer": "B",
         "question_type": "multiple-choice", "image_1": image(12), "image_2": image(13)},
        {**_MUSIC, "options": "[]", "answer": "['8', 'eight']", "question_type": "open",
         "image_1": image(14), "image_2": None},
    ]},
    prompts={
        "mmmu/validation_Accounting_1":
            "Read <image 1>. Profit?\n(A) X\n(B) Y\n(C) Z\n\n" + L.strip(),
        "mmmu/validation_Music_3": "How many bars in <image 1>?" + S,
    },
    answers={"mmmu/validation_Accounting_1": ("(B)", 1),
             "mmmu/validation_Music_3": ("The answer is 8", 1)},
    measures={"accuracy": 1, "accuracy/Accounting": 1, "accuracy/Music": 1, "random_fallbacks": 0,
              "open_questions": 1},
)  # fmt: skip


def _seed_rows() -> list[dict]:
    row = {"data_id": "1_2", "question": "How many dogs?", "choice_a": "one", "choice_b": "two",
           "choice_c": "three", "choice_d": "four", "answer": "C", "question_id": "101",
           "question_type_id": 5, "data_type": "image"}  # fmt: skip
    other = {"question_id": "102", "question": "Where is it?", "answer": "A", "question_type_id": 4}
    video = {"question_id": "103", "data_type": "video", "question_type_id": 10, "data_id": "v.mp4"}
    return [row, row | other, row | video]


def _seed(root: Path) -> None:
    value = {"questions": _seed_rows(), "question_type": {"Instances Counting": 5}}
    put_json(root, "SEED-Bench.json", value)
    put(root, "SEED-Bench-image/1_2", 15)


_SEED_OPTIONS = "\nA. one\nB. two\nC. three\nD. four" + L
SEED = Case(
    name="seed_image",
    files=_seed,
    tsv=[
        {"index": 101, "question": "How many dogs?", "A": "one", "B": "two", "C": "three",
         "D": "four", "answer": "C", "category": "Instances Counting", "image": b64(15)},
        {"index": 102, "question": "Where is it?", "A": "one", "B": "two", "C": "three",
         "D": "four", "answer": "A", "category": "Instance Location", "image": 101},
    ],
    hub={"": [row | {"image": [image(15)]} for row in _seed_rows()]},
    prompts={"seed_image/101": "How many dogs?" + _SEED_OPTIONS,
             "seed_image/102": "Where is it?" + _SEED_OPTIONS},
    answers={"seed_image/101": ("C", 1), "seed_image/102": ("A. one", 0)},
    measures={"accuracy_equal": 0.5, "accuracy_first_letter": 1, "questions": 2,
              "accuracy_equal/Instances Counting": 1},
)  # fmt: skip


def _zero_rows(prefix: str) -> list[dict]:
    return [{"question_id": f"{prefix}1", "question_text": "Which pair?", "question_answer": "4/5"}]


ZERO = Case(
    name="zerobench",
    tsv=[{"index": "z1", "question": "Which pair?", "answer": "4/5",
          "image": str([b64(16), b64(17)])}],
    hub={"": [row | {"question_images_decoded": [image(16), image(17)]}
              for row in _zero_rows("z")]},
    prompts={"zerobench/z1": "Which pair?\n\n\nLet's think step by step and give the final answer "
                             "in curly braces, like this: {final answer}"},
    answers={"zerobench/z1": ("So {3}, no: {4/5}", 1)},
    measures={"benchmark_readme": 1, "mema_exact": 0, "mema_contain": 1},
)  # fmt: skip


def _visual7w(root: Path) -> None:
    pairs = [{"qa_id": 7, "question": "What is it?", "answer": "A cat.", "type": "what",
              "multiple_choices": ["A dog.", "A cow.", "A pig."]}]  # fmt: skip
    images = [{"filename": "v1.jpg", "split": "val", "qa_pairs": pairs},
              {"filename": "v2.jpg", "split": "test", "qa_pairs": pairs}]  # fmt: skip
    put_json(root, "dataset.json", {"images": images})
    put(root, "images/v1.jpg", 18)


VISUAL7W = Case(
    name="visual7w",
    files=_visual7w,
    # The order of the options belongs to the identity: drawn once from the id, then fixed.
    prompts={"visual7w/7": f"What is it?\nA. A dog.\nB. A cow.\nC. A pig.\nD. A cat.{L}"},
    answers={"visual7w/7": ("Answer: d", 1)},
    measures={"questions": 1},
)


def _jsonl(root: Path) -> None:
    rows = [
        {"question_id": 1, "image": "a.png", "text": "<image>\nWhat is it?", "category": "what"},
        {"question_id": 2, "text": "Two?", "answer": ["2", "two"]},
    ]
    put_lines(root, "question.jsonl", rows)
    put_lines(root, "answer.jsonl", [{"question_id": 1, "text": "Cat"}])
    put(root, "a.png", 19)


JSONL = Case(
    name="jsonl",
    files=_jsonl,
    prompts={"jsonl/1": "What is it?", "jsonl/2": "Two?"},
    answers={"jsonl/1": ("cat.", 1), "jsonl/2": ("three", 0)},
    measures={"accuracy": 0.5, "accuracy/what": 1, "questions": 2},
)

CASES = {
    case.name: case
    for case in (
        POPE, SCIENCEQA, TEXTVQA, TEXTVQA_OCR, DOCVQA, MP_DOCVQA, MME, MMBENCH, GQA, VQAV2, MMMU,
        SEED, ZERO, VISUAL7W, JSONL,
    )
}  # fmt: skip
