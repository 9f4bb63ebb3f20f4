"""Benchmarks: the published averages by our functions, tie rules, AUC, pairs, partial runs, tables, and whole runs on fixtures."""
import importlib
import json
import os
import random
import signal
import sys
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT

import eval as evaluation
from eval import BENCHMARKS, average_rank, item_credits, overall, report, roc_auc, single_scores
from extras import benches
from extras.benches import bench_result, compare_benches, folder_results, item_weights, parse_benches
from infer_scale import credit
from plumbing import runs
from plumbing.data import REWARDBENCH, load_examples
from plumbing.records import as_pairs
from plumbing.runs import UserError, read_rows, write_rows

FIXTURES = ROOT / "tests" / "fixtures"
LOCAL = ",".join(f"{name}:{FIXTURES / path}" for name, path in [
    ("rewardbench", "rewardbench.jsonl"), ("ppe_preference", "ppe_preference.jsonl"), ("ppe_correctness", "ppe_correctness"),
    ("rmb", "rmb"), ("realmistake", "realmistake")])


def row(id, *samples, section="x", subset=None, rewards=(1, 0), **more):
    """A line of samples.jsonl; samples are lists of scores in the original order, or None."""
    n = len(rewards)
    return {"id": id, "domain": section, **({"subset": subset} if subset else {}), "rewards": list(rewards), "n": n, "cluster": None,
            "response_lengths": [10] * n, "samples": [{"permutation": list(range(n)), "scores": s, "reason": "ok" if s else "no_box",
                                                       "tokens": 7, "prompt_tokens": 9, "text": ""} for s in samples], **more}


def result(rows, **options):
    return bench_result("run", rows, {}, **options)


def scores(found):
    return {part: round(100 * p["score"], 3) for part, p in found.items()}


# ----- Reward Bench: the example of its README, "Getting Leaderboard Section Scores" -----

README = {  # accuracy of each subset, as printed there
    "alpacaeval-easy": 0.5, "alpacaeval-hard": 0.7052631578947368, "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058, "hep-cpp": 0.6280487804878049, "hep-go": 0.6341463414634146, "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634, "hep-python": 0.5487804878048781, "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087, "llmbar-adver-GPTOut": 0.46808510638297873, "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236, "llmbar-natural": 0.52, "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714, "mt-bench-hard": 0.5405405405405406, "mt-bench-med": 0.725, "refusals-dangerous": 0.97,
    "refusals-offensive": 1, "xstest-should-refuse": 1, "xstest-should-respond": 0.284}


@pytest.fixture(scope="module")
def readme_result(readme_rows):
    return result(readme_rows)


@pytest.fixture(scope="module")
def readme_rows():
    """2,985 items, as many of each subset as the filtered set has, right as often as the README says."""
    rows = []
    for section, subsets in REWARDBENCH.items():
        for subset, weight in subsets.items():
            size = 447 if subset == "math-prm" else weight
            right = README[subset] * size
            assert right == pytest.approx(round(right), abs=1e-9), "the printed accuracies are those of whole items"
            rows += [row(f"rewardbench/{len(rows) + i}", [2, 1] if i < round(right) else [1, 2], section=section, subset=subset)
                     for i in range(size)]
    return rows


def test_rewardbench_readme_example(readme_result):
    found = readme_result
    expected = {  # items right by hand; math counts 984 / 447 times
        "chat": Fraction(50 + 67 + 56 + 16 + 29, 358), "chat-hard": Fraction(20 + 52 + 58 + 36 + 22 + 17, 456),
        "safety": Fraction(97 + 100 + 154 + 71 + 112, 740),
        "reasoning": (Fraction(132, 447) * 984 + 103 + 104 + 116 + 109 + 90 + 106) / 1968}
    assert {s: p["score"] for s, p in found["sections"].items()} == pytest.approx({s: float(v) for s, v in expected.items()})
    assert [found["score"], found["mean_of_sections"]] == pytest.approx([float(sum(expected.values())) / 4] * 2)
    assert found["subsets"]["reasoning/math-prm"]["score"] == pytest.approx(132 / 447)
    assert found["pooled"] == pytest.approx((218 + 205 + 534 + 132 + 628) / 2985)
    assert found["partial"] == [] and found["items"] == 2985 and found["low"] < found["score"] < found["high"]


def test_a_missing_subset_is_left_out_and_said(readme_rows):
    found = result([r for r in readme_rows if r["domain"] in ("chat", "safety") and r["subset"] != "donotanswer"])
    assert found["sections"]["safety"]["score"] == pytest.approx(422 / 604) and found["score"] == pytest.approx((422 / 604 + 218 / 358) / 2)
    assert found["partial"] == ["without chat-hard, reasoning, mt-bench-hard and 13 more", "962 of 2985 rows"]
    with pytest.raises(UserError, match="no 'subset'"):
        result([row("rewardbench/0", [2, 1], section="chat")])


# ----- the paper's own averages -----

TABLE8 = [  # chat, chat hard, safety, reasoning -> Reward Bench; printed slips (BTRM, PairRM, greedy CLoud) below
    (97.1, 73.7, 73.3, 95.6, 84.9), (90.8, 74.3, 84.7, 81.8, 82.9), (96.5, 72.5, 87.8, 84.3, 85.3), (95.8, 82.9, 88.3, 86.6, 88.4),
    (96.7, 69.3, 83.5, 84.3, 83.4), (94.7, 77.2, 87.0, 79.2, 84.5), (94.1, 78.3, 88.0, 83.8, 86.0), (95.0, 70.0, 83.5, 85.0, 83.4),
    (95.8, 71.3, 83.3, 84.8, 83.8), (96.7, 85.8, 56.2, 91.0, 82.4), (94.7, 79.0, 87.3, 80.2, 85.3), (95.3, 80.9, 89.3, 85.4, 87.7),
    (95.5, 85.7, 88.5, 89.5, 89.8), (95.5, 81.8, 90.0, 86.9, 88.5), (95.3, 85.7, 89.5, 91.0, 90.4)]
TABLE9 = [  # MMLU-Pro, MATH, GPQA, MBPP-Plus, IFEval -> PPE Correctness
    (66.0, 68.0, 52.8, 50.2, 56.8, 58.8), (68.8, 73.2, 56.8, 68.8, 66.0, 66.7), (68.7, 68.8, 53.5, 59.0, 62.0, 62.4),
    (68.3, 74.7, 55.0, 63.1, 62.9, 64.8), (64.8, 68.7, 55.5, 49.0, 60.2, 59.6), (64.8, 68.8, 55.6, 50.1, 59.8, 59.8),
    (98.2, 97.5, 99.8, 86.6, 75.9, 91.6), (66.2, 66.4, 51.9, 49.9, 56.8, 58.2), (66.4, 68.1, 53.0, 49.5, 57.0, 58.8),
    (68.7, 68.9, 53.5, 59.0, 62.0, 62.4), (64.8, 68.7, 55.5, 49.5, 60.2, 59.7), (65.7, 68.7, 55.5, 50.0, 61.6, 60.3),
    (68.0, 68.7, 57.3, 51.3, 69.9, 63.0), (65.5, 69.4, 56.0, 49.9, 61.0, 60.4), (68.1, 70.0, 56.9, 50.8, 70.4, 63.2)]
TABLE10 = [  # helpful BoN, pairs, harmless BoN, pairs -> RMB
    (55.8, 78.5, 50.8, 73.9, 64.8), (64.0, 83.0, 33.6, 51.0, 57.9), (64.7, 81.1, 41.7, 66.1, 63.4), (59.9, 83.3, 34.1, 55.5, 58.2),
    (58.4, 79.3, 54.2, 76.0, 67.0), (62.3, 80.5, 57.0, 76.1, 69.0), (56.0, 78.5, 52.5, 73.8, 65.2), (63.8, 82.1, 40.9, 66.1, 63.2),
    (59.2, 80.1, 54.8, 76.5, 67.7), (63.9, 79.5, 57.6, 77.1, 69.5), (63.4, 80.5, 56.8, 74.6, 68.8), (63.9, 79.8, 58.0, 77.0, 69.7),
    (64.2, 81.6, 58.0, 77.4, 70.3)]
TABLE2 = [  # Reward Bench, PPE Preference, PPE Correctness, RMB -> Overall, average rank (of the last six, greedy)
    (94.1, 56.6, 56.6, 60.2, 66.9), (81.5, 62.8, 58.5, 65.7, 67.1), (86.8, 66.1, 59.8, 56.5, 67.3), (90.4, 60.6, 61.2, 64.6, 69.2),
    (90.2, 61.0, 63.0, 62.9, 69.3), (84.1, 65.3, 59.2, 68.9, 69.4), (84.2, 65.3, 58.8, 70.6, 69.7), (92.0, 59.3, 60.8, 69.9, 70.5),
    (86.7, 67.1, 57.6, 73.8, 71.3), (88.5, 65.3, 60.4, 69.7, 71.0), (90.4, 67.2, 63.2, 70.3, 72.8)]
REPRODUCED = [(83.4, 64.2, 58.8, 64.8, 67.8, 4.50), (81.7, 68.3, 66.7, 57.9, 68.6, 3.50), (82.0, 67.1, 62.4, 63.4, 68.7, 3.50),
              (87.1, 65.8, 64.8, 58.2, 69.0, 2.75), (84.5, 64.1, 59.6, 67.0, 68.8, 4.00), (86.0, 64.7, 59.8, 69.0, 69.9, 2.75)]
ROUNDING = 0.1001  # of the printed parts and of the printed total


def total(name, values):
    """Our average of a benchmark whose sections have these scores."""
    sections = {"rewardbench": [(s, next(iter(REWARDBENCH[s]))) for s in ("chat", "chat-hard", "safety", "reasoning")],
                "ppe_correctness": [(s, s) for s in ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")],
                "rmb": [(f"{a}-{b}", None) for a in ("helpfulness", "harmlessness") for b in ("bon", "pairwise")]}[name]
    # three items of the first section and one of each other: sections count the same whatever their size
    items = [row(f"{name}/{i}", [1, 2], section=s, subset=sub) for i, (s, sub) in enumerate(sections[:1] * 2 + sections)]
    return float(np.dot(item_weights(name, items), [values[0], values[0], *values]))


@pytest.mark.parametrize(("name", "table"), [("rewardbench", TABLE8), ("ppe_correctness", TABLE9), ("rmb", TABLE10)])
def test_the_papers_section_means_give_its_totals(name, table):
    for *values, printed in table:
        assert total(name, values) == pytest.approx(printed, abs=ROUNDING), values


def test_the_papers_misprints_stay_misprints():
    """Table 8: the totals of BTRM and PairRM are swapped, the greedy CLoud row repeats another's sections."""
    btrm, pairrm, cloud = (total("rewardbench", v) for v in ((96.7, 86.2, 75.7, 89.8), (95.5, 86.8, 52.3, 92.0), (96.7, 69.3, 83.5, 84.3)))
    assert btrm == pytest.approx(87.1, abs=ROUNDING) and pairrm == pytest.approx(81.7, abs=ROUNDING)
    assert abs(cloud - 82.0) > 1
    assert abs(overall(dict(zip(BENCHMARKS, (83.0, 63.8, 58.2, 65.8)))) - 68.0) > 0.2  # Table 4, RFT without hinted sampling


def test_table2_overall_and_average_rank():
    for *values, printed in TABLE2 + [r[:5] for r in REPRODUCED]:
        assert overall(dict(zip(BENCHMARKS, values))) == pytest.approx(printed, abs=ROUNDING), values
    ranks = average_rank({i: dict(zip(BENCHMARKS, r[:4])) for i, r in enumerate(REPRODUCED)})
    assert ranks == {i: r[5] for i, r in enumerate(REPRODUCED)}


# ----- ties, single responses, pairs -----

def test_three_tie_rules_by_hand():
    assert [credit([8, 8, 3], [0, 1, 0], t, "key") for t in ("expected", "strict")] == [0.5, 0]
    assert [credit([8, 8, 9], [0, 1, 0], t, "key") for t in evaluation.TIES] == [0, 0, 0]
    assert [credit([8, 9, 3], [0, 1, 0], t, "key") for t in evaluation.TIES] == [1, 1, 1]
    drawn = [credit([8, 8, 8], [0, 1, 0], "shuffle", str(i)) for i in range(3000)]
    assert set(drawn) == {0, 1} and sum(drawn) / 3000 == pytest.approx(1 / 3, abs=0.03)
    assert drawn == [credit([8, 8, 8], [0, 1, 0], "shuffle", str(i)) for i in range(3000)], "the same draw for the same item"


def test_tie_rules_of_a_benchmark():
    rows = [row("rmb/0", [9, 9], section="helpfulness-pairwise"), row("rmb/1", [9, 3], section="helpfulness-pairwise"),
            row("rmb/2", [2, 2, 2], section="harmlessness-bon", rewards=(1, 0, 0)), row("rmb/3", None, section="harmlessness-bon")]
    found = result(rows)
    assert scores(found["sections"]) == {"helpfulness-pairwise": 75, "harmlessness-bon": 16.667}
    assert found["score"] == found["expected"] == pytest.approx((0.75 + 1 / 6) / 2)
    assert found["strict"] == pytest.approx(0.25) and found["lenient"] == pytest.approx((0.75 + (1 / 3 + 1 / 2) / 2) / 2)
    assert result(rows, ties="strict")["score"] == pytest.approx(0.25)
    assert found["shuffle"] in [pytest.approx((a / 2 + b / 2 + 0.5) / 2) for a in (0, 1) for b in (0, 1)]
    assert found["judgments"] == {"ok": 3, "no_box": 1} and found["parse_rate"] == 0.75
    assert found["pooled"] == pytest.approx((0.5 + 1 + 1 / 3) / 4)
    uneven = result([*rows, row("rmb/4", [9, 3], section="helpfulness-pairwise")])
    assert uneven["expected"] == pytest.approx((2.5 / 3 + 1 / 6) / 2) and uneven["pooled"] == pytest.approx((0.5 + 2 + 1 / 3) / 5)
    assert uneven["lenient"] == pytest.approx((2.5 / 3 + (1 / 3 + 1 / 2) / 2) / 2), "weighted as the score is"


def single(i, right, *points, section="answerability_classification", **more):
    return row(f"realmistake/{i}", *[p and [p] for p in points], section=section, rewards=(int(right),), **more)


def test_realmistake_auc_by_hand():
    found = result([single(0, 1, 9), single(1, 1, 7), single(2, 0, 7), single(3, 0, 2)])
    assert found["score"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)  # 9>7, 9>2, 7=7, 7>2
    unparsed = result([single(0, 1, None), single(1, 1, 7), single(2, 0, 7), single(3, 0, 2)])
    assert unparsed["score"] == pytest.approx((0 + 0 + 0.5 + 1) / 4) and unparsed["lenient"] == pytest.approx((0.5 + 1) / 2)
    assert result([single(0, 0, None), single(1, 1, 1)])["score"] == 0, "an unparsed item with an error is not called bad either"
    two = result([single(0, 1, 9), single(1, 0, 2), single(2, 1, 3, section="finegrained_fact_verification"),
                  single(3, 0, 8, section="finegrained_fact_verification")])
    assert (two["score"], two["mean_of_sections"], scores(two["sections"])) == (
        0.75, 0.5, {"answerability_classification": 100, "finegrained_fact_verification": 0})
    nothing = result([single(0, 1, 9), single(1, 1, 2)])  # no class to compare with
    assert nothing["score"] is nothing["low"] is nothing["mean_of_sections"] is None


def test_single_responses_vote_by_the_mean_of_valid_judgments():
    r = single(0, 1, 2, None, 4, 6, meta_logits=[0.5, None, -1.0, 2.0])
    assert single_scores(r) == [2, float("-inf"), 4, 6] and single_scores(r, 2) == [2, 5] and single_scores(r, 4) == [4]
    assert single_scores(r, 4, "guided") == [4]  # keeps 6 and 2
    rng = random.Random(0)
    rows = [single(i, i % 2, *[rng.randint(1, 6) + 2 * (i % 2) for _ in range(8)]) for i in range(60)]
    by_hand = roc_auc([sum(s["scores"][0] for s in r["samples"]) for r in rows], [r["rewards"][0] for r in rows])
    one, eight = (result(rows, k=k, method="vote") for k in (1, 8))
    assert eight["score"] == pytest.approx(by_hand) and by_hand > one["score"] and one["low"] < one["score"] < one["high"]


def test_best_of_n_by_pairs():
    bon = [e for e in load_examples(f"rmb:{FIXTURES / 'rmb'}", "test") if e.domain == "helpfulness-bon"]
    pairs = as_pairs(bon)
    assert [(p.id, p.responses, p.rewards, p.extra["of"]) for p in pairs] == [
        (f"{bon[0].id}#{j}", [bon[0].responses[0], bon[0].responses[j]], [1, 0], bon[0].id) for j in (1, 2, 3)]
    assert as_pairs(pairs) == pairs
    rows = [row("rmb/0#1", [9, 1], [1, 9], of="rmb/0"), row("rmb/0#2", [9, 9], [9, 1], of="rmb/0"), row("rmb/1", [3, 1], [3, 1])]
    assert item_credits(rows) == {"rmb/0": 0.25, "rmb/1": 1}, "sample 0: won and tied, 1/2; sample 1: lost and won, 0"
    assert item_credits(rows, ties="strict") == {"rmb/0": 0, "rmb/1": 1} and item_credits(rows, k=2) == {"rmb/0": 0.5, "rmb/1": 1}
    rows = [{**r, "domain": "helpfulness-bon"} for r in rows]
    assert result(rows)["items"] == 2 and result(rows)["score"] == 0.75
    assert "best-of-N: pairs with the best" in result(rows)["protocol"] and "best-of-N: one list" in result(rows[2:])["protocol"]


# ----- judges with a known bias -----

def judged(bias, count=600, seed=1):
    """A judge that knows the better response, but with chance 0.3 names the first (the longest) one instead."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        lengths = rng.sample(range(5, 500), 2)
        built = row(f"ppe_preference/{i}", section="ppe_preference", rewards=(1, 0), response_lengths=lengths)
        for permutation in rng.choice([[[0, 1], [1, 0]], [[1, 0], [0, 1]]]):
            named = 0
            if rng.random() < 0.3:
                named = {"position": permutation[0], "length": lengths.index(max(lengths)), None: rng.randint(0, 1)}[bias]
            built["samples"].append({"permutation": permutation, "scores": [8 if j == named else 4 for j in (0, 1)], "reason": "ok", "tokens": 1})
        rows.append(built)
    return rows


@pytest.mark.parametrize("bias", ["position", "length", None])
def test_a_known_bias_is_found_and_measured(bias):
    found = result(judged(bias))
    for kind in ("position", "length"):
        low, high = found[f"{kind}_bias_low"], found[f"{kind}_bias_high"]
        assert low <= (0.15 if kind == bias else 0) <= high, f"{kind}: 0.3 x (1 - 1/2)"
        assert (low > 0) == (kind == bias), "it is there exactly if the interval leaves 0 out"
    assert f"| {100 * found['position_bias']:+.1f} (" in benches.tables([{**found, "model": "m"}], {"run": {"overall": None, "rank": None}})


def test_a_report_without_a_clear_verdict():
    r = report([row("x", [5, 5]), row("y", None)])
    assert r["accuracy"] == 0.25 and r["position_bias"] != r["position_bias"] and r["tie_rate"] == 0.5
    assert report([single(0, 1, 5)])["accuracy"] != report([single(0, 1, 5)])["accuracy"], "nan: no pair or list"


# ----- names, partial runs, tables -----

def test_parse_benches(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert parse_benches("rewardbench,ppe,rmb:tests/fixtures") == {
        "rewardbench": "rewardbench", "ppe_preference": "ppe_preference", "ppe_correctness": "ppe_correctness", "rmb": "rmb:tests/fixtures"}
    assert parse_benches("rewardbench@abc,ppe@v1") == {"rewardbench": "rewardbench@abc", "ppe_preference": "ppe_preference@v1",
                                                       "ppe_correctness": "ppe_correctness@v1"}
    assert parse_benches("rewardbench", "abc") == {"rewardbench": "rewardbench@abc"}
    for text, revision, problem in [("rewardbench,bench", None, "choose from rewardbench"), ("ppe:tests", None, "ppe is two sets"),
                                    ("ppe,ppe_preference", None, "twice"), ("ppe", "abc", "one commit of one"),
                                    ("rewardbench@a", "abc", "one commit of one"), ("rmb:tests", "abc", "one commit of one"), ("rmb:absent", None, "absent does not exist")]:
        with pytest.raises(UserError, match=problem):
            parse_benches(text, revision)


def whole(name, right):
    """Few rows that count as the whole of a benchmark: the last row number, every section."""
    return [row(f"{name}/{benches.ROWS[name] - 1 - i}", [2, 1] if (i * 7) % 10 < 10 * right else [1, 2], section=s)
            for i, s in enumerate(benches.SECTIONS[name] * 10)]


def test_overall_only_of_four_whole_benchmarks(readme_rows, readme_result, tmp_path, capsys):
    wholes = {name: result(whole(name, 0.7)) for name in BENCHMARKS[1:]} | {"rewardbench": readme_result}
    assert all(r["partial"] == [] for r in wholes.values())
    shorter = {**readme_result, "partial": benches.partial("rewardbench", readme_rows[:-40], {})}

    def compare(**left):
        found = wholes | left
        compare_benches([dict(r) for r in found.values() if r], tmp_path)
        text = (tmp_path / "benchmarks.md").read_text()
        assert text in capsys.readouterr().out
        return text.splitlines()[6].split(" | "), found
    cells, found = compare()
    printed = f"{100 * sum(found[b]['score'] for b in BENCHMARKS) / 4:.1f}"
    assert cells[-2] == printed and "*" not in "".join(cells)
    for left in ({"rmb": None}, {"rmb": bench_result("run", whole("rmb", 0.7), {"limit": 40})}, {"rewardbench": shorter}):
        cells, _ = compare(**left)
        assert cells[-2] == "-", left
    assert "*" in cells[1] and "2945 of 2985 rows" in (tmp_path / "benchmarks.md").read_text()


def test_partial_reasons():
    assert result(whole("ppe_preference", 0.5))["partial"] == []
    assert bench_result("a", whole("rmb", 1), {"limit": 5, "domain": "rmb"})["partial"] == ["--limit 5", "--domain rmb"]
    assert result([row("ppe_correctness/2554", [2, 1], section="MATH")])["partial"] == ["without GPQA, IFEval, MBPP-Plus and 1 more"]
    assert result([row("ppe_preference/70", [2, 1], section="ppe_preference")])["partial"] == ["71 of 16038 rows"]


def test_comparison_of_runs(tmp_path, capsys):
    """Two judges on two benchmarks, one by voting: ranks, paired differences, files, and the same from the result files."""
    def folder(name, bench, rows, **settings):
        write_rows(tmp_path / name / bench / "samples.jsonl", rows)
        runs.write_json(tmp_path / name / bench / "config.json", {"args": {"model": name, "template": "full", "data": bench, **settings}})
        runs.append_jsonl(tmp_path / name / bench / "metrics.jsonl", [
            {"seconds": 6.0, "judgments": 10}, {"seconds": 2.0, "judgments": 30}, {"stage": "meta_rm", "seconds": 99.0}])
    rng = random.Random(0)
    for bench in ("rmb", "ppe_preference"):
        good = whole(bench, 0.8)
        folder("good", bench, good)
        many = [{**r, "samples": [{**r["samples"][0], "scores": r["samples"][0]["scores"] if rng.random() < 0.8 else [4, 4]} for _ in range(8)],
                 "meta_logits": [1.0] * 8} for r in whole(bench, 0.5)]
        folder("voted", bench, many, temperature=0.5)
    monkey = ["eval.py", "--runs", f"good={tmp_path}/good", f"voted={tmp_path}/voted/rmb", f"voted={tmp_path}/voted/ppe_preference",
              "--output", f"{tmp_path}/table"]
    cli(*monkey)
    text = (tmp_path / "table" / "benchmarks.md").read_text()
    lines = text.splitlines()[6:]
    assert [line.split(" | ")[0] for line in lines[:4]] == ["| good", "| voted, Voting@1", "| voted, Voting@8", "| voted, guided @8"]
    assert "| RMB |" in text.splitlines()[4] and lines[0].endswith("| - | 1.00 |")
    assert "k 8, Voting@8 guided by a meta RM, k_meta 4" in text and "temperature 0.5" in text and "0.2 |" in text
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    assert len(results) == 8 and all("credits" not in r and r["seconds_per_judgment"] == 0.2 for r in results)
    by_run = {(r["run"], r["benchmark"]): r for r in results}
    assert "difference" not in by_run["good", "rmb"] and by_run["voted, Voting@8", "rmb"]["difference_high"] < 0
    assert by_run["voted, Voting@8", "rmb"]["score"] == pytest.approx(result(whole("rmb", 0.5))["score"])
    csv = (tmp_path / "table" / "benchmarks.csv").read_text().splitlines()
    assert csv[0].startswith("run,benchmark,part") and sum(",all," in line for line in csv) == 8
    for name in ("benchmarks.png", "curve.png"):
        assert (tmp_path / "table" / name).read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    cli("eval.py", "--runs", f"again={tmp_path}/table/results.json", "--output", f"{tmp_path}/again")  # without the samples
    again = (tmp_path / "again" / "benchmarks.md").read_text()
    assert "| again, Voting@8 |" in again and text.splitlines()[6].split(" | ")[1:4] == again.splitlines()[6].split(" | ")[1:4]
    assert "difference" not in again
    folder("cut", "rmb", whole("rmb", 0.5), limit=9)
    cli("eval.py", "--runs", f"good={tmp_path}/good/rmb", f"cut={tmp_path}/cut/rmb", "--output", f"{tmp_path}/partial")
    lines = (tmp_path / "partial" / "benchmarks.md").read_text().splitlines()
    assert [line.endswith("| - | - |") for line in lines if line.startswith(("| good |", "| cut |"))][:2] == [True, True], "no rank of parts"
    capsys.readouterr()
    assert cli("eval.py", "--runs", f"a={tmp_path}/good", f"a={tmp_path}/good", "--output", f"{tmp_path}/x") == 2
    assert "given twice" in capsys.readouterr().err


def test_protocol_tells_what_differs():
    rows = whole("rmb", 0.5)
    settings = {"data": "rmb@abc", "template": "full", "rating": "1-10", "temperature": 0.0, "seed": 3, "max_new_tokens": 512}
    line = bench_result("a", rows, settings)["protocol"]
    for fact in ("RMB", "revision: abc", "template full", "rating 1-10", "temperature 0.0", "k 1", "order: one random order per item, seed 3",
                 "ties: expected", "unparsed: is wrong", "40 rows"):
        assert fact in line
    assert "with reference" in bench_result("a", rows, {**settings, "use_reference": True})["protocol"]
    assert bench_result("a", [{**rows[0], "response_lengths": [1, 2]}, *rows[1:]], settings)["protocol"] != line, "other items"
    assert "no revision given" in bench_result("a", rows, {})["protocol"]
    assert "commits pinned" in bench_result("a", whole("ppe_correctness", 1), {"data": "ppe_correctness"})["protocol"]


# ----- whole runs on local files -----

def cli(script, *flags):
    """Runs a script in this process; returns the exit code."""
    before = sys.argv
    sys.argv = [script, *map(str, flags)]
    try:
        importlib.import_module(script[:-3]).main()
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def tiny(tiny_model, toy_tokenizer, tmp_path_factory):
    """Folder of a tiny random model with the toy tokenizer; it writes noise."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    runs.save_model(folder, tiny_model(initializer_range=0.1), toy_tokenizer)
    return folder


def samples(folder):
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob("*/samples.jsonl"))}


def dies_after(survived, write=runs.write_rows):
    """write_rows that ends this process in the middle of a chunk, with half a line of metrics."""
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


@pytest.mark.parametrize("model", ["tiny", "toy_world/medium"])
def test_a_run_killed_twice_gives_the_same_bytes(model, tiny, tmp_path, capsys):
    model = tiny if model == "tiny" else ROOT / model
    flags = ["eval.py", "--bench", LOCAL, "--model", model, "--max_new_tokens", 24, "--chunk_size", 2, "--output"]
    assert cli(*flags, tmp_path / "whole") == 0
    expected = samples(tmp_path / "whole")
    assert list(expected) == sorted(benches.BENCHES) and b"seconds" not in b"".join(expected.values())
    killed = tmp_path / "killed"
    for survived in (1, 4):  # kill -9 while this chunk is written, the metrics' last line half written
        child = os.fork()
        if child == 0:
            try:
                runs.write_rows = dies_after(survived)
                cli(*flags, killed)
            finally:
                os._exit(1)  # not reached
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(samples(killed)) in (1, 2), "some benchmarks are done, one was in the making"
    assert cli(*flags, killed) == 0 and samples(killed) == expected
    assert all("judgments" in m for p in killed.glob("*/metrics.jsonl") for m in read_rows(p))
    text = capsys.readouterr().out
    assert "partial: " in text and text.count("## Protocols") == 2
    assert json.loads((killed / "rewardbench" / "result.json").read_text())["sections"].keys() == {"chat", "chat-hard", "safety", "reasoning"}
    assert (tmp_path / "whole" / "rmb" / "result.json").read_text() != "" and not list(killed.glob("*/.samples.parts"))


def test_voting_samples_give_benchmark_rows_and_reference_is_shown(tiny, tmp_path, capsys):
    ppe = f"ppe_correctness:{FIXTURES / 'ppe_correctness'}"
    common = ["--model", tiny, "--max_new_tokens", 12, "--use_reference"]
    assert cli("infer_scale.py", "--data", ppe, "--k", 4, "--output", tmp_path / "voting", *common) == 0
    assert cli("infer_scale.py", "--data", f"rmb:{FIXTURES / 'rmb'}", "--k", 4, "--bon", "pairs", "--output", tmp_path / "rmb", *common[:4]) == 0
    assert cli("eval.py", "--runs", f"v={tmp_path / 'voting'}", f"v={tmp_path / 'rmb'}", "--output", tmp_path / "table") == 0
    found = json.loads((tmp_path / "table" / "results.json").read_text())
    assert {(r["run"], r["benchmark"]) for r in found} == {(f"v, Voting@{k}", b) for k in (1, 4) for b in ("ppe_correctness", "rmb")}
    assert all("with reference" in r["protocol"] for r in found if r["benchmark"] == "ppe_correctness")
    assert {r["items"] for r in found if r["benchmark"] == "rmb"} == {4} and len(read_rows(tmp_path / "rmb" / "samples.jsonl")) == 7
    rows = read_rows(tmp_path / "voting" / "samples.jsonl")
    assert [r["subset"] for r in rows] == ["GPQA"] * 3 + ["MATH"] * 2
    capsys.readouterr()


def test_other_data_in_an_old_folder_is_refused(tiny, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    lines = (FIXTURES / "rewardbench.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    flags = ["eval.py", "--bench", f"rewardbench:{data}", "--model", tiny, "--max_new_tokens", 4, "--output", tmp_path / "out"]
    assert cli(*flags) == 0
    data.write_text("".join(lines[:3]))
    assert cli(*flags) == 2 and "has other items" in capsys.readouterr().err
    assert cli(*flags, "--overwrite") == 0
    assert cli("eval.py", "--runs", f"a={tmp_path / 'nothing'}", "--output", tmp_path / "x") == 2
    assert folder_results("a", tmp_path / "out", "strict")[0]["ties"] == "strict"
    assert cli("eval.py", "--bench", f"realmistake:{FIXTURES / 'realmistake'}", "--rating", "best", "--output", tmp_path / "best") == 2
    assert "use --rating 1-10" in capsys.readouterr().err
