"""§5: the rules of accuracy and ties, intervals, biases, curves over k, and the program."""
import json
import random
import re

import numpy as np
import pytest
from conftest import error_of

import eval as evaluation
from eval import (
    auc_ci,
    block_credits,
    bootstrap_ci,
    chance,
    clusters_of,
    compare,
    credit,
    curve,
    item_credit,
    item_credits,
    main_table,
    overall,
    paired_ci,
    pick_best,
    powers_of_two,
    read_runs,
    report,
    single_scores,
)
from plumbing import generation
from plumbing.runs import UserError, read_json, read_rows, write_rows


def row(id, *samples, rewards=(1, 0), logits=None, **more):
    """A line of samples.jsonl; samples are lists of scores in the original order, or None."""
    n = len(rewards)
    found = {"id": id, "domain": "a", "n": n, "rewards": list(rewards), "cluster": None,
             "response_lengths": [5] * n, "samples": [
                 {"permutation": [*range(n)], "scores": s, "reason": "ok", "tokens": 5, "text": ""}
                 for s in samples]}
    return found | ({"meta_logits": logits} if logits else {}) | more


# ----- ties, and what did not parse -----

@pytest.mark.parametrize("votes, rewards, expected, strict", [
    ([20, 27], [0, 1], 1, 1), ([27, 20], [0, 1], 0, 0), ([8, 8], [0, 1], 1 / 2, 0),
    ([8, 8, 8], [0, 1, 0], 1 / 3, 0), ([8, 8, 3], [0, 0, 1], 0, 0), ([8, 8, 9], [0, 0, 1], 1, 1),
    (None, [0, 1], 0, 0),  # no valid judgment: wrong, not half right
])
def test_c24_credit_by_hand(votes, rewards, expected, strict):
    """C24: a tie counts 1/t, the expectation of the paper's shuffle-then-argmax (App. D)."""
    assert credit(votes, rewards) == pytest.approx(expected)
    assert credit(votes, rewards, "strict") == strict
    shuffled = [credit(votes, rewards, "shuffle", key=str(i)) for i in range(400)]
    assert set(shuffled) <= {0.0, 1.0} and np.mean(shuffled) == pytest.approx(expected, abs=0.08)
    assert credit(votes, rewards, "shuffle", "x") == credit(votes, rewards, "shuffle", "x")


def test_pick_best_breaks_ties_evenly():
    rng = random.Random(0)
    picks = [pick_best([3, 9, 9], rng) for _ in range(2000)]
    assert set(picks) == {1, 2} and 0.45 < picks.count(1) / 2000 < 0.55


# ----- blocks of k, and the controls on the same samples -----

def test_voting_at_k_is_the_mean_over_disjoint_blocks():
    """At k = 2 the blocks vote (3, 3), a tie, and (4, 10), right."""
    one = row("x", [1, 2], [2, 1], [1, 9], [3, 1], rewards=[0, 1])
    assert [block_credits(one, k) for k in (1, 2, 3, 4)] == [[1, 0, 1, 0], [0.5, 1], [1], [1]]
    assert [item_credit(one, k) for k in (1, 2, 4)] == [0.5, 0.75, 1]
    for k, method, named in ((8, "vote", "4 samples"), (0, "vote", "4 samples"),
                             (1, "best", "method")):
        with pytest.raises(ValueError, match=named):
            item_credit(one, k, method)


def test_guided_random_and_oracle_use_the_same_samples():
    scores = [[9, 1], [1, 3], [1, 3], [9, 1]]
    one = row("x", *scores, rewards=[0, 1], logits=[-1.0, 2.0, 2.0, -1.0])
    assert [item_credit(one, 4, m) for m in ("vote", "guided", "oracle")] == [0, 1, 1]
    assert block_credits(one, 2, "guided") == [1, 1]  # each block with its own logits
    # two of four at random: both right in 1 pair of 6
    control = item_credit(one, 4, "random", subsets=2000)
    assert control == pytest.approx(1 / 6, abs=0.03)
    assert item_credit(one, 4, "random", k_meta=4) == item_credit(one, 4)  # no choice left
    assert item_credit(one, 4, "random") == item_credit(one, 4, "random")  # no clock in it
    rng = random.Random(1)  # a meta RM that knows nothing does as well as the control
    blind = [row("x", *scores, rewards=[0, 1], logits=[rng.random() for _ in scores])
             for _ in range(600)]
    assert np.mean([item_credit(r, 4, "guided") for r in blind]) == pytest.approx(control, abs=0.05)
    unparsed = row("x", None, [1, 3], None, None, rewards=[0, 1], logits=[None, 1.0, None, None])
    assert [item_credit(unparsed, 4, m) for m in ("vote", "guided", "random", "oracle")] == [1] * 4


def test_pairs_of_a_best_of_n_item_must_all_be_won():
    """E4: RMB's rule for best-of-N by pairs; chance is the product over an item's pairs."""
    pairs = [row("a#1", [9, 1], [9, 1], of="a"), row("a#2", [9, 1], [1, 9], of="a"),
             row("b#1", [9, 1], None, of="b"), row("b#2", None, [2, 2], of="b")]
    assert item_credits(pairs) == {"a": 0.5, "b": 0} == item_credits(pairs, 1)
    assert item_credits(pairs, 2) == {"a": 0.5, "b": 0.5}  # (10, 10) is a tie; b: 1 and a tie
    assert chance(pairs) == 0.25 and chance([row("x", rewards=[1, 0, 0]), *pairs]) == (
        pytest.approx((1 / 3 + 1 / 4 + 1 / 4) / 3))
    r = report(pairs)
    assert (r["items"], r["accuracy"], r["chance"], r["parse_rate"]) == (2, 0.5, 0.25, 0.75)
    assert r["lenient"] == 0.75  # b: a win and a random pick
    assert r["tie_rate"] == 0 and (r["low"], r["high"]) == (0, 1)  # of two items, not of four rows
    table = {(p["method"], p["k"]): (p["accuracy"], p["items"]) for p in curve(pairs, "x")}
    assert table["vote", 1] == ((0.5 + 0) / 2, 2) and table["vote", 2] == (0.5, 2)


def test_powers_of_two():
    assert powers_of_two(32) == [1, 2, 4, 8, 16, 32] and powers_of_two(6) == [1, 2, 4, 6]


def test_curve_by_hand():
    """k_meta = 3 keeps the three best of four: 11 : 19; half of them would be right twice."""
    one = row("x", [9, 1], [1, 9], [1, 9], [9, 1], rewards=[0, 1], logits=[3.0, 2.0, 1.0, 0.0])
    table = {(p["method"], p["k"]): p for p in curve([one, row("s", [7], rewards=[1])], "x", 3)}
    assert {key: p["accuracy"] for key, p in table.items() if key[0] in ("vote", "guided")} == {
        ("vote", 1): 0.5, ("vote", 2): 0.5, ("vote", 4): 0.5,
        ("guided", 1): 0.5, ("guided", 2): 0.5, ("guided", 4): 1.0}
    assert [table["guided", k]["k_meta"] for k in (1, 2, 4)] == [1, 1, 3]
    assert table["vote", 4]["tokens"] == 20 and table["oracle", 2]["accuracy"] == 1
    with pytest.raises(UserError, match="--k_meta 5: x has 4 judgments"):
        curve([one], "x", 5)
    with pytest.raises(UserError, match="no item"):
        curve([row("s", [7], rewards=[1])], "x")


# ----- single responses -----

def test_single_scores_by_hand():
    """Eq. 14 divided by the valid judgments; guided: the better half of a block by meta logit."""
    one = row("x", [4], None, [8], [6], rewards=[1], logits=[1.0, None, -1.0, 2.0])
    assert single_scores(one) == [4, float("-inf"), 8, 6]
    assert single_scores(one, 2) == [4, 7] and single_scores(one, 4) == [6]
    assert single_scores(one, 4, "guided") == [5] and single_scores(one, 2, "guided") == [4, 6]
    assert single_scores(row("x", None, rewards=[0])) == [float("inf")]


def test_an_unparsed_single_response_loses_all_its_comparisons():
    rows = [row("0", None, rewards=[1]), row("1", [7], rewards=[1]), row("2", [7], rewards=[0]),
            row("3", [2], rewards=[0])]
    assert report(rows)["auc_single"] == pytest.approx((0 + 0 + 0.5 + 1) / 4)


def test_e05_auc_with_its_interval():
    """E5: without one class it is undefined, not 0.5."""
    scores, labels = [[9, 1], [7, 9], [7, 2], [2, 1]], [1, 1, 0, 0]
    auc, low, high = auc_ci(scores, labels)
    assert auc == pytest.approx(((1 + 1 + 0.5 + 1) / 4 + (0 + 0.5 + 1 + 1) / 4) / 2)
    assert 0 <= low <= auc <= high <= 1
    assert auc_ci(scores, [1] * 4) == (None, None, None)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60) % 2, 10)
    values = labels + np.repeat(rng.normal(size=60), 10)  # ten copies of each of 60 responses
    plain, repeated = (auc_ci(values[:, None], labels, clusters=c)
                       for c in (None, np.repeat(np.arange(60), 10)))
    assert repeated[2] - repeated[1] > 2 * (plain[2] - plain[1])


# ----- averages and intervals -----

@pytest.mark.parametrize("numbers, printed", [
    ((86.0, 64.7, 59.8, 69.0), 69.9), ((84.5, 64.1, 59.6, 67.0), 68.8),
    ((88.5, 65.3, 60.4, 69.7), 71.0), ((90.4, 67.2, 63.2, 70.3), 72.8),
    ((87.1, 65.8, 64.8, 58.2), 69.0), ((83.4, 64.2, 58.8, 64.8), 67.8)])
def test_overall_reproduces_the_rows_of_table_2(numbers, printed):
    scores = dict(zip(evaluation.BENCHMARKS, numbers))
    assert overall(scores) == pytest.approx(printed, abs=0.051)
    with pytest.raises(ValueError, match="rmb"):
        overall({name: v for name, v in scores.items() if name != "rmb"})


def test_bootstrap_interval_matches_the_normal_one_and_covers():
    values = np.random.default_rng(0).random(500) < 0.7
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 500)
    low, high = bootstrap_ci(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap_ci(values) == (low, high)  # seeded
    narrow = bootstrap_ci(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    ends = [bootstrap_ci(np.random.default_rng(s).random(100) < 0.6, draws=400) for s in range(100)]
    assert sum(low <= 0.6 <= high for low, high in ends) >= 88
    weighted = bootstrap_ci([0.0] * 50 + [1.0] * 50, weights=[1] * 50 + [3] * 50)
    assert np.mean(weighted) == pytest.approx(0.75, abs=0.02)
    with pytest.raises(ValueError):
        bootstrap_ci([])


def test_cluster_bootstrap_is_wider_where_prompts_repeat():
    values = np.repeat(np.random.default_rng(0).random(40) > 0.5, 20)
    clusters = [f"p{i // 20}" for i in range(800)]
    plain, clustered = bootstrap_ci(values), bootstrap_ci(values, clusters=clusters)
    assert clustered[1] - clustered[0] > 3 * (plain[1] - plain[0])
    assert clusters_of([row("a"), row("b", of="c")]) is None
    rows = [row("a", cluster="p"), row("b#1", of="b"), row("b#2", of="b"), row("c", cluster="p")]
    assert clusters_of(rows) == ["p", "b", "p"]  # in the order of item_credits


def test_paired_interval_sees_a_small_constant_gain():
    a = np.random.default_rng(0).random(300)
    assert paired_ci(a, a + 0.01) == pytest.approx((0.01, 0.01))
    with pytest.raises(ValueError, match="same items"):
        paired_ci([1], [1, 2])


# ----- judges with a known bias -----

def make_rows(judge, count=400, swap=True):
    """Rows by a scripted judge: (shown responses as (quality, length), rng) -> shown scores."""
    rng, rows = random.Random(0), []
    for i in range(count):
        quality, lengths = ([draw() for _ in "ab"] for draw in (
            rng.random, lambda: rng.randint(5, 200)))
        order, samples = rng.choice([[0, 1], [1, 0]]), []
        for permutation in [order, order[::-1]] if swap else [order]:
            shown = judge([(quality[j], lengths[j]) for j in permutation], rng)
            samples.append({"permutation": permutation, "tokens": 10, "reason": "ok", "text": "",
                            "scores": shown and [shown[permutation.index(j)] for j in (0, 1)]})
        rows.append(row(str(i), rewards=[int(q == max(quality)) for q in quality])
                    | {"response_lengths": lengths, "samples": samples})
    return rows


def fair(shown, rng):
    return [1 + round(9 * quality) for quality, _ in shown]


def test_a_fair_judge_has_no_bias():
    r = report(make_rows(fair))
    assert r["accuracy"] > 0.9 and r["swap_consistency"] > 0.85 and r["first_expected"] == 0.5
    assert abs(r["first_position"] - 0.5) < 0.05 and 0.4 < r["longest"] < 0.6
    for kind in ("position", "length"):
        assert r[f"{kind}_bias_low"] <= 0 <= r[f"{kind}_bias_high"]


def test_a_position_biased_judge_is_found():
    r = report(make_rows(lambda shown, rng: [9, 3]))
    assert (r["first_position"], r["first_expected"], r["swap_consistency"]) == (1, 0.5, 0)
    assert r["position_bias"] == r["position_bias_low"] == 0.5 and abs(r["length_bias"]) < 0.1


def test_a_length_biased_judge_is_found():
    r = report(make_rows(lambda shown, rng: [1 + length * 9 // 200 for _, length in shown]))
    assert r["longest"] > 0.99 and 0.4 < r["longest_wins"] < 0.6
    assert r["length_bias"] > 0.4 and r["length_bias_low"] > 0.3 and r["swap_consistency"] > 0.8
    assert abs(r["position_bias"]) < 0.05


def test_ties_and_unparsed_items_have_their_own_columns():
    rows = make_rows(lambda shown, rng: None if rng.random() < 0.5 else fair(shown, rng),
                     swap=False)
    r = report(rows)
    assert 0.4 < r["parse_rate"] < 0.6
    assert r["lenient"] == pytest.approx(r["accuracy"] + (1 - r["parse_rate"]) / 2, abs=1e-9)
    r = report([row("a", [5, 5]), row("b", [9, 1]), row("c", None), row("d", [3, 4])])
    assert (r["accuracy"], r["tie_rate"], r["parse_rate"]) == (1.5 / 4, 0.25, 0.75)


def test_single_responses_enter_auc_only_and_the_first_judgment_alone_accuracy():
    rows = [row(str(i), [9, 1], [1, 9], [1, 9]) for i in range(20)]
    rows += [row(f"s{i}", [3 + 4 * (i % 2)], rewards=[i % 2], domain="b") for i in range(6)]
    r = report(rows)
    assert (r["items"], r["accuracy"], r["auc_single"]) == (20, 1.0, 1.0)
    table = main_table({"run": rows + [row("z", [1, 9], domain="c")]})
    assert [(t["domain"], t["items"], t["accuracy"]) for t in table] == [
        ("all", 21, pytest.approx(20 / 21)), ("a", 20, 1.0), ("c", 1, 0.0)]


# ----- comparing runs -----

@pytest.fixture
def compared(tmp_path, capsys, monkeypatch):
    """compared(runs) -> what `compare` prints; no figure is drawn."""
    monkeypatch.setattr(evaluation, "draw_curves", lambda *args: None)

    def run(runs):
        compare(runs, tmp_path)
        return capsys.readouterr().out
    return run


def test_differences_between_runs_are_resampled_by_prompt(compared):
    def width(repeats):
        first = [row(str(i), [1, 9], cluster=f"p{i // repeats}") for i in range(200)]
        second = [row(str(i), [9, 1] if (i // 20) % 2 else [1, 9], cluster=f"p{i // repeats}")
                  for i in range(200)]
        low, high = re.search(r"b - a, single judgments: \S+ \[(.*), (.*)\] points on 200 items",
                              compared({"a": first, "b": second})).groups()
        return float(high) - float(low)
    assert width(20) > 3 * width(1)


def test_voting_runs_are_compared_at_their_common_k_and_strangers_not_at_all(compared):
    good, bad = [9, 1], [1, 9]
    out = compared({"a": [row(str(i), bad, bad, good, good) for i in range(30)],  # a tie of four
                    "b": [row(str(i), good, good, good, bad, bad, bad) for i in range(30)],
                    "c": [row("other", good, good, good)]})
    assert "b - a, single judgments: +100.0 [+100.0, +100.0] points on 30 items" in out
    assert "b - a, Voting@4: +50.0 [+50.0, +50.0] points on 30 items" in out
    assert "c - a: no item in both" in out


@pytest.mark.parametrize("field, value", [
    ("rewards", [1, 0]), ("response_lengths", [5, 6]), ("cluster", "q")])
def test_other_texts_under_the_same_id_are_not_compared(field, value, tmp_path):
    one = row("x", [1, 9], rewards=[0, 1], cluster="p")
    for name, its in (("a", one), ("b", one | {field: value})):
        write_rows(tmp_path / name / "samples.jsonl", [its])
    with pytest.raises(UserError, match=f"item x has other {field} in b than in a"):
        read_runs([str(tmp_path / "a"), str(tmp_path / "b")])


def test_one_list_and_its_pairs_are_the_same_item(compared):
    pairs = [row("a#1", [9, 1], of="a"), row("a#2", [9, 1], of="a"), row("b#1", [9, 1], of="b")]
    lists = [row(i, [9, 1, 2], rewards=[1, 0, 0]) for i in "ab"]
    assert "+0.0 [+0.0, +0.0] points on 2 items" in compared({"pairs": pairs, "list": lists})


def test_table_csv_and_figure_are_written(tmp_path, capsys):
    rows = make_rows(fair, count=20)
    many = [r | {"samples": r["samples"] * 4, "meta_logits": [0.5] * 8} for r in rows]
    compare({"greedy": rows, "voting": many}, tmp_path)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    header, *lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert header.startswith("run,method,k,k_meta,accuracy,low,high")
    assert len(lines) == 4 * 4 and (tmp_path / "table.csv").exists()
    assert "curve.png" in capsys.readouterr().out


# ----- the program -----

ITEM = {"id": "a", "prompt": "Which ?", "responses": ["good", "bad", "worse"], "rewards": [1, 0, 0]}


@pytest.fixture
def items(tmp_path):
    """items(*rows) -> a file of them."""
    def write(*rows):
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return tmp_path / "items.jsonl"
    return write


@pytest.fixture
def played(monkeypatch):
    """A judge that gives "good" 9, and 8, 7, ... to the others in displayed order."""
    def generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, **_):
        rows = []
        for prompt in map(tokenizer.decode, prompts):
            shown = re.findall(r"Begin of Response \d+ ?\]\s*(.*?)\s*\[ ?The End", prompt, re.S)
            points = [9 if text.strip() == "good" else 8 - i for i, text in enumerate(shown)]
            text = "Scores: \\boxed{" + ", ".join(map(str, points)) + "}"
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            rows.append(generation.Completion(ids, [0.0] * len(ids), True))
        return rows
    monkeypatch.setattr(generation, "generate", generate)


def test_eval_judges_greedily_in_both_orders(cli, tiny, items, played, tmp_path):
    out = tmp_path / "out"
    data = items(*[{**ITEM, "id": f"i{i}"} for i in range(4)])
    words = ["--model", tiny, "--data", data, "--output", out, "--max_new_tokens", 5]
    code, said, err = cli("eval", *words)
    assert code == 0, err
    rows, summary = read_rows(out / "samples.jsonl"), read_json(out / "summary.json")
    for r in rows:
        first, second = (s["permutation"] for s in r["samples"])
        assert first == second[::-1] and r["votes"][0] == 18
    assert (summary["items"], summary["accuracy"], summary["partial"]) == (4, 1.0, False)
    assert summary["chance"] == pytest.approx(1 / 3) and summary["temperature"] == 0
    assert "100.0" in said and (out / "table.csv").exists()
    assert "partial run" in cli("eval", *words[:-4], "--output", tmp_path / "two", "--limit", 2)[1]
    runs = ["--output", tmp_path / "table", "--runs", f"a={out}"]
    assert "another run has the name a" in error_of(cli("eval", *runs, f"a={tmp_path / 'two'}"))
    code, said, err = cli("eval", *runs, tmp_path / "two")  # a folder names itself
    assert code == 0 and "two - a, single judgments: +0.0" in said and "changed" not in said, err
    # Flipped labels: what was judged before is graded by the labels of then, and that is said; runs
    # with different labels are not compared.
    items(*[{**ITEM, "id": f"i{i}", "rewards": [0, 1, 0]} for i in range(4)])
    assert "the items of --data" in error_of(cli("eval", *words))
    code, said, err = cli("eval", *runs)
    assert code == 0 and "100.0" in said, err
    assert said.count(f"{out}: the items of --data {data} have changed since") == 1
    assert cli("eval", *words[:-4], "--output", tmp_path / "now")[0] == 0
    assert f"item i0 has other rewards in {tmp_path / 'now'}" in error_of(
        cli("eval", *runs, f"{tmp_path / 'now'}={tmp_path / 'now'}"))


def test_where_nothing_parses_the_files_are_still_json(cli, tiny, items, tmp_path):
    """A share of nothing is NaN, for which JSON has no word: null there, and "-" in the table."""
    def no_constant(word):
        raise AssertionError(f"bare {word}")
    out = tmp_path / "out"
    code, said, err = cli("eval", "--model", tiny, "--data", items(ITEM), "--max_new_tokens", 2,
                          "--output", out)
    assert code == 0 and "nan" not in said.lower(), (said, err)
    for file in out.glob("*.json*"):
        for text in file.read_text().split("\n")[:-1] if file.suffix == ".jsonl" else [
                file.read_text()]:
            json.loads(text, parse_constant=no_constant)
    assert read_json(out / "summary.json")["first_position"] is None


def test_pairs_on_the_command_line(cli, tiny, items, played, tmp_path):
    """App. E.1.1: the best response against each other one; a new item in the data is noticed."""
    rows = [{**ITEM, "id": f"i{i}"} for i in range(4)]
    words = ["--model", tiny, "--data", items(*rows), "--bon", "pairs", "--output"]
    assert cli("eval", *words, tmp_path / "greedy")[0] == 0
    assert cli("infer_scale", *words, tmp_path / "voting", "--k", 3)[0] == 0
    summary = read_json(tmp_path / "greedy" / "summary.json")
    assert (summary["items"], summary["chance"], summary["accuracy"]) == (4, 0.25, 1)
    for name, k in (("greedy", 2), ("voting", 3)):
        judged = read_rows(tmp_path / name / "samples.jsonl")
        assert len(judged) == 8 and {len(r["samples"]) for r in judged} == {k}
        assert {(r["n"], r["of"]) for r in judged} == {(2, f"i{i}") for i in range(4)}
    items(*rows, {**ITEM, "id": "new"})
    words = ["infer_scale", *words, tmp_path / "voting", "--k", 3]
    assert "the items of --data" in error_of(cli(*words))


@pytest.mark.parametrize("program, words, named", [
    ("eval", ["--runs", "x=none"], "none/samples.jsonl does not exist"),
    ("eval", [], "no item with n >= 2"), ("infer_scale", ["--rating", "best"], "only single"),
])
def test_mistakes_end_in_one_line_and_nothing_is_judged(program, words, named, cli, tiny, items,
                                                        tmp_path):
    single = {**ITEM, "responses": ["good"], "rewards": [1]}
    data = ["--data", items(single), "--model", tiny, "--output", tmp_path / "out"]
    assert named in error_of(cli(program, *data, *words))
    assert not (tmp_path / "out" / "samples.jsonl").exists()


def test_two_samples_are_votes_unless_they_are_two_opposite_orders():
    rows = [{"samples": [{"permutation": [0, 1]}, {"permutation": [1, 0]}]},
            {"samples": [{"permutation": [0, 1]}, {"permutation": [0, 1]}]}]
    assert not evaluation.is_voted(rows[:1]) and evaluation.is_voted(rows)
    assert not evaluation.is_voted([{"samples": [{"permutation": [0, 1]}]}])
    assert evaluation.is_voted([{"samples": [{"permutation": [0, 1]}] * 3}])


def test_biases_by_hand():
    """Of three responses the judge names the one that is shown first and is the longest; the truth
    is another one: 1 - 1/3 above chance, and 1 above the truth."""
    wrong = row("a", [1, 9, 2], rewards=[0, 0, 1]) | {"response_lengths": [5, 9, 5]}
    wrong["samples"][0]["permutation"] = [1, 0, 2]
    r = report([wrong])
    assert r["position_bias"] == pytest.approx(2 / 3) and r["length_bias"] == 1
    tied = row("b", [5, 5], [5, 5])
    tied["samples"][1]["permutation"] = [1, 0]
    assert report([tied])["swap_consistency"] == 0  # no verdict in either order


def test_intervals_are_over_prompts_where_they_repeat():
    rows = [row(str(i), [9, 1] if i < 20 else [1, 9], cluster="p" if i < 20 else "q")
            for i in range(40)]
    assert (report(rows)["low"], report(rows)["high"]) == (0, 1)
    assert all((point["low"], point["high"]) == (0, 1) for point in curve(rows, "x"))
