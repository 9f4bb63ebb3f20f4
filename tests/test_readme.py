"""README and command lines: every path exists, every command parses, every Choice is in the table, copies are equal."""
import argparse
import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = ["grm.py", "spct_rft.py", "spct_rl.py", "meta_rm.py", "infer_scale.py", "eval.py", "baselines.py", "toy.py",
           "results/demo.py", "results/reproduce.py", "results/hostile.py", "benchmarks/bench_sampling.py", "benchmarks/bench_growth.py",
           "benchmarks/bench_limits.py", "benchmarks/bench_rl_step.py", "results/smollm2.py", "results/smollm2_why.py", "results/failures.py",
           "results/principles.py", "examples/best_of_n.py", "examples/trl_reward.py"]
PAPER_FILES = ["grm.py", "spct_rft.py", "spct_rl.py", "meta_rm.py", "infer_scale.py", "eval.py", "baselines.py"]


@pytest.fixture(scope="module")
def helps():
    def ask(script):
        return subprocess.run([sys.executable, script, "--help"], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SCRIPTS, pool.map(ask, SCRIPTS), strict=True))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_and_explains_every_flag(helps, script):
    flags = re.findall(r"^  (--\w+)(.*(?:\n {10,}.*)*)", helps[script], re.M)
    assert flags, f"{script} --help printed nothing"
    bare = [flag for flag, text in flags if len(re.sub(r"^\s*(?:[A-Z_0-9]+|\{[^}]*\}|NAME=FOLDER|\[.*\]|\s)*", "", text).strip()) < 5]
    assert not [f for f in bare if f not in ("--seed",)], f"{script}: no help for {bare}"


def test_help_shows_the_default_here_beside_the_papers_value(helps):
    text = " ".join(helps["spct_rl.py"].split())
    for flag, default in (("--beta", "0.02"), ("--format_reward", "0.0"), ("--seed", "0"), ("--kl", "k3")):
        assert re.search(rf" {flag} [^\[]*\[here: {re.escape(default)}\]", text[text.index("options:"):]), flag
    assert "None]" not in text and "False]" not in text


@pytest.mark.parametrize("script", PAPER_FILES[1:6])
def test_common_flags(helps, script):
    for flag in ("--model", "--data", "--output", "--seed", "--limit"):
        assert flag in helps[script]


PROGRAM = re.compile(r"(?:accelerate launch (?:--\w+ \d+ )*|python |torchrun (?:--\w+ \S+ )+)((?:\w+/)?\w+\.py\b[^`&]*)")


def commands():
    """Every command line of README's and the scripts' docstrings that starts one of our programs; shell variables with their values."""
    texts = [README] + [ast.get_docstring(ast.parse((ROOT / f).read_text(encoding="utf-8"))) or "" for f in SCRIPTS]
    variables = dict(re.findall(r'^(\w)="(.*)"$', README, re.M))
    found = set()
    for text in texts:
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            for part in re.findall(r"`([^`]+)`", line) + [line]:
                for match in PROGRAM.finditer(part) if not part.strip().startswith("|") else ():
                    command = re.split("  #|   |;|&&", match[1])[0].strip()
                    found.add(re.sub(r"\$(\w)\b", lambda m: variables.get(m[1], m[1]), command))
    return sorted(found - {"tests/test_hostile.py"})  # has no flags; the suite runs it


def test_there_are_commands_to_check():
    assert len(commands()) >= 45 and any("--prompts_per_step 128 --micro_batch_size 8 --steps 900" in c and "Skywork" in c for c in commands())


class Parsed(Exception):
    pass


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_its_program_accepts(command, monkeypatch, capsys):
    """Its own parser reads it: flags, kinds of values, choices, and nothing that is required left out."""
    words = shlex.split(command.replace("<hub id>", "owner/name"))
    parse = argparse.ArgumentParser.parse_args

    def read_and_stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", [str((ROOT / words[0]).parent), str(ROOT), *sys.path])
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location(Path(words[0]).stem, ROOT / words[0])
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    try:
        program.main()
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    except Parsed:
        return
    pytest.fail("the program did not read its flags")


def test_the_quick_start_runs_as_printed(tmp_path):
    """Each plain command of the quick start, in a copy of the project, with flags appended that make it short."""
    block = re.search(r"The plain commands behind it:\n\n```bash\n(.*?)```", README, re.S)[1]
    short = {"spct_rft.py": "--limit 24 --epochs 0.2", "spct_rl.py": "--steps 1 --prompts_per_step 8", "meta_rm.py": "--limit 24",
             "infer_scale.py": "--limit 12 --k 4"}
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "runs"))
    started = []
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        script = next((w for w in words if w.endswith(".py")), None)
        if script:
            launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"] if words[0] == "accelerate" else []
            done = subprocess.run([sys.executable, *launcher, *words[words.index(script):], *short.get(script, "").split()],
                                  cwd=tmp_path / "copy", capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
            started.append(script)
    assert started == ["grm.py", "spct_rft.py", "spct_rl.py", "meta_rm.py", "infer_scale.py", "eval.py"]
    for made in re.findall(r"-> (runs/toy/\w+)", block):
        assert (tmp_path / "copy" / made).is_dir(), made


def test_every_path_in_the_readme_exists():
    paths = set(re.findall(r"(?<![\w/])((?:tests|results|toy_base|benchmarks|exercises|examples)/[\w./-]+|\b\w+\.py)\b", README))
    made_by_runs = {p for p in paths if p.startswith("runs/")}
    missing = [p for p in paths - made_by_runs if not (ROOT / p.rstrip(".")).exists()]
    assert not missing, missing


def test_imports_point_backwards():
    order = ["runs.py", "records.py", "attention.py", "generation.py", "served.py", "grm.py", "toy.py", "data.py", *PAPER_FILES[1:6], "benches.py", "baselines.py"]
    for place, name in enumerate(order):
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(
                node, ast.Import) else []
            for module in modules:
                if f"{module}.py" in order[place + 1:]:
                    assert (name, module) in {("grm.py", "data"), ("infer_scale.py", "meta_rm"), ("eval.py", "benches")}, (
                        f"{name} imports {module}")
    # meta_rm.py comes before infer_scale.py in the order of reading and is imported by it only where logits are asked for


def test_trainers_import_no_other_paper_file():
    for name in ("spct_rft.py", "spct_rl.py", "meta_rm.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for other in PAPER_FILES[1:]:
            assert not re.search(rf"^\s*(?:from|import) {other[:-3]}\b", text, re.M), (name, other)


def test_repeated_functions_are_identical():
    bodies = {}
    for name in PAPER_FILES:
        source = (ROOT / name).read_text(encoding="utf-8")
        for match in re.finditer(r"# \[repeated in: ([^\]]+)\]\n(def (\w+).*?)(?=\n\n\n)", source, re.S):
            bodies.setdefault(match[3], {})[name] = (match[2], {n.strip() for n in match[1].split(",")})
    assert bodies
    for function, copies in bodies.items():
        assert len({body for body, _ in copies.values()}) == 1, f"{function} differs between {sorted(copies)}"
        for name, (_, others) in copies.items():
            assert others | {name} == set(copies), f"{function} in {name} names {others}, found in {sorted(copies)}"


def test_paper_files_can_be_read_in_one_sitting():
    for name in PAPER_FILES:
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 520, name


def test_defaults_in_the_readme_are_those_of_the_code(helps):
    for script, flag, value in [("spct_rl.py", "G", "4"), ("spct_rl.py", "clip_eps", "0.2"), ("spct_rl.py", "temperature", "1.0"),
                                ("spct_rft.py", "n_rft", "3"), ("spct_rft.py", "general_fraction", "0.85"),
                                ("infer_scale.py", "temperature", "0.5"), ("infer_scale.py", "k", "32"), ("meta_rm.py", "n_rft", "3")]:
        source = (ROOT / script).read_text(encoding="utf-8")
        assert re.search(rf'"--{flag}", type=\w+, default={re.escape(value)},', source), (script, flag)


def test_nothing_is_hidden_in_the_project():
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        if path.endswith((".py", ".md", "Makefile", "run", ".txt", ".csv")):
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work)/\w", text) or path.startswith("tests/"), path
