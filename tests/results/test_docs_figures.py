"""README.md and docs/*.md: every figure of a table is a cell of the file that the table names, the
filled blocks are filled, the judgment in full is real, and the README is short."""
import csv
import importlib
import json
import re

import pytest
from conftest import ROOT

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
FILLED = re.compile(r"(<!-- (?:demo|claims) -->).*?(<!-- end -->)", re.S)


def numbers_of(file):
    """lookup(row, column) of a CSV (its first column is the row) or of a measurement's JSON."""
    text = (ROOT / "results" / file).read_text(encoding="utf-8")
    if file.endswith(".csv"):
        rows = {next(iter(row.values())): row for row in csv.DictReader(text.splitlines())}
        return lambda row, column: rows[row][column]
    data = json.loads(text)
    return lambda r, c: data["rows"].get(r, {}).get(c, data.get(c, {}).get(r, ""))


@pytest.mark.parametrize("page", [page for page in PAGES if "\n| row |" in TEXT[page]])
def test_figures_in_tables_are_cells_of_the_file_they_name(page):
    """A table whose first heading is `row` shows the file of the last "From [...]". The heading
    "accuracy, %" is the column accuracy times 100; the first cell names the row."""
    lookup = columns = None
    for line in TEXT[page].splitlines():
        if source := re.match(r"From \[results/([\w.-]+)\]", line):
            lookup = numbers_of(source[1])
        cells = [cell.strip() for cell in line.split("|")[1:-1]] or [""]
        if cells[0] == "row":
            columns = [(head.split(",")[0], 100 if head[-1] == "%" else 1) for head in cells[1:]]
        elif cells[0] and columns and cells[0][0] != "-":
            for cell, (column, factor) in zip(cells[1:], columns, strict=True):
                found, digits = lookup(cells[0], column), len(cell.partition(".")[2])
                shown = f"{factor * float(found):.{digits}f}" if cell and found != "" else ""
                assert cell == shown, (line, column, found)
        columns = columns if cells[0] else None


def test_the_readme_is_short_and_no_figure_in_it_is_typed():
    verbatim = "".join(body for kind, body in FENCE.findall(README) if kind == "text")
    lines = README.splitlines()
    assert len(lines) <= 250
    assert not [x for x in lines if len(x) > 100 and x[0] != "|" and x not in verbatim]
    assert re.findall(r"<!--(.*?)-->", README, re.S) == [" demo ", " end ", " claims ", " end "]
    prose = re.sub(r"^\|.*?$|`[^`]*`", "", FENCE.sub("", FILLED.sub("", README)), flags=re.M)
    typed = set(re.findall(r"(?<![\w.-])\d+\.\d+(?![\w.])|\d+ %", prose))
    assert typed <= {"2504.02495", "3.11", "95 %", "1.0", "0.2"}  # paper, Python, level, two flags
    section = README.partition("## Ablations")[2].partition("\n## ")[0]
    papers = {row.get("paper") for path in (ROOT / "results").glob("*.csv")
              for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}
    said = set(re.findall(r"\d\d\.\d", section))
    assert len(said) >= 6 and said <= papers


def test_the_claims_are_those_of_the_tables():
    tables = importlib.import_module("results.tables")
    rows = {name: [{c: float(v) if re.fullmatch(r"-?[\d.]+", v) and c != "paper" else v
                    for c, v in row.items()} for row in csv.DictReader(
                        (ROOT / "results" / f"{name}.csv").read_text("utf-8").splitlines())]
            for name in {name for _, name, _ in tables.CLAIMS}}
    made = "\n".join(tables.claim_lines(rows))
    [shown] = re.findall(r"<!-- claims -->\n(.*?)\n<!-- end -->", README, re.S)
    number = r"-?\d+\.\d+"
    assert re.sub(number, "", shown) == re.sub(number, "", made)
    assert [float(x) for x in re.findall(number, shown)] == pytest.approx(
        [float(x) for x in re.findall(number, made)], abs=0.101)  # the CSV files are rounded


def test_the_block_of_the_demo_is_what_the_demo_printed():
    summary = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    printed = "\n".join(importlib.import_module("results.demo").summary_lines(summary))
    assert f"<!-- demo -->\n```\n{printed}\n```\n<!-- end -->" in README


def test_one_judgment_in_full_is_real():
    from grm import DEMO, build_prompt, is_correct, parse_scores
    from plumbing.records import example_from_dict
    prompt, judgment = [body.strip() for kind, body in FENCE.findall(README) if kind == "text"]
    shown = {**DEMO, "responses": DEMO["responses"][::-1], "rewards": DEMO["rewards"][::-1]}
    [turn] = build_prompt(example_from_dict(shown), template="compact")
    assert turn["content"].strip() == prompt
    scores, reason = parse_scores(judgment, 2)
    assert reason == "ok" and is_correct(scores, shown["rewards"])
