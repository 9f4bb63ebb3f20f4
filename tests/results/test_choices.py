"""docs/choices.md holds every choice and deviation of the code, docs/metrics.md every name that is
logged; and how the files hang together."""
import ast
import re
from collections import Counter

import pytest
from conftest import ROOT

CHOICES = (ROOT / "docs" / "choices.md").read_text(encoding="utf-8")
FOLDERS = [".", "plumbing", "toy_world", "extras", "results"]
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
           for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))}
SIX = ["grm", "spct_rft", "spct_rl", "meta_rm", "infer_scale", "eval"]


def functions(source):
    """{function, class or constant: (first line, last line)} of a file."""
    nodes = ast.parse(source).body
    return {getattr(n, "name", None) or n.targets[0].id: (n.lineno, n.end_lineno) for n in nodes
            if hasattr(n, "name") or isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")}


def test_every_choice_and_deviation_has_a_row_and_every_row_its_mark():
    """docs/choices.md: the last column names file.py:function; a deviation says so there."""
    marked, listed = Counter(), Counter()
    for file, source in SOURCES.items():
        for number, line in enumerate(source.splitlines(), 1):
            for kind in re.findall(r"(?<!`# )\b(Choice|Deviation):", line):  # `# Choice:` is talk
                inside = [n for n, (a, b) in functions(source).items() if a <= number <= b]
                marked[kind, f"{file}:{inside[0] if inside else 'outside of any function'}"] += 1
    for row in re.findall(r"^\|.*\|$", CHOICES, re.M):
        last = row.split("|")[-2]
        for place in re.findall(r"`((?:\w+/)?\w+\.py:\w+)`", last):
            listed["Deviation" if "deviation" in last else "Choice", place] += 1
    assert not marked - listed, f"no row: {sorted((marked - listed).elements())}"
    assert not listed - marked, f"no mark in the code: {sorted((listed - marked).elements())}"
    assert sum(marked.values()) >= 25


def test_the_flags_of_trl_exist_and_have_the_defaults_said():
    config = pytest.importorskip("trl").GRPOConfig.__dataclass_fields__
    table = CHOICES.partition("For users of TRL")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)", table, re.M)) <= set(config)
    assert (config["loss_type"].default, config["use_bias_correction_kl"].default) == ("dapo", True)
    assert (config["beta"].default, config["num_generations"].default) == (0.0, 8)


def test_the_glossary_has_the_names_that_are_logged():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`(\w+(?:/\w+)?)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    assert {name for name in said if "/" in name} == set(
        re.findall(r'"((?:reward|policy|len|opt|time)/\w+)":', SOURCES["spct_rl.py"]))
    used = set(re.findall(r"\w+", SOURCES["eval.py"] + SOURCES["extras/benchmarks.py"]))
    assert {"accuracy", "tie_rate"} <= {name for name in said if "/" not in name} <= {
        *used, "position_bias", "length_bias"}


def imports(source):
    """Modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(source)))
    return [n.module for n in nodes if isinstance(n, ast.ImportFrom)] + [
        a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]


def test_imports_point_backwards():
    """The six files in their order; plumbing and the toy's items import none of them."""
    for place, name in enumerate(SIX):
        theirs = {module.split(".")[0] for module in imports(SOURCES[f"{name}.py"])}
        assert not theirs & {*SIX[place:], "extras", "results", "exercises"}, name
        assert len(SOURCES[f"{name}.py"].splitlines()) <= 520, f"{name}: more than a sitting"
    for file, source in SOURCES.items():
        if file.startswith("plumbing/") or file == "toy_world/world.py":
            assert not set(imports(source)) & set(SIX), file


def test_no_machine_path_is_in_the_project():
    for file, source in SOURCES.items():
        assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work)/\w", source), file
