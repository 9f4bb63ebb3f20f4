"""results/smollm2.py: warm-up judgments never look at labels; a prompt lies in one part."""
import json
import random
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from grm import parse_judgment
from plumbing.records import example_from_dict
from plumbing.runs import read_rows, write_rows
from results import smollm2, smollm2_why


def items(count, n=2):
    return [{"id": f"x/{i}", "prompt": f"Name animal {i // 2}.",
             "responses": [f"Sure, animal {i} {r}." for r in "abcd"[:n]],
             "rewards": [int(r == i % n) for r in range(n)]} for i in range(count)]


def test_warm_up_judgments_parse_and_say_what_they_are_told():
    for n in (2, 3):
        for row in items(60, n):
            for best in range(n):
                text = smollm2.judgment(example_from_dict(row), "tone", best)
                scores, reason = parse_judgment(text, n, "1-10")
                assert reason == "ok"
                assert [s == max(scores) for s in scores] == [i == best for i in range(n)]


class Words:
    """A byte tokenizer for which " good" and " bad" are one token each, as for SmolLM2."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, text, **options):
        if text in (" good", " bad"):
            return {"input_ids": [(" good", " bad").index(text)]}
        return self.inner(text, **options)


class FindsBGood:
    """logit(" good") - logit(" bad") is `bias` plus `content` if response b. is shown first, else
    `bias` less `content`."""
    device = "cpu"

    def __init__(self, tokenizer, content, bias=0.0):
        self.tokenizer, self.content, self.bias = tokenizer, content, bias

    def __call__(self, ids, logits_to_keep):
        first = re.findall(r"animal \d+ ([ab])", self.tokenizer.decode(ids[0]))[0]
        logits = torch.zeros(1, 1, 2)  # " good", " bad"
        logits[0, 0, 0] = self.bias + (self.content if first == "b" else -self.content)
        return SimpleNamespace(logits=logits)


def test_the_verdict_is_the_models_own_and_not_the_labels(byte_tokenizer):
    tokenizer = Words(byte_tokenizer("chatml"))
    for row in items(4):
        for order in ([0, 1], [1, 0]):
            for rewards in ([0, 1], [1, 0]):
                shown = example_from_dict({**row, "rewards": rewards}).permuted(order)
                best = smollm2.own_verdict(FindsBGood(tokenizer, 20.0), tokenizer, shown, "tone",
                                           random.Random(0))
                assert shown.responses[best].endswith("b.")


@pytest.mark.parametrize("content, bias, one_order", [(1.0, 3.0, 0.5), (3.0, -1.0, 1.0)])
def test_position_and_content_are_told_apart(byte_tokenizer, content, bias, one_order):
    tokenizer = Words(byte_tokenizer("chatml"))
    model = FindsBGood(tokenizer, content, bias)
    better_b = [example_from_dict({**row, "rewards": [0, 1]}) for row in items(6)]
    row = smollm2_why.measure(model, tokenizer, better_b, smollm2_why.by_lot(better_b, 0))
    assert (row["bias"], row["content_size"], row["one_order"]) == (bias, content, one_order)
    assert (row["content_right"], row["content_decides"]) == (1.0, content > abs(bias))
    better_a = [example_from_dict({**row, "rewards": [1, 0]}) for row in items(6)]
    said = [{"id": e.id, "samples": [
        {"permutation": order, "text": f"Analysis: The tone of {e.responses[order[0]]} is good 8; "
         "of it is bad 3"} for order in ([0, 1], [1, 0])]} for e in better_a]
    silent = {"id": "y", "samples": [{"permutation": [0, 1], "text": "no verdict is here"}]}
    own = smollm2_why.own_words([*said, silent])
    assert len(own) == 12 and own["x/1", 1] == "Analysis: The tone of Sure, animal 1 b. is"
    assert smollm2_why.measure(model, tokenizer, better_a, own)["content_right"] == 0.0


def test_orders_that_weigh_the_same_cancel_a_preference_for_a_place():
    first_wins = [{"permutation": [0, 1], "scores": [8, 3]},
                  {"permutation": [1, 0], "scores": [3, 8]}]
    row = {"id": "x", "n": 2, "rewards": [1, 0],
           "samples": [first_wins[0]] * 5 + [first_wins[1]] * 3}
    assert smollm2.even_credit(row, 8) == 0.5
    assert smollm2.item_credit(row, 8) == 1.0  # the larger part had the right one first
    row["samples"][5] = {"permutation": [1, 0], "scores": [8, 3]}  # one that went by the text
    row["samples"][6] = {"permutation": [1, 0], "scores": None}
    assert smollm2.even_credit(row, 8) == 1.0
    assert smollm2.even_credit(row, 4) == 1.0  # of one order only; then one vote against two
    unparsed = [{"permutation": [0, 1], "scores": None}] * 2
    assert smollm2.even_credit({**row, "samples": unparsed}, 2) == 0.0


def test_a_warm_up_that_was_killed_continues_to_the_same_weights(tmp_path, monkeypatch):
    write_rows(tmp_path / "train.jsonl", items(16))
    args = SimpleNamespace(seed=0, warmup_items=16, warmup_lr=1e-3, warmup_save_every=2)
    monkeypatch.chdir(ROOT)

    def weights(folder):
        smollm2.warm_up("toy_world/medium", str(tmp_path / "train.jsonl"), tmp_path / folder, args)
        return (tmp_path / folder / "model" / "model.safetensors").read_bytes()
    whole, log = weights("whole"), smollm2.log_metrics

    class Killed(Exception):
        pass

    def die(at):
        def log_or_die(output, **row):
            if row.get("step") == at:
                raise Killed
            log(output, **row)
        return log_or_die
    for at in (1, 3, 4):  # before the first save, between saves, at one
        monkeypatch.setattr(smollm2, "log_metrics", die(at))
        with pytest.raises(Killed):
            weights("killed")
    monkeypatch.setattr(smollm2, "log_metrics", log)
    monkeypatch.setattr(smollm2, "own_verdict", None)  # what was drawn is not drawn again
    assert weights("killed") == whole


def test_split_keeps_a_prompt_in_one_part_and_drops_long_items(tmp_path):
    rows = items(120) + [{**items(1)[0], "id": "long", "prompt": "word " * 41}]
    write_rows(tmp_path / "data.jsonl", rows)
    smollm2.split_by_prompt(str(tmp_path / "data.jsonl"), tmp_path, max_words=40)
    parts = [read_rows(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")]
    prompts = [{r["prompt"][0]["content"] for r in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 60 and all(prompts)
    assert sorted(r["id"] for part in parts for r in part) == sorted(r["id"] for r in rows[:-1])


def test_source_files_become_records(tmp_path):
    pairs = [{"instruction": f"Say {i}.", "input": "Kindly." * (i % 2), "output": "",
              "chosen": "Good.", "rejected": "Bad."} for i in range(20)]
    asked = {"idx": 7, "motivation_app": "Wikipedia", "instruction": "Ask.",
             "input": float("nan"), "response1": "one", "response2": "two"}
    voted = [{**asked, "annotator1": a, "annotator2": b, "annotator3": c}
             for a, b, c in ((2, 2, 1), (1, 1, 0), (1, 2, 0), (0, 0, 0), (0, 0, 1))]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    (tmp_path / "testset-v1.json").write_text(json.dumps(voted), encoding="utf-8")
    polite = list(smollm2.read_source(tmp_path / "pairs.json"))
    assert {tuple(zip(e.responses, e.rewards, strict=True)) for e in polite} == {
        (("Good.", 1), ("Bad.", 0)), (("Bad.", 0), ("Good.", 1))}
    assert [e.prompt[-1]["content"] for e in polite[:2]] == ["Say 0.", "Say 1.\n\nKindly."]
    assert len({e.id for e in polite}) == 20
    annotated = list(smollm2.read_source(tmp_path / "testset-v1.json"))
    assert [dict(zip(e.responses, e.rewards, strict=True)) for e in annotated] == [
        {"one": 1, "two": 2}, {"one": 2, "two": 0}]
    assert {(e.id, e.domain, e.prompt[-1]["content"]) for e in annotated} == {
        ("pandalm/7", "Wikipedia", "Ask.")}


def test_word_probe_finds_a_word_that_decides_and_scores_unknown_words_half():
    def pair(i, better, worse):
        flip = -1 if i % 2 else 1
        return example_from_dict({"id": f"p/{i}", "prompt": "x", "rewards": [0, 1][::flip],
                                  "responses": [worse, better][::flip]})
    train = [pair(i, f"It is {i}.", f"Duh, it is {i}!") for i in range(8)]
    test = [*(pair(i, "So be it.", "Duh, so be it.") for i in (8, 9)), pair(10, "blue", "green")]
    assert smollm2.word_probe(train, test) == {"p/8": 1.0, "p/9": 1.0, "p/10": 0.5}


def test_a_stage_is_not_taken_for_one_with_other_flags(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"

    def refusal(*only):
        monkeypatch.setattr(sys, "argv", [
            "smollm2.py", "--model", "toy_world/medium", "--data", "none.jsonl", "--output",
            str(out), "--only", *only])
        with pytest.raises(SystemExit) as stop:
            smollm2.main()
        assert stop.value.code == 2
        return capsys.readouterr().err
    assert "--only rtf: no such stage; there are split base" in refusal("rtf")
    (out / "rft" / "model").mkdir(parents=True)
    write_rows(out / "stages.jsonl", [{"stage": "rft", "command": "spct_rft.py --epochs 9"}])
    made = "stage rft was made with other flags (spct_rft.py --epochs 9); delete"
    assert made in refusal("rft")
