"""The YAML reader: values, places, and files that are made to hurt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pilot.config.document import Document, Trap
from pilot.config.parse import MAX_DEPTH, Unreadable, parse


def as_it_is(text: str) -> tuple[str, Sequence[str]]:
    return text, ()


def read(text: str, *only: str) -> Document:
    return parse(text, as_it_is, only)


def refusal(text: str) -> str:
    with pytest.raises(Unreadable) as caught:
        read(text)
    return caught.value.problem.render("f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0", 0),
        ("1.5", 1.5),
        ("1.5e+3", 1500.0),
        ("true", True),
        ("no", False),
        ("Off", False),
        ("~", None),
        ("", None),
        ("'no'", "no"),
        ('"12"', "12"),
        ("30s", "30s"),
        ("2026-01-01", "2026-01-01"),
        ("127.0.0.1", "127.0.0.1"),
        ("012", Trap("012")),
        ("0x1f", Trap("0x1f")),
        ("1e3", Trap("1e3")),
        ("12:30", Trap("12:30")),
        ("1_000", Trap("1_000")),
        ("9" * 5000, Trap("9" * 5000)),
    ],
)
def test_scalars_are_what_yaml_says_unless_its_versions_disagree(text: str, value: object) -> None:
    data = read(f"key: {text}\n").data

    assert data["key"] == value
    assert type(data["key"]) is type(value)


# PyYAML writes these three line breaks of Unicode in a way that its own C reader folds.
texts = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]), min_size=1)
keys = texts.map("key ".__add__)
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


def texts_again(value: Any) -> Any:
    """PyYAML writes texts such as 08 without quotes: here they are traps."""
    match value:
        case Trap():
            return value.text
        case dict():
            return {key: texts_again(one) for key, one in value.items()}
        case list():
            return [texts_again(one) for one in value]
        case _:
            return value


@given(st.dictionaries(keys, plain_data, max_size=5), st.booleans())
def test_what_was_dumped_is_read_back(data: dict[str, Any], flow: bool) -> None:
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    top = list(data)[:2]

    document = read(text)

    assert texts_again(document.data) == data
    assert not document.problems
    assert {key: read(text, *top).data[key] for key in top} == {key: document.data[key] for key in top}


def test_places_are_those_of_keys_and_items() -> None:
    document = read("a:\n  b: [1,\n    {c: 2}]\n  ö: 'x'\nd: &x {e: 1}\nf:\n  <<: *x\n")

    def place(*path: str | int) -> tuple[int, int, bool]:
        spot = document.find(path)
        return spot.line, spot.column, spot.exact

    assert place("a", "b") == (2, 3, True)
    assert place("a", "b", 1) == (3, 5, True)
    assert place("a", "b", 1, "c") == (3, 6, True)
    assert place("a", "ö") == (4, 3, True)
    assert place("f", "e") == (5, 8, True)
    assert place("a", "b", 7, "no") == (2, 3, False)


def test_merged_keys_give_way_to_own_ones_and_to_those_named_first() -> None:
    document = read("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 0}\nd: [*a, *a]\n")

    assert document.data["c"] == {"x": 0, "y": 1, "z": 2}
    assert document.data["d"] == [{"x": 1, "y": 1}] * 2


def test_a_merge_at_the_top_counts_when_only_some_keys_are_read() -> None:
    assert read("x: &x {store: y}\n<<: *x\n", "store").data["store"] == "y"


def test_reading_some_keys_ends_with_the_last_of_them() -> None:
    assert read("a: {b: 1}\nstore: x\nstate_dir: y\nb: [", "store", "state_dir").data == {
        "store": "x",
        "state_dir": "y",
    }


def test_a_large_file_without_these_keys_is_not_read_for_them() -> None:
    text = "projects:\n" + "- {name: a, path: b}\n" * 10_000

    assert read(text, "store", "state_dir").data is None
    assert read(f"{text}store: y\n", "store").data == {"store": "y"}
    assert read(f'{text}"sto\\x72e": y\n', "store").data == {"store": "y"}
    assert read(f"x: &x {{store: y}}\n{text}<<: *x\n", "store").data["store"] == "y"


def test_keys_that_come_twice_or_are_no_text_are_all_told() -> None:
    document = read("a: 1\nb: {c: 1, c: 2}\na: 2\non: 3\n7: 4\n<<: 5\n")

    assert [problem.render("f") for problem in document.problems] == [
        "f:2:11: b.c: is here twice; the first is in line 2",
        "f:3:1: a: is here twice; the first is in line 1",
        "f:4:1: on: a key has to be text: quote it, 'on'",
        "f:5:1: 7: a key has to be text: quote it, '7'",
        "f:6:1: <<: merges mappings only (<<: *name)",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: 2\n", "f:2:2: not YAML"),
        ("a: \x07\n", "f:1:4: not YAML: control characters"),
        ("a: 1\n---\nb: 2\n", "f:2:1: a second document"),
        ("a: !!python/object/apply:os.system [id]\n", "f:1:4: a: a tag"),
        ("a: !!str 1\n", "f:1:4: a: a tag"),
        ("? [a]\n: 1\n", "f:1:3: a key has to be text"),
        ("a: *b\n", "f:1:4: a: *b: there is no finished &b"),
        ("a: &a [*a]\n", "f:1:8: a.0: *a: there is no finished &a"),
    ],
)
def test_what_is_no_settings_file_is_refused_with_its_place(text: str, says: str) -> None:
    assert refusal(text).startswith(says)


def test_nesting_is_bounded_where_a_recursive_reader_ends_the_process() -> None:
    assert f"nested more than {MAX_DEPTH} deep" in refusal("[" * 100_000)
    assert f"nested more than {MAX_DEPTH} deep" in refusal("- " * 100_000)
    assert f"nested more than {MAX_DEPTH} deep" in refusal("{a: " * 100_000)


def test_nesting_by_aliases_is_bounded_too() -> None:
    chain = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(100))

    assert f"nested more than {MAX_DEPTH} deep" in refusal(chain)


@pytest.mark.parametrize("item", ["*{0}", "{{k: *{0}}}"])
def test_aliases_that_multiply_are_stopped_while_they_are_small(item: str) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([item.format(before)] * 9)}]")

    assert "more than 2,000,000 values" in refusal("\n".join(lines))


def test_merges_that_multiply_are_stopped_while_they_are_small() -> None:
    lines = ["a: &a {k: 1}"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}")

    assert "more than 2,000,000 values" in refusal("\n".join(lines))


def test_ten_thousand_projects_may_share_one_mapping() -> None:
    text = "x: &x {base: main, draft: true}\nprojects:\n" + "".join(
        f"- {{<<: *x, name: p{i}}}\n" for i in range(10_000)
    )

    assert read(text).data["projects"][9_999] == {"name": "p9999", "base": "main", "draft": True}


def test_terminal_escapes_in_a_file_do_not_reach_a_message() -> None:
    text = '"\\e]52;c;aGk=\\a\\e[2J": 1\n"\\e]52;c;aGk=\\a\\e[2J": 2\n'
    shown = read(text).problems[0].render("f")

    assert "\x1b" not in shown
    assert "\x07" not in shown
