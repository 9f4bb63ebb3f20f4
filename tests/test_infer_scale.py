"""Voting, its guided form, the controls, and the paper's own vectors (Fig. 3, Table 17)."""
import json
import random
import sys

import pytest
from conftest import make_tiny_model

import infer_scale
from grm import is_correct, parse_judgment, unpermute
from infer_scale import credit, default_k_meta, item_credit, meta_vote, powers_of_two, vote
from plumbing.runs import read_rows

FIG3 = [[1, 5], [5, 6], [4, 8], [7, 6]]


def row(scores, rewards, logits=None):
    built = {"id": "x", "rewards": rewards, "n": len(rewards), "samples": [{"scores": s} for s in scores]}
    return built | ({"meta_logits": logits} if logits else {})


def test_fig3_votes_and_guided_votes():
    assert vote(FIG3) == [17, 25]
    assert meta_vote(FIG3, [1.0, -1.0, 2.0, -2.0], k_meta=2) == [5, 13]  # keeps samples 1 and 3


def test_table17_reversed_orders_labels_and_votes():
    shown = [([8, 8], [0, 1]), ([9, 5], [1, 0]), ([10, 7], [1, 0])]
    scores = [unpermute(s, order) for s, order in shown]
    assert scores == [[8, 8], [5, 9], [7, 10]]
    assert vote(scores) == [20, 27]
    assert [is_correct(s, [0, 1]) for s in scores] == [False, True, True]
    # the tie has the lowest meta logit, so guided voting with k_meta = 2 leaves it out
    assert meta_vote(scores, [-15.7781, 1.3126, 1.6739], k_meta=2) == [12, 19]


def test_eq_13_majority_is_the_sum_of_one_hot_scores():
    named = [parse_judgment(rf"Scores: \boxed{{{i}}}", 3, "best")[0] for i in (2, 3, 2, 1, 2)]
    assert vote(named) == [1, 3, 1]


def test_more_vectors_and_invalid_rows_never_vote():
    assert vote([[7, 5], [6, 8], [9, 4]]) == [22, 17]
    assert vote([[7, 5], None, [9, 4]]) == [16, 9]
    assert vote([[7, 5], [6, 8]], valid=[False, True]) == [6, 8]
    assert vote([None, None]) is None
    # an unparsed judgment has no logit and takes no place among the k_meta
    assert meta_vote([None, [1, 2], [5, 3]], [None, -1.0, -2.0], k_meta=2) == [6, 5]
    with pytest.raises(ValueError, match="k_meta"):
        meta_vote(FIG3, [0] * 4, 0)


def test_votes_lie_between_v_and_10v_and_k_meta_k_is_plain_voting():
    rng = random.Random(0)
    for _ in range(50):
        n, k = rng.randint(1, 5), rng.randint(1, 9)
        scores = [[rng.randint(1, 10) for _ in range(n)] for _ in range(k)]
        logits = [rng.gauss(0, 1) for _ in range(k)]
        assert all(k <= v <= 10 * k for v in vote(scores))
        assert meta_vote(scores, logits, k) == vote(scores)
        best = max(range(k), key=lambda j: logits[j])
        assert meta_vote(scores, logits, 1) == scores[best]


def test_credit_of_ties_is_the_expectation_of_shuffle_then_argmax():
    assert credit([8, 8, 8], [0, 1, 0]) == pytest.approx(1 / 3)
    assert credit([8, 8, 3], [0, 0, 1]) == 0
    assert credit(None, [0, 1]) == 0  # no valid judgment: wrong, not half right


def test_voting_at_k_is_the_mean_over_disjoint_blocks():
    scores = [[1, 2], [2, 1], [1, 9], [3, 1]]
    assert item_credit(row(scores, [0, 1]), 1) == 0.5
    assert item_credit(row(scores, [0, 1]), 2) == pytest.approx((0.5 + 1) / 2)  # blocks (3, 3) and (4, 10)
    assert item_credit(row(scores, [0, 1]), 4) == 1.0
    with pytest.raises(ValueError, match="4 samples"):
        item_credit(row(scores, [0, 1]), 8)
    with pytest.raises(ValueError, match="method"):
        item_credit(row(scores, [0, 1]), 1, "best")


def test_guided_random_and_oracle_use_the_same_samples():
    scores = [[9, 1], [1, 3], [9, 1], [1, 3]]
    good = row(scores, [0, 1], [-1.0, 2.0, -1.0, 2.0])
    assert item_credit(good, 4) == 0 and item_credit(good, 4, "guided") == 1 and item_credit(good, 4, "oracle") == 1
    assert 0 < item_credit(good, 4, "random", subsets=200) < 1
    assert item_credit(good, 4, "random", k_meta=4) == item_credit(good, 4)  # all of them: no choice left
    assert item_credit(good, 4, "random") == item_credit(good, 4, "random")  # drawn from the item's id, not the clock
    # a meta RM that knows nothing does as well as the random control, on average
    rng = random.Random(1)
    blind = [row(scores, [0, 1], [rng.random() for _ in range(4)]) for _ in range(400)]
    guided = sum(item_credit(r, 4, "guided") for r in blind) / 400
    assert guided == pytest.approx(item_credit(good, 4, "random", subsets=2000), abs=0.1)


def test_k_meta_and_ks():
    assert [default_k_meta(k) for k in (1, 2, 3, 8, 32)] == [1, 1, 1, 4, 16]
    assert powers_of_two(32) == [1, 2, 4, 8, 16, 32] and powers_of_two(6) == [1, 2, 4, 6]


def test_items_that_do_not_fit_stop_the_run_or_count_as_unparsed(tmp_path, monkeypatch, capsys, toy_tokenizer):
    make_tiny_model("llama", len(toy_tokenizer), toy_tokenizer.eos_token_id, toy_tokenizer.pad_token_id).save_pretrained(tmp_path / "model")
    toy_tokenizer.save_pretrained(tmp_path / "model")
    items = [{"id": f"i{i}", "prompt": "Which ?", "responses": ["good", "bad " * (600 if i == 2 else 2)], "rewards": [1, 0]} for i in range(5)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    words = ["infer_scale.py", "--model", tmp_path / "model", "--data", tmp_path / "items.jsonl", "--k", 3, "--chunk_size", 2,
             "--max_new_tokens", 5, "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(SystemExit) as stop:
        infer_scale.main()
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stop.value.code == 2 and "0/i2/0" in line and "512" in line and "--skip_bad" in line
    sys.argv.append("--skip_bad")  # the same folder: the flag may be added
    infer_scale.main()
    assert "3 of 6 prompts do not fit the model" in capsys.readouterr().out
    rows = {r["id"]: r for r in read_rows(tmp_path / "out" / "samples.jsonl")}
    assert list(rows) == ["i0", "i1", "i2", "i3", "i4"] and rows["i2"]["votes"] is None
    for name, row in rows.items():
        assert {s["reason"] == "too_long" for s in row["samples"]} == {name == "i2"} and len(row["samples"]) == 3
        assert all((s["tokens"] == 0) == (name == "i2") for s in row["samples"])
    assert item_credit(rows["i2"], 3) == 0
