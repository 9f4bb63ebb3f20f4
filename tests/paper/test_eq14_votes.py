"""Eq. 14: voting by sum, its form guided by the meta RM, and the paper's own cases."""
import csv
import json
import random
import shlex

import pytest
import torch
from conftest import error_of
from transformers import AutoModelForSequenceClassification

from eval import item_credits
from grm import is_correct, parse_judgment, sum_scores
from infer_scale import default_k_meta, meta_vote, vote
from meta_rm import fingerprint
from plumbing import generation
from plumbing.runs import read_rows, save_model

FIG3 = [[1, 5], [5, 6], [4, 8], [7, 6]]
TABLE17 = [[8, 8], [5, 9], [7, 10]]  # in original order


def test_fig_3_votes_and_guided_votes():
    """1 + 5 + 4 + 7 = 17 and 5 + 6 + 8 + 6 = 25; guided: judgments 1 and 3 give 1 + 4, 5 + 8."""
    assert vote(FIG3) == sum_scores(FIG3) == [17, 25]
    assert meta_vote(FIG3, [1.0, -1.0, 2.0, -2.0], k_meta=2) == [5, 13]


def test_table_17_labels_and_votes():
    """The tie is no correct judgment and has the lowest meta logit, so guided voting drops it."""
    assert [is_correct(s, [0, 1]) for s in TABLE17] == [False, True, True]
    assert vote(TABLE17) == [20, 27]
    assert meta_vote(TABLE17, [-15.7781, 1.3126, 1.6739], k_meta=2) == [12, 19]


def test_eq_13_majority_is_the_sum_of_one_hot_scores():
    named = [parse_judgment(rf"Scores: \boxed{{{i}}}", 3, "best")[0] for i in (2, 3, 2, 1, 2)]
    assert vote(named) == [1, 3, 1]


@pytest.mark.parametrize("scores, valid, votes", [
    ([[7, 5], [6, 8], [9, 4]], None, [22, 17]),
    ([[7, 5], None, [9, 4]], None, [16, 9]),               # what did not parse never votes
    ([[7, 5], [6, 8]], [False, True], [6, 8]),
    ([[7, 5], None, [6, 8]], [False, True, True], [6, 8]),
    ([None, None], None, None), ([[7, 5]], [False], None), ([[4]], None, [4]),
])
def test_votes_by_hand(scores, valid, votes):
    assert vote(scores, valid) == votes


@pytest.mark.parametrize("scores, logits, k_meta, valid, votes", [
    ([None, [1, 2], [5, 3]], [None, -1.0, -2.0], 2, None, [6, 5]),   # takes no one's place
    (FIG3, [0.0] * 4, 2, None, [6, 11]),                   # equal logits: the order of sampling
    (FIG3, [4.0, 3.0, 2.0, 1.0], 1, [False, True, True, True], [5, 6]),
    (FIG3, [-9.0, -8.0, -7.0, -6.0], 1, None, [7, 6]),     # the highest, not the largest
    ([None], [None], 1, None, None),
])
def test_guided_votes_by_hand(scores, logits, k_meta, valid, votes):
    assert meta_vote(scores, logits, k_meta, valid) == votes


def test_k_meta_is_half_of_k_and_at_least_one():
    assert [default_k_meta(k) for k in (1, 2, 3, 8, 32)] == [1, 1, 1, 4, 16]
    with pytest.raises(ValueError, match="k_meta"):
        meta_vote(FIG3, [0] * 4, 0)


def test_votes_lie_between_v_and_10v_and_all_kept_is_plain_voting():
    rng = random.Random(0)
    for _ in range(50):
        n, k = rng.randint(1, 5), rng.randint(1, 9)
        scores = [[rng.randint(1, 10) for _ in range(n)] for _ in range(k)]
        logits = [rng.gauss(0, 1) for _ in range(k)]
        assert all(k <= v <= 10 * k for v in vote(scores))
        assert meta_vote(scores, logits, k) == vote(scores)
        assert meta_vote(scores, logits, 1) == scores[logits.index(max(logits))]


# ----- the program: judgments and votes, and the command that grades them -----

def items_file(folder, count=5, long=None):
    rows = [{"id": f"i{i}", "prompt": "Which ?", "rewards": [1, 0],
             "responses": ["good", "bad " * (600 if i == long else 2)]} for i in range(count)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "items.jsonl"


def erring(model, tokenizer, prompts, temperature, max_new_tokens, seeds, **_):
    """A judge whose scores are drawn from the seed; one judgment in ten does not parse."""
    rows = []
    for seed in seeds:
        rng = random.Random(seed)
        scores = f"{rng.randint(1, 10)}, {rng.randint(1, 10)}" if rng.random() < 0.9 else "x"
        ids = tokenizer(f"Scores: \\boxed{{{scores}}}", add_special_tokens=False)["input_ids"]
        ids.append(tokenizer.eos_token_id)
        rows.append(generation.Completion(ids, [0.0] * len(ids), True))
    return rows


def test_the_printed_command_grades_the_votes(cli, tiny, toy_tokenizer, tmp_path, monkeypatch):
    """From sampling to the table: the votes of the file, the meta logits, and what eval.py counts
    from them. The meta RM comes later, to samples that stay as they are."""
    monkeypatch.setattr(generation, "generate", erring)
    torch.manual_seed(0)
    scalar = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    save_model(tmp_path / "meta", scalar, toy_tokenizer)
    out = tmp_path / "out"
    words = ["--model", tiny, "--data", items_file(tmp_path, 12), "--k", 4, "--output", out]
    code, _, err = cli("infer_scale", *words)
    assert code == 0, err
    before = read_rows(out / "samples.jsonl")
    code, said, err = cli("infer_scale", *words, "--meta_rm", tmp_path / "meta")
    assert code == 0, err
    rows = read_rows(out / "samples.jsonl")
    assert [{k: v for k, v in r.items() if k[:4] != "meta"} for r in rows] == before
    for r in rows:
        scores = [s["scores"] for s in r["samples"]]
        assert r["votes"] == vote(scores) and r["meta_rm"] == fingerprint(tmp_path / "meta")
        assert [z is None for z in r["meta_logits"]] == [s is None for s in scores]
    assert 0 < sum(s["scores"] is None for r in rows for s in r["samples"]) < 48
    [line] = [line for line in said.splitlines() if "eval.py" in line]
    python, script, *words = shlex.split(line.partition(": ")[2])
    assert (python, script) == ("python", "eval.py")
    code, said, err = cli("eval", *words)
    assert code == 0, err
    graded = words[words.index("--output") + 1]
    lines = [row.split(",") for row in open(graded + "/curve.csv").read().splitlines()]
    found = {(p["method"], int(p["k"])): float(p["accuracy"])
             for p in (dict(zip(lines[0], line)) for line in lines[1:])}
    assert {k for _, k in found} == {1, 2, 4} and len(found) == 12
    for (method, k), accuracy in found.items():
        credits = item_credits(rows, k, method).values()
        assert accuracy == pytest.approx(sum(credits) / 12, abs=1e-4), (method, k)


def test_items_that_do_not_fit_stop_the_run_or_count_as_unparsed(cli, tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--model", tiny, "--data", items_file(tmp_path, long=2), "--k", 3, "--chunk_size", 2,
             "--max_new_tokens", 5, "--output", out]
    line = error_of(cli("infer_scale", *words))
    assert "0/i2/0" in line and "512" in line and "--skip_bad" in line
    # the same folder: the flag may be added
    code, said, err = cli("infer_scale", *words, "--skip_bad")
    assert code == 0 and "3 of 6 prompts do not fit the model" in said + err
    rows = {r["id"]: r for r in read_rows(out / "samples.jsonl")}
    assert list(rows) == ["i0", "i1", "i2", "i3", "i4"] and rows["i2"]["votes"] is None
    for name, r in rows.items():
        assert {(s["reason"] == "too_long", s["tokens"] == 0) for s in r["samples"]} == {
            (name == "i2", name == "i2")} and len(r["samples"]) == 3
    assert item_credits([rows["i2"]], 3) == {"i2": 0}


def test_only_single_responses_have_no_best(cli, tiny, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a", "prompt": "Which ?", "responses": ["good"], "rewards": [1]}\n')
    assert "only single responses" in error_of(cli(
        "infer_scale", "--model", tiny, "--data", path, "--rating", "best", "--output",
        tmp_path / "out"))


def test_scores_outside_the_range_are_clamped_in_evaluation_and_counted(
        cli, tiny, toy_tokenizer, tmp_path, monkeypatch):
    """As the released model's card does; in training they are invalid. A judge on a scale of 0-100
    would hide behind it."""
    said = "0, 7"

    def extreme(model, tokenizer, prompts, *args, **_):
        ids = tokenizer(f"Scores: \\boxed{{{said}}}", add_special_tokens=False)["input_ids"]
        ids.append(tokenizer.eos_token_id)
        return [generation.Completion(ids, [0.0] * len(ids), True) for _ in prompts]
    monkeypatch.setattr(generation, "generate", extreme)
    judge = ["infer_scale", "--model", tiny, "--data", items_file(tmp_path), "--k", 1,
             "--output", tmp_path / "out"]
    code, out, err = cli(*judge)
    assert code == 0, err
    for row in read_rows(tmp_path / "out" / "samples.jsonl"):
        assert sorted(row["samples"][0]["scores"]) == [1, 7]
    loud = "100.0 % of the judgments have a score outside 1-10"
    assert loud in out
    code, out, _ = cli("eval", "--runs", tmp_path / "out", "--output", tmp_path / "graded")
    assert code == 0 and loud in out
    with open(tmp_path / "graded" / "table.csv") as file:
        assert [row["clamped"] for row in csv.DictReader(file)] == ["1"]
    shown = cli("grm", *judge[1:5])[1]
    assert "parse: ok, clamped;" in shown
    said = "1, 10"
    out = cli(*judge, "--overwrite")[1] + cli("grm", *judge[1:5])[1]
    assert "outside 1-10" not in out and "clamped" not in out and "parse: ok;" in out
