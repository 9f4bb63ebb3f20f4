"""How large a habit is: measures by hand, and what a judge without a habit measures."""
import pytest
from conftest import ROOT

from plumbing.runs import UserError, write_json, write_rows
from results import habits


def row(best, first, scores, lengths=(3, 5), **more):
    """A judged pair: index of the best and of the response shown first, scores in item order."""
    rewards = [int(i == best) for i in range(2)]
    return {"id": f"{best}{first}", "n": 2, "rewards": rewards, "response_lengths": list(lengths),
            **more}, scores, first


def test_a_judge_that_always_names_the_first():
    judged = [row(b, f, [9 - 2 * abs(i - f) for i in range(2)]) for b in (0, 1) for f in (0, 1)]
    found = habits.habits_in(judged)
    assert (found["first"], found["accuracy"], found["clear"]) == (1.0, 0.5, 1.0)
    assert found["longest"] == 0.5 and found["right, longest best"] == 0.5


def test_truth_weighs_nothing_in_the_measure():
    """A judge that is always right has no habit, however often the best is first or longest."""
    judged = [row(0, 0, [9, 1], lengths=(9, 2))] * 8 + [row(1, 0, [1, 9], lengths=(9, 2))]
    found = habits.habits_in(judged)
    assert (found["first"], found["longest"], found["accuracy"]) == (0.5, 0.5, 1.0)


def test_a_liking_for_the_longest_lifts_one_side_and_costs_the_other():
    judged = [row(b, f, [1, 9]) for b in (0, 1) for f in (0, 1)]  # response 1 is longer
    found = habits.habits_in(judged)
    assert (found["longest"], found["first"]) == (1.0, 0.5)
    assert (found["right, longest best"], found["right, longest worse"]) == (1.0, 0.0)


def test_ties_are_no_verdicts_and_votes_have_no_first():
    judged = [row(0, 0, [5, 5]), row(0, 0, [9, 1]), row(1, 0, [9, 1])]
    found = habits.habits_in([(r, s, None) for r, s, _ in judged])
    assert found["clear"] == pytest.approx(2 / 3) and "first" not in found
    assert found["accuracy"] == pytest.approx(1.5 / 3)


def test_seeds_are_averaged_and_guided_votes_show_whom_they_kept(tmp_path):
    def run(name, firsts, temperature=0, meta_logits=None):
        """Pairs whose judgments name the first response, or not; and one list of three."""
        rows = []
        for best in (0, 1):
            samples = [{"permutation": [f, 1 - f], "reason": "ok", "tokens": 1, "scores":
                        [9 if (i == f) == first else 1 for i in range(2)]}
                       for f, first in zip((0, 1) * 2, firsts)]
            rows.append(row(best, 0, [])[0] | {"domain": "chat", "samples": samples} | (
                {"meta_logits": meta_logits} if meta_logits else {}))
        three = {"permutation": [2, 0, 1], "scores": [1, 1, 9], "reason": "ok", "tokens": 1}
        rows.append({"id": "list", "n": 3, "domain": "chat", "rewards": [0, 1, 0],
                     "response_lengths": [1, 2, 3], "samples": [three] * len(firsts)} | (
                         {"meta_logits": meta_logits} if meta_logits else {}))
        write_rows(tmp_path / name / "samples.jsonl", rows)
        write_json(tmp_path / name / "config.json", {"args": {"temperature": temperature}})
        return habits.rows_of("GRM", tmp_path / name)
    one, two = run("a", (1, 1))["greedy"], run("b", (1, 0))["greedy"]
    assert (one["first"], one["both orders"], one["first in lists"]) == (1.0, 0.0, [1.0, 1 / 3])
    assert two["both orders"] == 1.0
    table = habits.mean_row([one, two])
    assert table["first by seed"] == f"1.000 {two['first']:.3f}" and table["both orders"] == 0.5
    assert table["first in lists"] == "1.000 (0.333)"
    voted = run("votes", (1, 1, 0, 0), 0.5, [0.1, 0.2, 3.0, 2.0])
    assert list(voted) == ["single", "vote@4", "guided@4"]
    assert (voted["single"]["first"], voted["guided@4"]["first"]) == (0.5, 0.0)
    assert "greedy" in run("two", (1, 1), 0) and "single" in run("two", (1, 1), 0.5)


def test_runs_that_are_not_seeds_of_each_other_are_refused(tmp_path):
    one = {"judge": "GRM", "how": "greedy", "items": 2, "accuracy": 0.5}
    with pytest.raises(UserError, match="did not judge the same items"):
        habits.mean_row([one, {**one, "items": 3}])
    write_rows(tmp_path / "samples.jsonl", [row(0, 0, [9, 1], samples=[{}])[0]])
    with pytest.raises(UserError, match="no config.json of eval.py"):
        habits.rows_of("GRM", tmp_path)


def test_the_undamaged_judge_knows_more_and_leans_less():
    import torch

    from plumbing import generation
    from toy_world import world
    pairs = [e for e in world.items("validation", 12, n=2)]
    sizes = {}
    for name in ("medium", "medium-undamaged"):
        model, tokenizer = generation.load_model(str(ROOT / "toy_world" / name), "cpu",
                                                 torch.float32)
        margins = [habits.margins(model, tokenizer, e) for e in pairs]
        bias = sum(a + b for a, b in margins) / len(margins) / 2
        right = [a - b if e.rewards[0] else b - a for e, (a, b) in zip(pairs, margins)]
        sizes[name] = bias, sum(r > 0 for r in right)
    assert sizes["medium"][0] > sizes["medium-undamaged"][0] + 0.1
    assert sizes["medium-undamaged"][1] >= 11


def test_another_folder_is_refused_in_a_line(cli, tmp_path):
    code, _, err = cli("results.habits", f"base={tmp_path}")
    assert code == 2 and "no samples.jsonl" in err
