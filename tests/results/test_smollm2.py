"""results/smollm2.py: a prompt lies in one part, every stage is made once; and what moves its
verdicts (results/smollm2_why.py)."""
import json
import sys

import pytest
from conftest import FindsBGood, animals

from plumbing.records import example_from_dict
from plumbing.runs import read_rows, write_rows
from results import smollm2, smollm2_why


@pytest.mark.parametrize("content, bias, one_order", [(1.0, 3.0, 0.5), (3.0, -1.0, 1.0)])
def test_position_and_content_are_told_apart(byte_tokenizer, content, bias, one_order):
    tokenizer = byte_tokenizer("chatml")
    model = FindsBGood(tokenizer, content, bias)
    better_b = [example_from_dict({**row, "rewards": [0, 1]}) for row in animals(6)]
    row = smollm2_why.measure(model, tokenizer, better_b, smollm2_why.by_lot(better_b, 0))
    assert (row["bias"], row["content_size"], row["one_order"]) == (bias, content, one_order)
    assert (row["content_right"], row["content_decides"]) == (1.0, content > abs(bias))
    better_a = [example_from_dict({**row, "rewards": [1, 0]}) for row in animals(6)]
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


def test_split_keeps_a_prompt_in_one_part_and_drops_long_animals(tmp_path):
    rows = animals(120) + [{**animals(1)[0], "id": "long", "prompt": "word " * 41}]
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
