"""results/ablate.py: what it runs, what it compares, and which demos it refuses to compare with."""
import argparse
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, error_of

from plumbing.runs import UserError, read_json, write_json, write_rows
from results import ablate, demo, reproduce, tables

MODELS = {"rl": "rft", "eval_rft": "rft", "eval_grm": "rl"}  # run: from which model it was made


def rows(*right):
    """Rows of samples.jsonl, judged right (1) or wrong (0); the last two are of another domain."""
    return [{"id": f"x-{i}", "domain": "safety" if i > 1 else "chat", "n": 2, "rewards": [1, 0],
             "response_lengths": [1, 1], "cluster": None,
             "samples": [{"scores": [9, 1] if r else [1, 9], "permutation": [0, 1]}] * 2}
            for i, r in enumerate(right)]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A demo that seems finished, and the list of commands that were started since."""
    monkeypatch.chdir(tmp_path)
    parser, out, started = argparse.ArgumentParser(), Path("runs/toy"), []
    demo.add_flags(parser)
    lines = demo.commands(parser.parse_args([]), out)
    write_json(out / "seconds.json", {stage: {
        "seconds": 1.0, "commands": lines[stage], "base": demo.toy_base()} for stage in lines})
    for model in ("rft", "rl"):
        write_json(out / model / "model" / "config.json", {"weights": model})
    for run, model in MODELS.items():
        write_json(out / run / "config.json", {
            "args": {}, "made_from": {"model": ablate.content(out / model / "model")}})
        write_rows(out / run / "samples.jsonl", rows(1, 1, 0, 0))

    def run(words):
        started.append(words)
        folder = Path(words[words.index("--output") + 1])
        write_json(folder / "config.json", {"args": {}})
        write_rows(folder / "samples.jsonl", rows(0, 1, 1, 1))
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run))
    return started


def test_the_variant_is_trained_alone_and_compared_with_the_demo_item_by_item(made, cli):
    code, out, err = cli("results.ablate", "no-principles", "straight")
    assert code == 0, err
    said = [line[len("$ accelerate launch "):].split() for line in out.splitlines()
            if line.startswith("$ ")]
    assert said == [[Path(words[1]).name, *words[2:]] for words in made]  # printed as started
    s = "runs/ablations/no-principles"
    assert [" ".join(words) for words in said[:4]] == [
        f"spct_rft.py --output {s}/rft --seed 0 --no_principles",
        f"eval.py --model {s}/rft/model --output {s}/eval_rft --seed 0 --limit 500",
        f"spct_rl.py --model {s}/rft/model --output {s}/rl --seed 0 --no_principles",
        f"eval.py --model {s}/rl/model --output {s}/eval_grm --seed 0 --limit 500"]
    assert said[4][:3] == ["spct_rl.py", "--model", str(ROOT / "toy_world" / "medium")]
    assert len(said) == 6
    assert ("no-principles, after RL, 4 test items, seed 0: accuracy in %\n"
            "  here   50.0 -> 75.0, difference +25.0 [-50.0, +100.0]\n"
            "         by domain: chat -50.0, safety +100.0\n"
            "  paper  69.9 -> 67.5, difference -2.4 (27B, Overall)\n") in out
    assert out.count("paper  has no such number") == 2  # without principles, before RL; straight
    kept = read_json("runs/ablations/no-principles/difference.json")
    assert list(kept) == ["rft", "rl"] and kept["rl"]["difference_high"] == 1.0
    assert "results.watch demo=runs/toy/rl straight=runs/ablations/straight/rl" in out
    count = len(made)
    again = cli("results.ablate", "straight")
    assert again[0] == 0 and len(made) == count and "rl: done before" in again[1]


def test_what_was_made_from_something_else_is_not_taken_for_done(made, cli):
    """A demo whose RFT is made again makes all behind it; a variant of RL has that RFT."""
    parser = argparse.ArgumentParser()
    demo.add_flags(parser)
    flags = parser.parse_args(["--rft", "--epochs 2"])
    demo.run_stages(demo.commands(flags, Path("runs/toy")), Path("runs/toy"))
    assert [Path(words[1]).name for words in made] == [
        "spct_rft.py", "spct_rl.py", "meta_rm.py", "infer_scale.py", *["eval.py"] * 3]
    assert "sample" in demo.finished(Path("runs/toy"))
    flags.rft = "--epochs 3"

    def killed(words):
        raise KeyboardInterrupt
    demo.subprocess.run = killed
    with pytest.raises(KeyboardInterrupt):
        demo.run_stages(demo.commands(flags, Path("runs/toy")), Path("runs/toy"))
    assert not demo.finished(Path("runs/toy"))  # what was made from the old RFT is not "done"
    out, args = Path("runs/ablations/beta-0"), argparse.Namespace(demo="runs/toy")
    ablate.check_start("beta-0", args, out)  # nothing was made yet
    write_json(out / "rl" / "config.json", {"made_from": {"model": "other"}})
    with pytest.raises(UserError, match="made from another RFT model than runs/toy has now"):
        ablate.check_start("beta-0", args, out)
    ablate.check_start("straight", args, out)  # begins from the base


def test_paths_with_spaces_are_quoted_and_numbers_are_refused_before_training(made, cli):
    args = argparse.Namespace(demo="my demo", seed=0, limit=9, k=2, rft="", rl="", meta="")
    for stages in (demo.commands(args, Path("a b")), ablate.variant("beta-0", args, Path("c d"))):
        for line in sum(stages.values(), []):
            words = shlex.split(line)
            assert words[words.index("--output") + 1].split("/")[0] in ("a b", "c d")
            model = words[words.index("--model") + 1] if "--model" in words else "a b/"
            assert model.split("/")[0] in ("a b", "c d", "my demo", "")
    for flag, value in (("--limit", -4), ("--k", 1)):
        assert f"{flag} must be at least" in error_of(cli("results.demo", flag, value))
    assert not made


@pytest.mark.parametrize("damage, words, said", [
    (lambda p: p.unlink(), [], "holds no finished demo, stage rft is missing; run `make demo`"),
    (lambda p: write_json(p, read_json(p) | {"eval": {}}), [], "another base model"),
    (lambda p: p.write_text(p.read_text().replace(demo.toy_base(), "other")), [], "another base"),
    (lambda p: None, ["--seed", 1], "other flags (spct_rft.py --output runs/toy/rft --seed 0"),
    (lambda p: None, ["--limit", 9], "other flags (eval.py --model runs/toy/rft/model"),
    (lambda p: write_json(p.parent / "rft" / "model" / "config.json", {}), [],
     "runs/toy/rl was made from other weights than runs/toy/rft/model has now")])
def test_a_demo_that_is_no_control_is_refused_in_one_line(made, cli, damage, words, said):
    damage(Path("runs/toy/seconds.json"))
    assert said in error_of(cli("results.ablate", "beta-0", *words)) and not made


def test_flags_stand_in_one_place_and_the_papers_numbers_in_another():
    """The plan of the long runs has the same flags; docs/ablations.md has the same numbers."""
    args = argparse.Namespace(demo="demo", seed=0, limit=9, k=2, rft="", rl="", meta="")
    plan = [command for _, command in reproduce.plan(0)]
    page = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    told = {cells[1].strip("` ").split()[-1]: cells[-2]
            for cells in (line.split("|") for line in page.splitlines())
            if len(cells) > 3 and "results.ablate" in cells[1]}
    assert set(told) <= set(reproduce.ABLATIONS)
    for name, ablation in reproduce.ABLATIONS.items():
        stages = ablate.variant(name, args, Path("out"))
        for stage, flags in (("rft", ablation.rft), ("rl", ablation.rl)):
            planned = [c for c in plan
                       if f"--output {reproduce.RUNS}/s0/{ablation.run}/{stage} " in c]
            assert bool(planned) == (stage in stages) and all(flags in c for c in planned)
            assert all(flags in stages[stage][0] for _ in planned)
        numbers = [ablate.papers_numbers(ablation, stage) for stage in stages]
        numbers = [n for pair in numbers for n in pair if tables.number(n) is not None]
        assert re.findall(r"\b\d\d\.\d\b", told.get(name, "")) == numbers, name
