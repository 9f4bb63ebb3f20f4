"""From finished runs to records, and from records to tables and figures (results/)."""
import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from eval import block_credits, powers_of_two
from infer_scale import vote
from results import figures, records, reproduce, tables


@pytest.fixture
def put(tmp_path, monkeypatch):
    """An empty folder as the project's; put(name, rows, ...) makes a finished run there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    records.load.cache_clear()
    tables.result.cache_clear()

    def finish(name, rows=(), seed=0, commit="abc1234", **files):
        folder = records.RUNS / f"s{seed}" / name
        folder.mkdir(parents=True, exist_ok=True)
        config = {"args": {"model": "toy_world/small"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        for file, text in files.items():
            (folder / file.replace("_", ".")).write_text(text)
        (folder / ".finished").write_text(f"eval.py --output {folder.name}\n{commit}\n12.5 s\n")
        return folder
    return finish


def drawn_rows(k, seed=0, points=True, meta=False, count=40):
    """Rows of samples.jsonl: lists of 1 to 3 responses, some judgments unparsed."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        n, samples = random.Random(i).choice([1, 2, 2, 3]), []  # the items are the same for all
        rewards = [i // 2 % 2] if n == 1 else [int(j == i % n) for j in range(n)]
        for _ in range(k):
            scores = [rng.randint(1, 10) if points else rng.gauss(0, 0.02) for _ in range(n)]
            scores = None if rng.random() < 0.1 else scores
            samples.append({"permutation": rng.sample(range(n), n), "scores": scores,
                            "reason": "ok" if scores else "no_box", "text": "long",
                            "prompt_tokens": 50 + i, "tokens": rng.randint(9, 30)})
        rows.append({"id": f"x-{i}", "domain": list(tables.DOMAINS)[i % 4], "rewards": rewards,
                     "n": n, "cluster": None, "samples": samples,
                     "response_lengths": [5 + i + j for j in range(n)],
                     "votes": vote([s["scores"] for s in samples])})
        if meta:
            rows[-1]["meta_logits"] = [s["scores"] and rng.gauss(2, 1) for s in samples]
    return rows


def item(i, scores, rewards=(1, 0), domain="chat", **more):
    """A row with one judgment."""
    sample = {"permutation": list(range(len(rewards))), "scores": scores, "reason": "ok",
              "tokens": 5, "prompt_tokens": 9}
    return {"id": f"x-{i}", "domain": domain, "rewards": list(rewards), "n": len(rewards),
            "response_lengths": [1] * len(rewards), "samples": [sample], **more}


def right_and_wrong(*right, domains=()):
    """Items that are judged right (1) or wrong (0)."""
    return [item(i, [9, 1] if r else [1, 9], domain=(domains or ["chat"] * 100)[i])
            for i, r in enumerate(right)]


# ----- records -----

def test_a_record_gives_back_every_row_without_its_text(put):
    rows = drawn_rows(2)
    rows[0]["of"] = "x"
    put("base/greedy", rows)
    records.record_finished(0)
    found = records.load(0, "base/greedy")
    assert (found["command"], found["commit"]) == ("eval.py --output greedy", "abc1234")
    assert found["seconds"] == 12.5
    for before, kept in zip(rows, found["rows"], strict=True):
        samples = [{k: v for k, v in s.items() if k != "text"} for s in before["samples"]]
        left = ("votes", "cluster", "samples")
        assert kept == {k: v for k, v in before.items() if k not in left} | {"samples": samples}


def test_no_vote_of_many_samples_changes(put):
    rows = drawn_rows(16, meta=True)
    put("grm/voting", rows)
    records.record_finished(0)
    for before, kept in zip(rows, records.load(0, "grm/voting")["rows"], strict=True):
        for method in ("vote", "guided", "random", "oracle") if before["n"] > 1 else ():
            for k in powers_of_two(16):
                for k_meta in (None, 1, 3):
                    ours, theirs = (block_credits(r, k, method, k_meta) for r in (kept, before))
                    assert ours == theirs


def test_scalar_scores_keep_four_decimals(put):
    rows = drawn_rows(1, points=False, count=200)  # within 0.1: two decimals would tie most
    put("btrm/greedy", rows)
    records.record_finished(0)
    pairs = [(a["samples"][0]["scores"], b["samples"][0]["scores"])
             for a, b in zip(rows, records.load(0, "btrm/greedy")["rows"], strict=True)]
    assert all(b == (a and [round(x, 4) for x in a]) for a, b in pairs)


def test_same_runs_same_bytes_and_a_new_run_takes_the_place_of_the_old(put):
    folder = put("base/greedy", drawn_rows(2))
    file = records.RECORDS / "s0" / "base" / "greedy.json.gz"
    records.record_finished(0)
    first = file.read_bytes()
    file.unlink()
    records.record_finished(0)
    assert file.read_bytes() == first
    (folder / ".finished").write_text("eval.py\ndef5678\n13.0 s\n")
    records.record_finished(0)
    assert records.load(0, "base/greedy")["commit"] == "def5678"


def test_stages_inside_a_run_items_of_several_runs_and_unfinished_runs(put):
    folder = put("cloud", drawn_rows(2))  # a baseline keeps a greedy stage inside, without a config
    (folder / "greedy").mkdir()
    (folder / "greedy" / "samples.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in drawn_rows(1, count=30)))
    put("other/greedy", drawn_rows(2))
    (put("unfinished", drawn_rows(2)) / ".finished").unlink()
    records.record_finished(0)
    assert [len(records.load(0, name)["rows"][0]["samples"]) for name in ("cloud", "cloud/greedy")
            ] == [2, 1]
    assert records.load(0, "unfinished") is None
    assert len(list(records.RECORDS.glob("items-*.json.gz"))) == 2


def test_reports_and_the_course_of_training_are_kept(put):
    course = [{"step": s, "reward/mean": s / 3, "policy/kl": 0.123456789} for s in (1, 2)]
    put("grm/rl", [{"step": 1, "prompt": "not a row of judgments"}],
        metrics_jsonl="".join(json.dumps(r) + "\n" for r in course))
    put("grm/meta_rm", metrics_jsonl='{"step": 7, "loss": 1}\n', report_json='{"held_out": {}}')
    records.record_finished(0)
    assert records.load(0, "grm/rl")["training"] == {
        "step": [1, 2], "reward/mean": [0.33333, 0.66667], "policy/kl": [0.12346] * 2}
    found = records.load(0, "grm/meta_rm")
    assert (found["updates"], found["report"], found["rows"]) == (7, {"held_out": {}}, [])


# ----- rows -----

@pytest.mark.parametrize("gain, ends, each, expected", [
    (2, (0.01, 0.03), [0.02, 0.02], "agrees"),
    (-2, (-0.03, -0.01), [-0.02, -0.02], "agrees"),
    (2, (-0.03, -0.01), [-0.02, -0.02], "differs"),
    (2, (-0.01, 0.01), [0.02, 0.01], "unclear"),
    (2, (0.01, 0.03), [0.05, -0.01], "unclear"),
    (2, (0.01, 0.03), [0.02], "unclear"),
    (0.2, (-0.01, 0.01), [0.02, -0.02], "agrees"),
    (0.2, (0.01, 0.02), [0.02, 0.01], "differs"),
    (None, (0.01, 0.02), [0.02, 0.01], ""),
    (2, None, [], "")])
def test_verdicts(gain, ends, each, expected):
    assert tables.verdict(gain, ends, each) == expected


def test_a_row_by_hand(put):
    """The paired difference belongs to the seeds that both have, and so do `from` and `to`."""
    put("a/greedy", right_and_wrong(0, 0, 1, 1))
    put("b/greedy", right_and_wrong(1, 1, 1, 1), commit="aaa")
    put("b/greedy", right_and_wrong(0, 0, 0, 0), seed=1, commit="bbb")
    put("base/greedy", right_and_wrong(0, 0, 1, 1))  # a judge that no seed changes
    for seed in (0, 1):
        records.record_finished(seed)
    a, b, base, again = tables.finish((0, 1), [
        ["a", "a/greedy", "greedy", "60.0"], ["b", "b/greedy", "greedy", "70.0", "a"],
        ["base", "base/greedy", "greedy", "60.0"],
        ["again", "b/greedy", "greedy", "70.0", "base"]])
    assert (a["accuracy"], a["seeds"], a["commit"], a["verdict"]) == (0.5, "50.0", "abc1234", "")
    assert (b["accuracy"], b["seeds"], b["commit"]) == (0.5, "100.0 0.0", "aaa bbb")
    assert (b["chat"], b["safety"], b["verdict"]) == (0.5, "", "unclear")
    assert (b["difference_low"], b["difference_high"]) == (0.0, 1.0)  # seed 0: +1 twice, 0 twice
    assert (b["difference_seeds"], b["from"], b["to"]) == ("0", 0.5, 1.0)
    assert (again["difference_low"], again["difference_high"]) == (-0.5, 0.5)
    assert (again["difference_seeds"], again["from"], again["to"]) == ("0 1", 0.5, 0.5)


def test_a_run_of_one_seed_stands_beside_a_run_that_has_only_that_one(put):
    for seed, right in enumerate((1, 0)):
        put("grm/greedy", right_and_wrong(right), seed)
        records.record_finished(seed)
    both, one = tables.finish((0, 1), [["b", "grm/greedy", "greedy"],
                                       ["b, seed 0", "grm/greedy, seed 0", "greedy"]])
    assert (both["chat"], one["chat"], one["seeds"]) == (0.5, 1.0, "100.0")


def test_a_command_that_fails_is_told_by_the_exit_code(put, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "ROOT", Path.cwd())
    monkeypatch.setattr(reproduce, "plan", lambda seed: [("grm", "-c 0/0 --output here/x")])
    assert reproduce.run_seed(0, None) == 1 and "exit code 1 of -c 0/0" in capsys.readouterr().out


def test_items_of_a_row(put):
    put("base/greedy", right_and_wrong(0, 1, 1, domains=["chat", "safety", "safety"]))
    put("more/greedy", [*right_and_wrong(0, 1, 1, 0, domains=["chat"] + ["safety"] * 3),
                        item(9, [9], [1], "safety")])
    records.record_finished(0)

    def items(text):
        return list(tables.result((0,), "more/greedy", "tokens", text).values[0])
    assert items("safety") == ["x-1", "x-2", "x-3"]
    assert items("all safety") == ["x-1", "x-2", "x-3", "x-9"]
    assert items("safety of base/greedy") == ["x-1", "x-2"]
    assert items("n=1") == ["x-9"] and len(items("n>1")) == 4
    assert tables.result((0,), "more/greedy", "tokens", "n>2") is None


def test_pairs_of_one_list_are_one_item_that_all_of_them_must_win(put):
    put("bon/grm/greedy", [item(i, scores, of="x") for i, scores in enumerate(([9, 1], [5, 5]))])
    records.record_finished(0)
    assert tables.result((0,), "bon/grm/greedy", "greedy", "n>2").values == {0: {"x": 0.5}}


def test_auc_of_single_responses_and_its_paired_difference(put):
    """A judge that knows against one that always says 5: 1.0 against 0.5, whatever is drawn."""
    for seed in (0, 1):
        put("base/greedy", [item(i, [5], [i % 2]) for i in range(30)], seed)
        put("grm/greedy", [item(i, [9 if i % 2 else 2], [i % 2]) for i in range(30)], seed)
        records.record_finished(seed)
    line = tables.finish((0, 1), [["base", "base/greedy", "score [n=1]", "65.8"],
                                  ["GRM", "grm/greedy", "score [n=1]", "72.2", "base"]])[1]
    assert (line["auc"], line["difference_low"], line["difference_high"]) == (1.0, 0.5, 0.5)
    assert (line["verdict"], line["seeds"], line["items"]) == ("agrees", "100.0 100.0", 30)


def test_measures_by_hand():
    row = item(0, [9, 1])
    row["samples"] = [{"scores": s, "tokens": 7} for s in ([1, 9], [8, 2], [9, 1], [1, 2])]
    row["meta_logits"] = [-1.0, 2.0, 3.0, -2.0]
    found = {what: tables.measure(row, what) for what in (
        "greedy", "tokens", "#1", "vote@1", "vote@4", "guided@4", "guided@4/1", "oracle@2")}
    assert found == {"greedy": 0.0, "tokens": 7, "#1": 1.0, "vote@1": 0.5, "vote@4": 1.0,
                     "guided@4": 1.0, "guided@4/1": 1.0, "oracle@2": 1.0}
    # by the margin: 8 and 8 of the first and third vote; of the last two 8 and 1
    row["samples"][1]["scores"], row["samples"][3]["scores"] = [5, 6], None
    assert [tables.measure(row, w) for w in ("margin@4", "margin@4/1", "margin@2")] == [
        0.5, 0.0, 0.5]


def test_compute_of_a_vote_by_hand():
    record = {"parameters": 10, "rows": [
        {"n": 2, "rewards": [1, 0], "samples": [{"prompt_tokens": 7, "tokens": 3}] * 4}]}
    assert tables.flops_per_item([record, None], "vote@4") == 2 * 10 * 4 * 10
    assert tables.flops_per_item([record], "greedy") == 2 * 10 * 10


# ----- the plan, the tables and the figures -----

def made_up_runs(put):
    """Small runs of all that the plan of one seed names."""
    import numpy as np
    from safetensors.numpy import save_file
    for size in reproduce.SIZES:
        (Path("toy_world") / size).mkdir(parents=True)
        save_file({"weight": np.zeros((5, 2), np.float32)}, f"toy_world/{size}/model.safetensors")
    course = dict.fromkeys(("step", *figures.PANELS), 1)
    for _, command in reproduce.plan(0):
        words = command.split()
        script = words[1] if words[0] == "-m" else words[0]
        folder = words[words.index("--output") + 1].removeprefix(f"{records.RUNS}/s0/")
        k = {"eval.py": 2, "results.principles": 7, "extras.baselines": 8,
             "infer_scale.py": int(words[words.index("--k") + 1]) if "--k" in words else 0}
        rows = drawn_rows(k[script], meta="--meta_rm" in words) if k.get(script) else []
        put(folder, rows, metrics_jsonl=json.dumps(course) + "\n" if script == "spct_rl.py" else "")
        for stage in ("eval", "voting", "greedy") if folder in ("judge", "cloud") else ():
            (put(f"{folder}/{stage}", rows) / ".finished").unlink()


def test_every_table_and_figure_is_made_from_the_records_of_the_plan_alone(put, tmp_path):
    """What the plan runs is what the tables read: no row is left without a run."""
    made_up_runs(put)
    records.record_finished(0)
    shutil.rmtree(tmp_path / "runs")
    made = tables.make_tables(records.seeds_on_record())
    figures.draw(made)
    for name, rows in made.items():
        assert (tmp_path / "results" / f"{name}.csv").exists()
        assert all(r["items"] and r["commit"] == "abc1234" for r in rows), name
    drawn = {path.stem for path in (tmp_path / "results").glob("*.png")}
    assert drawn == {"scaling", "compute", "fig4", "rl_training"}
    (tmp_path / "README.md").write_text("<!-- claims --><!-- end -->\n")
    (tmp_path / "results" / "README.md").write_text(
        "".join(f"<!-- table {name} -->old<!-- end -->\n" for name in made))
    tables.fill_readmes(made)
    claims = (tmp_path / "README.md").read_text().splitlines()
    assert claims[1] == "| claim | paper | here | difference, points | seeds | verdict |"
    assert claims[2] == "| --- | --- | --- | --- | --- | --- |"
    assert [line.split("|")[1].strip() for line in claims[3:-1]] == [c for c, _, _ in tables.CLAIMS]
    assert len(claims) == 3 + len(tables.CLAIMS) + 1 and "not run" not in "".join(claims)
    filled = (tmp_path / "results" / "README.md").read_text()
    assert "old" not in filled and filled.count("<!-- end -->") == len(made)


def test_a_claim_chains_the_numbers_of_its_rows(put):
    for seed in (0, 1):
        put("base/greedy", right_and_wrong(0, 0, 0, 1), seed)
        put("grm/after_rft/greedy", right_and_wrong(0, 0, 1, 1), seed)
        put("grm/greedy", right_and_wrong(0, 1, 1, 1), seed)
        records.record_finished(seed)
    base, grm = tables.claim_lines(tables.make_tables((0, 1)))[2:4]
    assert [cell.strip() for cell in grm.split("|")[1:-1]] == [
        "greedy: RFT < GRM", "68.8 -> 69.9", "50.0 -> 75.0", "+0.00 to +75.0", "2", "unclear"]
    assert [cell.strip() for cell in base.split("|")[1:-1]] == [
        "greedy: base < RFT", "not compared", "25.0 -> 50.0", "+0.00 to +75.0", "2", ""]


def test_an_untrained_judge_with_fewer_seeds_is_compared_with_every_seed_of_the_other(put):
    for seed in (0, 1, 2):
        if seed < 2:
            put("base/greedy", right_and_wrong(*[0] * 7, 1), seed)
        put("grm/after_rft/greedy", right_and_wrong(*[seed < 2] * 8), seed)
        records.record_finished(seed)
    rows = [["base", "base/greedy", "greedy"],
            ["RFT", "grm/after_rft/greedy", "greedy", "", "base", "gain 1"]]
    row = tables.finish((0, 1, 2), rows)[1]
    assert row["difference_low"] > 0 and row["difference_seeds"] == "0 1 2"
    assert row["verdict"] == "unclear"  # the third seed is below the base


def test_the_committed_tables_come_from_the_committed_records(tmp_path, monkeypatch):
    assert list((ROOT / "results" / "runs").glob("s[0-9]*")), "no run is on record"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(ROOT / "results" / "runs")
    monkeypatch.chdir(tmp_path)
    names = ("training", "heldout_safety", "lengths", "kl", "list_or_pairs")
    for name, rows in tables.make_tables(records.seeds_on_record(), names).items():
        made = (tmp_path / "results" / f"{name}.csv").read_bytes()
        assert made == (ROOT / "results" / f"{name}.csv").read_bytes(), (
            f"{name}.csv: run python -m results.reproduce --tables")
        block = "\n".join(tables.table_lines(name, rows))
        assert block in (ROOT / "results" / "README.md").read_text(encoding="utf-8"), name


def test_rows_compare_with_rows_of_their_table():
    for name, rows in tables.read_rows_file().items():
        labels = [row[0] for row in rows]
        assert len(labels) == len(set(labels)), name
        assert {row[4] for row in rows if len(row) > 4} <= set(labels) | {""}, name


def test_rows_without_a_run_are_named_below_the_table(put):
    put("base/greedy", right_and_wrong(0, 0, 0, 1))
    records.record_finished(0)
    made = tables.make_tables((0,), ("training", "compute"))
    lines = tables.table_lines("training", made["training"])
    assert len([line for line in lines if line.startswith("| ")]) == 3  # head, rule, the base
    assert lines[-1].startswith("Not run yet: GRM-RFT, greedy; GRM, greedy; general data only")
    [line] = tables.table_lines("compute", made["compute"])
    assert line.startswith("Not run yet: small, greedy; small, Voting@1; small, Voting@8; ")
