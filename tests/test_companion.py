"""README as companion: every Choice and Deviation of the code has its row, every named place and test exists, every number of
the results is a cell of a CSV."""
import ast
import csv
import importlib.util
import json
import re
import shutil
from collections import Counter

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
SOURCES = sorted(str(path.relative_to(ROOT)) for folder in (".", "results", "examples", "benchmarks") for path in (ROOT / folder).glob("*.py"))


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


# ----- "Paper vs. here": `file.py:function` in the last column says where a choice stands; a deviation says so -----

def functions(name):
    """{"function" or "Class.method": (first line, last line)} of a source file."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    nodes |= {f"{c}.{n.name}": n for c, k in list(nodes.items()) if isinstance(k, ast.ClassDef) for n in k.body
              if isinstance(n, ast.FunctionDef)}
    return {key: (node.lineno, node.end_lineno) for key, node in nodes.items()}


def marked():
    """Counter of (kind, "file.py:function"), one for each `Choice:` or `Deviation:` in the code."""
    found = Counter()
    for name in SOURCES:
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            for kind in re.findall(r"(?<!`# )\b(Choice|Deviation):", line):  # `# Choice:` in a text talks about the mark
                inside = [key for key, (first, last) in functions(name).items() if first <= number <= last and "." not in key]
                assert inside, f"{name}, line {number}: a {kind} outside of any function cannot be named in the README"
                found[kind, f"{name}:{inside[0]}"] += 1
    return found


def listed():
    """The same of the README's table: the places in the last column of its rows."""
    found = Counter()
    for row in re.findall(r"^\|.*\|$", section("Paper vs. here"), re.M)[2:]:
        last = row.split("|")[-2]
        for place in re.findall(r"`((?:\w+/)?\w+\.py:[\w.]+)`", last):
            found["Deviation" if "deviation" in last else "Choice", place] += 1
    return found


def test_there_are_choices_and_deviations_to_check():
    assert sum(n for (kind, _), n in marked().items() if kind == "Choice") >= 25
    assert sum(n for (kind, _), n in marked().items() if kind == "Deviation") >= 4


def test_every_choice_and_deviation_has_a_row_and_every_row_its_mark():
    missing, stale = marked() - listed(), listed() - marked()
    assert not missing, f"no row in README, Paper vs. here: {sorted(missing.elements())}"
    assert not stale, f"README, Paper vs. here, names what is not marked in the code: {sorted(stale.elements())}"


# ----- "Reading order": places and tests -----

def test_every_place_named_in_the_readme_exists():
    places = re.findall(r"`((?:\w+/)?\w+\.py):([\w.]+)`", README)
    assert len(places) >= 40
    for name, function in places:
        assert function in functions(name), f"README names {name}:{function}"


def test_every_test_named_in_the_readme_exists():
    tests = re.findall(r"`(tests/test_\w+\.py)::(\w+)`", README)
    assert len(tests) >= 20
    for path, name in tests:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), f"README names {path}::{name}"


def test_reading_order_has_every_equation_of_the_paper():
    named = set()
    for first, _, last in re.findall(r"\bEqs?\. (\d+)(-(\d+))?", section("Reading order")):
        named |= set(range(int(first), int(last or first) + 1))
    assert named == set(range(1, 16))


# ----- exercises -----

def test_exercises_and_their_points_are_those_of_the_folder():
    rows = re.findall(r"^\| `exercises/(\w+\.py)` \|.*\| (\d+) \|$", section("Exercises"), re.M)
    assert [name for name, _ in rows] == sorted(path.name for path in (ROOT / "exercises").glob("[0-9][0-9]_*.py"))
    for name, points in rows:
        assert f"{points} points" in (ROOT / "exercises" / name).read_text(encoding="utf-8").split('"""')[1], name
    assert f"{sum(int(points) for _, points in rows)} points" in section("Exercises")


# ----- results: no number is typed by hand -----

def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_block_of_the_quick_start_is_what_the_demo_printed():
    summary = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    block = re.search(r"^`make demo` prints.*?\n```\n(.*?)\n```\n\n\(fresh clone and fresh environment at commit (\w+),", section("Quick start"), re.M | re.S)
    assert block[1].splitlines() == module(ROOT / "results" / "demo.py").summary_lines(summary) and block[2] == summary["commit"]


TABLES = re.findall(r"<!-- (?:table )?(\w+) -->.*?<!-- end -->", RESULTS, re.S)


def cells(name):
    with open(ROOT / "results" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [value for row in csv.DictReader(file) for value in row.values()]


def test_filling_the_tables_changes_nothing(tmp_path, monkeypatch):
    assert len(TABLES) >= 4 and sum((ROOT / "results" / f"{name}.csv").exists() for name in TABLES) >= 4, TABLES
    monkeypatch.chdir(ROOT)  # reproduce.py changes the folder when it is imported
    reproduce = module(ROOT / "results" / "reproduce.py")
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for name, whole in (("README.md", README), ("results/README.md", RESULTS)):
        blank = re.sub(r"(<!-- (?:table )?\w+ -->).*?(<!-- end -->)", r"\1\2", whole, flags=re.S)
        (tmp_path / name).write_text(blank, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    reproduce.fill_readme()
    for name, whole in (("README.md", README), ("results/README.md", RESULTS)):
        assert (tmp_path / name).read_text(encoding="utf-8") == whole, "run python -m results.reproduce --tables"


def come_from(figure, file, *place):
    """Whether the figure (12.3, 0.51 or 45 %) stands in the file, as it is or times 100. place: in a .csv the column and, if wanted, the
    text of the row's first column; in a .json the keys down to the number."""
    if file.endswith(".json"):
        found = json.loads((ROOT / "results" / file).read_text(encoding="utf-8"))
        for key in place:
            found = found[int(key) if isinstance(found, list) else key]
        values = [found]
    else:
        column, row = (*place, None)[:2]
        with open(ROOT / "results" / file, encoding="utf-8", newline="") as opened:
            rows = [r for r in csv.DictReader(opened) if row in (None, next(iter(r.values())))]
        values = [abs(float(word)) for r in rows for word in (r[column] or "").split()]
    number = figure.removesuffix(" %")
    digits = len(number.partition(".")[2])
    return any(number == f"{v:.{digits}f}" for value in values for v in (value, 100 * value))


PROSE = {title: section(title) for title in ("The toy world", "Results on the toy world", "A small open model on real preferences",
                                             "Why parallel sampling is cheap")} | {"results/README.md": RESULTS}


def test_figures_in_the_prose_of_the_results_say_where_they_come_from():
    """Figures like 12.3, 0.51 and 45 % in the text around the tables stand in a comment in the same section, which no reader sees:
    <!-- 40.6: domains.csv, chance --> (file, column, and if wanted the text of the row's first column), or
    <!-- 15.3: bench_sampling.json, rows, ours k=8, cpu --> (file and keys), or
    <!-- 77.5 85.0: not in a CSV, why -->. No comment outlives its figure."""
    checked = 0
    for title, text in PROSE.items():
        prose = re.sub(r"<!-- (?:table )?\w+ -->.*?<!-- end -->", "", text, flags=re.S)
        if title.startswith("A small open model"):  # its table is compared with the CSV in test_smollm2.py
            prose = re.sub(r"^\|.*\|$", "", prose, flags=re.M)
        notes = re.findall(r"<!-- ([\d. %]+): (.*?) -->", prose, re.S)
        prose = re.sub(r"<!--.*?-->|`[^`]*`", "", prose, flags=re.S).replace("95 % ", "")  # the level of the intervals
        figures = set(re.findall(r"(?<![\w.,])[+-]?(\d{1,3}\.\d+(?![\w.])|\d{1,3} %)", prose))
        noted = {}
        for names, source in notes:
            for figure in re.findall(r"\d+\.\d+|\d+ %", names):
                noted.setdefault(figure, []).append(source)
        assert figures == set(noted), f"{title}: without a note {figures - set(noted)}, notes without a figure {set(noted) - figures}"
        for figure, sources in noted.items():
            for source in sources:
                assert source.startswith("not in a CSV, ") or come_from(figure, *source.split(", ", 2 if ".csv, " in source else -1)), f"{figure} is not in {source}"
        checked += len(figures)
    assert checked >= 50


@pytest.mark.parametrize("word", ["2,022"])
def test_counts_in_the_prose_are_those_of_the_tables(word):
    assert word in section("Results on the toy world") and word in RESULTS and word.replace(",", "") in cells("training")


def test_the_count_of_hostile_texts_is_that_of_the_test():
    hostile = module(ROOT / "tests" / "test_hostile.py")
    assert f"{len(set(hostile.ATTACKS.values()))} attacks, each as a response, as a query and as a judgment, with {len(hostile.TOKENIZERS) + 1} tokenizers" in README
