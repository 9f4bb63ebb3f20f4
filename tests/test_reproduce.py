"""The records of the runs (results/compact.py) and the tables made of them (results/tables.py)."""
import json
import random
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(1, str(ROOT / "results"))
from infer_scale import block_credits, powers_of_two, vote  # noqa: E402
from results import (
    compact,  # noqa: E402
    failures,  # noqa: E402
    figures,  # noqa: E402
    reproduce,  # noqa: E402
    tables,  # noqa: E402
)
from results.rows import finish, greedy_credit, lists, over_seeds, row, single, single_score, verdict  # noqa: E402


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the project's, and a way to put a finished run into it."""
    monkeypatch.chdir(tmp_path)
    compact.load.cache_clear()
    over_seeds.cache_clear()

    def finish(name, rows, seed=0, commit="abc1234", **files):
        folder = tmp_path / "runs" / "results" / f"s{seed}" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"args": {"model": "toy_world/small"}}))
        (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        for file, text in files.items():
            (folder / file.replace("_", ".")).write_text(text)
        (folder / ".finished").write_text(f"eval.py --output {folder.name} \n{commit}\n12.5 s\n")
        return folder
    return finish


def sample_rows(k, seed=0, kind="points", meta=False, count=40):
    """Rows of samples.jsonl: lists of 1 to 3 responses, some judgments unparsed."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        n = rng.choice([1, 2, 2, 3])
        rewards = [rng.randint(0, 1)] if n == 1 else [int(j == i % n) for j in range(n)]
        samples = []
        for _ in range(k):
            scores = [rng.randint(1, 10) if kind == "points" else round(rng.gauss(0, 0.02), 5) for _ in range(n)]
            scores = None if rng.random() < 0.1 else scores
            samples.append({"permutation": rng.sample(range(n), n), "scores": scores, "reason": "ok" if scores else "no_box",
                            "text": "long", "prompt_tokens": 50 + i, "tokens": rng.randint(9, 30)})
        rows.append({"id": f"x-{i}", "domain": rng.choice(["chat", "chat-hard", "safety", "reasoning"]), "rewards": rewards, "n": n, "cluster": None,
                     "response_lengths": [rng.randint(5, 99) for _ in range(n)], "samples": samples,
                     "votes": vote([s["scores"] for s in samples])})
        if meta:
            rows[-1]["meta_logits"] = [None if s["scores"] is None else round(rng.gauss(2, 1), 5) for s in samples]
    return rows


# ----- the records -----

def test_a_record_gives_back_every_row_without_its_text(here):
    rows = sample_rows(2)
    rows[0]["of"] = "x"
    here("base/greedy", rows)
    compact.record_finished(0)
    found = compact.load(0, "base/greedy")
    assert (found["command"], found["commit"], found["seconds"]) == ("eval.py --output greedy", "abc1234", 12.5)
    for before, kept in zip(rows, found["rows"], strict=True):
        assert kept == {k: v for k, v in before.items() if k not in ("votes", "cluster", "samples")} | {
            "samples": [{k: v for k, v in s.items() if k != "text"} for s in before["samples"]]}


@pytest.mark.parametrize("kind", ["points", "scalars"])
def test_no_vote_of_many_samples_changes(here, kind):
    rows = sample_rows(16, kind=kind, meta=True)
    here("grm/voting", rows)
    compact.record_finished(0)
    for before, kept in zip(rows, compact.load(0, "grm/voting")["rows"], strict=True):
        methods = ("vote", "guided", "random", "oracle") if kind == "points" else ("vote",)  # scalars have no meta RM
        for method in methods if before["n"] > 1 else ():
            for k in powers_of_two(16):
                for k_meta in (None, 1, 3):
                    assert block_credits(kept, k, method, k_meta) == block_credits(before, k, method, k_meta)


def test_scalar_scores_of_single_responses_keep_their_order(here):
    rows = sample_rows(1, kind="scalars", count=200)  # within 0.1: two decimals would tie most of them
    here("btrm/greedy", rows)
    compact.record_finished(0)
    pairs = [(before["samples"][0]["scores"], kept["samples"][0]["scores"]) for before, kept
             in zip(rows, compact.load(0, "btrm/greedy")["rows"], strict=True) if before["n"] == 1 and before["samples"][0]["scores"]]
    assert len(pairs) > 20 and all(kept == [round(before[0], 4)] for before, kept in pairs)


def test_same_runs_same_bytes_and_a_new_run_takes_the_place_of_the_old(here, tmp_path):
    folder = here("base/greedy", sample_rows(2))
    file = tmp_path / "results" / "runs" / "s0" / "base" / "greedy.json.gz"
    compact.record_finished(0)
    first = file.read_bytes()
    file.unlink()
    compact.record_finished(0)
    assert file.read_bytes() == first
    (folder / ".finished").write_text("eval.py\ndef5678\n13.0 s\n")
    compact.record_finished(0)
    assert compact.load(0, "base/greedy")["commit"] == "def5678"


def test_a_stage_inside_a_run_is_recorded_with_it(here):
    folder = here("cloud", sample_rows(2))  # baselines.py cloud keeps greedy/samples.jsonl in its folder, without a config of its own
    (folder / "greedy").mkdir()
    (folder / "greedy" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sample_rows(1)))
    compact.record_finished(0)
    assert len(compact.load(0, "cloud/greedy")["rows"][0]["samples"]) == 1 and len(compact.load(0, "cloud")["rows"][0]["samples"]) == 2


def test_items_are_kept_once_for_all_runs(here, tmp_path):
    here("base/greedy", sample_rows(2))
    here("grm/greedy", sample_rows(2))
    here("other/greedy", sample_rows(2, seed=1))
    compact.record_finished(0)
    assert len(list((tmp_path / "results" / "runs").glob("items-*.json.gz"))) == 2


def test_reports_and_the_course_of_training_are_kept_and_unfinished_runs_are_not(here):
    rl = [{"step": s, "reward/mean": s / 3, "policy/kl": 0.123456789} for s in (1, 2)]
    here("grm/rl", [{"step": 1, "prompt": "not a row of judgments"}], metrics_jsonl="".join(json.dumps(r) + "\n" for r in rl))
    here("grm/meta_rm", [], metrics_jsonl='{"step": 7, "loss": 1}\n', report_json='{"held_out": {}}')
    (here("unfinished", sample_rows(2)) / ".finished").unlink()
    compact.record_finished(0)
    assert compact.load(0, "grm/rl")["training"] == {"step": [1, 2], "reward/mean": [0.33333, 0.66667], "policy/kl": [0.12346] * 2}
    found = compact.load(0, "grm/meta_rm")
    assert found["updates"] == 7 and found["report"] == {"held_out": {}} and found["rows"] == []
    assert compact.load(0, "unfinished") is None


# ----- the tables -----

def test_verdicts():
    base, better = row("base", {}, "60.0"), row("better", {}, "62.0", "base")
    assert verdict(better, base, (0.01, 0.03)) == "agrees"
    assert verdict(better, base, (-0.03, -0.01)) == "differs"
    assert verdict(better, base, (-0.01, 0.01)) == "no difference seen"
    assert verdict(better, base, None) == "not tested"
    assert verdict(row("same", {}, "60.2", "base"), base, (-0.01, 0.01)) == "agrees"
    assert verdict(row("same", {}, "60.2", "base"), base, (0.01, 0.02)) == "differs"
    assert verdict(row("ours", {}, "", "base"), base, (0.01, 0.02)) == "-"
    assert verdict(row("worse", {}, "collapse", "base", gain=-1), base, (-0.02, -0.01)) == "agrees"
    assert verdict(row("alone", None, "60.0"), None, None) == "not tested"
    assert verdict(better, base, (0.01, 0.03), each=[0.05, 0.01]) == "agrees"
    assert verdict(better, base, (0.01, 0.03), each=[0.05, -0.01]) == verdict(better, base, (-0.03, -0.01), each=[-0.05, 0.01]) == "seeds disagree"
    assert verdict(better, base, (-0.01, 0.01), each=[0.05, -0.04]) == "no difference seen"


def test_a_table_row_by_hand(here):
    """The paired difference belongs to the means that are shown, each over the seeds that it has; the commits are those of the runs."""
    def rows(*right):
        return [{"id": f"x-{i}", "domain": "chat", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "samples": [
            {"permutation": [0, 1], "scores": [9, 1] if r else [1, 9], "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for i, r in enumerate(right)]
    here("a/greedy", rows(0, 0, 1, 1), seed=0)
    here("b/greedy", rows(1, 1, 1, 1), seed=0, commit="aaa")
    here("b/greedy", rows(0, 0, 0, 0), seed=1, commit="bbb")
    for seed in (0, 1):
        compact.record_finished(seed)
    a, b = (over_seeds((0, 1), f"{name}/greedy", greedy_credit) for name in "ab")
    first, second = finish([row("a", a, "60.0"), row("b", b, "70.0", "a")])
    assert (first["accuracy"], first["seeds"], first["commit"]) == (0.5, "50.0", "abc1234")
    assert (second["accuracy"], second["seeds"], second["commit"]) == (0.5, "100.0 0.0", "aaa bbb")
    assert second["chat"] == 0.5
    assert (second["difference_low"], second["difference_high"]) == (0.0, 1.0)  # on seed 0, which both have: +1 twice, 0 twice
    assert (second["difference_seeds"], second["from"], second["to"]) == ("0", 0.5, 1.0)
    untrained = {**a, "untrained": True}  # a judge that no seed changes: compared with the mean over all seeds of the other
    second = finish([row("a", untrained, "60.0"), row("b", b, "70.0", "a")])[1]
    assert (second["difference_low"], second["difference_high"]) == (-0.5, 0.5)  # items: +0.5 twice, -0.5 twice
    assert (second["difference_seeds"], second["from"], second["to"]) == ("0 1", 0.5, 0.5)


def test_differences_by_domain_use_the_items_of_the_domain(here):
    def rows(*right):
        return [{"id": f"x-{i}", "domain": "chat" if i < 2 else "safety", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "samples": [
            {"permutation": [0, 1], "scores": [9, 1] if r else [1, 9], "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for i, r in enumerate(right)]
    here("a/greedy", rows(0, 0, 1, 1))
    here("b/greedy", rows(1, 1, 1, 1))
    compact.record_finished(0)
    a, b = (over_seeds((0,), f"{name}/greedy", greedy_credit) for name in "ab")
    line = finish([row("a", a), row("b", b, "", "a")], domain_differences=True)[1]
    assert (line["chat_low"], line["chat_high"], line["safety_low"], line["safety_high"]) == (1.0, 1.0, 0.0, 0.0)


def test_calibration_by_hand_over_all_items_and_within_them(here):
    """Item 0: the correct judgment has the higher logit; item 1: the lower one, with both logits far above those of item 0."""
    def item(i, *pairs):
        return {"id": f"x-{i}", "domain": "chat", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "votes": [0, 0],
                "meta_logits": [z for _, z in pairs], "samples": [
                    {"permutation": [0, 1], "scores": s, "reason": "ok" if s else "no_box", "tokens": 5, "prompt_tokens": 9} for s, _ in pairs]}
    good, bad = [9, 1], [1, 9]
    here("grm/voting", [item(0, (good, -1.0), (bad, -2.0), (None, None)), item(1, (good, 3.0), (bad, 4.0), (good, 2.0)), item(2, (good, 0.0))])
    compact.record_finished(0)
    (here_results := compact.Path("results")).mkdir(exist_ok=True)
    tables.calibration((0,))
    whole, chat = figures.read("calibration", here_results)
    assert (whole["judge"], whole["domain"], chat["domain"], whole["seeds"]) == ("GRM", "all", "chat", "1")
    assert float(whole["judgments"]) == 6 and float(whole["correct"]) == pytest.approx(4 / 6, abs=1e-4)
    # correct -1, 3, 2, 0 against wrong -2, 4: each beats -2 and loses to 4; within: 1 (item 0), 0 (item 1), none (item 2)
    assert float(whole["auc"]) == 0.5 and float(whole["auc_within"]) == 0.5


def test_one_seed_says_nothing_where_seeds_differ_by_as_much(here):
    def rows(right):
        return [{"id": f"x-{i}", "domain": "chat", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "samples": [
            {"permutation": [0, 1], "scores": [9, 1] if i < right else [1, 9], "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for i in range(100)]
    here("grm/greedy", rows(90), seed=0)
    here("grm/greedy", rows(70), seed=1)  # 20 points between two seeds
    here("grm/voting", rows(99), seed=0)
    here("small/greedy", rows(75), seed=0)
    here("tiny/greedy", rows(65), seed=0)
    for seed in (0, 1):
        compact.record_finished(seed)
    grm, voting, small, tiny = (over_seeds((0, 1), name, greedy_credit) for name in ("grm/greedy", "grm/voting", "small/greedy", "tiny/greedy"))
    lines = finish([row("GRM", grm, "70.0"), row("GRM, voting", voting, "71.0", "GRM"), row("small", small, "60.0", "GRM"), row("tiny", tiny, "50.0", "GRM")])
    assert [line["verdict"] for line in lines[1:]] == ["agrees", "within the seeds' spread", "agrees"]  # +9 of one judge; -15; -25


def test_seeds_that_contradict_each_other_say_so(here):
    def rows(right):
        return [{"id": f"x-{i}", "domain": "chat", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "samples": [
            {"permutation": [0, 1], "scores": [9, 1] if i < right else [1, 9], "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for i in range(100)]
    for seed, right, other in ((0, 60, 90), (1, 70, 66), (2, 50, 60)):  # +30, -4, +10
        here("grm/greedy", rows(right), seed=seed)
        here("other/greedy", rows(other), seed=seed)
        compact.record_finished(seed)
    for seeds, expected in (((0, 1, 2), "seeds disagree"), ((0, 2), "agrees")):
        grm, other = (over_seeds(seeds, name, greedy_credit) for name in ("grm/greedy", "other/greedy"))
        assert finish([row("GRM", grm, "60.0"), row("other", other, "65.0", "GRM")])[1]["verdict"] == expected


def test_compute_of_a_vote_by_hand_and_with_each_prompt_once():
    record = {"parameters": 10, "rows": [{"n": 2, "rewards": [1, 0], "samples": [{"prompt_tokens": 7, "tokens": 3}] * 4}]}
    assert tables.flops_per_item([record], 4) == 2 * 10 * 4 * 10
    assert tables.flops_per_item([record], 1, shared=True) == 2 * 10 * 10
    assert tables.flops_per_item([record], 2, shared=True) == 2 * 10 * (7 * 1.5 + 2 * 3)  # half of the time both draws have the same order


def test_pairs_of_one_list_are_one_item_that_all_of_them_must_win(here):
    rows = [{"id": f"x#{j}", "of": "x", "domain": "chat", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "samples": [
        {"permutation": [0, 1], "scores": scores, "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for j, scores in enumerate(([9, 1], [5, 5]))]
    here("bon/grm/greedy", rows)
    compact.record_finished(0)
    assert over_seeds((0,), "bon/grm/greedy", greedy_credit, lists)["values"] == {0: {"x": 0.5}}


def test_auc_of_single_responses_and_its_paired_difference(here):
    """A judge that knows against one that always says 5: 1.0 against 0.5, whatever items are drawn."""
    def rows(score):
        return [{"id": f"x-{i}", "domain": "chat", "rewards": [i % 2], "n": 1, "response_lengths": [1], "samples": [
            {"permutation": [0], "scores": [score(i)], "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for i in range(30)]
    here("base/greedy", rows(lambda i: 5))
    here("grm/greedy", rows(lambda i: 9 if i % 2 else 2))
    compact.record_finished(0)
    base, grm = (over_seeds((0,), f"{name}/greedy", single_score(), single) for name in ("base", "grm"))
    line = finish([row("base", base, "65.8"), row("GRM", grm, "72.2", "base")], "auc")[1]
    assert (line["auc"], line["difference_low"], line["difference_high"], line["verdict"]) == (1.0, 0.5, 0.5, "agrees")


def made_up_runs(here):
    """Small runs of all that the plan of seed 0 names, with the shapes of the programs that it starts."""
    import numpy as np
    from safetensors.numpy import save_file
    for size in reproduce.SIZES:
        (reproduce.Path("toy_world") / size).mkdir(parents=True)
        save_file({"weight": np.zeros((5, 2), dtype=np.float32)}, f"toy_world/{size}/model.safetensors")
    held = {part: {"count": 9, "positive": 0.5, "auc": 0.75, "accuracy": 0.5} for part in ("all", "grm", "rft")}
    files = {"rl": {"metrics_jsonl": '{"step": 1, "reward/mean": 0.5, "reward/parse_rate": 1, "reward/frac_zero_std": 0, "policy/kl": 0, '
                                     '"policy/entropy": 1, "len/mean": 20}\n'},
             "meta": {"metrics_jsonl": '{"step": 7}\n', "report_json": json.dumps({"held_out": held, "judgments": 9, "unparsed": 0})},
             "failures": {"report_json": json.dumps({"classes": dict.fromkeys(failures.CLASSES, 1), "items": {
                 f"x-{i}": kind for i, kind in enumerate(failures.CLASSES)}})}}
    for name, command in reproduce.plan(0):
        words = command.split()
        folder, script = words[words.index("--output") + 1].removeprefix("runs/results/s0/"), words[0]
        part = {"spct_rl.py": "rl", "meta_rm.py": "meta", "results/failures.py": "failures"}.get(script)
        k = {"eval.py": 2, "results/principles.py": 7, "infer_scale.py": "--k" in words and int(words[words.index("--k") + 1]),
             "baselines.py": 8}.get(script)
        rows = sample_rows(k, meta="--meta_rm" in words) if k else []
        here(folder, rows, **files.get(part, {}))
        if name in ("judge: train", "cloud: train"):
            for stage in ("eval", "voting", "greedy"):
                (here(f"{folder}/{stage}", rows) / ".finished").unlink()


def test_every_table_and_figure_is_made_from_the_records_of_the_plan_alone(here, tmp_path):
    """What the plan runs is what the tables read: no row is left without a run."""
    made_up_runs(here)
    compact.record_finished(0)
    shutil.rmtree(tmp_path / "runs")
    tables.make_tables(compact.seeds_on_record())
    made = {path.stem for path in (tmp_path / "results").glob("*.csv")}
    assert made == {table.__name__ for table in tables.TABLES}
    for name in made - {"guidance", "meta_rm", "meta_rm_tries", "rl_training"}:
        assert "not run" not in (tmp_path / "results" / f"{name}.csv").read_text(), name
        assert figures.read(name)[0]["commit"] == "abc1234"
    figures.draw(tmp_path / "results")
    assert {path.stem for path in (tmp_path / "results").glob("*.png")} == {"scaling", "k_meta", "compute", "rl_training"}
    blocks = "".join(f"<!-- table {name} --><!-- end -->\n" for name in sorted(made) if name not in (
        "guidance", "meta_rm", "rl_training", "domains")) + "<!-- domains --><!-- end -->\n"
    (tmp_path / "README.md").write_text("<!-- claims --><!-- end -->\n")
    (tmp_path / "results" / "README.md").write_text(blocks)
    figures.fill_readme()
    assert "not tested" not in (tmp_path / "README.md").read_text()
    filled = (tmp_path / "results" / "README.md").read_text()
    assert filled.count("commit abc1234.") == filled.count("<!-- end -->") == blocks.count("<!-- end -->")


def test_the_committed_tables_come_from_the_committed_records(tmp_path, monkeypatch):
    records = ROOT / "results" / "runs"
    assert list(records.glob("s[0-9]*")), "no run is on record"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(records)
    monkeypatch.chdir(tmp_path)
    tables.make_tables(compact.seeds_on_record(), ("training", "ablations", "heldout_safety", "lengths", "failures", "kl", "rl_training"))
    made = sorted((tmp_path / "results").glob("*.csv"))
    assert len(made) >= 2
    for file in made:
        assert file.read_bytes() == (ROOT / "results" / file.name).read_bytes(), f"{file.name}: run python -m results.reproduce --tables"
