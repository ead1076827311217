"""Every benchmark from its official files, VLMEvalKit's TSV and the hub: one set of questions."""

import importlib.util
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from benchmark_cases import CASES
from benchmark_files import (
    CARDS,
    S,
    answered,
    b64,
    image,
    png,
    put,
    put_json,
    put_lines,
    read,
    write_tsv,
)  # fmt: skip

from fusionbench.api import Picture
from fusionbench.api.benchmarks import data_hash, stream
from fusionbench.api.sources import find_source
from fusionbench.tasks import _hub

HAS_DATASETS = importlib.util.find_spec("datasets") is not None
FORMS = [(name, form) for name, case in CASES.items() for form in case.forms]


@pytest.fixture
def plain_hub(monkeypatch):
    """Sets of the hub as plain rows with decoded images, as `datasets` hands them out."""
    monkeypatch.setattr("fusionbench.api.sources.find_spec", lambda name: name)

    def use(case):
        monkeypatch.setattr(_hub, "open_set", lambda source, hub, config: case.hub[config])

    return use


def items_of(case, form, root, plain_hub):
    plain_hub(case)
    return list(stream(case.benchmark, case.source(form, root)))


def by_name(case, form, items):
    """The items by name; the hub's ScienceQA has no ids, its rows count from 1."""
    if (case.name, form) != ("scienceqa", "hub"):
        return {item.name: item for item in items}
    assert [item.name for item in items] == ["scienceqa/1", "scienceqa/2"]
    return dict(zip(case.prompts, items, strict=True))


def test_every_benchmark_has_a_case():
    assert CASES.keys() | {"zerobench_sub"} == CARDS.keys()


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_prompts_scores_and_measures_are_those_computed_by_hand(name, form, tmp_path, plain_hub):
    case = CASES[name]
    items = items_of(case, form, tmp_path, plain_hub)
    named = by_name(case, form, items)
    assert {key: item.prompt for key, item in named.items()} == case.prompts
    texts = {named[key].name: text for key, (text, _) in case.answers.items()}
    answers = answered(case.benchmark, items, texts)
    expected = {named[key].name: outcome for key, (_, outcome) in case.answers.items()}
    assert {one.name: one.outcome for one in answers} == pytest.approx(expected)
    found = case.benchmark.measures(answers)
    assert {key: found[key] for key in case.measures} == pytest.approx(case.measures)
    json.dumps([dict(item.gold) for item in items])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.forms) > 1])
def test_all_forms_hold_the_same_questions_images_and_groups(name, tmp_path, plain_hub):
    case = CASES[name]
    read_in = {}
    for form in case.forms:
        found = by_name(case, form, items_of(case, form, tmp_path / form, plain_hub))
        read_in[form] = {key: found[key] for key in sorted(found)}
    first, *others = read_in.values()
    for other in others:
        assert first.keys() == other.keys()
        for key, item in first.items():
            assert facts(item) == facts(other[key])
            for mine, theirs in zip(item.images, other[key].images, strict=True):
                assert np.array_equal(np.asarray(mine.open()), np.asarray(theirs.open()))
        assert partition(first) == partition(other)


def facts(item):
    # VLMEvalKit's GQA has no structural types.
    gold = {key: value for key, value in item.gold.items() if key != "structural"}
    return item.prompt, item.question, item.options, gold, len(item.images)


def partition(items):
    groups = {}
    for key, item in items.items():
        groups.setdefault(item.group, set()).add(key)
    return sorted(map(sorted, groups.values()))


@pytest.mark.parametrize(("name", "form"), [one for one in FORMS if one[1] != "hub"])
def test_items_are_picklable_and_keep_no_image_open_or_in_memory(name, form, tmp_path):
    case = CASES[name]
    items = list(stream(case.benchmark, case.source(form, tmp_path)))
    for item, again in zip(items, pickle.loads(pickle.dumps(items)), strict=True):
        for mine, theirs in zip(item.images, again.images, strict=True):
            assert not isinstance(mine.content, bytes)
            assert mine.open().mode == "RGB"
            assert np.array_equal(np.asarray(mine.open()), np.asarray(theirs.open()))


def test_a_tsv_is_read_row_by_row(tmp_path):
    """The first item comes before the damage behind it is met."""
    case = CASES["docvqa"]
    file = case.write("tsv", tmp_path) / "DocVQA_VAL.tsv"
    file.write_text(file.read_text() + "10\tcut")
    items = case.benchmark.items(find_source("docvqa", CARDS["docvqa"].needs, tmp_path))
    assert next(items).name == "docvqa/9"


def test_the_first_form_found_is_used_and_the_folder_of_the_benchmark_comes_first(tmp_path):
    case = CASES["pope"]
    case.write("tsv", tmp_path)
    assert find_source("pope", CARDS["pope"].needs, tmp_path).form == "tsv"
    case.files(tmp_path)
    assert find_source("pope", CARDS["pope"].needs, tmp_path).root == tmp_path
    case.write("files", tmp_path)
    assert find_source("pope", CARDS["pope"].needs, tmp_path).root == tmp_path / "pope"


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_hash_depends_on_answers_and_on_sizes_of_images(name, form, tmp_path, plain_hub):
    case = CASES[name]
    plain_hub(case)
    source = case.source(form, tmp_path)
    before = data_hash(case.benchmark, source)
    assert before == data_hash(case.benchmark, source)
    if form == "files":
        pictures = [one for item in case.benchmark.items(source) for one in item.images]
        pictures[0].content.write_bytes(pictures[0].content.read_bytes() + b"\0")
    elif form == "tsv":
        source.root.write_text(source.root.read_text().replace("?", "!"))
    else:
        plain_hub(renamed(case))
    assert data_hash(case.benchmark, source) != before


def renamed(case):
    """The case with another question in each row of the hub."""
    key = "question_text" if case.name == "zerobench" else "question"
    changed = {
        config: [row | {key: f"{row[key]} Or not?"} if key in row else row for row in rows]
        for config, rows in case.hub.items()
    }
    return replace(case, hub=changed)


def test_a_tsv_may_name_files_of_images_and_their_sizes_are_hashed(tmp_path):
    row = {"index": 9, "question": "q?", "answer": "['a']"}
    rows = [row | {"image_path": "one.png"}, row | {"index": 8, "image_path": "['one.png']"}]
    write_tsv(tmp_path / "DocVQA_VAL.tsv", rows)
    put(tmp_path, "one.png", 1)
    first, second = read("docvqa", tmp_path)
    assert first.group == second.group and first.images[0].open().size == (7, 9)
    benchmark, needs = CASES["docvqa"].benchmark, CARDS["docvqa"].needs
    before = data_hash(benchmark, find_source("docvqa", needs, tmp_path))
    (tmp_path / "one.png").write_bytes(png(1) + b"0")
    assert data_hash(benchmark, find_source("docvqa", needs, tmp_path)) != before


# Traps of single benchmarks.


def test_mmbench_reads_its_official_file_as_well(tmp_path):
    case = CASES["mmbench"]
    write_tsv(tmp_path / "mmbench" / "mmbench_dev_20230712.tsv", case.tsv)
    assert {item.name: item.prompt for item in read("mmbench", tmp_path)} == case.prompts


def test_mmbench_without_rotations_has_no_circular_accuracy(tmp_path):
    case = CASES["mmbench"]
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [case.tsv[0], case.tsv[2]])
    found = case.benchmark.measures(case.answered(read("mmbench", tmp_path)))
    assert found["accuracy_circular"] is None and found["rotations"] == 0


def test_a_question_drawn_twice_counts_twice_in_a_resample(tmp_path):
    """Circular accuracy and the points of MME are computed on resampled images as well."""
    case = CASES["mmbench"]
    answers = case.answered(list(stream(case.benchmark, case.source("tsv", tmp_path))))
    first, rotated, other = answers
    found = case.benchmark.measures([first, rotated, other, other, other])
    assert found["accuracy_circular"] == pytest.approx(3 / 4)
    mme = CASES["mme"]
    answers = mme.answered(list(stream(mme.benchmark, mme.source("files", tmp_path))))
    pair = [one for one in answers if one.gold["task"] == "OCR"]
    wrong = [one for one in answers if one.gold["task"] == "scene"]
    assert mme.benchmark.measures([*pair, *pair, *wrong])["acc_plus"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["pope", "mme", "mmbench"])
def test_measures_that_are_no_means_are_sums_of_counts_of_whole_groups(name, tmp_path):
    """The tally of two draws of one group equals the measures of these answers listed twice."""
    case = CASES[name]
    answers = case.answered(list(stream(case.benchmark, case.source("tsv", tmp_path))))
    tally = case.benchmark.tally(answers)
    first = answers[0].group
    twice = [one for one in answers if one.group == first]
    for drawn, weights in (
        (answers, np.ones(len(answers))),
        (twice + answers, np.array([1.0 + (one.group == first) for one in answers])),
    ):
        found = tally.readings(weights @ tally.counts)
        expected = case.benchmark.measures(drawn)
        numbers = {key: np.nan if expected[key] is None else expected[key] for key in found}
        assert {key: float(one) for key, one in found.items()} == pytest.approx(
            numbers, nan_ok=True
        )


def test_gqa_of_a_tsv_has_no_open_and_binary_part(tmp_path):
    case = CASES["gqa"]
    found = {}
    for form in ("files", "tsv"):
        items = list(stream(case.benchmark, case.source(form, tmp_path / form)))
        found[form] = case.benchmark.measures(case.answered(items))
    assert found["files"]["accuracy_binary"] == 1 and found["files"]["accuracy_open"] == 0
    assert not {"accuracy_binary", "accuracy_open"} & found["tsv"].keys()


def test_mmmu_draws_letters_in_the_order_of_the_answers(tmp_path):
    """Two unparsable answers: the second draw is not the first one repeated."""
    case = CASES["mmmu"]
    rows = [
        {"index": n, "split": "validation", "id": f"validation_Math_{n}", "question": "q",
         **dict(zip("ABCDEFGH", "stuvwxyz", strict=True)), "answer": "A", "image": b64(1)}
        for n in range(40)
    ]  # fmt: skip
    write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    items = read("mmmu", tmp_path)
    answers = answered(case.benchmark, items, {item.name: "no idea" for item in items})
    outcomes = {one.outcome for one in answers}
    assert outcomes == {0.0, 1.0}
    assert case.benchmark.measures(answers)["random_fallbacks"] == 40
    alone = {case.benchmark.judge("no idea", item) for item in items}
    assert len(alone) == 1


def test_seed_asks_for_ranking_and_measures_it(tmp_path):
    case = CASES["seed_image"]
    assert case.benchmark.ranks_options
    first, second = case.answered(list(stream(case.benchmark, case.source("tsv", tmp_path))))
    ranked = [type(first)(**{**vars(first), "ranked": 2}), second]
    found = case.benchmark.measures(ranked)
    assert found["accuracy_ranked"] == 1 and found["questions_ranked"] == 1


def test_chance_is_one_over_the_number_of_options(tmp_path):
    case = CASES["mmbench"]
    items = list(stream(case.benchmark, case.source("tsv", tmp_path)))
    assert case.benchmark.guessing(items) == pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3)
    assert CASES["pope"].benchmark.guessing(items[:0] or [plain("pope")]) == 0.5


def plain(name):
    from fusionbench.api import Asked

    return Asked(name=name, group="g")


def test_the_order_of_visual7w_depends_on_the_id_and_moves_the_true_option(tmp_path):
    pairs = [
        {"qa_id": n, "question": "?", "answer": "t", "multiple_choices": ["u", "v", "w"]}
        for n in range(60)
    ]
    images = [{"filename": "v.jpg", "split": "val", "qa_pairs": pairs}]
    put_json(tmp_path, "visual7w/dataset.json", {"images": images})
    put(tmp_path, "visual7w/images/v.jpg", 1)
    items = read("visual7w", tmp_path)
    places = [item.gold["answer"] for item in items]
    assert all(item.options[place] == "t" for item, place in zip(items, places, strict=True))
    assert all(places.count(place) > 5 for place in range(4))
    assert [item.options for item in items] == [item.options for item in read("visual7w", tmp_path)]


def test_textvqa_finds_the_prompts_of_llava_in_each_of_their_forms(tmp_path):
    """Tokens behind the question, in front of it, or none, in any order of the file."""
    CASES["textvqa_ocr"].files(tmp_path)
    texts = [f"Reference OCR token: A, B\nWhat number?{S}", f"what colour?{S}"]
    rows = [{"question_id": "aa", "image": "aa.jpg", "text": text} for text in texts]
    put_lines(tmp_path, "llava_textvqa_val_v051_ocr.jsonl", rows)
    prompts = {item.question: item.prompt for item in read("textvqa_ocr", tmp_path)}
    assert prompts == {"what number?": texts[0], "what colour?": texts[1]}


def test_zerobench_sub_reads_the_other_split():
    needs = CARDS["zerobench_sub"].needs
    assert needs.hub["split"] == "zerobench_subquestions" and needs.tsv == "ZEROBench_sub.tsv"


def test_mp_docvqa_shows_the_page_with_the_answer(tmp_path):
    (item,) = stream(CASES["mp_docvqa"].benchmark, CASES["mp_docvqa"].source("files", tmp_path))
    (shown,) = item.images
    assert shown.name == "images/p1.jpg" and item.gold["page"] == "p1"


# The hub's own library.


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the extra `hub` (package datasets)")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.hub])
def test_parquet_files_of_the_hub_give_the_same_as_plain_rows(name, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    case, needs = CASES[name], CARDS[name].needs
    for config, rows in case.hub.items():
        folder = tmp_path / needs.hub["id"] / (config or "data")
        folder.mkdir(parents=True)
        table = datasets.Dataset.from_list(rows)
        table.to_parquet(folder / f"{needs.hub['split']}-00000-of-00001.parquet")
    source = find_source(name, needs, tmp_path)
    assert source.form == "hub"
    stored = by_name(case, "hub", list(stream(case.benchmark, source)))
    monkeypatch.setattr(_hub, "open_set", lambda source, hub, config: case.hub[config])
    decoded = by_name(case, "hub", list(stream(case.benchmark, source)))
    assert {k: facts(v) for k, v in stored.items()} == {k: facts(v) for k, v in decoded.items()}
    for key, item in stored.items():
        for mine, theirs in zip(item.images, decoded[key].images, strict=True):
            assert np.array_equal(np.asarray(mine.open()), np.asarray(theirs.open()))
    pickle.dumps(list(stored.values()))


@pytest.mark.skipif(not HAS_DATASETS, reason="needs the extra `hub` (package datasets)")
def test_mmmu_reads_its_official_parquet_files_by_subject(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    case, needs = CASES["mmmu"], CARDS["mmmu"].needs
    rows = {"Accounting": case.hub[""][0], "Music": case.hub[""][1]}
    for subject in map(lambda name: name.rstrip("/"), needs.files):
        row = {**rows["Accounting"], "id": f"validation_{subject}_9"}
        table = datasets.Dataset.from_list([rows.get(subject, row)])
        (tmp_path / "MMMU/MMMU" / subject).mkdir(parents=True)
        file = tmp_path / "MMMU/MMMU" / subject / "validation-00000-of-00001.parquet"
        table.to_parquet(file)
    items = read("mmmu", tmp_path)
    assert len(items) == 30
    prompts = {item.name: item.prompt for item in items}
    assert {name: prompts[name] for name in case.prompts} == case.prompts


@pytest.mark.skipif(HAS_DATASETS, reason="the package datasets is installed")
def test_without_datasets_a_set_of_the_hub_names_the_extra(tmp_path):
    from fusionbench.api import UserError

    with pytest.raises(UserError) as refused:
        find_source("pope", CARDS["pope"].needs, "hub")
    assert "datasets" in refused.value.message and "[hub]" in refused.value.hint


# Pictures.


def test_a_picture_is_rgb_whatever_its_mode_and_content():
    grey = image(1).convert("LA")
    for content in (png(1), image(1), grey, image(1).convert("P")):
        opened = Picture(name="it", content=content).open()
        assert opened.mode == "RGB" and opened.size == (7, 9)
