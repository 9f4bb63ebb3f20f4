"""Right for the wrong reason, and when guidance pays: reasons that are known, gains by hand."""
import csv
import json
import random
from pathlib import Path

import pytest
from conftest import ROOT

from grm import PreferenceExample, parse_judgment, sample_judgments, unpermute
from plumbing.runs import UserError
from results import guidance, reasons, records
from toy_world import truth, world
from toy_world.make_base import judgment, write_judgment

ITEM = PreferenceExample("x", [], ["a", "b"], [0, 1], "chat", extra={
    "levels": [{"tone": -2, "detail": 1}, {"tone": 1, "detail": -1}],
    "weights": {"tone": 60, "detail": 30, "clarity": 10}})
# response 1 is shown first
TRUE = ("Specific Criteria: tone 60%, detail 40%.\nAnalysis: Response 1: tone good, detail poor.\n"
        "Response 2: tone terrible, detail good.\nScores: \\boxed{6, 3}")
RIGHT = {"only", "most", "weighs", "reads", "implies", "agrees"}


@pytest.mark.parametrize("change, lost, numbers", [
    ({}, set(), (2, 0, 0, 45)),
    ({"good, detail poor": "terrible, detail good", "terrible, detail good.\nS":
      "good, detail poor.\nS"}, {"reads", "implies", "agrees"}, (2, 4, 2, 45)),
    ({"detail good": "detail fair"}, {"reads", "implies"}, (2, 1, 0, 45)),  # still the better one
    ({"tone terrible": "tone good"}, {"reads", "implies", "agrees"}, (2, 1, 1, 45)),
    ({", detail good": ""}, {"reads", "implies", "agrees"}, (2, 1, 1, 45)),
    ({"{6, 3}": "{7, 3}"}, {"implies"}, (2, 0, 0, 45)),
    ({"{6, 3}": "{3, 6}"}, {"implies", "agrees"}, (2, 0, 0, 45)),
    ({"60%": "90%", "40%": "10%", "{6, 3}": "{8, 1}"}, {"weighs"}, (2, 0, 0, 35)),
    ({"60%": "70%", "40%": "30%", "{6, 3}": "{7, 2}"}, set(), (2, 0, 0, 45)),
    ({"detail": "safety", "poor": "fair", " good.": " fair.", "{6, 3}": "{8, 1}"},
     {"only", "most", "weighs"}, (2, 0, 0, 30)),
    ({", detail 40%": "", ", detail poor": "", ", detail good": "", "{6, 3}": "{9, 1}"},
     {"most", "weighs"}, (1, 0, 0, 30))])
def test_what_is_true_of_a_judgment(change, lost, numbers):
    text = TRUE
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    scores = parse_judgment(text, 2, "1-10", True)[0]
    found = truth.truth_of(text, ITEM, [1, 0], unpermute(scores, [1, 0]))
    assert {name for name in RIGHT if getattr(found, name)} == RIGHT - lost
    assert found[6:] == numbers
    assert truth.read_truth(truth.write_truth(found)) == found


def test_a_judgment_without_criteria_or_scores_is_unread():
    for text, scores in (("Analysis: Response 1: tone good.", [1, 9]), (TRUE, None),
                         (TRUE.replace("60%", "most"), [3, 6])):
        assert truth.truth_of(text, ITEM, [1, 0], scores) is None
    assert truth.read_truth(truth.write_truth(None)) is None


# ----- runs whose reasons are known -----

def true_or_lying(rng, item, order, lies):
    """A clean judgment; if it lies, all verdicts of two responses are swapped, scores are kept."""
    view = item.permuted(order)
    view.extra = {**item.extra, "shown_levels": [item.extra["levels"][i] for i in order]}
    text = judgment(rng, view, False, "1-10")
    if lies:
        criteria, verdicts = truth.read_judgment(text, len(order))
        scores = text.rpartition("\n")[2]
        text = write_judgment(criteria, verdicts[::-1], "1-10")[0].rpartition("\n")[0]
        text += "\n" + scores
    return text


@pytest.fixture
def on_record(tmp_path, monkeypatch):
    """Judgments of three judges on record: every other one lies, a quarter is incorrect."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/README.md").write_text("".join(
        f"<!-- table {name} -->old<!-- end -->\n"
        for name in ("reasons", "guidance", "guidance_predictors")))
    Path("README.md").write_text("")
    small = ROOT / "results" / "runs" / "small_model"  # one real run, and the items that it judged
    for path in (small / "rl-1e-4", *small.glob("items-*")):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(guidance.small, "RUNS", tmp_path)
    records.load.cache_clear()
    items = world.items("test", 12)
    for seed in (0, 1):
        for run in ("base", "grm/after_rft", "grm"):
            rng, rows = random.Random(f"{run}/{seed}"), []
            for item in items:
                samples = []
                for j in range(32):
                    order = list(range(len(item.responses)))
                    random.Random(f"{seed}/{item.id}/{j}").shuffle(order)
                    text = true_or_lying(rng, item, order, lies=j % 2)
                    scores = unpermute(parse_judgment(text, len(order), "1-10", True)[0], order)
                    if j >= 24:  # these are incorrect, and lie or not
                        scores = scores[::-1] if len(order) == 2 else [1] * len(order)
                    samples.append({"permutation": order, "scores": scores, "text": text,
                                    "reason": "ok", "prompt_tokens": 9, "tokens": 9})
                rows.append({"id": item.id, "domain": item.domain, "rewards": item.rewards,
                             "n": len(item.responses), "samples": samples,
                             "response_lengths": [len(r) for r in item.responses],
                             "meta_logits": [1 - j % 2 + rng.random() / 2 for j in range(32)]})
            args = {"data": "toy", "split": "test", "limit": 12, "rating": "1-10", "bon": None}
            finish(f"s{seed}/{run}/voting", rows, {"args": {"model": "", **args}})
        finish(f"s{seed}/grm/meta_rm", [], {}, {"held_out": {"all": {"auc": 0.8}}})
        records.record_finished(seed)


def finish(name, rows, config, report=None):
    folder = records.RUNS / name
    folder.mkdir(parents=True)
    lines = {"samples.jsonl": rows, "metrics.jsonl": [{"step": 7}]}
    for file, told in lines.items():
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in told))
    for file, told in (("config", config), ("report", report)):
        if told is not None:
            (folder / f"{file}.json").write_text(json.dumps(told))
    (folder / ".finished").write_text("infer_scale.py\nabc1234\n12.5 s\n")


def read_csv(name):
    with open(f"results/{name}.csv") as file:
        rows = list(csv.DictReader(file))
    return {next(iter(r.values())): r for r in rows}


def test_both_tables_from_the_records_of_runs_whose_reasons_are_known(on_record):
    reasons.make((0, 1))
    rows = read_csv("reasons")
    right = rows["GRM, sampled, correct"]
    assert 0.45 < float(right["all three"]) < 0.55 and float(right["names what counts"]) == 1
    assert 0.9 < float(right["scores follow"]) + 0.5 < 1.1 and float(right["weight placed"]) > 0.66
    assert float(right["reads rightly low"]) <= float(right["reads rightly"])
    # the logit likes the true ones, and among them the correct ones no more than chance
    assert float(rows["GRM, correct, votes"]["reads rightly"]) == 1
    assert float(rows["GRM, correct, votes - left out"]["reads rightly"]) > 0.9
    auc = rows["GRM, ROC-AUC within items"]
    assert float(auc["all three"]) > 0.98 and 0.4 < float(auc["correct"]) < 0.6
    assert 0 < int(auc["all three items"]) <= int(right["items"]) and "items of" not in auc
    assert abs(float(rows["GRM - GRM-RFT, correct"]["weighs rightly"])) == 0

    guidance.make((0, 1))
    rows = read_csv("guidance")
    for k in (8, 32):
        assert float(rows["GRM"][f"gain@{k}"]) == pytest.approx(
            float(rows["GRM"][f"guided@{k}"]) - float(rows["GRM"][f"vote@{k}"]), abs=1e-4)
    assert float(rows["GRM"]["judgments seen"]) == 7 * 16
    assert {"base, even", "SmolLM2, rl-1e-4"} <= set(rows)
    told = read_csv("guidance_predictors")
    assert set(told) == set(guidance.PREDICTORS)
    assert set(told["plain accuracy"]) == {"predictor", *(
        f"{where}@{k}" for where in ("all", "toy", "toy domains") for k in (8, 32))}
    assert told["plain accuracy"]["all@32"] != told["plain accuracy"]["toy@32"]
    filled = Path("results/README.md").read_text()
    assert "old" not in filled and filled.count("| GRM") > 4
    assert all(Path(f"results/{name}.png").exists() for name in ("reasons", "guidance"))


# ----- the numbers by hand -----

def row_of(right, logits, **more):
    """A pair whose second response is best, judged right (1) or wrong (0)."""
    return {"id": "x", "n": 2, "rewards": [0, 1], "meta_logits": logits,
            "samples": [{"scores": [1, 9] if r else [9, 1]} for r in right], **more}


def test_gains_and_what_might_predict_them_by_hand():
    """12 of 32 are right: votes lose, the best half wins; a second item is always right."""
    right = [1] * 12 + [0] * 20
    lost = row_of(right, [2.0] * 12 + [1.0] * 20)
    found = guidance.measure({0: [lost, row_of([1] * 32, [0.0] * 32, id="y")]})
    assert (found["vote@32"], found["guided@32"], found["gain@32"]) == (0.5, 1.0, 0.5)
    assert (found["lost by votes"], found["ROC-AUC in items"], found["lost x skill"]) == (
        0.5, 1.0, 0.5)
    p, pairs = (12 / 32 + 1) / 2, (12 * 11 / (32 * 31) + 1) / 2
    assert found["errors together"] == pytest.approx((pairs - p * p) / (p - p * p))
    assert found["seeds@32"] == "+50.0" and found["low@32"] == 0 < found["high@32"]
    for row in (rows := [lost, row_of([1] * 32, [0.0] * 32, id="y")]):
        row["cluster"] = "one prompt"  # drawn as a whole
    assert guidance.measure({0: rows})["low@32"] == 0.5


def test_a_better_k_meta_is_graded_on_items_that_did_not_choose_it():
    """Few items have 4 right judgments, which the meta RM puts first: a small k_meta is better. The
    others have 8 wrong ones in front: a large one is. Each kind alone gains by its own choice; by
    that of the other kind it loses."""
    few = [row_of([1] * 4 + [0] * 28, [2.0] * 4 + [1.0] * 28, id=i) for i in range(6)]
    found = guidance.sweep({0: few})
    assert found["best k_meta"] <= 4 and found["over half"] == 1
    blind = [row_of([0] * 15 + [1] * 17, [1.0] * 15 + [0.0] * 17)]  # best left alone
    assert guidance.sweep({0: blind})["best k_meta"] == 32
    many = [row_of([0] * 8 + [1] * 24, [2.0] * 8 + [1.0] * 24, id=i + 6) for i in range(6)]
    mixed = [row for pair in zip(few, many, strict=True) for row in pair]
    assert guidance.sweep({0: mixed})["over half"] < 0


def test_even_votes_have_each_response_first_equally_often(tiny_model, toy_tokenizer):
    """And the orders, which no record of votes keeps, are those that the judge was shown."""
    items = [e for e in world.items("test", 40) if len(e.responses) > 1][:4]
    judged = sample_judgments(tiny_model(), toy_tokenizer, items, 24, seed=3, template="compact",
                              max_new_tokens=1)
    for item, made in zip(items, judged, strict=True):
        row = {"id": item.id, "n": len(item.responses), "meta_logits": [0.0] * 24,
               "samples": [vars(j) for j in made]}
        n, even = row["n"], guidance.shown_evenly(row, 3)
        firsts = [s["permutation"][0] for s in even["samples"]]
        assert len(firsts) >= n and firsts == list(range(n)) * (len(firsts) // n)


def test_records_that_do_not_say_what_is_true_give_no_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records.load.cache_clear()
    reasons.make((0,))
    monkeypatch.setattr(guidance.small, "RUNS", tmp_path)
    guidance.make((0,))
    assert not list(tmp_path.iterdir())
    (tmp_path / "damaged.json.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged.json.gz is missing or damaged"):
        records.read_gz(tmp_path / "damaged.json.gz")
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    for name in ("s1", "s0x"):
        (tmp_path / name).mkdir()
    assert records.seeds_on_record() == (1,)
