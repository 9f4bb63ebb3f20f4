"""The whole line at its smallest: `make demo`'s program, the same bytes twice, resuming, the command lines' errors."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, finished, started


def run(*words, cwd=ROOT, check=True):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=900)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


SMALL = ["--limit", 24, "--k", 8, "--rft", "--limit 40 --epochs 0.3", "--rl", "--steps 2 --prompts_per_step 8",
         "--meta", "--limit 40"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "toy"
    done = run("results/demo.py", "--output", out, *SMALL)
    return out, done


def test_demo_ends_with_table_figure_and_summary(demo):
    out, done = demo
    assert (out / "tables" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((out / "summary.json").read_text())
    assert {"n_test", "seed", "seconds", "base", "rft", "grm", "voting", "guided", "random_subset", "paired"} <= set(summary)
    assert set(summary["seconds"]) == {"rft", "rl", "meta_rm", "sample", "eval"}
    for stage in ("base", "rft", "grm"):
        assert 0 <= summary[stage]["greedy_ci"][0] <= summary[stage]["greedy"] <= summary[stage]["greedy_ci"][1] <= 1
    assert {"rft-base", "grm-rft"} <= set(summary["paired"])
    for line in ("accelerate launch spct_rft.py", "Voting@8", "guided by meta RM", "paired differences"):
        assert line in done.stdout


def test_every_model_of_the_demo_loads_in_plain_transformers(demo):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    out, _ = demo
    for stage in ("rft", "rl"):
        AutoModelForCausalLM.from_pretrained(out / stage / "model")
        assert AutoTokenizer.from_pretrained(out / stage / "model").chat_template
    assert AutoModelForSequenceClassification.from_pretrained(out / "meta_rm" / "model").config.num_labels == 1


def test_samples_hold_what_every_later_number_needs(demo):
    out, _ = demo
    rows = [json.loads(line) for line in (out / "voting" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and len({r["id"] for r in rows}) == 24
    for row in rows:
        assert len(row["samples"]) == len(row["meta_logits"]) == 8
        for sample, logit in zip(row["samples"], row["meta_logits"]):
            assert {"permutation", "scores", "reason", "text", "tokens"} <= set(sample)
            assert (logit is None) == (sample["scores"] is None)


def test_a_finished_demo_runs_nothing_again(demo):
    out, _ = demo
    before = (out / "rl" / "model" / "model.safetensors").stat().st_mtime_ns
    done = run("results/demo.py", "--output", out, *SMALL)
    assert "rl: done before" in done.stdout
    assert (out / "rl" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_same_seed_twice_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("infer_scale.py", "--model", "toy_world/medium", "--output", tmp_path / name, "--limit", 6, "--k", 4, "--seed", seed)
    a, b, c = ((tmp_path / n / "samples.jsonl").read_bytes() for n in "abc")
    assert a == b and a != c


def test_sampling_continues_after_a_kill_with_the_same_bytes(tmp_path):
    words = ["infer_scale.py", "--model", "toy_world/medium", "--limit", 12, "--k", 2, "--chunk_size", 2, "--output"]
    run(*words, tmp_path / "whole")
    process = subprocess.Popen([sys.executable, *map(str, words), str(tmp_path / "killed")], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed" / ".samples.parts"
    deadline = time.time() + 120
    while time.time() < deadline and not (parts.exists() and len(list(parts.glob("*.jsonl"))) >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(*words, tmp_path / "killed")
    assert (tmp_path / "killed" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_two_processes_give_the_same_samples(tmp_path):
    words = ["infer_scale.py", "--model", "toy_world/medium", "--limit", "7", "--k", "2", "--chunk_size", "2", "--output"]
    run(*words, tmp_path / "one")
    code, out = finished(started(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], *words, tmp_path / "two"))
    assert code == 0, out[-2000:]
    assert (tmp_path / "two" / "samples.jsonl").read_bytes() == (tmp_path / "one" / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("responses", [1, 2, 5])
def test_grm_prints_a_readable_judgment(responses):
    words = ["precise , thorough and focused", "rude and vague", "guessed and cold", "warm and rambling", "safe and terse"]
    texts = [f"This reply on chess is {w} ." for w in words]
    words = [w for t in texts[:responses] for w in ("--response", t)]
    done = run("grm.py", "--prompt", "Tell me something nice about chess .", *words)
    assert "Specific Criteria:" in done.stdout and "Analysis:" in done.stdout and "\\boxed{" in done.stdout
    assert "parse: ok" in done.stdout and "1 of 1 judgments valid" in done.stdout


def test_score_is_one_call_for_one_two_and_many_responses():
    from grm import TOY_BASE, score
    from plumbing import generation
    model, tokenizer = generation.load_model(TOY_BASE)
    for n in (1, 2, 5):
        one = score(model, tokenizer, "How many steps does chess take ?", ["A correct reply ."] * n, template="compact")
        many = score(model, tokenizer, "How many steps does chess take ?", ["A correct reply ."] * n, k=4, template="compact")
        assert len(one) == n and all(1 <= s <= 10 for s in one) and len(many) == n and all(4 <= s <= 40 for s in many)


@pytest.mark.parametrize("words, named", [
    (["eval.py", "--data", "no/such.jsonl"], "no/such.jsonl"),
    (["eval.py", "--runs", "a=no/such"], "no/such"),
    (["eval.py", "--limit", "0"], "--limit"),
    (["infer_scale.py", "--k", "0"], "--k"),
    (["infer_scale.py", "--model", "./no_model"], "no_model"),
    (["infer_scale.py", "--split", "holdout", "--model", "toy_world/medium"], "holdout"),
    (["meta_rm.py", "--trajectories", "no/such.jsonl"], "no/such.jsonl"),
    (["meta_rm.py", "--trajectories", "", "--grm", ""], "--trajectories"),
    (["spct_rl.py", "--temperature", "0"], "--temperature"),
    (["spct_rl.py", "--micro_batch_size", "6"], "--micro_batch_size"),
    (["spct_rft.py", "--no_hinted", "--no_non_hinted"], "--general_only"),
    (["spct_rft.py", "--general_fraction", "1.5"], "--general_fraction")])
def test_a_users_mistake_is_one_line_and_exit_code_2(words, named, tmp_path):
    done = run(*words, "--output", tmp_path / "out", check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert named in line


def test_another_runs_folder_is_refused_and_named(tmp_path):
    words = ["infer_scale.py", "--model", "toy_world/medium", "--limit", "2", "--k", "2", "--output", tmp_path / "out"]
    run(*words)
    done = run(*words, "--seed", "1", check=False)
    assert done.returncode == 2 and "--seed 0 there, 1 here" in done.stderr
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    done = run(*words[:-1], foreign, check=False)
    assert done.returncode == 2 and "not a run folder" in done.stderr
    assert run(*words[:-1], foreign, "--overwrite", check=False).returncode == 2 and (foreign / "thesis.txt").exists()


def test_a_full_disk_keeps_what_is_there(tmp_path):
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs to mount a tiny file system")
    script = (f"mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec {sys.executable} infer_scale.py --model toy_world/medium "
              f"--limit 40 --k 8 --chunk_size 20 --output {tmp_path}/out")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine does not let tests mount a file system")
    assert done.returncode == 2 and "free space" in done.stderr and "Traceback" not in done.stderr
