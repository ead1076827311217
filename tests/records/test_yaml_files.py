"""Errors in YAML files name the file, the line and the nearest known key."""

from pathlib import Path

import pytest

from fusionbench.api.errors import UserError
from fusionbench.records.yaml_files import parse_section, read_section

TEXT = "seeds: 3\nbudget:\n  steps: 4\n  bacth: 8\nclaims:\n  - {id: a}\n  - id: b\n    than: c\n"


def section(text=TEXT):
    return parse_section(text, "mine.yaml", "study", hint="start with `preset: quick`")


def test_a_section_is_a_dictionary_whose_nested_mappings_know_their_lines():
    found = section()
    assert found == {
        "seeds": 3,
        "budget": {"steps": 4, "bacth": 8},
        "claims": [{"id": "a"}, {"id": "b", "than": "c"}],
    }
    assert (found.at("budget"), found["budget"].at("bacth")) == (
        "mine.yaml, line 2",
        "mine.yaml, line 4",
    )
    assert found["claims"][1].at("than") == "mine.yaml, line 8"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one():
    with pytest.raises(UserError) as caught:
        section()["budget"].check_keys(("steps", "batch"))
    assert caught.value.message == ("mine.yaml, line 4: unknown key 'bacth'; did you mean 'batch'?")
    assert caught.value.hint == "known: batch, steps"


def test_a_missing_key_is_named_with_the_line_of_its_mapping():
    claim = section()["claims"][0]
    claim.check_keys(("id", "than"), needed=("id",))
    with pytest.raises(UserError, match="mine.yaml, line 6: than is missing"):
        claim.check_keys(("id", "than"), needed=("id", "than"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "mine.yaml is not YAML"),
        ("a: b: c", "line 1"),
        ("- a", "holds no study"),
        ("", "holds no study"),
        ("a: !!python/object:os.system {}", "not YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as caught:
        section(text)
    assert message in caught.value.message and "\n" not in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the study .*nothing.yaml"):
        read_section(tmp_path / "nothing.yaml", "study", hint="give a YAML file")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="bytes.yaml"):
        read_section(tmp_path / "bytes.yaml", "study", hint="give a YAML file")


@pytest.mark.fault(
    "real files and terminals",
    "a key twice in YAML, deep nesting, impossible values",
    "one line with its place",
)
@pytest.mark.parametrize(
    ("text", "where"),
    [("seeds: 10\nname: a\nseeds: 2\n", "line 3: seeds stands twice, first on line 1"),
     ("budget:\n  steps: 1\n  steps: 2\n", "line 3: steps stands twice, first on line 2"),
     ("a: [{b: 1, b: 2}]\n", "line 1: b stands twice, first on line 1"),
     ("1: a\n'1': b\n", "line 2: 1 stands twice, first on line 1"),
     ("a: &x {c: 1}\nb:\n  <<: *x\n  d: 1\n  d: 2\n", "line 5: d stands twice")],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused_with_its_lines(text, where):
    with pytest.raises(UserError, match=f"mine.yaml, {where}"):
        section(text)


@pytest.mark.parametrize(
    ("number", "read"),
    [("010", "8"), ("-0_7", "-7"), ("1:30", "90"), ("1:30.5", "90.5")],
)
def test_a_number_that_yaml_reads_otherwise_than_people_is_refused(number, read):
    with pytest.raises(UserError, match=f"mine.yaml, line 2: YAML reads {number} as {read}"):
        section(f"name: a\nseeds: {number}\n")


def test_usual_numbers_are_read_as_they_stand():
    found = section("a: [0, 00, 10, -3, 0.10, 1_000, 0x10, '010', 08]")["a"]
    assert found == [0, 0, 10, -3, 0.1, 1000, 16, "010", "08"]


def test_a_merged_mapping_may_be_overridden():
    assert section("a: &x {c: 1, d: 1}\nb: {<<: *x, c: 2}\n")["b"] == {"c": 2, "d": 1}


@pytest.mark.fault(
    "real files and terminals",
    "a key twice in YAML, deep nesting, impossible values",
    "one line with its place",
)
@pytest.mark.parametrize(
    "text",
    ["[" * 3_000, "a: " + "{a: " * 5_000, "a: 2001-99-99", "a: " + "9" * 5_000, "a: &r [*r]",
     "a: !!python/object/apply:os.system [x]", "a: \x00", "? [1]\n: 2", "- 1", "3", ""],
)  # fmt: skip
def test_whatever_stands_in_a_file_is_one_line_for_its_user(text):
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        section(text)
    assert "\n" not in caught.value.message and caught.value.hint


def test_yaml_is_read_in_one_place():
    import fusionbench

    root = Path(fusionbench.__file__).parent
    using = [file.name for file in root.rglob("*.py") if "yaml.load" in file.read_text("utf-8")
             or "yaml.safe_load" in file.read_text("utf-8")]  # fmt: skip
    assert using == ["yaml_files.py"]
