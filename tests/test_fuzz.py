"""Readers and arguments under random input: a correct result, or one line that names what is wrong and exit code 2.

    pytest -q tests/test_fuzz.py                      # prints how many inputs were tried
    FUZZ=20 pytest -q tests/test_fuzz.py              # twenty times as many
"""
import argparse
import dataclasses
import gzip
import importlib
import json
import math
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, make_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from grm import build_prompt, encode_chat, parse_judgment
from plumbing import generation, runs, served
from plumbing.data import LOADERS, load_chats, load_examples
from plumbing.records import read_jsonl
from plumbing.runs import UserError, save_model

TIMES = int(os.environ.get("FUZZ", 1))
COUNT = Counter()
FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def counted(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nfuzzed:", json.dumps(dict(COUNT, total=sum(COUNT.values()))))


def fuzz(kind, times, *strategies):
    """Decorator: runs the function with `times` random inputs, counted under `kind`."""
    def decorate(check):
        @settings(max_examples=times * TIMES)
        @given(st.tuples(*strategies))
        def run(values):
            COUNT[kind] += 1
            check(*values)
        run()
    return decorate


def assert_user_error(error, *words):
    """One line that names each of the words."""
    text = str(error)
    assert text and "\n" not in runs.one_line(text) and all(str(w) in text for w in words), text


def assert_usable(examples):
    """What the programs do with every example."""
    assert examples and len({e.id for e in examples}) == len(examples)
    for e in examples:
        assert e.prompt[-1]["role"] == "user" and all(isinstance(r, str) for r in e.responses) and isinstance(e.domain, str)
        if e.rewards is not None:
            assert len(e.rewards) == len(e.responses) and all(math.isfinite(r) for r in e.rewards)
            assert len(e.responses) == 1 or e.rewards.count(max(e.rewards)) == 1
        json.dumps(dataclasses.asdict(e), ensure_ascii=False).encode("utf-8")
        build_prompt(e, "compact")


# ----- random JSON, and random changes of good rows -----

TEXT = st.text(max_size=6) | st.sampled_from(["user", "assistant", "N/A", "model_a", "Rating", "\ud800", "\u2028", "\x00", "é" * 50])
FLOATS = st.floats(allow_subnormal=False)  # runs.py has torch flush denormal numbers, which hypothesis notices
JSON = st.recursive(st.none() | st.booleans() | st.integers() | FLOATS | TEXT | st.sampled_from([10 ** 400, -1, 0, 1, 2]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5)


def places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def changed(draw, rows):
    """One of the rows with one place in it replaced or deleted, as JSON text (at times cut off)."""
    row = json.loads(json.dumps(draw(st.sampled_from(rows))))
    path = draw(st.sampled_from([p for p in places(row) if p]))
    at = row
    for key in path[:-1]:
        at = at[key]
    if draw(st.integers(0, 4)) == 0:
        del at[path[-1]]
    else:
        at[path[-1]] = draw(JSON)
    text = json.dumps(row)
    return text[:draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


GOOD = [{"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [0, 1], "domain": "d", "reference": "r", "preference_strength": 2},
        {"id": "b", "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "responses": ["x"], "rewards": [1]}]
RAW = st.binary(max_size=40) | st.sampled_from([b"\xff\xfe{}", b"[" * 2000, b"9" * 5000, b"\xef\xbb\xbf{}", b"null", b'"a"', b"NaN", b"\x00"])


def test_records(tmp_path):
    path = tmp_path / "fuzz.jsonl"

    @fuzz("records", 200, st.lists(changed(GOOD).map(str.encode) | RAW, min_size=1, max_size=3), st.booleans())
    def check(lines, skip_bad):
        path.write_bytes(b"\n".join(lines))
        try:
            assert_usable(read_jsonl(path, skip_bad))
        except UserError as error:
            assert_user_error(error, path)
            assert skip_bad or ", line " in str(error) or "no usable item" in str(error)


@pytest.mark.parametrize("name", LOADERS)
def test_rows_of_every_set(name, tmp_path):
    file = next(f for f in sorted([*FIXTURES.glob(f"{name}.jsonl"), *(FIXTURES / name).rglob("*.json*")]) if f.name != "config.json")
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    path = tmp_path / file.relative_to(FIXTURES)
    path = path.with_name(path.name.split(".")[0] + ".jsonl") if name != "rmb" else path.with_name(path.name + "l")
    path.parent.mkdir(parents=True, exist_ok=True)
    benchmark = isinstance(LOADERS[name][1], str)

    @fuzz(f"rows of {name}", 25, changed(rows), st.booleans())
    def check(line, skip_bad):
        path.write_text(line + "\n" + json.dumps(rows[0]) + "\n", encoding="utf-8")
        try:
            assert_usable(load_examples(f"{name}:{path}", "test" if benchmark else "train", skip_bad=skip_bad))
        except UserError as error:
            assert_user_error(error, name)
            assert f"{path}, line 1: " in str(error) and not skip_bad or "no usable item" in str(error) or "no rows" in str(error) or \
                "no item left" in str(error), error


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet"])
def test_files_of_rubbish(ending, tmp_path):
    good = json.dumps([{"prompt": "p", "chosen": "a", "rejected": "b"}]).encode()
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(json.loads(good)), tmp_path / "good.parquet")
    good = (tmp_path / "good.parquet").read_bytes() if ending == ".parquet" else gzip.compress(good) if ending.endswith("gz") else good
    path = tmp_path / f"fuzz{ending}"

    @fuzz("files", 20, RAW | st.integers(0, len(good)).map(lambda n: good[:n]) | st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)).map(
        lambda change: good[:change[0]] + bytes([change[1]]) + good[change[0] + 1:]))
    def check(content):
        path.write_bytes(content)
        try:
            assert_usable(load_examples(f"pairs:{path}", "train"))
        except UserError as error:
            assert_user_error(error, path)


def test_chats(tmp_path, toy_tokenizer):
    rows = [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}]

    @fuzz("chats", 150, changed(rows).map(str.encode) | RAW)
    def check(line):
        (tmp_path / "chats.jsonl").write_bytes(line)
        try:
            for chat in load_chats(str(tmp_path / "chats.jsonl"), 2):
                encode_chat(toy_tokenizer, chat[:-1], chat[-1]["content"])
        except UserError as error:
            assert_user_error(error, tmp_path / "chats.jsonl")


# ----- judgments -----

PIECES = st.sampled_from(["\\boxed{", "}", "{", ",", " ", "1", "10", "11", "0", "-1", "+7", "7.5", "x", "٣", "５", "9" * 5000, "\\boxed{8, 9}",
                          "**", "\n", "\\frac{1}{2}", "Scores: "]) | st.text(max_size=3)


def test_judgments():
    @fuzz("judgments", 400, st.lists(PIECES, max_size=12).map("".join), st.integers(1, 5), st.sampled_from(["1-10", "0-1", "best"]),
          st.booleans())
    def check(text, n, rating, clamp):
        scores, reason = parse_judgment(text, n, rating, clamp)
        inside = text[text.rfind("\\boxed{") + 7:] if "\\boxed{" in text else ""
        if scores is None:
            assert reason in ("no_box", "wrong_count", "not_a_number", "out_of_range")
        elif not clamp and rating != "best" and "{" not in inside:  # read again, the plain way
            assert scores == [int(part) for part in inside.split("}")[0].split(",")] and reason == "ok"
            assert all((0 if rating == "0-1" else 1) <= s <= (1 if rating == "0-1" else 10) for s in scores)


def test_templates(tmp_path):
    from grm import PreferenceExample
    item = PreferenceExample("x", [{"role": "user", "content": "q"}], ["{hint}", "b"], [1, 0], reference="ref")
    fields = st.sampled_from(["{conversation}", "{responses}", "{output_format}", "{reference}", "{hint}", "{given_principles}", "{x}", "{", "}"])

    @fuzz("templates", 150, st.lists(fields | st.text(max_size=4), max_size=9).map(lambda p: "".join(p).encode("utf-8", "ignore")) | st.binary(max_size=30),
           st.booleans(), st.booleans())
    def check(content, hint, reference):
        path = tmp_path / "template.txt"
        path.write_bytes(content)
        try:
            text = build_prompt(item, str(path), hint=hint, use_reference=reference)[0]["content"]
        except UserError as error:
            assert_user_error(error, path)
            return
        assert "[The Begin of Response 1]\n{hint}\n[The End of Response 1]" in text and "\\boxed{x, x}" in text
        assert not hint or "The best response is: Response 1" in text


# ----- arguments: every flag of every program -----

PROGRAMS = {"grm": [], "spct_rft": [], "spct_rl": [], "meta_rm": [], "infer_scale": [], "eval": [], "btrm": [], "pairrm": [], "cloud": [],
            "tokenprob": []}
NUMBERS = ["-1", "0", "1", "2", "3", "0.5", "-0.5", "nan", "inf", "-inf", "1e400", "x", "", "1" * 30, " 1", "0x1", "١"]
WORDS = ["", ".", "/", "no/such", "no/such/file.jsonl", "toy", "toy#test", "toy:x", "train", "test", "x" * 300, "a\nb", "é", "\udcff", "-", "--",
         "pairs:", "math:no", "rewardbench", "rewardbench:/none", "helpsteer2@main", "rmb", ":", "@", "#", "~", "*", "none", "nan", "{}", "all",
         "https://example.org/x", "../..", "1-10", "best", "compact", "full", str(ROOT / "README.md"), str(ROOT / "tests"), "chat", "safety"]


class Accepted(BaseException):
    """The program got as far as loading a model: it took the arguments."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, toy_tokenizer):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(folder, make_tiny_model("llama", len(toy_tokenizer), toy_tokenizer.eos_token_id), toy_tokenizer)
    return str(folder)


def flags_of(program, monkeypatch):
    """The argparse actions of a program."""
    found = []

    def caught(parser, *args):
        found.extend(parser._actions)
        raise SystemExit
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(SystemExit):
            importlib.import_module(program).main()
    return [a for a in found if a.option_strings and a.dest not in ("help", "output", "overwrite", "rft", "rl")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_arguments(name, tiny, tmp_path, monkeypatch, capsys):
    program = name if (ROOT / f"{name}.py").exists() else "baselines"
    load = generation.load_model

    def loading(model, *args, **options):
        if str(model) == tiny:
            raise Accepted
        return load(model, *args, **options)
    def loading_judge(args, model, *more):
        if args.endpoint:
            raise Accepted
        return loading(model)
    monkeypatch.setattr(generation, "load_model", loading)
    monkeypatch.setattr(served, "load_judge", loading_judge)
    monkeypatch.chdir(tmp_path)
    actions = flags_of(program, monkeypatch)
    assert len(actions) > 10
    rng, seen = random.Random(f"{name}"), Counter()

    def value(action):
        if action.choices:
            return str(rng.choice([*action.choices, "x"]))
        if action.type in (int, float):
            return rng.choice(NUMBERS)
        return rng.choice([*WORDS, tiny, *NUMBERS[:3]])
    for number in range(40 * TIMES):
        words = [*([name] if program == "baselines" else []), "--model", tiny, "--limit", "3", "--output", f"out{number}"]
        words += ["--test_limit", "3"] if program == "baselines" else []
        chosen = [actions[number % len(actions)]] + rng.sample(actions, rng.choice([0, 0, 0, 1, 3]))
        for action in chosen:
            words.append(rng.choice(action.option_strings))
            words += [value(action)] if action.nargs != 0 else []
        if program == "meta_rm":
            words += ["--grm", tiny] if rng.random() < 0.7 else []
        if program == "grm" and rng.random() < 0.5:
            words += ["--data", "toy"]
        COUNT["command lines"] += 1
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *words])
        capsys.readouterr()
        try:
            importlib.import_module(program).main()
            code = 0
        except Accepted:
            code = "accepted"
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
        assert code in (0, "accepted", 2), (words, code, err)
        if code == 2:
            assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) > 20, (words, err)
        seen[code] += 1
    assert seen[2] and (seen["accepted"] or name == "tokenprob"), seen  # both kinds of command lines were tried


@pytest.mark.parametrize("flag", ["--output"])
def test_outputs(flag, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    for word in [w for w in WORDS if w not in ("/", ".", "../..", "~", str(ROOT / "tests"))] + ["file", "file/x", "a/b/c", "/dev/null", "/dev/null/x"]:
        COUNT["command lines"] += 1
        monkeypatch.setattr(sys, "argv", ["eval.py", "--model", tiny, "--limit", "2", "--max_new_tokens", "2", "--output", word])
        capsys.readouterr()
        code = 0
        try:
            importlib.import_module("eval").main()
        except SystemExit as stop:
            code = stop.code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
        assert code in (0, 2) and (code == 0 or len(lines) == 1 and lines[0].startswith("error: ")), (word, code, lines)
    assert Path("file").read_text() == "mine"


# ----- files of a run that something damaged -----

@pytest.mark.parametrize("name", ["config.json", "samples.jsonl"])
def test_damaged_run_files(name, tiny, tmp_path, monkeypatch, capsys):
    words = ["infer_scale.py", "--model", tiny, "--limit", "2", "--k", "1", "--max_new_tokens", "3", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    importlib.import_module("infer_scale").main()
    whole, rng = (tmp_path / "run" / name).read_bytes(), random.Random(name)
    for _ in range(25 * TIMES):
        COUNT["damaged files"] += 1
        place = rng.randrange(len(whole))
        damaged = rng.choice([whole[:place], whole[:place] + bytes([rng.randrange(256)]) * 3 + whole[place + 3:], b"[]\n", b"{}\n", b"\xff\n"])
        (tmp_path / "run" / name).write_bytes(damaged)
        for program, more in (("infer_scale", words[1:]), ("eval", ["--runs", f"a={tmp_path / 'run'}", "--output", str(tmp_path / "tables")])):
            if program == "eval" and name == "config.json" or program == "infer_scale" and damaged.startswith(b"{}") and name == "samples.jsonl":
                continue
            monkeypatch.setattr(sys, "argv", [f"{program}.py", *more])
            capsys.readouterr()
            code = 0
            try:
                importlib.import_module(program).main()
            except SystemExit as stop:
                code = stop.code
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                # still JSON, but other values inside a sample: not checked field by field (only what a user can name is)
                assert damaged.count(b"\n") == whole.count(b"\n") and name == "samples.jsonl", (damaged, error)
            err = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
            assert code in (0, 2) and (code == 0 or len(err) == 1 and err[0].startswith("error: ")), (damaged, err)
