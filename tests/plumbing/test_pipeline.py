"""The whole line at its smallest: the demo, the same bytes twice, and what users do wrong."""
import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, error_of, run_program

from grm import build_prompt, rule_reward
from infer_scale import meta_vote, vote
from plumbing.data import load_examples
from plumbing.runs import read_json, read_rows, write_rows
from spct_rl import group_advantages

MEDIUM = ["--model", ROOT / "toy_world" / "medium"]


# ----- the demo -----

@contextlib.contextmanager
def stages_in_this_process():
    """The demo starts a process for each stage; here each one costs no start."""
    real = subprocess.run

    def run(words, *args, **options):
        if words[0] != sys.executable:
            return real(words, *args, **options)
        program = ".".join(Path(words[1]).relative_to(ROOT).with_suffix("").parts)
        code, out, err = run_program(program, *words[2:])
        print(out)
        print(err, file=sys.stderr)
        return subprocess.CompletedProcess(words, code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        patch.setattr(os, "execv", lambda file, words: sys.exit(run(words).returncode))
        yield


SMALL = ["--limit", 12, "--k", 8, "--rft", "--limit 40 --epochs 0.3", "--meta", "--limit 40",
         "--rl", "--steps 1 --prompts_per_step 4"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "toy"
    with stages_in_this_process():
        code, said, errors = run_program("results.demo", "--output", out, *SMALL)
    assert code == 0, errors[-3000:]
    return out, said


def test_the_demo_ends_with_table_figure_and_summary(demo):
    out, said = demo
    assert (out / "tables" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    summary = read_json(out / "summary.json")
    assert {"n_test", "seed", "voting", "guided", "random_subset", "paired"} <= set(summary)
    assert set(summary["seconds"]) == {"rft", "rl", "meta_rm", "sample", "eval"}
    for stage in ("base", "rft", "grm"):
        low, high = summary[stage]["greedy_ci"]
        assert 0 <= low <= summary[stage]["greedy"] <= high <= 1
    assert {"rft-base", "grm-rft"} <= set(summary["paired"])
    for line in ("accelerate launch spct_rft.py", "Voting@8", "guided by meta RM",
                 "paired differences"):
        assert line in said


def test_every_model_of_the_demo_loads_in_plain_transformers(demo):
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    out, _ = demo
    for stage in ("rft", "rl"):
        AutoModelForCausalLM.from_pretrained(out / stage / "model")
        assert AutoTokenizer.from_pretrained(out / stage / "model").chat_template
    meta_rm = AutoModelForSequenceClassification.from_pretrained(out / "meta_rm" / "model")
    assert meta_rm.config.num_labels == 1


def test_samples_hold_what_every_later_number_needs(demo):
    rows = read_rows(demo[0] / "voting" / "samples.jsonl")
    assert len(rows) == len({r["id"] for r in rows}) == 12
    for row in rows:
        assert len(row["samples"]) == len(row["meta_logits"]) == 8
        for sample, logit in zip(row["samples"], row["meta_logits"]):
            assert {"permutation", "scores", "reason", "text", "tokens"} <= set(sample)
            assert (logit is None) == (sample["scores"] is None)


def test_samples_show_the_prompt_as_it_was_sent(demo, toy_tokenizer):
    """Decoded ids are no layout: the toy's tokenizer loses line breaks."""
    examples = {e.id: e for e in load_examples("toy", "test", 12)}
    for stage in ("voting", "grm", "rl"):
        rows = read_rows(demo[0] / stage / "samples.jsonl")
        shown = [(row["prompt"], row.get("samples", [row])[0]["permutation"]) for row in rows]
        for row, (prompt, order) in zip(rows, shown, strict=True):
            start, end = prompt.split("#### Responses to be Scored ####\n")
            assert start.startswith("<|user|>Score ") and "\n####" in start
            assert end.endswith("<|assistant|>")
            if stage != "rl":
                chat = build_prompt(examples[row["id"]].permuted(order), "compact")
                assert prompt == toy_tokenizer.apply_chat_template(chat, tokenize=False,
                                                                   add_generation_prompt=True)


def test_a_finished_demo_runs_nothing_again(demo):
    out, _ = demo
    weights = out / "rl" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    with stages_in_this_process():
        code, said, _ = run_program("results.demo", "--output", out, *SMALL)
    assert code == 0 and "rl: done before" in said and weights.stat().st_mtime_ns == before


def cells_below(page, head):
    """The rows of the table whose line of heads begins so."""
    lines = page.partition(f"\n| {head} ")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_an_ablation_is_trained_and_compared_with_the_demo(demo, tmp_path, cli):
    words = ["no-hinted", "--demo", demo[0], "--output", tmp_path, *SMALL]
    with stages_in_this_process():
        code, said, errors = cli("results.ablate", *words)
    assert code == 0, errors[-3000:]
    assert re.search(r"here   [\d.]+ -> [\d.]+, difference .*\n.*\n  paper  68.8 -> 68.0", said)
    config = read_json(tmp_path / "no-hinted" / "rft" / "config.json")
    control = read_json(demo[0] / "rft" / "config.json")
    assert {k for k, v in config["args"].items() if v != control["args"][k]} == {"no_hinted"}
    assert config["made_from"] == control["made_from"]


def test_the_walkthrough_shows_what_the_functions_give(demo, tmp_path, cli):
    files = []
    for _ in range(2):
        code, _, err = cli("results.walkthrough", "--run", demo[0], "--output", tmp_path / "docs")
        assert code == 0, err
        files.append({path.name: path.read_bytes() for path in (tmp_path / "docs").iterdir()})
    page = files[0]["walkthrough.md"].decode()
    figures = set(re.findall(r"\]\((walkthrough_\w+\.png)\)", page))
    assert files[0] == files[1] and set(files[0]) == {"walkthrough.md", *figures}
    assert len(figures) == 2 and all(files[0][name][:4] == b"\x89PNG" for name in figures)

    rows = {r["id"]: r for r in read_rows(demo[0] / "voting" / "samples.jsonl")}
    row = rows[re.search(r"This is item ([\w-]+),", page)[1]]
    rewards, scores = row["rewards"], [s["scores"] for s in row["samples"]]
    [example] = [e for e in load_examples("toy", "test", 12) if e.id == row["id"]]
    [turn] = build_prompt(example.permuted(row["samples"][0]["permutation"]), "compact")
    assert f"```text\n{turn['content'].strip()}\n```" in page

    def given(cell):  # "y1 5, y2 8"
        return None if cell == "none" else [int(y.split()[1]) for y in cell.split(", ")]
    assert [given(cells[4]) for cells in cells_below(page, "judgment | order")] == scores[:5]
    ends = cells_below(page, "end")
    assert [cells[2] for cells in ends] == [row["samples"][0]["reason"], "wrong_count", "no_box",
                                            "not_a_number", "out_of_range", "ok"]
    assert given(ends[0][3]) == scores[0] and all(
        float(cells[5]) == rule_reward(given(cells[3]), rewards) for cells in ends)

    fates = cells_below(page, "prompt | principles")
    assert [cells[0] for cells in fates] == ["plain"] * 3 + ["hinted"]
    assert all(cells[5] == "incorrect" for cells in fates if cells[4] == "not correct")
    counts = read_json(demo[0] / "rft" / "selection.json")
    assert f"kept {counts['kept']:,} judgments" in page

    group = cells_below(page, "judgment | principles")
    earned = [rule_reward(given(cells[2]), rewards) for cells in group]
    assert [float(cells[3]) for cells in group] == earned and len(group) == 4
    advantages = group_advantages(torch.tensor([earned]))[0].tolist()
    assert [float(cells[4]) for cells in group] == pytest.approx(advantages, abs=6e-4)
    assert [float(cells[5]) for cells in group] == pytest.approx([-a for a in advantages], abs=2e-3)
    assert len(set(earned)) == 2 and float(re.search(r"now (-?[\d.]+) and the KL", page)[1]) < 0
    for *_, before, after, moved in cells_below(page, "token"):
        assert float(after) - float(before) == pytest.approx(float(moved), abs=2e-3)

    votes = cells_below(page, "k")
    assert [int(cells[0]) for cells in votes] == [1, 2, 4, 8]
    for k, voted, _, k_meta, guided, _ in votes:
        assert given(voted) == vote(scores[:int(k)])
        assert given(guided) == meta_vote(scores[:int(k)], row["meta_logits"], int(k_meta))
    error = error_of(cli("results.walkthrough", "--run", tmp_path, "--output", tmp_path))
    assert "no rft/model in it; python -m results.demo" in error


# ----- judging -----

def test_the_same_seed_gives_the_same_bytes_and_the_printed_command_grades_them(tmp_path, cli):
    said = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        code, said[name], err = cli("infer_scale", *MEDIUM, "--limit", 6, "--k", 4, "--seed", seed,
                                    "--output", tmp_path / name)
        assert code == 0, err
    a, b, c = ((tmp_path / name / "samples.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    command = re.search(r"python eval\.py (--runs .*)", said["a"])[1]
    code, table, err = cli("eval", *shlex.split(command), "--output", tmp_path / "table")
    assert code == 0 and "accuracy" in table, err
    assert {row.split(",")[2] for row in (tmp_path / "table" / "curve.csv").read_text(
        ).splitlines()[1:]} >= {"1", "2", "4"}


@pytest.mark.parametrize("responses", [1, 2, 5])
def test_grm_prints_a_readable_judgment_and_score_sums_it(responses, cli):
    from grm import score
    from plumbing import generation
    words = ["precise , thorough and focused", "rude and vague", "guessed and cold",
             "warm and rambling", "safe and terse"][:responses]
    texts = [f"This reply on chess is {w} ." for w in words]
    code, said, err = cli("grm", *MEDIUM, "--prompt", "Tell me something nice about chess .",
                          *[word for text in texts for word in ("--response", text)])
    assert code == 0, err
    for line in ("Specific Criteria:", "Analysis:", "\\boxed{", "1 of 1 judgments valid", *texts):
        assert line in said
    model, tokenizer = generation.load_model(MEDIUM[1])
    for k in (1, 4):
        scores = score(model, tokenizer, "How many steps does chess take ?", texts, k=k,
                       template="compact")
        assert len(scores) == responses and all(k <= s <= 10 * k for s in scores)


@pytest.mark.parametrize("program", ["eval", "infer_scale", "spct_rft", "meta_rm"])
def test_a_judge_of_which_nothing_parses_is_shown_not_only_counted(program, tiny, cli, tmp_path):
    words = {"eval": [], "infer_scale": ["--k", 2], "spct_rft": ["--general_fraction", 0],
             "meta_rm": ["--rft_judgments", "", "--grm", tiny]}[program]
    code, said, err = cli(program, "--model", tiny, *words, "--limit", 4, "--max_new_tokens", 9,
                          "--output", tmp_path / "out")
    assert code == (0 if program in ("eval", "infer_scale") else 2), err
    count = {"eval": 8, "infer_scale": 8, "spct_rft": 16, "meta_rm": 12}[program]
    loud = said[said.index("WARNING"):].splitlines()
    assert f"{count} of {count} judgments" in loud[0]  # one or two may end by themselves
    assert int(re.search(r"truncated (\d+)", loud[0])[1]) >= count - 2
    assert all(re.match(r"  (truncated|no_box): ", line) for line in loud[1:4]), loud[:5]
    assert "--max_new_tokens" in loud[4] and "--format_only" in loud[4]


# ----- what users do wrong -----

@pytest.mark.parametrize("words, named", [
    ("eval --data no/such.jsonl", "no/such.jsonl"),
    ("eval --runs a=no/such", "no/such"),
    ("eval --limit 0", "--limit"),
    ("eval --temperature nan", "--temperature must be finite"),
    ("eval --seed 99999999999", "--seed must be below"),
    ("eval --nonsense 1", "--nonsense"),
    ("grm --data toy --prompt x", "not both"),
    ("infer_scale --k 0", "--k must be at least 1"),
    ("infer_scale --k many", "--k"),
    ("infer_scale --model ./no_model", "no_model"),
    ("infer_scale --split holdout --model toy_world/medium", "holdout"),
    ("meta_rm --rft_judgments no/such.jsonl", "no/such.jsonl"),
    ("meta_rm --rft_judgments= --grm=", "--rft_judgments"),
    ("spct_rl --temperature 0", "--temperature"),
    ("spct_rl --micro_batch_size 6", "--micro_batch_size"),
    ("spct_rft --no_hinted --no_non_hinted", "--general_only"),
    ("spct_rft --general_fraction 1.5", "--general_fraction")])
def test_a_users_mistake_is_one_line_and_exit_code_2(words, named, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *flags = words.split()
    said = error_of(cli(program, *flags, "--output", tmp_path / "out"))
    assert named in said
    assert not (tmp_path / "out" / "model").exists()


def test_grm_is_one_process(cli, tmp_path):
    said = error_of(cli("grm", *MEDIUM, "--output", tmp_path / "run", WORLD_SIZE=2))
    assert "infer_scale.py" in said


def test_meta_rm_names_what_is_missing_and_reports_all_held_out_judgments(tiny, cli, tmp_path):
    items = [{"id": f"i{i}", "prompt": "Which ?", "responses": ["good", "bad"], "rewards": [1, 0],
              "domain": ["all", "chat"][i % 2]} for i in range(24)]
    judgments = [{"permutation": [0, 1], "text": f"Scores : {a} {b}", "scores": [a, b]}
                 for a, b in ((9, 2), (2, 9))]
    write_rows(tmp_path / "items.jsonl", items)
    write_rows(tmp_path / "blind.jsonl", [{**items[0], "rewards": None}])
    write_rows(tmp_path / "rft.jsonl", [{"id": i["id"], "non_hinted": judgments} for i in items])
    words = ["meta_rm", "--model", tiny, "--grm", "", "--batch_size", 4, "--epochs", 0.2,
             "--rft_judgments", tmp_path / "rft.jsonl", "--output", tmp_path / "run", "--data"]
    assert "item i0 has no 'rewards'" in error_of(cli(*words, tmp_path / "blind.jsonl",
                                                     "--output", tmp_path / "blind"))
    words.append(tmp_path / "items.jsonl")
    said = error_of(cli(*words, "--held_out", 1, "--output", tmp_path / "none"))
    assert "--held_out 1.0 leaves no judgment" in said
    assert cli(*words, "--held_out", 0.5)[0] == 0
    report = read_json(tmp_path / "run" / "report.json")
    parts = {name: part["count"] for name, part in report["held_out"].items()}
    assert set(parts) == {"all", "chat", "rft"}
    assert parts["all"] == parts["rft"] == 48 - report["train"] > parts["chat"] > 0
