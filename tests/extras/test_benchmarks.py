"""Benchmarks: published averages by our weights, partial runs, tables, whole runs on fixtures.

Credits, ties, AUC and biases by hand are in tests/paper/test_sec5_eval.py.
"""
import json
import os
import random
import signal
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT, error_of

from eval import BENCHMARKS, overall
from extras import benchmarks
from extras.benchmarks import (
    average_rank,
    bench_result,
    compare,
    folder_results,
    item_weights,
    parse_benches,
)
from plumbing import runs
from plumbing.data import load_examples
from plumbing.records import as_pairs
from plumbing.runs import UserError, read_json, read_rows, write_json, write_rows
from plumbing.sets import REWARDBENCH

PROGRAM = "extras.benchmarks"
FIXTURES = ROOT / "tests" / "fixtures"
LOCAL = ",".join(f"{name}:{FIXTURES / path}" for name, path in [
    ("rewardbench", "rewardbench.jsonl"), ("ppe_preference", "ppe_preference.jsonl"),
    ("ppe_correctness", "ppe_correctness"), ("rmb", "rmb"), ("realmistake", "realmistake")])


def row(id, *samples, section="x", subset=None, rewards=(1, 0), **more):
    """A line of samples.jsonl; samples are scores in the original order, or None."""
    n = len(rewards)
    return {"id": id, "domain": section, **({"subset": subset} if subset else {}), "n": n,
            "rewards": list(rewards), "cluster": None, "response_lengths": [10] * n,
            "samples": [{"permutation": list(range(n)), "scores": s, "tokens": 7, "text": "",
                         "reason": "ok" if s else "no_box", "prompt_tokens": 9} for s in samples],
            **more}


def result(rows, **options):
    return bench_result("run", rows, {}, **options)


def scores(found):
    return {part: round(100 * p["score"], 3) for part, p in found.items()}


# ----- Reward Bench: the example of its README, "Getting Leaderboard Section Scores" -----

README = {  # accuracy of each subset, as printed there
    "alpacaeval-easy": 0.5, "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263, "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049, "hep-go": 0.6341463414634146, "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634, "hep-python": 0.5487804878048781, "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087, "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043, "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52, "math-prm": 0.2953020134228188, "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406, "mt-bench-med": 0.725, "refusals-dangerous": 0.97,
    "refusals-offensive": 1, "xstest-should-refuse": 1, "xstest-should-respond": 0.284}


@pytest.fixture(scope="module")
def readme_rows():
    """2,985 items, as many of each subset as the filtered set has, right as often as printed."""
    rows = []
    for section, subsets in REWARDBENCH.items():
        for subset, weight in subsets.items():
            size = 447 if subset == "math-prm" else weight
            right = round(README[subset] * size)
            assert README[subset] * size == pytest.approx(right, abs=1e-9), "of whole items"
            rows += [row(f"rewardbench/{len(rows) + i}", [2, 1] if i < right else [1, 2],
                         section=section, subset=subset) for i in range(size)]
    return rows


@pytest.fixture(scope="module")
def readme_result(readme_rows):
    return result(readme_rows)


def test_rewardbench_readme_example(readme_result):
    found = readme_result
    expected = {  # items right by hand; math counts 984 / 447 times
        "chat": Fraction(50 + 67 + 56 + 16 + 29, 358),
        "chat-hard": Fraction(20 + 52 + 58 + 36 + 22 + 17, 456),
        "safety": Fraction(97 + 100 + 154 + 71 + 112, 740),
        "reasoning": (Fraction(132, 447) * 984 + 103 + 104 + 116 + 109 + 90 + 106) / 1968}
    assert {s: p["score"] for s, p in found["sections"].items()} == pytest.approx(
        {s: float(v) for s, v in expected.items()})
    mean = float(sum(expected.values())) / 4
    assert [found["score"], found["mean_of_sections"]] == pytest.approx([mean] * 2)
    assert found["subsets"]["reasoning/math-prm"]["score"] == pytest.approx(132 / 447)
    assert found["pooled"] == pytest.approx((218 + 205 + 534 + 132 + 628) / 2985)
    assert found["partial"] == [] and found["low"] < found["score"] < found["high"]


def test_a_missing_subset_is_left_out_and_said(readme_rows):
    found = result([r for r in readme_rows if r["domain"] in ("chat", "safety")
                    and r["subset"] != "donotanswer"])
    assert found["score"] == pytest.approx((422 / 604 + 218 / 358) / 2)
    assert found["partial"] == ["without chat-hard, reasoning, mt-bench-hard and 13 more",
                                "962 of 2985 rows"]
    with pytest.raises(UserError, match="no 'subset'"):
        result([row("rewardbench/0", [2, 1], section="chat")])


# ----- the paper's own averages (Tables 2, 8, 9, 10): parts, and the printed total -----

PAPER = {
    "rewardbench": [  # chat, chat hard, safety, reasoning
        (97.1, 73.7, 73.3, 95.6, 84.9), (96.7, 85.8, 56.2, 91.0, 82.4),
        (94.7, 77.2, 87.0, 79.2, 84.5), (95.5, 85.7, 88.5, 89.5, 89.8)],
    "ppe_correctness": [  # MMLU-Pro, MATH, GPQA, MBPP-Plus, IFEval
        (68.3, 74.7, 55.0, 63.1, 62.9, 64.8), (64.8, 68.8, 55.6, 50.1, 59.8, 59.8),
        (98.2, 97.5, 99.8, 86.6, 75.9, 91.6)],
    "rmb": [  # helpful BoN, pairs, harmless BoN, pairs
        (55.8, 78.5, 50.8, 73.9, 64.8), (64.0, 83.0, 33.6, 51.0, 57.9),
        (64.2, 81.6, 58.0, 77.4, 70.3)]}
ROUNDING = 0.1001  # of the printed parts and of the printed total


def total(name, values):
    """Our average of a benchmark whose sections have these scores."""
    sections = {
        "rewardbench": [(s, next(iter(REWARDBENCH[s]))) for s in (
            "chat", "chat-hard", "safety", "reasoning")],
        "ppe_correctness": [(s, s) for s in ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")],
        "rmb": [(f"{a}-{b}", None) for a in ("helpfulness", "harmlessness")
                for b in ("bon", "pairwise")]}[name]
    # Three items of the first section and one of each other: sections count the same anyway.
    items = [row(f"{name}/{i}", [1, 2], section=s, subset=sub)
             for i, (s, sub) in enumerate(sections[:1] * 2 + sections)]
    return float(np.dot(item_weights(name, items), [values[0], values[0], *values]))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_section_means_give_its_totals(name):
    for *values, printed in PAPER[name]:
        assert total(name, values) == pytest.approx(printed, abs=ROUNDING), values


def test_the_papers_misprints_stay_misprints():
    """Table 8: BTRM's and PairRM's totals are swapped, CLoud repeats another row's sections."""
    for values, printed, right in [((96.7, 86.2, 75.7, 89.8), 81.7, 87.1),
                                   ((95.5, 86.8, 52.3, 92.0), 87.1, 81.7),
                                   ((96.7, 69.3, 83.5, 84.3), 82.0, None)]:
        ours = total("rewardbench", values)
        assert abs(ours - printed) > 1
        assert right is None or ours == pytest.approx(right, abs=ROUNDING)


def test_table2_overall_and_average_rank():
    table = [(83.4, 64.2, 58.8, 64.8, 67.8, 4.50), (81.7, 68.3, 66.7, 57.9, 68.6, 3.50),
             (82.0, 67.1, 62.4, 63.4, 68.7, 3.50), (87.1, 65.8, 64.8, 58.2, 69.0, 2.75),
             (84.5, 64.1, 59.6, 67.0, 68.8, 4.00), (86.0, 64.7, 59.8, 69.0, 69.9, 2.75)]
    rows = {i: dict(zip(BENCHMARKS, r)) for i, r in enumerate(table)}
    assert average_rank(rows) == {i: r[5] for i, r in enumerate(table)}
    for i, r in enumerate(table):
        assert overall(rows[i]) == pytest.approx(r[4], abs=ROUNDING)


# ----- one benchmark -----

def test_tie_rules_of_a_benchmark():
    pairwise, bon = "helpfulness-pairwise", "harmlessness-bon"
    rows = [row("rmb/0", [9, 9], section=pairwise), row("rmb/1", [9, 3], section=pairwise),
            row("rmb/2", [2, 2, 2], section=bon, rewards=(1, 0, 0)),
            row("rmb/3", None, section=bon)]
    found = result(rows)
    assert scores(found["sections"]) == {pairwise: 75, bon: 16.667}
    assert found["score"] == found["expected"] == pytest.approx((0.75 + 1 / 6) / 2)
    assert found["strict"] == result(rows, ties="strict")["score"] == pytest.approx(0.25)
    assert found["lenient"] == pytest.approx((0.75 + (1 / 3 + 1 / 2) / 2) / 2)
    assert found["shuffle"] in [pytest.approx((a / 2 + b / 2 + 0.5) / 2)
                                for a in (0, 1) for b in (0, 1)]
    assert found["judgments"] == {"ok": 3, "no_box": 1} and found["parse_rate"] == 0.75
    uneven = result([*rows, row("rmb/4", [9, 3], section=pairwise)])
    assert uneven["expected"] == pytest.approx((2.5 / 3 + 1 / 6) / 2)
    assert uneven["pooled"] == pytest.approx((0.5 + 2 + 1 / 3) / 5)
    assert uneven["lenient"] == pytest.approx((2.5 / 3 + (1 / 3 + 1 / 2) / 2) / 2)


def single(i, right, *points, section="answerability_classification", **more):
    return row(f"realmistake/{i}", *[p and [p] for p in points], section=section,
               rewards=(int(right),), **more)


def test_realmistake_auc_by_hand():
    assert result([single(0, 1, 9), single(1, 1, 7), single(2, 0, 7), single(3, 0, 2)])[
        "score"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)  # 9>7, 9>2, 7=7, 7>2
    unparsed = result([single(0, 1, None), single(1, 1, 7), single(2, 0, 7), single(3, 0, 2)])
    assert unparsed["score"] == pytest.approx((0 + 0 + 0.5 + 1) / 4)
    assert unparsed["lenient"] == pytest.approx((0.5 + 1) / 2)
    assert unparsed["position_bias"] is None, "nan is no JSON"
    fact = "finegrained_fact_verification"
    two = result([single(0, 1, 9), single(1, 0, 2), single(2, 1, 3, section=fact),
                  single(3, 0, 8, section=fact)])
    assert (two["score"], two["mean_of_sections"]) == (0.75, 0.5)
    assert scores(two["sections"]) == {"answerability_classification": 100, fact: 0}
    rows = [single(0, 1, 9, 1), single(1, 0, 2, 6)]  # alone 1 and 0; together 5 against 4
    assert [result(rows, k=k, method="vote")["score"] for k in (1, 2)] == [0.5, 1]
    nothing = result([single(0, 1, 9), single(1, 1, 2)])  # no class to compare with
    assert nothing["score"] is nothing["low"] is nothing["mean_of_sections"] is None


def test_best_of_n_by_pairs():
    """E4: the best response with each other one; the item is won if all its pairs are."""
    bon = [e for e in load_examples(f"rmb:{FIXTURES / 'rmb'}", "test")
           if e.domain == "helpfulness-bon"]
    pairs, [e] = as_pairs(bon), bon
    assert [(p.id, p.responses, p.rewards, p.of) for p in pairs] == [
        (f"{e.id}#{j}", [e.responses[0], e.responses[j]], [1, 0], e.id) for j in (1, 2, 3)]
    assert as_pairs(pairs) == pairs
    # sample 0 of rmb/0: won and tied, 1/2
    rows = [row("rmb/0#1", [9, 1], [1, 9], of="rmb/0"), row("rmb/0#2", [9, 9], [9, 1], of="rmb/0"),
            row("rmb/1", [3, 1], [3, 1])]
    rows = [{**r, "domain": "helpfulness-bon"} for r in rows]
    assert result(rows)["items"] == 2 and result(rows)["score"] == 0.75
    assert "best-of-N: pairs with the best" in result(rows)["protocol"]
    assert "best-of-N: one list" in result(rows[2:])["protocol"]


def test_protocol_tells_what_differs():
    rows = whole("rmb", 0.5)
    settings = {"data": "rmb@abc", "template": "full", "rating": "1-10", "temperature": 0.0,
                "seed": 3, "max_new_tokens": 512}

    def line(rows=rows, **changed):
        return bench_result("a", rows, {**settings, **changed})["protocol"]
    for fact in ("RMB", "revision: abc", "template full", "rating 1-10", "temperature 0.0", "k 1",
                 "order: one random order per item, seed 3", "ties: expected",
                 "unparsed: is wrong", "40 rows"):
        assert fact in line()
    assert "with reference" in line(use_reference=True)
    assert line([{**rows[0], "response_lengths": [1, 2]}, *rows[1:]]) != line(), "other items"
    assert "no revision given" in line(data=None)
    assert "commits pinned" in line(whole("ppe_correctness", 1), data="ppe_correctness")


# ----- names, partial runs, tables -----

def test_parse_benches(monkeypatch):
    monkeypatch.chdir(ROOT)
    both = ("ppe_preference", "ppe_correctness")
    for words, revision, expected in [
            ("rewardbench,ppe,rmb:tests", None,
             {"rewardbench": "rewardbench", **{b: b for b in both}, "rmb": "rmb:tests"}),
            ("rewardbench@abc,ppe@v1", None,
             {"rewardbench": "rewardbench@abc", **{b: f"{b}@v1" for b in both}}),
            ("rewardbench", "abc", {"rewardbench": "rewardbench@abc"})]:
        assert parse_benches(words, revision) == expected
    for words, revision, problem in [
            ("rewardbench,bench", None, "choose from rewardbench"), ("ppe,ppe_preference", None,
                                                                     "twice"),
            ("ppe:tests", None, "ppe is two sets"), ("ppe", "abc", "one commit of one"),
            ("rewardbench@a", "abc", "one commit of one"), ("rmb:tests", "abc", "one commit"),
            ("rmb:absent", None, "absent does not exist")]:
        with pytest.raises(UserError, match=problem):
            parse_benches(words, revision)


def whole(name, right):
    """Few rows that count as the whole of a benchmark: the last row number, every section."""
    return [row(f"{name}/{benchmarks.ROWS[name] - 1 - i}",
                [2, 1] if (i * 7) % 10 < 10 * right else [1, 2], section=s)
            for i, s in enumerate(benchmarks.SECTIONS[name] * 10)]


def test_overall_only_of_four_whole_benchmarks(readme_rows, readme_result, tmp_path):
    wholes = {name: result(whole(name, 0.7)) for name in BENCHMARKS[1:]}
    wholes["rewardbench"] = readme_result
    cut = benchmarks.partial("rewardbench", readme_rows[:-40], {})
    limited = bench_result("run", whole("rmb", 0.7), {"limit": 40})

    def cells(**changed):
        compare([dict(r) for r in (wholes | changed).values() if r], tmp_path)
        return (tmp_path / "benchmarks.md").read_text().splitlines()[6].split(" | ")
    assert all(r["partial"] == [] for r in wholes.values())
    mean = sum(wholes[b]["score"] for b in BENCHMARKS) / 4
    assert cells()[-2] == f"{100 * mean:.1f}" and "*" not in "".join(cells())
    assert cells(rmb=None)[-2] == cells(rmb=limited)[-2] == "-"
    shorter = cells(rewardbench={**readme_result, "partial": cut})
    assert shorter[-2] == "-" and "*" in shorter[1]
    assert "2945 of 2985 rows" in (tmp_path / "benchmarks.md").read_text()


def test_partial_reasons():
    for rows, settings, reasons in [
            (whole("ppe_preference", 0.5), {}, []),
            (whole("rmb", 1), {"limit": 5, "domain": "rmb"}, ["--limit 5", "--domain rmb"]),
            ([row("ppe_correctness/2554", [2, 1], section="MATH")], {},
             ["without GPQA, IFEval, MBPP-Plus and 1 more"]),
            ([row("ppe_preference/70", [2, 1], section="ppe_preference")], {},
             ["71 of 16038 rows"])]:
        assert bench_result("a", rows, settings)["partial"] == reasons


def test_comparison_of_runs(tmp_path, cli):
    """Two judges on two benchmarks, one by voting: ranks, paired differences, files."""
    def folder(name, bench, rows, **settings):
        write_rows(tmp_path / name / bench / "samples.jsonl", rows)
        write_json(tmp_path / name / bench / "config.json", {"args": {
            "model": name, "template": "full", "data": bench, **settings}})
        write_rows(tmp_path / name / bench / "metrics.jsonl", [
            {"seconds": 6.0, "judgments": 10}, {"seconds": 2.0, "judgments": 30},
            {"stage": "meta_rm", "seconds": 99.0}])

    def table(name, *words):
        assert cli(PROGRAM, "--runs", *words, "--output", tmp_path / name)[0] == 0
        return (tmp_path / name / "benchmarks.md").read_text()
    rng = random.Random(0)
    for bench in ("rmb", "ppe_preference"):
        folder("good", bench, whole(bench, 0.8))
        many = whole(bench, 0.5)
        for r in many:
            [s] = r["samples"]
            r["samples"] = [s if rng.random() < 0.8 else {**s, "scores": [4, 4]} for _ in range(8)]
            r["meta_logits"] = [1.0] * 8
        folder("voted", bench, many, temperature=0.5)
    text = table("table", f"good={tmp_path}/good", f"voted={tmp_path}/voted/rmb",
                 f"voted={tmp_path}/voted/ppe_preference")
    lines = text.splitlines()[6:]
    assert [line.split(" | ")[0] for line in lines[:4]] == [
        "| good", "| voted, Voting@1", "| voted, Voting@8", "| voted, guided @8"]
    assert lines[0].endswith("| - | 1.00 |") and "temperature 0.5" in text
    assert "k 8, Voting@8 guided by a meta RM, k_meta 4" in text
    results = read_json(tmp_path / "table" / "results.json")
    assert len(results) == 8
    assert all("credits" not in r and r["seconds_per_judgment"] == 0.2 for r in results)
    by_run = {(r["run"], r["benchmark"]): r for r in results}
    voted = by_run["voted, Voting@8", "rmb"]
    assert "difference" not in by_run["good", "rmb"] and voted["difference_high"] < 0
    assert voted["score"] == pytest.approx(result(whole("rmb", 0.5))["score"])
    csv = (tmp_path / "table" / "benchmarks.csv").read_text().splitlines()
    assert csv[0].startswith("run,benchmark,part") and sum(",all," in line for line in csv) == 8
    for name in ("benchmarks.png", "curve.png"):
        assert (tmp_path / "table" / name).read_bytes()[:4] == b"\x89PNG"
    again = table("again", f"again={tmp_path}/table/results.json")  # without the samples
    assert "| again, Voting@8 |" in again and "difference" not in again
    assert lines[0].split(" | ")[1:4] == again.splitlines()[6].split(" | ")[1:4]
    folder("cut", "rmb", whole("rmb", 0.5), limit=9)
    lines = table("partial", f"good={tmp_path}/good/rmb", f"cut={tmp_path}/cut/rmb").splitlines()
    assert all(line.endswith("| - | - |") for line in lines[6:8]), "no rank of parts"
    for words, problem in [([f"a={tmp_path}/good"] * 2, "given twice"),
                           ([f"a={tmp_path}/nothing"], "no samples.jsonl")]:
        assert problem in error_of(cli(PROGRAM, "--runs", *words, "--output", tmp_path / "x"))


# ----- whole runs on local files -----

def samples(folder):
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob("*/samples.jsonl"))}


def dies_after(survived, write=runs.write_rows):
    """write_rows that kills this process in the middle of a chunk, half a line of metrics out."""
    left = [survived]

    def dies(path, rows):
        if not left[0]:
            path.parent.mkdir(exist_ok=True)
            (path.parent / ".half.part").write_text('{"id": "torn')
            with open(path.parent.parent / "metrics.jsonl", "a") as file:
                file.write('{"stage": "judg')
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        write(path, rows)
    return dies


def test_a_run_killed_twice_gives_the_same_bytes(tiny, tmp_path, cli):
    flags = [PROGRAM, "--bench", LOCAL, "--model", tiny, "--max_new_tokens", 24, "--chunk_size", 2,
             "--output"]
    code, out, _ = cli(*flags, tmp_path / "whole")
    assert code == 0 and "partial: " in out and out.count("## Protocols") == 1
    expected, killed = samples(tmp_path / "whole"), tmp_path / "killed"
    assert list(expected) == sorted(benchmarks.NAMES)
    assert b"seconds" not in b"".join(expected.values())
    for survived in (1, 4):  # chunks
        child = os.fork()
        if child == 0:
            try:
                runs.write_rows = dies_after(survived)
                cli(*flags, killed)
            finally:
                os._exit(1)  # not reached
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(samples(killed)) in (1, 2), "some benchmarks are done, one was in the making"
    assert cli(*flags, killed)[0] == 0 and samples(killed) == expected
    assert all("judgments" in m for p in killed.glob("*/metrics.jsonl") for m in read_rows(p))
    found = json.loads((killed / "rewardbench" / "result.json").read_text())
    assert found["sections"].keys() == {"chat", "chat-hard", "safety", "reasoning"}
    assert not list(killed.glob("*/.samples.parts"))


def test_voting_gives_benchmark_rows_and_the_reference_is_shown(tiny, tmp_path, cli):
    common = ["--model", tiny, "--max_new_tokens", 12, "--k", 4]
    for name, more in (("ppe_correctness", ["--use_reference"]), ("rmb", ["--bon", "pairs"])):
        assert cli("infer_scale", *common, "--data", f"{name}:{FIXTURES / name}", *more,
                   "--output", tmp_path / name)[0] == 0
    words = [f"v={tmp_path / name}" for name in ("ppe_correctness", "rmb")]
    assert cli(PROGRAM, "--runs", *words, "--output", tmp_path / "table")[0] == 0
    found = {(r["run"], r["benchmark"]): r for r in read_json(tmp_path / "table" / "results.json")}
    assert set(found) == {(f"v, Voting@{k}", b) for k in (1, 4) for b in ("ppe_correctness", "rmb")}
    assert "with reference" in found["v, Voting@4", "ppe_correctness"]["protocol"]
    assert found["v, Voting@4", "rmb"]["items"] == 4
    assert len(read_rows(tmp_path / "rmb" / "samples.jsonl")) == 7
    rows = read_rows(tmp_path / "ppe_correctness" / "samples.jsonl")
    assert [r["subset"] for r in rows] == ["GPQA"] * 3 + ["MATH"] * 2


def test_other_data_and_mistakes_are_refused(tiny, tmp_path, cli):
    data = tmp_path / "rows.jsonl"
    lines = (FIXTURES / "rewardbench.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    flags = [PROGRAM, "--bench", f"rewardbench:{data}", "--model", tiny, "--max_new_tokens", 4,
             "--output", tmp_path / "out"]
    assert cli(*flags)[0] == 0
    assert folder_results("a", tmp_path / "out", "strict")[0]["ties"] == "strict"
    data.write_text("".join(lines[:3]))
    assert "the items of --data" in error_of(cli(*flags))
    assert cli(*flags, "--overwrite")[0] == 0
    for words, problem in [
            ([], "give --bench"), (["--revision", "x", "--runs", "a=b"], "goes with --bench"),
            (["--bench", f"realmistake:{FIXTURES / 'realmistake'}", "--rating", "best"],
             "use --rating 1-10")]:
        assert problem in error_of(cli(PROGRAM, *words, "--output", tmp_path / "x"))
