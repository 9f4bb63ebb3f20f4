"""Readers and arguments under random input: a correct result, or one line that names what is wrong
and exit code 2.

    FUZZ=20 pytest -q tests/plumbing/test_fuzz.py      # twenty times as many inputs
"""
import argparse
import dataclasses
import gzip
import importlib
import json
import math
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, error_of, run_program
from hypothesis import given, settings
from hypothesis import strategies as st

from grm import PreferenceExample, build_prompt, encode_chat
from plumbing import generation, runs, served
from plumbing.data import load_chats, load_examples
from plumbing.records import read_jsonl
from plumbing.runs import UserError
from plumbing.sets import SETS

TIMES = int(os.environ.get("FUZZ", 1))
FIXTURES = ROOT / "tests" / "fixtures"


def fuzz(times, *strategies):
    """Decorator: runs the function with `times` random inputs."""
    def decorate(check):
        settings(max_examples=times * TIMES)(given(st.tuples(*strategies))(
            lambda values: check(*values)))()
    return decorate


def assert_user_error(error, *words):
    """One line that names each of the words."""
    text = str(error)
    assert text and "\n" not in runs.one_line(text) and all(str(w) in text for w in words), text


def assert_usable(examples):
    """What the programs do with every example."""
    assert examples and len({e.id for e in examples}) == len(examples)
    for e in examples:
        assert e.prompt[-1]["role"] == "user" and all(isinstance(r, str) for r in e.responses)
        assert isinstance(e.domain, str)
        if e.rewards is not None:
            assert len(e.rewards) == len(e.responses) and all(map(math.isfinite, e.rewards))
            assert len(e.responses) == 1 or e.rewards.count(max(e.rewards)) == 1
        json.dumps(dataclasses.asdict(e), ensure_ascii=False).encode("utf-8")
        build_prompt(e, "compact")


# ----- random JSON, and random changes of good rows -----

TEXT = st.text(max_size=6) | st.sampled_from([
    "user", "assistant", "N/A", "model_a", "Rating", "\ud800", "\u2028", "\x00", "é" * 50])
# runs.py has torch flush denormal numbers, which hypothesis notices
FLOATS = st.floats(allow_subnormal=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXT
    | st.sampled_from([10 ** 400, -1, 0, 1, 2]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5)


def places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def changed(draw, rows):
    """One of the rows with one place in it replaced or deleted, as JSON (at times cut off)."""
    row = json.loads(json.dumps(draw(st.sampled_from(rows))))
    path = draw(st.sampled_from([p for p in places(row) if p]))
    at = row
    for key in path[:-1]:
        at = at[key]
    if draw(st.integers(0, 4)) == 0:
        del at[path[-1]]
    else:
        at[path[-1]] = draw(JSON)
    text = json.dumps(row).encode()
    return text[:draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


GOOD = [{"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [0, 1], "domain": "d",
         "reference": "r", "preference_strength": 2},
        {"id": "b", "responses": ["x"], "rewards": [1], "prompt": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}]
RAW = st.binary(max_size=40) | st.sampled_from([
    b"\xff\xfe{}", b"[" * 2000, b"9" * 5000, b"\xef\xbb\xbf{}", b"null", b'"a"', b"NaN", b"\x00"])


def test_records(tmp_path):
    path = tmp_path / "fuzz.jsonl"

    @fuzz(200, st.lists(changed(GOOD) | RAW, min_size=1, max_size=3), st.booleans())
    def check(lines, skip_bad):
        path.write_bytes(b"\n".join(lines))
        try:
            assert_usable(read_jsonl(path, skip_bad))
        except UserError as error:
            assert_user_error(error, path)
            assert skip_bad or any(word in str(error) for word in (
                ", line ", "no usable item", "cannot be read"))  # the last: not UTF-16 either


@pytest.mark.parametrize("name", SETS)
def test_rows_of_every_set(name, tmp_path):
    found = [*FIXTURES.glob(f"{name}.jsonl"), *sorted((FIXTURES / name).rglob("*.json*"))]
    file = next(f for f in found if f.name != "config.json")
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [
        json.loads(line) for line in text.split("\n") if line]
    path = (tmp_path / file.relative_to(FIXTURES)).with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    split = "test" if isinstance(SETS[name][1], str) else "train"

    @fuzz(25, changed(rows), st.booleans())
    def check(line, skip_bad):
        path.write_bytes(line + b"\n" + json.dumps(rows[0]).encode() + b"\n")
        try:
            assert_usable(load_examples(f"{name}:{path}", split, skip_bad=skip_bad))
        except UserError as error:
            assert_user_error(error, name)
            assert f"{path}, line 1: " in str(error) and not skip_bad or any(
                word in str(error) for word in ("no usable item", "no rows", "no item left")), error


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".csv", ".parquet"])
def test_files_of_rubbish(ending, tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    good = json.dumps(rows).encode()
    if ending == ".parquet":
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "good.parquet")
        good = (tmp_path / "good.parquet").read_bytes()
    elif ending == ".csv":
        good = b"prompt,chosen,rejected\np,a,b\n"
    elif ending == ".jsonl.gz":
        good = gzip.compress(good)
    path, place = tmp_path / f"fuzz{ending}", st.integers(0, len(good) - 1)
    other_byte = st.tuples(place, st.integers(0, 255)).map(
        lambda change: good[:change[0]] + bytes([change[1]]) + good[change[0] + 1:])

    # pyarrow ends the process at a .json file that is null
    raw = RAW.filter(lambda content: content.strip() != b"null") if ending == ".json" else RAW

    @fuzz(20, raw | place.map(lambda n: good[:n]) | other_byte)
    def check(content):
        path.write_bytes(content)
        try:
            assert_usable(load_examples(f"pairs:{path}", "train"))
        except UserError as error:
            assert_user_error(error, path)


def test_chats(tmp_path, toy_tokenizer):
    rows = [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}]
    path = tmp_path / "chats.jsonl"

    @fuzz(150, changed(rows) | RAW)
    def check(line):
        path.write_bytes(line)
        try:
            for chat in load_chats(str(path), 2):
                encode_chat(toy_tokenizer, chat[:-1], chat[-1]["content"])
        except UserError as error:
            assert_user_error(error, path)


def test_templates(tmp_path):
    path = tmp_path / "template.txt"
    item = PreferenceExample("x", [{"role": "user", "content": "q"}], ["{hint}", "b"], [1, 0],
                             reference="ref")
    fields = st.sampled_from(["{conversation}", "{responses}", "{output_format}", "{reference}",
                              "{hint}", "{given_principles}", "{x}", "{", "}"])
    texts = st.lists(fields | st.text(max_size=4), max_size=9).map(
        lambda parts: "".join(parts).encode("utf-8", "ignore"))

    @fuzz(150, texts | st.binary(max_size=30), st.booleans(), st.booleans())
    def check(content, hint, reference):
        path.write_bytes(content)
        try:
            [message] = build_prompt(item, str(path), hint=hint, use_reference=reference)
        except UserError as error:
            assert_user_error(error, path)
            return
        text = message["content"]
        assert "[The Begin of Response 1]\n{hint}\n[The End of Response 1]" in text
        assert "\\boxed{x, x}" in text
        assert not hint or "The best response is: Response 1" in text


# ----- arguments: every flag of every program -----

PROGRAMS = {"grm": [], "spct_rft": [], "spct_rl": [], "meta_rm": [], "infer_scale": [], "eval": [],
            "btrm": ["btrm"], "cloud": ["cloud"], "tokenprob": ["tokenprob"]}
NUMBERS = ["-1", "0", "1", "2", "3", "0.5", "-0.5", "nan", "inf", "-inf", "1e400", "x", "",
           "1" * 30, " 1", "0x1", "١"]
WORDS = ["", ".", "/", "../..", "~", str(ROOT / "tests"), str(ROOT / "README.md"), "no/such",
         "no/such/file.jsonl", "toy", "toy#test", "toy:x", "train", "test", "x" * 300, "a\nb", "é",
         "-", "--", "pairs:", "math:no", "rewardbench", "rewardbench:/none", "helpsteer2@main",
         "rmb", ":", "@", "#", "*", "none", "nan", "{}", "all", "chat", "safety", "1-10", "best",
         "https://example.org/x", "compact", "full"]


class Accepted(BaseException):
    """The program got as far as loading a model: it took the arguments."""


def flags_of(program):
    """The argparse actions of a program."""
    found = []

    def caught(parser, *args):
        found.extend(parser._actions)
        raise SystemExit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        run_program(program)
    ours = ("help", "output", "overwrite", "rft", "rl")
    return [a for a in found if a.option_strings and a.dest not in ours]


@pytest.mark.parametrize("name", PROGRAMS)
def test_arguments(name, tiny, tmp_path, monkeypatch):
    program = name if (ROOT / f"{name}.py").exists() else "extras.baselines"
    first = PROGRAMS[name] + ["--test_limit", "3"] * bool(PROGRAMS[name])
    load = generation.load_model

    def loading(model, *args, **options):
        if str(model) == tiny:
            raise Accepted
        return load(model, *args, **options)

    def loading_judge(args, model, *more):
        if args.endpoint:
            raise Accepted
        return loading(model)
    for module in {importlib.import_module(program), generation}:
        if hasattr(module, "load_model"):
            monkeypatch.setattr(module, "load_model", loading)
    monkeypatch.setattr(served, "load_judge", loading_judge)
    monkeypatch.chdir(tmp_path)
    actions, rng, seen = flags_of(program), random.Random(name), Counter()
    assert len(actions) > 10

    def value(action):
        if action.choices:
            return str(rng.choice([*action.choices, "x"]))
        number = action.type in (int, float)
        return rng.choice(NUMBERS if number else [*WORDS, tiny, *NUMBERS[:3]])
    for number in range(40 * TIMES):
        words = [*first, "--model", tiny, "--limit", "3", "--output", f"out{number}"]
        more = rng.sample(actions, rng.choice([0, 0, 0, 1, 3]))
        for action in [actions[number % len(actions)], *more]:
            words.append(rng.choice(action.option_strings))
            words += [value(action)] if action.nargs != 0 else []
        words += ["--grm", tiny] * (program == "meta_rm" and rng.random() < 0.7)
        words += ["--data", "toy"] * (program == "grm" and rng.random() < 0.5)
        try:
            result = run_program(program, *words)
        except Accepted:
            seen["accepted"] += 1
            continue
        seen[result[0]] += 1
        assert result[0] == 0 or len(error_of(result)) > 20, words
    # both kinds of command lines were tried
    assert seen[2] and (seen["accepted"] or name == "tokenprob"), seen


def test_outputs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    for word in ["", "x" * 300, "a\nb", "é", "-", "--", "a:b@c#*{}", "https://example.org/x",
                 "a/b/c", "file", "file/x", "/dev/null", "/dev/null/x"]:
        result = run_program("eval", "--model", tiny, "--limit", 2, "--max_new_tokens", 2,
                             "--output", word)
        assert result[0] == 0 or error_of(result), word
    assert Path("file").read_text() == "mine"


# ----- files of a run that something damaged -----

@pytest.mark.parametrize("name", ["config.json", "samples.jsonl"])
def test_damaged_run_files(name, tiny, tmp_path):
    judge = ["infer_scale", "--model", tiny, "--limit", 2, "--k", 1, "--max_new_tokens", 3,
             "--output", tmp_path / "run"]
    table = ["eval", "--runs", f"a={tmp_path / 'run'}", "--output", tmp_path / "tables"]
    assert run_program(*judge)[0] == 0
    whole, rng = (tmp_path / "run" / name).read_bytes(), random.Random(name)
    for _ in range(15 * TIMES):
        place, byte = rng.randrange(len(whole)), bytes([rng.randrange(256)])
        damaged = rng.choice([whole[:place], whole[:place] + byte * 3 + whole[place + 3:],
                              b"[]\n", b"{}\n", b"\xff\n"])
        (tmp_path / "run" / name).write_bytes(damaged)
        for words in [judge, table] if name == "samples.jsonl" else [judge]:
            if words == judge and name == "samples.jsonl" and damaged == b"{}\n":
                continue
            try:
                result = run_program(*words)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                # Still JSON, but other values inside a judgment: not checked field by field (only
                # what a user can name is).
                assert name == "samples.jsonl" and damaged.count(b"\n") == whole.count(b"\n"), error
                continue
            assert result[0] == 0 or error_of(result), damaged
