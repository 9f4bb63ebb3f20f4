"""Metrics by hand, interval properties, the paper's averages, and judges with a known bias."""
import json
import random
import re
import shutil
import sys

import numpy as np
import pytest

import eval as evaluation
import infer_scale
from eval import bootstrap_ci, overall, paired_ci, pick_best, report, roc_auc
from plumbing.runs import read_rows, save_model


def make_rows(judge, count=400, n=2, seed=0, swap=True):
    """Rows of samples.jsonl by a scripted judge: (shown responses as (quality, length), rng) -> shown scores."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        quality = [rng.random() for _ in range(n)]
        lengths = [rng.randint(5, 200) for _ in range(n)]
        order = list(range(n))
        rng.shuffle(order)
        samples = []
        for permutation in [order, order[::-1]] if swap else [order]:
            shown = judge([(quality[j], lengths[j]) for j in permutation], rng)
            scores = None if shown is None else [shown[permutation.index(j)] for j in range(n)]
            samples.append({"permutation": permutation, "scores": scores, "reason": "ok", "tokens": 10, "text": ""})
        rows.append({"id": str(i), "domain": "a", "n": n, "rewards": [int(q == max(quality)) for q in quality],
                     "response_lengths": lengths, "samples": samples, "cluster": None})
    return rows


def test_roc_auc_by_hand():
    assert roc_auc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert roc_auc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert roc_auc([5, 5, 5], [0, 1, 1]) == 0.5  # ties count half
    assert roc_auc([9, 7, 7, 2], [1, 1, 0, 0]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert roc_auc([1, 2], [1, 1]) is None  # undefined, not 0.5
    scores, labels = [random.Random(1).randint(1, 10) for _ in range(60)], [i % 3 == 0 for i in range(60)]
    pairs = [(p > q) + (p == q) / 2 for p, y in zip(scores, labels) if y for q, z in zip(scores, labels) if not z]
    assert roc_auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_overall_is_the_mean_of_four_and_reproduces_the_papers_rows():
    # Table 2 of the paper: four benchmarks -> Overall
    for numbers, printed in [((86.0, 64.7, 59.8, 69.0), 69.9), ((84.5, 64.1, 59.6, 67.0), 68.8), ((88.5, 65.3, 60.4, 69.7), 71.0),
                             ((90.4, 67.2, 63.2, 70.3), 72.8), ((87.1, 65.8, 64.8, 58.2), 69.0), ((83.4, 64.2, 58.8, 64.8), 67.8)]:
        assert overall(dict(zip(evaluation.BENCHMARKS, numbers))) == pytest.approx(printed, abs=0.051)
    with pytest.raises(ValueError, match="rmb"):
        overall({"rewardbench": 1, "ppe_preference": 1, "ppe_correctness": 1})


def test_pick_best_breaks_ties_evenly():
    rng = random.Random(0)
    picks = [pick_best([3, 9, 9], rng) for _ in range(2000)]
    assert set(picks) == {1, 2} and 0.45 < picks.count(1) / 2000 < 0.55


def test_bootstrap_interval_matches_the_normal_one_and_covers():
    values = np.random.default_rng(0).random(500) < 0.7
    low, high = bootstrap_ci(values)
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 500)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap_ci(values) == bootstrap_ci(values)  # seeded
    covered = 0
    for seed in range(100):
        sample = np.random.default_rng(seed).random(100) < 0.6
        low, high = bootstrap_ci(sample, draws=400)
        covered += low <= 0.6 <= high
    assert covered >= 88
    with pytest.raises(ValueError):
        bootstrap_ci([])


def test_cluster_bootstrap_is_wider_where_prompts_repeat():
    rng = np.random.default_rng(0)
    truth = rng.random(40)
    values = np.repeat(truth > 0.5, 20)
    clusters = [f"p{i // 20}" for i in range(800)]
    plain, clustered = bootstrap_ci(values), bootstrap_ci(values, clusters=clusters)
    assert clustered[1] - clustered[0] > 3 * (plain[1] - plain[0])


def test_paired_interval_sees_a_small_constant_gain():
    a = np.random.default_rng(0).random(300)
    low, high = paired_ci(a, a + 0.01)
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)
    with pytest.raises(ValueError, match="same items"):
        paired_ci([1], [1, 2])


def test_a_position_biased_judge_is_found():
    fair = report(make_rows(lambda shown, rng: [1 + round(9 * q) for q, _ in shown]))
    biased = report(make_rows(lambda shown, rng: [9] + [3] * (len(shown) - 1)))
    assert fair["accuracy"] > 0.9 and abs(fair["first_position"] - fair["first_expected"]) < 0.05
    assert fair["swap_consistency"] > 0.85
    assert biased["first_position"] == 1.0 and biased["first_expected"] == 0.5 and biased["swap_consistency"] == 0.0


def test_a_length_biased_judge_is_found():
    biased = report(make_rows(lambda shown, rng: [1 + length * 9 // 200 for _, length in shown]))
    fair = report(make_rows(lambda shown, rng: [1 + round(9 * q) for q, _ in shown]))
    assert biased["longest"] > 0.99 and 0.4 < fair["longest"] < 0.6 and 0.4 < biased["longest_wins"] < 0.6


def test_unparsed_items_are_wrong_and_lenient_counts_a_random_pick():
    rows = make_rows(lambda shown, rng: None if rng.random() < 0.5 else [1 + round(9 * q) for q, _ in shown], swap=False)
    r = report(rows)
    assert 0.4 < r["parse_rate"] < 0.6
    assert r["lenient"] == pytest.approx(r["accuracy"] + (1 - r["parse_rate"]) / 2, abs=1e-9)


def test_single_responses_enter_auc_only():
    rows = make_rows(lambda shown, rng: [1 + round(9 * q) for q, _ in shown], count=20)
    rows += [{"id": f"s{i}", "domain": "a", "n": 1, "rewards": [i % 2], "response_lengths": [5], "cluster": None,
              "samples": [{"permutation": [0], "scores": [3 + 4 * (i % 2)], "reason": "ok", "tokens": 5, "text": ""}]} for i in range(6)]
    r = report(rows)
    assert r["items"] == 20 and r["auc_single"] == 1.0


def row(id, *samples, rewards=(1, 0), **more):
    """A line of samples.jsonl; samples are lists of scores in the original order, or None."""
    return {"id": id, "domain": "a", "n": len(rewards), "rewards": list(rewards), "response_lengths": [5] * len(rewards), "cluster": None,
            "samples": [{"permutation": list(range(len(rewards))), "scores": s, "reason": "ok", "tokens": 5, "text": ""} for s in samples], **more}


def test_an_unparsed_single_response_loses_all_its_comparisons():
    rows = [row("0", None, rewards=(1,)), row("1", [7], rewards=(1,)), row("2", [7], rewards=(0,)), row("3", [2], rewards=(0,))]
    assert report(rows)["auc_single"] == pytest.approx((0 + 0 + 0.5 + 1) / 4)


def test_pairs_of_a_best_of_n_item_must_all_be_won_on_any_data(tmp_path, capsys):
    pairs = [row("a#1", [9, 1], [9, 1], of="a"), row("a#2", [9, 1], [1, 9], of="a"), row("b#1", [9, 1], None, of="b"),
             row("b#2", None, [2, 2], of="b")]
    r = report(pairs)
    assert (r["items"], r["accuracy"], r["chance"], r["lenient"], r["parse_rate"]) == (2, 0.5, 0.25, 0.75, 0.75)
    assert r["tie_rate"] == 0 and r["low"] == 0 and r["high"] == 1  # an interval over two items, not over four rows
    table = {(p["method"], p["k"]): (p["accuracy"], p["items"]) for p in evaluation.curve(pairs, "x")}
    assert table["vote", 1] == ((1 + 0 + 0 + 0) / 4, 2) and table["vote", 2] == (0.5, 2)
    lists = [row("a", [9, 1, 2], [9, 1, 2], rewards=(1, 0, 0)), row("b", [9, 1, 2], [9, 1, 2], rewards=(1, 0, 0))]
    evaluation.compare({"pairs": pairs, "list": lists}, tmp_path, "eval.py --runs ...")
    assert "on 2 items" in capsys.readouterr().out, "one list and its pairs are the same item"


def test_differences_between_runs_are_resampled_by_prompt(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "draw_curves", lambda *args: None)

    def width(repeats):
        first = [row(str(i), [1, 9], cluster=f"p{i // repeats}") for i in range(200)]
        second = [row(str(i), [9, 1] if (i // 20) % 2 else [1, 9], cluster=f"p{i // repeats}") for i in range(200)]
        evaluation.compare({"a": first, "b": second}, tmp_path, "")
        low, high = re.search(r"b - a, single judgments: [+-][\d.]+ \[(.*), (.*)\] points on 200 items", capsys.readouterr().out).groups()
        return float(high) - float(low)
    assert width(20) > 3 * width(1)


def test_voting_runs_are_compared_at_their_common_k_and_strangers_not_at_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "draw_curves", lambda *args: None)
    good, bad = [9, 1], [1, 9]
    first = [row(str(i), bad, bad, good, good) for i in range(30)]  # a vote of four ties
    second = [row(str(i), good, good, good, bad, bad, bad) for i in range(30)]
    evaluation.compare({"a": first, "b": second, "c": [row("other", good, good, good)]}, tmp_path, "")
    out = capsys.readouterr().out
    assert "b - a, single judgments: +100.0 [+100.0, +100.0] points on 30 items" in out
    assert "b - a, Voting@4: +50.0 [+50.0, +50.0] points on 30 items" in out and "c - a: no item in both" in out


def test_table_csv_and_figure_are_written(tmp_path):
    rows = make_rows(lambda shown, rng: [1 + round(9 * q) for q, _ in shown], count=20)
    many = [r | {"samples": r["samples"] * 4, "meta_logits": [0.5] * 8} for r in rows]
    evaluation.compare({"greedy": rows, "voting": many}, tmp_path, "eval.py --runs ...")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    header, *lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert header.startswith("run,method,k,k_meta,accuracy,low,high") and len(lines) == 16


def test_wrong_use_of_flags_is_said(monkeypatch, capsys, tmp_path):
    single = tmp_path / "single.jsonl"
    single.write_text('{"id": "a", "prompt": "Which ?", "responses": ["good"], "rewards": [1]}\n')
    for main, flags, said in [(evaluation.main, ["--data", "rewardbench", "--revision", "abc"], "NAME@REVISION"),
                              (evaluation.main, ["--data", str(single), "--rating", "best"], "only single responses"),
                              (infer_scale.main, ["--data", str(single), "--rating", "best"], "only single responses")]:
        monkeypatch.setattr(sys, "argv", ["x.py", *flags, "--output", str(tmp_path / said)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2 and said in capsys.readouterr().err
        shutil.rmtree(tmp_path / said, ignore_errors=True)


def test_pairs_on_the_command_line(monkeypatch, capsys, tmp_path, tiny_model, toy_tokenizer):
    save_model(tmp_path / "model", tiny_model(), toy_tokenizer)
    items = [{"id": f"i{i}", "prompt": "Which ?", "responses": ["good", "bad", "worse"], "rewards": [1, 0, 0]} for i in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    common = ["--model", tmp_path / "model", "--data", tmp_path / "items.jsonl", "--bon", "pairs", "--max_new_tokens", 4, "--output"]
    monkeypatch.setattr(sys, "argv", list(map(str, ["eval.py", *common, tmp_path / "greedy"])))
    evaluation.main()
    summary = json.loads((tmp_path / "greedy" / "summary.json").read_text())
    assert (summary["items"], summary["chance"]) == (4, 0.25)
    monkeypatch.setattr(sys, "argv", list(map(str, ["infer_scale.py", *common, tmp_path / "voting", "--k", 2])))
    infer_scale.main()
    out = capsys.readouterr().out
    assert "4 items with n >= 2" in out and "chance 0.250" in out
    greedy, voting = (read_rows(tmp_path / name / "samples.jsonl") for name in ("greedy", "voting"))
    assert len(greedy) == len(voting) == 8 and {len(r["samples"]) for r in greedy + voting} == {2}
    assert all(r["samples"][0]["permutation"] == r["samples"][1]["permutation"][::-1] for r in greedy)
    with open(tmp_path / "items.jsonl", "a") as file:
        file.write(json.dumps({**items[0], "id": "new"}) + "\n")
    with pytest.raises(SystemExit):
        infer_scale.main()
    assert "has other items" in capsys.readouterr().err
