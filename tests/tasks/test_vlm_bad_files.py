"""Damaged benchmark files: one error that names file, line or item, what came, what is allowed."""

import base64
import json

import pytest
from benchmark_cases import CASES, SCIENCEQA, TEN
from benchmark_files import CARDS, b64, image, png, put, put_json, put_lines, read, write_tsv

from fusionbench.api import Picture, UserError
from fusionbench.api.benchmarks import stream
from fusionbench.api.sources import find_source
from fusionbench.registry.plugins import load_benchmark
from fusionbench.tasks import _hub

POPE = {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}
ROW = {"index": 1, "question": "q?", "A": "a", "B": "b", "answer": "A", "category": "c"}


def refused(name, root):
    """The error that reading a benchmark raises, as one text."""
    with pytest.raises(UserError) as error:
        for item in read(name, root):
            for picture in item.images:
                picture.open()
    return f"{error.value.message} | {error.value.hint}"


def pope(root, lines):
    """POPE with these lines in its popular file."""
    for category in ("random", "popular", "adversarial"):
        put_lines(root, f"coco/coco_pope_{category}.json", [POPE])
    put(root, "val2014/a.jpg", 1)
    file = root / "coco/coco_pope_popular.json"
    file.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return file


def tsv(root, name, *rows):
    file = root / CARDS[name].needs.tsv
    write_tsv(file, [dict(row) for row in rows])
    return file


# Absent.


@pytest.mark.parametrize("name", sorted(CARDS))
def test_absent_data_lists_each_expected_path_and_where_it_comes_from(name, tmp_path):
    needs, said = CARDS[name].needs, refused(name, tmp_path)
    assert f"benchmark {name!r} has no data below {tmp_path}" in said
    for path, origin in needs.files.items():
        assert path in said and origin in said
    if needs.files:
        assert str(tmp_path / needs.folder) in said
    if needs.tsv:
        assert str(tmp_path / needs.tsv) in said and f"/{needs.tsv} (VLMEvalKit)" in said
    if needs.hub:
        assert str(tmp_path / needs.hub["id"]) in said and "layer-fusionbench[hub]" in said


def test_files_of_which_one_is_absent_say_which_were_found(tmp_path):
    CASES["pope"].files(tmp_path / "pope")
    (tmp_path / "pope/coco/coco_pope_popular.json").unlink()
    said = refused("pope", tmp_path)
    assert "coco/coco_pope_random.json (found), coco/coco_pope_popular.json, " in said


def test_a_data_root_that_does_not_exist_is_named(tmp_path):
    assert str(tmp_path / "nowhere") in refused("pope", tmp_path / "nowhere")


# Truncated: the line.


def test_cut_json_lines_name_the_line(tmp_path):
    file = pope(tmp_path, [POPE, '{"question_id": 2, "ima'])
    assert f"{file}, line 2: not JSON" in refused("pope", tmp_path)


def test_cut_json_names_the_line(tmp_path):
    CASES["docvqa"].files(tmp_path)
    file = tmp_path / "val_v1.0_withQT.json"
    file.write_text(file.read_text()[:-30])
    said = refused("docvqa", tmp_path)
    assert f"{file}, line {len(file.read_text().splitlines())}: not JSON" in said
    assert "cut off" in said


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("index\tquestion\timage\n1\tq?\n", 2, "2 fields, the header has 3"),
        ('index\tquestion\tanswer\n1\t"two\nlines"\ta\n2\t"cut', 4, "ends inside quotes"),
        ("question\n", 1, "no column 'index'"),
        ("", 1, "no column 'index'"),
    ],
)
def test_a_cut_tsv_names_the_line(tmp_path, text, line, what):
    file = tmp_path / "DocVQA_VAL.tsv"
    file.write_text(text)
    said = refused("docvqa", tmp_path)
    assert f"{file}, line {line}: " in said and what in said


def test_text_that_is_not_utf8_is_refused(tmp_path):
    file = pope(tmp_path, [POPE])
    file.write_bytes(b'{"text": "\xff"}')
    assert f"{file}: not UTF-8" in refused("pope", tmp_path)


@pytest.mark.parametrize("value", [{}, [], {"data": []}, {"data": {}}, [1]])
def test_json_of_another_shape_is_refused(tmp_path, value):
    CASES["docvqa"].files(tmp_path)
    put_json(tmp_path, "val_v1.0_withQT.json", value)
    said = refused("docvqa", tmp_path)
    assert str(tmp_path) in said and ("no list 'data'" in said or "holds no question" in said)


def test_lines_end_at_line_feeds_alone(tmp_path):
    rows = [{"question_id": 1, "text": "What\u2028is\x85it?", "answer": "cat"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "question.jsonl").write_bytes(lines.encode())
    (item,) = read("jsonl", tmp_path)
    assert item.question == "What\u2028is\x85it?"
    CASES["mme"].files(tmp_path)
    (tmp_path / "OCR/0001.txt").write_text("Is\u2028it?\tYes\nIs it?\tNo\n", encoding="utf-8")
    assert "Is\u2028it?" in {item.question for item in read("mme", tmp_path)}


def test_a_text_file_of_mme_that_is_not_utf8_is_refused(tmp_path):
    CASES["mme"].files(tmp_path)
    file = tmp_path / "OCR/0001.txt"
    file.write_bytes("Is this a caf\xe9?\tYes\nIs it?\tNo\n".encode("latin-1"))
    assert f"{file}: not UTF-8 text at byte 13" in refused("mme", tmp_path)


@pytest.mark.parametrize("cut", ["2", f"2\t{b64(1)[:80]}"])
def test_a_cut_row_that_an_earlier_one_names_is_refused_as_cut(tmp_path, cut):
    file = tmp_path / "DocVQA_VAL.tsv"
    file.write_text(f"index\timage\tquestion\tanswer\n1\t2\tq?\ta\n{cut}")
    number = len(cut.split("\t"))
    said = refused("docvqa", tmp_path)
    assert f"{file}, line 3: {number} fields, the header has 4" in said and "cut off" in said


# A missing column.


@pytest.mark.parametrize("column", ["question_id", "image", "text", "label"])
def test_a_missing_field_names_line_and_fields(tmp_path, column):
    row = {key: value for key, value in POPE.items() if key != column}
    file = pope(tmp_path, [POPE | {"question_id": 0}, row])
    said = refused("pope", tmp_path)
    assert f"{file}, line 2: no column {column!r} | it has: {', '.join(row)}" in said


@pytest.mark.parametrize(
    ("column", "what"),
    [
        ("question", "no column 'question'"),
        ("answer", "no column 'answer'"),
        ("A", "option A is empty, a later one is not"),
        ("B", "1 options"),
    ],
)
def test_a_missing_column_of_a_tsv_is_named(tmp_path, column, what):
    row = {key: value for key, value in ROW.items() if key != column}
    file = tsv(tmp_path, "mmbench", row | {"image": b64(1)})
    assert f"{file}, line 2: {what}" in refused("mmbench", tmp_path)


def test_a_missing_column_of_the_hub_names_the_row(tmp_path, monkeypatch):
    rows = [{"question_id": "1", "question": "q", "category": "random", "image": image(1)}]
    monkeypatch.setattr(_hub, "open_set", lambda source, hub, config: rows)
    with pytest.raises(UserError, match="lmms-lab/POPE, row 1: no column 'answer'"):
        list(stream(load_benchmark(CARDS["pope"]), CASES["pope"].source("hub", tmp_path)))


def test_an_empty_cell_where_a_value_is_needed_is_refused(tmp_path):
    file = tsv(tmp_path, "mmbench", ROW | {"question": "", "image": b64(1)})
    assert f"{file}, line 2: question is empty" in refused("mmbench", tmp_path)


@pytest.mark.parametrize("answer", ["", "nan", "[]", "['', ' ']"])
def test_an_empty_reference_is_refused(tmp_path, answer):
    file = tsv(tmp_path, "docvqa", ROW | {"answer": answer, "image": b64(1)})
    assert f"{file}, line 2: answer is empty" in refused("docvqa", tmp_path)


def test_empty_texts_among_references_are_left_out(tmp_path):
    tsv(tmp_path, "docvqa", ROW | {"answer": "['cat', '']", "image": b64(1)})
    assert read("docvqa", tmp_path)[0].gold["answers"] == ["cat"]


def test_types_of_gqa_may_be_text(tmp_path):
    row = ROW | {"image": b64(1), "types": "{'structural': 'query', 'semantic': 'rel'}"}
    rows = [row, *(row | {"index": 2 + n, "types": v} for n, v in enumerate(("", "{}", "nan")))]
    tsv(tmp_path, "gqa", *rows)
    assert [item.gold["structural"] for item in read("gqa", tmp_path)] == ["query", "", "", ""]


@pytest.mark.parametrize(
    "types", ["query", "{'structural': 'que", "['query']", "{'structural': 1}"]
)
def test_types_of_gqa_that_are_no_object_are_refused(tmp_path, types):
    file = tsv(tmp_path, "gqa", ROW | {"image": b64(1), "types": types})
    assert f"{file}, line 2: types must be an object" in refused("gqa", tmp_path)


# An id twice.


def test_an_id_twice_in_a_file_names_both_lines(tmp_path):
    file = pope(tmp_path, [POPE, POPE | {"question_id": 2}, POPE])
    assert f"{file}, line 3: question_id 1 twice, first in line 1" in refused("pope", tmp_path)


def test_an_index_twice_in_a_tsv_names_both_lines(tmp_path):
    file = tsv(tmp_path, "mmbench", ROW | {"image": b64(1)}, ROW | {"image": b64(1)})
    assert f"{file}, line 3: index 1 twice, first in line 2" in refused("mmbench", tmp_path)


def test_a_key_twice_in_json_is_refused_although_json_allows_it(tmp_path):
    CASES["gqa"].files(tmp_path)
    file = tmp_path / "testdev_balanced_questions.json"
    file.write_text(file.read_text().replace('"202"', '"201"'))
    assert f"{file}: id 201 twice" in refused("gqa", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "column", "key"),
    [
        ("textvqa", "TextVQA_0.5.1_val.json", "data", "question_id"),
        ("docvqa", "val_v1.0_withQT.json", "data", "questionId"),
        ("mp_docvqa", "val.json", "data", "questionId"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", "annotations", "question_id"),
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "questions", "question_id"),
        ("seed_image", "SEED-Bench.json", "questions", "question_id"),
    ],
)
def test_an_id_twice_in_a_list_is_refused(tmp_path, name, file, column, key):
    CASES[name].files(tmp_path)
    value = json.loads((tmp_path / file).read_text())
    value[column].append(value[column][0])
    put_json(tmp_path, file, value)
    said = refused(name, tmp_path)
    assert f"{key} {value[column][0][key]} twice" in said and file in said


def test_an_id_twice_in_the_split_of_scienceqa_is_refused(tmp_path):
    SCIENCEQA.files(tmp_path)
    put_json(tmp_path, "pid_splits.json", {"test": ["11", "11"]})
    assert "id 11 twice" in refused("scienceqa", tmp_path)


def test_an_id_twice_on_the_hub_is_refused(tmp_path, monkeypatch):
    rows = CASES["docvqa"].hub["DocVQA"] * 2
    monkeypatch.setattr(_hub, "open_set", lambda source, hub, config: rows)
    with pytest.raises(UserError, match="row 2: questionId 9 twice, first in row 1"):
        list(stream(load_benchmark(CARDS["docvqa"]), CASES["docvqa"].source("hub", tmp_path)))


# An answer outside the options.


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("mmbench", ROW | {"answer": "C"}),
        ("mmbench", ROW | {"answer": "a"}),
        ("scienceqa", ROW | {"answer": "E"}),
        ("seed_image", ROW | {"answer": "C"}),
        ("mmmu", ROW | {"answer": "Z", "id": "validation_Art_1"}),
        ("pope", ROW | {"answer": "maybe"}),
        ("mme", ROW | {"answer": "maybe"}),
    ],
)
def test_an_answer_outside_the_options_is_refused_with_what_is_allowed(tmp_path, name, row):
    file = tsv(tmp_path, name, row | {"image": b64(1)})
    said = refused(name, tmp_path)
    assert f"{file}, line 2: answer {row['answer']!r} is outside the options | allowed: " in said


def test_an_answer_outside_the_options_of_official_files_is_refused(tmp_path):
    SCIENCEQA.files(tmp_path)
    file = tmp_path / "problems.json"
    file.write_text(file.read_text().replace('"answer": 2', '"answer": 3'))
    assert f"{file}, id 12: answer '3' is outside" in refused("scienceqa", tmp_path)


def test_a_page_outside_the_document_is_refused(tmp_path):
    CASES["mp_docvqa"].files(tmp_path)
    file = tmp_path / "val.json"
    file.write_text(file.read_text().replace('"answer_page_idx": 1', '"answer_page_idx": 2'))
    assert "answer_page_idx 2 is outside the pages | there are 2" in refused("mp_docvqa", tmp_path)


def test_a_gap_between_options_is_refused(tmp_path):
    tsv(tmp_path, "mmbench", ROW | {"B": "", "C": "c", "image": b64(1)})
    assert "option B is empty, a later one is not" in refused("mmbench", tmp_path)


# Not ten references.


@pytest.mark.parametrize("number", [1, 9, 11])
@pytest.mark.parametrize("name", ["textvqa", "vqav2"])
def test_not_ten_references_are_refused(tmp_path, name, number):
    CASES[name].files(tmp_path)
    file, column = {
        "textvqa": (tmp_path / "TextVQA_0.5.1_val.json", "data"),
        "vqav2": (tmp_path / "v2_mscoco_val2014_annotations.json", "annotations"),
    }[name]
    value = json.loads(file.read_text())
    value[column][1]["answers"] = (value[column][1]["answers"] * 2)[:number]
    file.write_text(json.dumps(value))
    said = refused(name, tmp_path)
    assert f"{file}, {column}, entry 2: {number} reference answers instead of ten" in said


def test_a_reference_list_that_is_cut_off_is_refused(tmp_path):
    row = ROW | {"answer": str(TEN)[:-3], "image": b64(1)}
    file = tsv(tmp_path, "textvqa", row)
    assert f"{file}, line 2: answer is cut off or no list" in refused("textvqa", tmp_path)


# Images.


@pytest.mark.parametrize(
    "text", [b64(1)[:-3] + "!!!", b64(1)[:-1], f"['{b64(1)}', '{b64(2)[:-1]}']", "é" * 80]
)
def test_broken_base64_names_the_line(tmp_path, text):
    file = tsv(tmp_path, "docvqa", ROW | {"index": 9, "image": b64(1)}, ROW | {"image": text})
    assert f"{file}, line 3: the image is not base64" in refused("docvqa", tmp_path)


def test_an_image_of_another_row_that_has_none_is_refused(tmp_path):
    file = tsv(tmp_path, "docvqa", ROW | {"image": "77"})
    assert f"{file}, line 2: image names row '77', which has no image" in refused(
        "docvqa", tmp_path
    )


def test_an_image_may_be_that_of_a_later_row(tmp_path):
    rows = [ROW | {"image": "2"}, ROW | {"index": 2, "image": b64(3)}]
    tsv(tmp_path, "docvqa", *rows)
    first, second = read("docvqa", tmp_path)
    assert first.group == second.group
    assert first.images[0].open().tobytes() == image(3).tobytes()


def test_an_empty_image_cell_leaves_the_image_to_its_path(tmp_path):
    put(tmp_path, "a.jpg", 3)
    rows = [
        ROW | {"index": n, "image": "", "image_path": path} for n, path in enumerate(("a.jpg", ""))
    ]
    tsv(tmp_path, "docvqa", *rows)
    first, second = read("docvqa", tmp_path)
    assert [picture.name for picture in first.images] == ["a.jpg"] and not second.images
    file = tsv(tmp_path, "docvqa", ROW | {"image": "", "image_path": "b.jpg"})
    assert f"{file}, line 2: there is no image {tmp_path / 'b.jpg'}" in refused("docvqa", tmp_path)


def test_bytes_that_are_no_image_name_the_item(tmp_path):
    text = base64.b64encode(b"not an image " * 10).decode()
    file = tsv(tmp_path, "docvqa", ROW | {"image": text})
    said = refused("docvqa", tmp_path)
    assert f"{file}, line 2, image is not an image that can be read: no known image format" in said


@pytest.mark.parametrize("content", [b"", b"GIF89a", png(1)[:60], png(1)[:20] + b"\0" * 40])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    pope(tmp_path, [POPE])
    (tmp_path / "val2014/a.jpg").write_bytes(content)
    assert "val2014/a.jpg is not an image that can be read" in refused("pope", tmp_path)


def test_an_image_that_is_not_there_is_named_with_the_line_before_anything_runs(tmp_path):
    file = pope(tmp_path, [POPE, POPE | {"question_id": 2, "image": "b.jpg"}])
    with pytest.raises(UserError) as error:
        read("pope", tmp_path)
    assert f"{file}, line 2: there is no image {tmp_path / 'val2014/b.jpg'}" in error.value.message


def test_an_image_removed_after_reading_is_an_error_of_its_own(tmp_path):
    pope(tmp_path, [POPE])
    picture = read("pope", tmp_path)[0].images[0]
    (tmp_path / "val2014/a.jpg").unlink()
    for use in (picture.open, picture.size):
        with pytest.raises(UserError, match="there is no image"):
            use()


def test_a_value_of_the_hub_that_is_no_image_is_refused(tmp_path, monkeypatch):
    rows = [CASES["docvqa"].hub["DocVQA"][0] | {"image": "d_1.png"}]
    monkeypatch.setattr(_hub, "open_set", lambda source, hub, config: rows)
    with pytest.raises(UserError, match="row 1: image holds no image"):
        list(stream(load_benchmark(CARDS["docvqa"]), CASES["docvqa"].source("hub", tmp_path)))


def test_a_picture_of_damaged_bytes_names_itself():
    with pytest.raises(UserError, match="question 7 is not an image"):
        Picture(name="question 7", content=b"no").open()


# Single benchmarks.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Is it?\tYes\n", "1 questions instead of two"),
        ("Is it?\tYes\nIs it?\tNo\nIs it?\tNo\n", "3 questions instead of two"),
        ("Is it? Yes\nIs it?\tNo\n", "line 1: must be a question, a tab and Yes or No"),
        ("Is\tit?\tYes\nIs it?\tNo\n", "line 1: must be a question, a tab and Yes or No"),
        ("Is it?\tYes\nIs it?\tPerhaps\n", "line 2: answer 'Perhaps' is outside the options"),
    ],
)
def test_an_mme_file_needs_two_questions_with_yes_or_no(tmp_path, text, said):
    CASES["mme"].files(tmp_path)
    file = tmp_path / "OCR/0001.txt"
    file.write_text(text)
    found = refused("mme", tmp_path)
    assert str(file) in found and said in found


def test_a_task_of_mme_without_questions_is_refused(tmp_path):
    CASES["mme"].files(tmp_path)
    (tmp_path / "OCR/0001.txt").unlink()
    assert f"{tmp_path / 'OCR'} holds no text file" in refused("mme", tmp_path)


def test_a_question_of_textvqa_without_prompt_of_llava_is_refused(tmp_path):
    CASES["textvqa_ocr"].files(tmp_path)
    file = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    file.write_text(file.read_text().splitlines()[0])
    assert f"{file}: no prompt for 'what colour?' of aa" in refused("textvqa_ocr", tmp_path)
    put_lines(tmp_path, file.name, [{"question_id": "aa", "text": "what?"}])
    assert f"{file}, line 1: text must be a question" in refused("textvqa_ocr", tmp_path)


def test_a_question_of_vqav2_without_annotation_is_refused(tmp_path):
    CASES["vqav2"].files(tmp_path)
    put_json(tmp_path, "v2_mscoco_val2014_annotations.json", {"annotations": []})
    assert "no answers for question 40" in refused("vqav2", tmp_path)


def test_a_question_named_by_the_split_of_scienceqa_must_exist(tmp_path):
    SCIENCEQA.files(tmp_path)
    put_json(tmp_path, "pid_splits.json", {"test": ["99"]})
    assert "no question 99, which pid_splits names" in refused("scienceqa", tmp_path)
    put_json(tmp_path, "pid_splits.json", {"val": ["11"]})
    assert "pid_splits.json: no list 'test'" in refused("scienceqa", tmp_path)


def test_visual7w_needs_three_wrong_choices(tmp_path):
    CASES["visual7w"].files(tmp_path)
    file = tmp_path / "dataset.json"
    file.write_text(file.read_text().replace('"A pig."', '"A pig.", "A hen."'))
    assert "entry 1: 4 wrong choices instead of 3" in refused("visual7w", tmp_path)


def test_a_question_without_answer_is_refused(tmp_path):
    CASES["jsonl"].files(tmp_path)
    (tmp_path / "answer.jsonl").unlink()
    said = refused("jsonl", tmp_path)
    assert f"{tmp_path / 'question.jsonl'}, line 1: no answer to question 1" in said
    put_lines(tmp_path, "answer.jsonl", [{"question_id": 1, "text": "a"}] * 2)
    assert "answer.jsonl, line 2: question_id 1 twice" in refused("jsonl", tmp_path)


@pytest.mark.parametrize("answer", [["cat", None], [""], {"a": 1}, [["cat"]]])
def test_an_answer_that_is_no_text_is_refused(tmp_path, answer):
    line = {"question_id": 1, "text": "q", "answer": answer}
    put_lines(tmp_path, "question.jsonl", [line])
    said = refused("jsonl", tmp_path)
    file = tmp_path / "question.jsonl"
    assert f"{file}, line 1: answer must be a text or a list of texts, got {answer!r}" in said


def test_an_answer_to_a_question_that_is_not_asked_is_refused(tmp_path):
    put_lines(tmp_path, "question.jsonl", [{"question_id": 1, "text": "q", "answer": "a"}])
    put_lines(tmp_path, "answer.jsonl", [{"question_id": "O1", "answer": "cat"}])
    said = refused("jsonl", tmp_path)
    assert f"{tmp_path / 'answer.jsonl'}, line 1: question.jsonl has no question O1" in said


def test_texts_of_an_answer_line_may_be_a_list(tmp_path):
    put_lines(tmp_path, "question.jsonl", [{"question_id": 1, "text": "q"}])
    put_lines(tmp_path, "answer.jsonl", [{"question_id": 1, "text": ["cat", 2]}])
    assert read("jsonl", tmp_path)[0].gold["answers"] == ["cat", "2"]


def test_a_key_twice_in_a_json_line_is_refused(tmp_path):
    file = pope(tmp_path, [POPE, '{"question_id": 2, "label": "yes", "label": "no"}'])
    assert f"{file}, line 2: key label twice" in refused("pope", tmp_path)


def test_an_image_of_the_second_configuration_of_gqa_must_exist(tmp_path, monkeypatch):
    hub = CASES["gqa"].hub | {"testdev_balanced_images": [{"id": "n2", "image": image(1)}]}
    monkeypatch.setattr(_hub, "open_set", lambda source, needs, config: hub[config])
    with pytest.raises(UserError, match="row 1: there is no image n1"):
        list(stream(load_benchmark(CARDS["gqa"]), CASES["gqa"].source("hub", tmp_path)))


def test_parquet_files_of_another_split_are_named(tmp_path):
    folder = tmp_path / "lmms-lab/POPE"
    (folder / "data").mkdir(parents=True)
    (folder / "data/train-0.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"there is no .*/test-\*\.parquet"):
        _hub.parquet_files(folder, "", "test")


def test_find_source_names_the_benchmark():
    with pytest.raises(UserError, match="benchmark 'pope' has no data below /nowhere"):
        find_source("pope", CARDS["pope"].needs, "/nowhere")
