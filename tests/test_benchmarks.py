"""The benchmarks run on a tiny random model and end with the JSON line that other programs read. Speeds are not tested."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT

RUNS = {
    "sampling": ["--k", "2", "--prompts", "2", "--prompt_tokens", "140", "--shared_tokens", "20", "--new_tokens", "3",
                 "--peer_rows", "2", "--peers", "generate", "--bf16"],
    "growth": ["--k", "1", "--lengths", "8", "16", "--length", "12", "--new_tokens", "3"],
    "limits": ["--k", "1", "--prompts", "2", "--prompt_tokens", "20", "--new_tokens", "60", "--copy_mb", "1"],
    "rl_step": ["--prompts", "1", "--G", "2", "--prompt_tokens", "60", "--new_tokens", "3", "--steps", "2"],
}
RATIOS = {"sampling": {"generate/ours k=2"}, "rl_step": {"seconds TRL/ours", "peak memory ours/TRL"},
          "growth": {"time length=16/8", "peak length=16/8"},
          "limits": {"prefill share k=1", "decode share k=1"}}


def bench(name, *flags):
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / f"bench_{name}.py"), *flags], capture_output=True, text=True)


@pytest.mark.parametrize("name", RUNS)
def test_benchmark_ends_with_its_json_line(name, tmp_path, tiny_model, toy_tokenizer):
    if name == "rl_step":
        pytest.importorskip("trl", reason="optional peer: pip install trl")
    tiny_model().save_pretrained(tmp_path / "model")
    toy_tokenizer.save_pretrained(tmp_path / "model")
    done = bench(name, "--model", str(tmp_path / "model"), "--repeats", "1", "--threads", "1", "--output",
                 str(tmp_path / "out.json"), *RUNS[name])
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(line) == {"name", "ratios", "targets", "environment"} and line["name"] == name and line["targets"]
    # no figure of time is asserted; a tiny model's share of the machine's limit may round to 0
    assert set(line["ratios"]) == RATIOS[name] and all(v >= 0 for v in line["ratios"].values())
    assert line["environment"]["threads"] == 1 and line["environment"]["clock"] == "wall"
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ratios"] == line["ratios"] and written["command"].startswith(f"python -m results.bench_{name}.py --model model")
    assert all(row["peak_gb"] > 0.05 for row in written["rows"].values())
