"""results/small_model.py: the whole recipe at tiny size, and its table from the records."""
import csv
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time

import pytest
from conftest import ROOT, animals, error_of, run_program

from eval import item_credit
from plumbing.records import example_from_dict
from plumbing.runs import UserError, read_json, read_rows, write_rows
from results import small_model, small_model_tables
from toy_world import world

TINY = {"words": 99, "tokens": 48, "test": 4, "k": 8, "rates": ["1e-3", "1e-4"],
        "warmup": "--limit 4 --epochs 1 --batch_size 4 --micro_batch_size 4",
        "rft": "--limit 8 --epochs 1 --batch_size 16 --micro_batch_size 16",
        "rl": "--steps 1 --prompts_per_step 2 --G 4",
        "meta_rm": "--limit 8 --epochs 1 --batch_size 16 --micro_batch_size 16"}


def test_the_whole_recipe_ends_with_a_table_and_does_nothing_twice(tmp_path, monkeypatch):
    """The toy's judge on pairs of the toy's texts in a file, each stage in this process."""
    rows = [{"id": e.id, "prompt": e.prompt, "responses": e.responses, "rewards": e.rewards}
            for e in world.items("train", 80, 0)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    commands, dies = [], ["spct_rl"]

    def launch(command):
        program, *words = shlex.split(command)
        if dies and program.startswith(dies[0]):
            dies.clear()
            return 1, 100
        commands.append(command)
        code, _, err = run_program(program.removesuffix(".py"), *words)
        assert code == 0, err
        return code, 100
    monkeypatch.setitem(small_model.BUDGETS, "cpu", TINY)
    monkeypatch.setattr(small_model, "launch", launch)
    out = tmp_path / "its own"  # a space in the path
    words = ["--data", tmp_path / "pairs.jsonl", "--model", "toy_world/medium", "--output", out]
    said = error_of(run_program("results.small_model", *words))
    assert "stage rl_1e-3 ended with status 1; the same command continues it" in said
    code, said, err = run_program("results.small_model", *words)
    assert code == 0, err
    programs = [re.match(r"\w+", c)[0] for c in commands]
    assert programs == ["spct_rft"] * 2 + ["spct_rl", "infer_scale"] * 2 + ["meta_rm"] + [
        "eval"] * 3 + ["infer_scale"] * 2
    # the rate was chosen before any test item was read, by what the sampled judgments are worth
    first = min(i for i, c in enumerate(commands) if "test.jsonl" in c)
    assert all("test.jsonl" in c for c in commands[first:]) and first == 7
    worth = {rate: sum(item_credit(r, 1) for r in read_rows(
        out / f"validation_{rate}" / "samples.jsonl")) for rate in TINY["rates"]}
    best = max(worth, key=worth.get)
    assert f"rl_{best}/model" in commands[6] and f"rl_{best}/model" in commands[-1]

    parts = [read_rows(out / f"{name}.jsonl") for name in ("train", "validation", "test")]
    prompts = [{r["prompt"][-1]["content"] for r in part} for part in parts]
    assert all(prompts) and sum(map(len, prompts)) == len(set.union(*prompts))
    table = read_csv(out / "record" / "small_model.csv")
    assert "guided by content @8" in table and (out / "record" / "small_model.png").exists()
    voted = read_rows(out / "voting" / "samples.jsonl")
    assert float(table["GRM, vote @1"]["its own"]) == pytest.approx(
        sum(item_credit(r, 1) for r in voted) / len(voted), abs=1e-4)
    about = read_json(out / "record" / "its own" / "about.json")
    assert about["rate"] == best and len(about["judgments"]) == small_model_tables.SHOWN
    assert {"where", "date", "model", "data", "budget", "seed", "validation"} <= set(about)
    tries = [s for s in read_rows(out / "stages.jsonl") if s["stage"] == "rl_1e-3"]
    assert [s["status"] for s in tries] == [1, 0]

    count = len(commands)  # the same command makes nothing again; other flags are refused
    assert run_program("results.small_model", *words)[0] == 0 and len(commands) == count
    said = error_of(run_program("results.small_model", *words, "--seed", 1))
    assert "--seed 0 there, 1 here" in said and "choose another --output" in said
    assert run_program("results.small_model", *words)[0] == 0 and len(commands) == count
    (out / "stages.jsonl").write_bytes((out / "stages.jsonl").read_bytes()[:-40])  # a torn line
    shutil.rmtree(out / "eval_rft")  # and a stage whose files are gone
    assert run_program("results.small_model", *words)[0] == 0
    assert [c.split()[0] for c in commands[count:]] == ["eval.py", "infer_scale.py"]
    write_rows(tmp_path / "pairs.jsonl", rows[::-1])  # other items under the same name
    assert "the items" in error_of(run_program("results.small_model", *words))


def test_a_stage_ends_with_the_program_that_started_it(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text("import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
                      "time.sleep(60)", encoding="utf-8")

    def stop():
        while not (tmp_path / "began").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=stop).start()
    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        small_model.launch(f"{script} {tmp_path}/began")
    assert time.time() - started < 50  # the stage was ended, not waited for
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # and no child is left


def test_files_of_ones_own_stay_as_they_are(tmp_path):
    pairs = [{"id": str(i), "prompt": f"Say {i}.", "responses": ["a", "b"], "rewards": [1, 0]}
             for i in range(60)]
    write_rows(tmp_path / "train.jsonl", pairs)
    said = error_of(run_program("results.small_model", "--data", tmp_path / "train.jsonl",
                                "--output", tmp_path))
    assert "is not empty and not a run folder" in said
    assert len(read_rows(tmp_path / "train.jsonl")) == 60


def test_the_cost_of_a_stage_is_that_of_all_its_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(small_model_tables, "STAGES", ("rl",))
    monkeypatch.setattr(small_model_tables, "record", lambda *_, **__: {})
    write_rows(tmp_path / "stages.jsonl", [
        {"stage": "rl_1e-4", "status": "interrupted", "seconds": 30},
        {"stage": "rl_1e-4", "status": 0, "seconds": 12},
        {"stage": "warmup", "status": 0, "seconds": 9}])
    write_rows(tmp_path / "rl_1e-4" / "metrics.jsonl", [
        {"step": 1, "memory/peak_gb": 2.0}, {"step": 2, "memory/peak_gb": 3.5}])
    for judge in small_model_tables.GREEDY.values():
        write_rows(tmp_path / judge / "samples.jsonl", [])
    small_model_tables.record_run(tmp_path, tmp_path / "record", {"1e-4": 0.6, "3e-5": 0.5}, {})
    kept = small_model_tables.read_gz(tmp_path / "record" / "rl.json.gz")
    assert (kept["seconds"], kept["peak_gb"]) == (42, 3.5)


def test_the_meta_rm_of_a_budget_sees_every_item_whose_judgments_rft_left():
    for name, budget in small_model.BUDGETS.items():
        rft, meta_rm = (int(re.search(r"--limit (\d+)", budget[s])[1]) for s in ("rft", "meta_rm"))
        assert meta_rm >= rft, name


def read_csv(path):
    return {row["row"]: row for row in csv.DictReader(path.read_text("utf-8").splitlines())}


def test_the_committed_table_and_judgments_are_those_of_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(small_model_tables, "draw", lambda *_: None)
    small_model_tables.make_tables(output=tmp_path)
    made, kept = (read_csv(folder / "small_model.csv") for folder in (tmp_path, ROOT / "results"))
    assert made == kept
    gained = [float(kept[f"greedy verdicts that RL made {word}"]["rl-1e-4"])
              for word in ("right", "wrong")]  # no ties here: what RL gains is their difference
    assert (gained[0] - gained[1]) / 145 == pytest.approx(
        float(kept["GRM - GRM-RFT, greedy"]["rl-1e-4"]), abs=1e-4)
    pages = (ROOT / "docs" / "real_models.md").read_text(encoding="utf-8")
    judgments = read_json(small_model_tables.RUNS / "rl-1e-4" / "about.json")["judgments"]
    assert len(judgments) == 3
    for judgment in judgments:
        assert all(judgment[judge].strip() in pages for judge in ("GRM-RFT", "GRM"))


def test_what_the_place_gives_and_what_content_gives():
    """A meta RM that only likes the second place, and one that only knows the better response."""
    def rows(place, content):
        found = []
        for i in range(8):
            named = [(order, winner) for order in ([0, 1], [1, 0]) for winner in (0, 1)]
            found.append({
                "id": str(i), "n": 2, "rewards": [1, 0], "cluster": str(i),
                "samples": [{"permutation": order, "scores": [8, 3] if winner == 0 else [3, 8]}
                            for order, winner in named],
                "meta_logits": [place * (order[0] != winner) + content * (winner == 0)
                                for order, winner in named]})
        return found
    for place, content, expected in ((1.0, 0.0, [0.5, 0.5]), (0.0, 1.0, [0.5, 1.0]),
                                     (9.0, 1.0, [0.5, 1.0])):
        parted = small_model_tables.parts_of_logits(rows(place, content))
        assert [item_credit(part[0], 4, "guided") for part in parted] == expected
    kept = small_model_tables.judgment_measures(rows(0.0, 1.0))
    assert kept["judgments, all: right"][0] == 0.5 and kept["judgments, kept: right"][0] == 1.0
    assert kept["meta RM, ROC-AUC, test items, for the first"][0] == 1.0
    assert kept["meta RM, ROC-AUC, test items, within items"][0] == 1.0
    one_place = rows(0.0, 1.0)
    for row in one_place:  # only judgments that name the first, and all of them right
        row["samples"], row["meta_logits"] = row["samples"][:1], row["meta_logits"][:1]
    kept = small_model_tables.judgment_measures(one_place)
    assert not any("ROC-AUC" in name for name in kept)  # nothing to tell apart


def test_orders_that_weigh_the_same_cancel_a_preference_for_a_place():
    even_credit = small_model_tables.even_credit
    first_wins = [{"permutation": [0, 1], "scores": [8, 3]},
                  {"permutation": [1, 0], "scores": [3, 8]}]
    row = {"id": "x", "n": 2, "rewards": [1, 0],
           "samples": [first_wins[0]] * 5 + [first_wins[1]] * 3}
    assert even_credit(row, 8) == 0.5
    assert item_credit(row, 8) == 1.0  # the larger part had the right one first
    row["samples"][5] = {"permutation": [1, 0], "scores": [8, 3]}  # one that went by the text
    row["samples"][6] = {"permutation": [1, 0], "scores": None}
    assert even_credit(row, 8) == 1.0
    assert even_credit(row, 4) == 1.0  # of one order only; then one vote against two
    unparsed = [{"permutation": [0, 1], "scores": None}] * 2
    assert even_credit({**row, "samples": unparsed}, 2) == 0.0


def test_source_files_become_records(tmp_path):
    pairs = [{"instruction": f"Say {i}.", "input": "Kindly." * (i % 2), "output": "",
              "chosen": "Good.", "rejected": "Bad."} for i in range(60)]
    pairs[2]["rejected"] = "word " * 40  # too long
    asked = {"idx": 7, "motivation_app": "Wikipedia", "instruction": "Ask.",
             "input": float("nan"), "response1": "one", "response2": "two"}
    voted = [{**asked, "annotator1": a, "annotator2": b, "annotator3": c}
             for a, b, c in ((2, 2, 1), (1, 1, 0), (1, 2, 0), (0, 0, 0), (0, 0, 1))]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    (tmp_path / "testset-v1.json").write_text(json.dumps(voted), encoding="utf-8")
    parts = small_model.split_by_prompt(small_model.read_pairs(
        f"politeness:{tmp_path}/pairs.json"), 32)
    polite = [row for rows in parts.values() for row in rows]
    assert {tuple(zip(r["responses"], r["rewards"], strict=True)) for r in polite} == {
        (("Good.", 1), ("Bad.", 0)), (("Bad.", 0), ("Good.", 1))}
    assert sorted(r["prompt"][-1]["content"] for r in polite)[:2] == [
        "Say 0.", "Say 1.\n\nKindly."]
    assert {r["id"] for r in polite} == {f"politeness/{i}" for i in range(60) if i != 2}
    annotated = small_model.read_source("pandalm", tmp_path / "testset-v1.json")
    assert [dict(zip(e.responses, e.rewards, strict=True)) for e in annotated] == [
        {"one": 1, "two": 2}, {"one": 2, "two": 0}]
    assert {(e.id, e.domain, e.prompt[-1]["content"]) for e in annotated} == {
        ("pandalm/7", "Wikipedia", "Ask.")}
    assert isinstance(annotated[0], type(example_from_dict(animals(1)[0])))
    said = error_of(run_program("results.small_model", "--data", f"pandalm:{tmp_path}/none.json",
                                "--output", tmp_path / "out"))
    assert "testset-v1.json and give --data pandalm:FILE" in said
    with pytest.raises(UserError, match="row 0: KeyError 'annotator1'; is this the file of"):
        small_model.read_pairs(f"pandalm:{tmp_path}/pairs.json")
    with pytest.raises(UserError, match="of 3 items only .*; give more short pairs"):
        small_model.split_by_prompt(annotated[:1] * 3, 99)
