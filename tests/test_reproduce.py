"""The records of the runs (results/compact.py) and the tables made of them (results/tables.py)."""
import json
import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(1, str(ROOT / "results"))
import compact  # noqa: E402
import tables  # noqa: E402

from infer_scale import block_credits, powers_of_two, vote  # noqa: E402


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the project's, and a way to put a finished run into it."""
    monkeypatch.chdir(tmp_path)
    compact.load.cache_clear()
    tables.over_seeds.cache_clear()

    def finish(name, rows, seed=0, commit="abc1234", **files):
        folder = tmp_path / "runs" / "results" / f"s{seed}" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"args": {"model": "nowhere"}}))
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
        rows.append({"id": f"x-{i}", "domain": rng.choice(["chat", "safety"]), "rewards": rewards, "n": n, "cluster": None,
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
    for row, kept in zip(rows, found["rows"], strict=True):
        assert kept == {k: v for k, v in row.items() if k not in ("votes", "cluster", "samples")} | {
            "samples": [{k: v for k, v in s.items() if k != "text"} for s in row["samples"]]}


@pytest.mark.parametrize("kind", ["points", "scalars"])
def test_no_vote_of_many_samples_changes(here, kind):
    rows = sample_rows(16, kind=kind, meta=True)
    here("grm/voting", rows)
    compact.record_finished(0)
    for row, kept in zip(rows, compact.load(0, "grm/voting")["rows"], strict=True):
        methods = ("vote", "guided", "random", "oracle") if kind == "points" else ("vote",)  # scalars have no meta RM
        for method in methods if row["n"] > 1 else ():
            for k in powers_of_two(16):
                for k_meta in (None, 1, 3):
                    assert block_credits(kept, k, method, k_meta) == block_credits(row, k, method, k_meta)


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
    base, better = tables.row("base", {}, "60.0"), tables.row("better", {}, "62.0", "base")
    assert tables.verdict(better, base, (0.01, 0.03)) == "agrees"
    assert tables.verdict(better, base, (-0.03, -0.01)) == "differs"
    assert tables.verdict(better, base, (-0.01, 0.01)) == "no difference seen"
    assert tables.verdict(better, base, None) == "not tested"
    assert tables.verdict(tables.row("same", {}, "60.2", "base"), base, (-0.01, 0.01)) == "agrees"
    assert tables.verdict(tables.row("same", {}, "60.2", "base"), base, (0.01, 0.02)) == "differs"
    assert tables.verdict(tables.row("ours", {}, "", "base"), base, (0.01, 0.02)) == "-"
    assert tables.verdict(tables.row("worse", {}, "collapse", "base", gain=-1), base, (-0.02, -0.01)) == "agrees"
    assert tables.verdict(tables.row("alone", None, "60.0"), None, None) == "not tested"


def test_a_table_row_by_hand(here):
    """Paired difference over the seeds that both runs have; the commits are those of the row's runs."""
    def rows(*right):
        return [{"id": f"x-{i}", "domain": "chat", "rewards": [1, 0], "n": 2, "response_lengths": [1, 1], "samples": [
            {"permutation": [0, 1], "scores": [9, 1] if r else [1, 9], "reason": "ok", "tokens": 5, "prompt_tokens": 9}]} for i, r in enumerate(right)]
    here("a/greedy", rows(0, 0, 1, 1), seed=0)
    here("b/greedy", rows(1, 1, 1, 1), seed=0, commit="aaa")
    here("b/greedy", rows(0, 0, 0, 0), seed=1, commit="bbb")
    for seed in (0, 1):
        compact.record_finished(seed)
    a, b = (tables.over_seeds((0, 1), f"{name}/greedy", tables.greedy_credit) for name in "ab")
    first, second = tables.finish([tables.row("a", a, "60.0"), tables.row("b", b, "70.0", "a")])
    assert (first["accuracy"], first["seeds"], first["commit"]) == (0.5, "50.0", "abc1234")
    assert (second["accuracy"], second["seeds"], second["commit"]) == (0.5, "100.0 0.0", "aaa bbb")
    assert second["difference_low"] >= 0 and second["difference_high"] == 1.0 and second["chat"] == 0.5


def test_the_committed_tables_come_from_the_committed_records(tmp_path, monkeypatch):
    records = ROOT / "results" / "runs"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(records)
    monkeypatch.chdir(tmp_path)
    tables.make_tables(compact.seeds_on_record(), ("training", "ablations", "heldout_safety", "meta_rm", "rl_training"))
    made = sorted((tmp_path / "results").glob("*.csv"))
    if len(made) < 2:
        pytest.skip("too few runs are on record for these tables")
    for file in made:
        assert file.read_bytes() == (ROOT / "results" / file.name).read_bytes(), f"{file.name}: run python results/reproduce.py --tables"
