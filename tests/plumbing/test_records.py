"""The record and its reader: every mistake is named by file, line and field; and doctests.

test_fuzz.py reads random records.
"""
import doctest
import importlib
import json
import re

import pytest
from conftest import ROOT

from grm import Judgment
from infer_scale import sample_row
from plumbing.records import PreferenceExample, read_jsonl
from plumbing.runs import UserError

GOOD = {"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [0, 1]}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("", "plumbing", "toy_world", "extras", "results")
    for path in (ROOT / folder).glob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")))
def test_doctests(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0 and failed == 0


def write(path, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


@pytest.mark.parametrize("field, rows", [
    ("id", [{**GOOD, "id": v} for v in ("", 1.5, True, [1])]),
    ("prompt", [without("prompt"), *[{**GOOD, "prompt": v} for v in (
        None, [], ["Hi"], {}, [{"role": "user"}], [{"role": "user", "content": None}],
        [{"role": "judge", "content": "Hi"}], [{"role": ["user"], "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])]]),
    ("responses", [without("responses"), *[{**GOOD, "responses": v} for v in (
        [], "x", ["x", None], ["x", 3], {"a": "x"})]]),
    ("rewards", [{**GOOD, "rewards": v} for v in (
        [1], [0, 1, 2], "01", [0, "1"], [0, None], [0, True], [0, NAN], [0, INF])]
     + [{**GOOD, "responses": ["x"], "rewards": v} for v in ([2], [0.5])]),
    ("preference_strength", [{**GOOD, "preference_strength": v} for v in ("much", 1.5)]),
    ("cluster", [{**GOOD, "cluster": v} for v in ([1, 2], {"a": 1})]),
    ("domain", [{**GOOD, "domain": 3}]), ("reference", [{**GOOD, "reference": ["x"]}]),
])
def test_reader_names_file_line_and_field(tmp_path, field, rows):
    for row in rows:
        path = write(tmp_path / "items.jsonl", {**GOOD, "id": "first"}, "", row)
        with pytest.raises(UserError) as error:
            read_jsonl(path)
        message = str(error.value)
        assert f"{path}, line 3" in message and f"'{field}'" in message, row
        assert "\n" not in message


@pytest.mark.parametrize("name", [
    "reward", "Rewards", "rewrads", "label", "labels", "score", "ratings", "preference", "chosen"])
def test_labels_under_another_name_are_refused_not_passed_over(name, tmp_path):
    row = {**without("rewards"), name: [0, 1], "weight": 2}
    path = write(tmp_path / "items.jsonl", {**GOOD, "id": "first"}, row)
    with pytest.raises(UserError, match=f"line 2: field 'rewards' is missing, .*'{name}'"):
        read_jsonl(path)
    assert len(read_jsonl(path, skip_bad=True)) == 1
    write(path, row)
    with pytest.raises(UserError, match=f"no usable item.*'{name}'"):
        read_jsonl(path, skip_bad=True)
    for fine in ({**row, "rewards": [1, 0]}, {**row, "rewards": None}, without("rewards")):
        [example] = read_jsonl(write(path, {**fine, "id": "a"}))
        assert example.rewards == fine.get("rewards")
        assert example.extra.get(name) == fine.get(name)


@pytest.mark.parametrize("line", [
    b"{", b"[1, 2]", b"3", b"null", b'"text"', b"\xff\xfe{}", b"{'id': 1}", b"[" * 200_000,
    b"\xef\xbb\xbf{}", b'{"id": 1' + b"0" * 5000 + b', "prompt": "p", "responses": ["x"]}'],
    ids=["cut", "list", "number", "null", "text", "utf-16", "quotes", "deep", "bom", "huge"])
def test_reader_names_the_line_that_is_not_a_record(tmp_path, line):
    path = tmp_path / "items.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    message = str(error.value)
    assert f"{path}, line 2" in message and "\n" not in message and len(message) < 500


def test_reader_refuses_a_repeated_id(tmp_path):
    path = write(tmp_path / "items.jsonl", {**GOOD, "id": 1}, {**GOOD, "id": "1"})
    with pytest.raises(UserError, match="line 2.*'id'"):
        read_jsonl(path)


def test_an_item_without_an_id_gets_one_from_its_texts(tmp_path):
    """The same in every file, whatever the labels say; two equal items have two ids."""
    other = {**without("id"), "prompt": "Ho"}
    rows = [without("id"), other, {**without("id"), "rewards": [1, 0], "id": None}, GOOD]
    first, second, again, named = read_jsonl(write(tmp_path / "items.jsonl", *rows))
    assert len({first.id, second.id, again.id, named.id}) == 4 and named.id == "a"
    assert again.id == first.id + "-2" and len(first.id) == 16
    assert read_jsonl(write(tmp_path / "more.jsonl", other))[0].id == second.id


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text, lambda text: b"\xef\xbb\xbf" * 2 + text,
    lambda text: text.replace(b"\n", b"\n\xef\xbb\xbf"), lambda text: b"\n\xef\xbb\xbf" + text,
    lambda text: text.decode().encode("utf-16"),
    lambda text: ("\ufeff" + text.decode()).encode("utf-16-be")],
    ids=["first", "twice", "joined files", "behind a blank line", "utf-16", "utf-16-be"])
def test_reader_looks_through_a_byte_order_mark(change, tmp_path, capsys):
    path = write(tmp_path / "items.jsonl", GOOD, {**GOOD, "id": "b", "prompt": "é"})
    path.write_bytes(change(path.read_bytes()))
    assert [(e.id, e.prompt[0]["content"]) for e in read_jsonl(path, skip_bad=True)] == [
        ("a", "Hi"), ("b", "é")]
    assert capsys.readouterr().out == ""


def test_reader_drops_items_whose_best_text_stands_twice(tmp_path, capsys):
    """No judge can put one of two equal texts above the other, whatever the label says."""
    rows = [{**GOOD, "responses": ["x", "x"]}, {**GOOD, "id": "b"},
            {**GOOD, "id": "c", "responses": ["x", "y", "x"], "rewards": [2, 1, 0]},
            {**GOOD, "id": "d", "responses": ["y", "x", "x"], "rewards": [2, 1, 0]},
            {**GOOD, "id": "e", "responses": ["x", "x"], "rewards": None}]  # to be scored
    assert [e.id for e in read_jsonl(write(tmp_path / "items.jsonl", *rows))] == ["b", "d", "e"]
    assert "3 items; 2 dropped" in capsys.readouterr().out


def test_a_field_of_the_user_named_of_joins_nothing(tmp_path):
    """Only the pairs that `as_pairs` makes are parts of one item."""
    rows = [{**GOOD, "id": f"{i}", "of": value} for i, value in enumerate(["x", "x", [1]])]
    judgment = Judgment(0, [0, 1], [], [], "", None, "no_box", [])
    judged = [sample_row(e, [judgment])
              for e in read_jsonl(write(tmp_path / "items.jsonl", *rows))]
    assert len(judged) == 3 and not any("of" in row for row in judged)


def test_reader_keeps_what_it_does_not_know_and_fills_in_defaults(tmp_path):
    row = {"id": 7, "prompt": "Hi", "responses": ["", "y"], "source": "web", "extra": {"a": 1}}
    assert read_jsonl(write(tmp_path / "items.jsonl", row)) == [PreferenceExample(
        "7", [{"role": "user", "content": "Hi"}], ["", "y"], None, "all", None, None,
        {"source": "web", "extra": {"a": 1}})]


def test_reader_accepts_what_people_write(tmp_path):
    separators = {**GOOD, "id": "sep", "prompt": "a\u2028b\x85c"}
    lines = [json.dumps({**GOOD, "id": "two"}), "",
             json.dumps({**GOOD, "id": "one", "responses": ["x"], "rewards": [1]}), "   ",
             json.dumps({**GOOD, "id": "real", "rewards": [0.25, -3]}),
             json.dumps(separators, ensure_ascii=False)]
    path = tmp_path / "items.jsonl"
    path.write_bytes("\r\n".join(lines).encode())  # no line end after the last
    assert [e.id for e in read_jsonl(path)] == ["two", "one", "real", "sep"]
    assert read_jsonl(path)[3].prompt[0]["content"] == "a\u2028b\x85c"
    assert [e.id for e in read_jsonl(path, limit=2)] == ["two", "one"]


def test_c24_reader_drops_ties_and_says_how_many(tmp_path, capsys):
    """C24: an item without one best response has no label (Eq. 10)."""
    low = {**GOOD, "id": "low", "responses": ["a", "b", "c"], "rewards": [0, 0, 1]}
    path = write(tmp_path / "items.jsonl", {**GOOD, "id": "t", "rewards": [1, 1]}, GOOD,
                 {**GOOD, "id": "u", "rewards": [2, 2.0]}, low)
    assert [e.id for e in read_jsonl(path)] == ["a", "low"]
    assert "2 items; 2 dropped" in capsys.readouterr().out
    with pytest.raises(UserError, match="no usable item; 2 dropped"):
        read_jsonl(write(path, {**GOOD, "rewards": [1, 1]}, {**GOOD, "id": "b", "rewards": [0, 0]}))


def test_reader_skips_bad_lines_only_when_told(tmp_path, capsys):
    bad = {**GOOD, "id": "b", "responses": 3}
    path = write(tmp_path / "items.jsonl", "{", GOOD, bad, GOOD, {**GOOD, "id": "c"})
    assert [e.id for e in read_jsonl(path, skip_bad=True)] == ["a", "c"]
    assert "3 malformed rows" in capsys.readouterr().out
    for empty in ("", "\n\n", "{\n"):
        path.write_text(empty)
        with pytest.raises(UserError, match="no usable item"):
            read_jsonl(path, skip_bad=True)


def test_reader_on_a_missing_file_or_a_folder(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(path))):
            read_jsonl(path)


def test_half_a_surrogate_pair_is_refused_and_named(tmp_path):
    """A cut emoji, as scraped data have them: valid JSON, but no text that a file can hold."""
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a", "prompt": "Hi \\ud83d", "responses": ["x", "y"]}\n')
    with pytest.raises(UserError, match="line 1"):
        read_jsonl(path)
