"""README.md, docs/*.md and docstrings: every command is one that its program accepts, and every
path, link, flag, place and test named there exists."""
import argparse
import ast
import importlib
import os
import re
import shlex
import sys
from unittest import mock

import pytest
from conftest import ROOT

SIX = ["grm", "spct_rft", "spct_rl", "meta_rm", "infer_scale", "eval"]
PAGES = ["README.md", "exercises/README.md", "results/README.md",
         *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]
FOLDERS = [".", "plumbing", "toy_world", "extras", "results", "exercises"]
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
           for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SAID = {  # defaults that README.md and docs/choices.md name
    "grm": {"template": None}, "eval": {"temperature": 0},
    "spct_rft": {"n_rft": 3, "temperature": 1, "general_fraction": 0.85, "sampler": None},
    "spct_rl": {"G": 4, "temperature": 1, "updates_per_rollout": 1, "kl": "k3"},
    "meta_rm": {"n_rft": 3, "temperature": 0.5}, "infer_scale": {"k": 32, "temperature": 0.5}}
STARTS = r"(?:\w+=\S+ )*(?:python|torchrun|accelerate|make) "


# ----- commands -----

def command_lines():
    """Of a page: its bash blocks, and inline code that starts a program; of a docstring: its
    indented lines that do."""
    for text in TEXT.values():
        blocks = "".join(body for kind, body in FENCE.findall(text) if kind == "bash")
        yield from re.sub(r"\\\n\s*", " ", blocks).splitlines()
        spans = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
        yield from (code for code in spans if re.match(STARTS, code))
    for source in SOURCES.values():
        text = re.sub(r"\\\n\s*", " ", ast.get_docstring(ast.parse(source)) or "")
        yield from (line.strip() for line in text.splitlines() if re.match(" {4}" + STARTS, line))


def commands():
    """[(program, its words)]; shell variables are replaced by their values."""
    found, values = set(), {}
    for line in command_lines():
        values |= dict(re.findall(r'^(\w)="(.*)"$', line))
        for name, value in values.items():
            line = re.sub(rf"\${name}\b", value, line)
        for part in re.split(r"&&|;", re.sub(r"\s#.*", "", line.replace("<hub id>", "owner/name"))):
            words = shlex.split(part)
            while words and re.match(r"\w+=|do$", words[0]):
                words.pop(0)
            if not words or words[0] in "pip unzip hf vllm . cp mkdir for done".split():
                continue  # programs of others
            if words[0] == "make":
                makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
                assert all(f"\n{target}:" in makefile for target in words[1:]), part
                continue
            at = next((i for i, w in enumerate(words) if w.endswith(".py") or w == "-m"), None)
            if at is None and words[:2] == ["accelerate", "launch"]:
                continue  # a sentence about the launcher
            assert at and words[0] in ("python", "torchrun", "accelerate"), f"which program? {part}"
            words = words[at:] if words[at] != "-m" else words[at + 1:]
            if words[0] not in ("venv", "pytest"):
                found.add((words[0].removesuffix(".py"), *words[1:]))
    return sorted(found)


class Parsed(Exception):
    """The flags were read; nothing else was done."""


@pytest.fixture
def parse(monkeypatch, capsys):
    """parse(program, *words) -> (parser, args); fails where the program refuses them."""
    read = argparse.ArgumentParser.parse_args

    def read_and_stop(self, *args, **kwargs):
        raise Parsed(self, read(self, *args, **kwargs))

    def run(program, *words):
        file = ROOT / (program.replace(".", "/") + ".py")
        assert file.exists(), f"no program {program}"
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
        monkeypatch.setattr(sys, "argv", [str(file), *words])
        monkeypatch.chdir(ROOT)
        try:
            with mock.patch.dict(os.environ):
                importlib.import_module(program.replace("/", ".")).main()
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
        except Parsed as stop:
            return stop.args
        pytest.fail("the program did not read its flags")
    return run


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_one_that_its_program_accepts(command, parse):
    parse(*command)


def test_commands_of_all_kinds_are_found():
    found = commands()
    assert len(found) >= 50 and {*SIX, "exercises.check"} <= {program for program, *_ in found}
    assert any("128" in command and "Skywork/" in " ".join(command) for command in found)  # $D


def test_no_command_is_refused_after_the_demo(parse):
    """A folder holds one run: a command that writes into one of the demo's asks for that run."""
    demo, runs = (importlib.import_module(name) for name in ("results.demo", "plumbing.runs"))
    lines = sum(demo.commands(parse("results.demo")[1], "runs/toy").values(), [])
    made = [vars(parse(*re.sub(r"\.py ", " ", line).split())[1]) for line in lines]
    made, refused = {args["output"]: args for args in made}, []
    for command in commands():
        args = vars(parse(*command)[1]) if command[0] in SIX else {}
        before = made.get(args.get("output"), args)
        keys = set(args) - set(runs.FREE_FLAGS) - {"model"}
        refused += [command] * any(args[key] != before[key] for key in keys)
    assert not refused


@pytest.mark.parametrize("program", SIX)
def test_every_flag_is_explained(program, parse):
    parser, args = parse(program)
    assert {flag: getattr(args, flag) for flag in SAID[program]} == SAID[program]
    flags = {action.dest: action.help for action in parser._actions}
    assert all(flags.values()) and {"model", "data", "output", "seed", "limit"} <= set(flags)
    assert not re.search(r"(None|False)\]", parser.format_help())


def test_the_lines_of_python_score_the_better_text_higher(monkeypatch):
    [block] = [body for kind, body in FENCE.findall(README) if kind == "python"]
    told = []
    monkeypatch.chdir(ROOT)
    exec(block, {"print": told.append})
    [[better, worse]] = told
    assert len(block.splitlines()) == 4 and 8 <= worse < better <= 80


def test_the_quick_start_runs_as_printed(cli, tmp_path, monkeypatch):
    """Each command in an empty folder, with flags appended that make it short."""
    block = next(body for _, body in FENCE.findall(README) if "accelerate launch" in body)
    short = {"spct_rft": "--limit 24 --epochs 0.2", "meta_rm": "--limit 24",
             "spct_rl": "--limit 24 --steps 1 --prompts_per_step 4",
             "infer_scale": "--limit 12 --k 4"}
    monkeypatch.chdir(tmp_path)
    started = []
    lines = re.findall(r"^(?:python|accelerate launch) (\w+)\.py([^#\n]*)", block, re.M)
    for program, words in lines:
        code, out, err = cli(program, *words.split(), *short.get(program, "").split())
        assert code == 0, f"{program}{words}\n{err}"
        started.append(program)
        if program == "grm":  # what README says of the judge before training
            assert re.search(r"`(Specific Criteria: [^`]*)`", README)[1] in out
    assert started == SIX
    assert all((tmp_path / made).is_dir() for made in re.findall(r"-> (runs/toy/\w+)", block))


# ----- paths, links, flags, places, tests -----

def functions(source):
    """Names of the functions, classes and constants of a file."""
    nodes = ast.parse(source).body
    return [n.name if hasattr(n, "name") else n.targets[0].id for n in nodes if hasattr(n, "name")
            or isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")]


@pytest.mark.parametrize("page", PAGES)
def test_everything_named_exists(page):
    text, missing = TEXT[page], []
    folders = "tests|results|docs|extras|exercises|plumbing|toy_world"
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w|\w+\.py)\b", text):
        places = (ROOT / path, (ROOT / page).parent / path, *ROOT.glob(f"tests/*/{path}"))
        missing += [path] * (not any(place.exists() for place in places))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        goal = (ROOT / page).parent / file if file else ROOT / page
        if not target.startswith("https://"):
            titles = re.findall(r"^#+ (.*)$", goal.read_text() if anchor else "", re.M)
            titles = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            missing += [target] * (not goal.exists() or bool(anchor) and anchor not in titles)
    known = set(re.findall(r'"(--\w+)"', "".join(SOURCES.values())))
    gone = text.partition("## Flags that are gone")[2]
    assert not known & set(re.findall(r"^\| `(--\w+)`", gone, re.M))
    spans = [s for s in re.findall(r"`([^`]+)`", FENCE.sub("", text.removesuffix(gone)))]
    said = {flag for s in spans if s.startswith("--") for flag in re.findall(r"--\w+", s)}
    missing += said - known - {"--generation", "--node_rank", "--help"}  # of vLLM, torchrun
    for file, name in re.findall(r"`((?:\w+/)?\w+\.py):(\w+)`", text):
        missing += [f"{file}:{name}"] * (name not in functions(SOURCES[file]))
    for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", text):
        found = "".join(path.read_text() for path in ROOT.glob(f"tests/*/{file}"))
        missing += [f"{file}::{name}"] * (f"\ndef {name}(" not in found)
    assert not missing


def test_the_readme_has_a_test_for_every_equation_of_the_paper():
    places = "\n".join(row.split("|")[1] for row in README.splitlines() if "::" in row)
    spans = re.findall(r"(?:Eqs?\. |, |; )(\d+)(?:-(\d+))?", places)
    named = {n for low, high in spans for n in range(int(low), int(high or low) + 1)}
    assert named == set(range(1, 16)) and "TODO" not in "".join(TEXT.values())
