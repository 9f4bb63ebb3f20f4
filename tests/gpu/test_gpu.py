"""What needs a GPU (CUDA): `make test-gpu`, a process of its own. Elsewhere it is skipped.

The other tests run on the CPU, also where there is a GPU.
"""
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from grm import build_prompt, encode_chat, score
from plumbing import decoding, generation
from plumbing.data import load_examples
from plumbing.generation import CompletionLogits, generate, load_model
from plumbing.runs import default_device, read_rows
from spct_rl import grpo_loss, token_logp

pytestmark = pytest.mark.skipif(default_device() != "cuda", reason="needs a GPU: make test-gpu")
BASE = ROOT / "toy_world" / "medium"


def smollm2(dtype):
    """Random weights in the shape of SmolLM2-135M, and prompts of unequal length that share 490
    tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
        max_position_embeddings=8192, eos_token_id=None))
    rng = random.Random(0)
    preamble = [rng.randrange(5, 49152) for _ in range(490)]
    prompts = [preamble + [rng.randrange(5, 49152) for _ in range(n)] for n in (130, 90, 171, 50)]
    return model.to(default_device(), dtype).eval(), prompts


def toy(dtype):
    model, tokenizer = load_model(BASE, dtype=dtype)
    items = load_examples("toy", "validation", 8)
    return model, tokenizer, [encode_chat(tokenizer, build_prompt(e, "compact")) for e in items]


class NoEnd:
    eos_token_id, pad_token_id = None, 0


def drawn(model, tokenizer, prompts, temperature, tokens=48, k=4, **options):
    seeds = [f"0/{i}/{j}" for i in range(len(prompts)) for j in range(k)]
    return generate(model, tokenizer, [p for p in prompts for _ in range(k)], temperature, tokens,
                    seeds, **options)


# ----- sampling -----

def test_greedy_text_is_that_of_the_librarys_generate_in_fp32():
    model, tokenizer, prompts = toy(torch.float32)
    assert decoding.kind_of_rows(model) == "static"
    for row, prompt in zip(drawn(model, tokenizer, prompts, 0, 160, k=1), prompts, strict=True):
        ids = torch.tensor([prompt], device="cuda")
        ends = generation.end_token_ids(model, tokenizer)
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                max_new_tokens=160, eos_token_id=ends, pad_token_id=0)
        assert row.ids == theirs[0, len(prompt):].tolist()


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("leave", [False, True])
def test_a_graph_draws_the_tokens_that_no_graph_draws(temperature, leave, monkeypatch):
    """Also where rows leave and the graph is recorded again."""
    model, tokenizer, prompts = toy(torch.float32)
    monkeypatch.setattr(decoding.StaticRows, "worth_leaving", lambda self, *_: leave)
    recorded, record, init = [], decoding.StaticRows.record, decoding.StaticRows.__init__
    monkeypatch.setattr(decoding.StaticRows, "record",
                        lambda self: recorded.append(len(self.ids)) or record(self))
    graph = drawn(model, tokenizer, prompts, temperature, 160)
    assert len(recorded) > 1 if leave else len(recorded) == 1

    def without_graph(self, *args):
        init(self, *args)
        self.capture = False
    monkeypatch.setattr(decoding.StaticRows, "__init__", without_graph)
    recorded.clear()
    plain = drawn(model, tokenizer, prompts, temperature, 160)
    assert [(r.ids, r.finished) for r in graph] == [(r.ids, r.finished) for r in plain]
    assert not recorded


def test_a_batch_that_does_not_fit_is_halved():
    model, prompts = smollm2(torch.bfloat16)
    rows = drawn(model, NoEnd, prompts, 1.0, 16, k=64)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    used = total - free
    try:  # 256 rows of some 660 tokens are 4 GB
        torch.cuda.set_per_process_memory_fraction((used + 3 * 2**30) / total)
        few = drawn(model, NoEnd, prompts, 1.0, 16, k=64, token_budget=10**9)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(few) == len(rows) and all(len(r.ids) == 16 for r in few)


# ----- the update -----

@pytest.mark.parametrize("make", ["toy", "smollm2"])
@pytest.mark.parametrize("precision, error", [("fp32", 1e-3), ("bf16", 0.005)])
def test_the_update_sees_the_probabilities_that_were_drawn_from(make, precision, error):
    """The policy is held in fp32; with bf16, sampler and update run under autocast, as in RL."""
    model, *tokenizer, prompts = {"toy": toy, "smollm2": smollm2}[make](torch.float32)
    tokenizer = tokenizer[0] if tokenizer else NoEnd
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        rows = drawn(model, tokenizer, prompts, 1.0)
        logits = CompletionLogits(model, 0)
        with torch.no_grad():
            logp, mask = logits(logits.pack(prompts, [r.ids for r in rows]),
                                lambda z, ids: (token_logp(z, ids, 1.0),))
    old = torch.zeros(mask.shape)
    for r, row in enumerate(rows):
        old[r, :len(row.ids)] = torch.tensor(row.logp)
    difference = (logp.cpu() - old).abs()[mask.cpu()]
    assert (difference.max() if precision == "fp32" else difference.mean()) < error


def test_no_micro_batch_waits_for_the_gpu():
    model, prompts = smollm2(torch.float32)
    logits = CompletionLogits(model.train(), 0)
    completions = [[7, 8, 9, 10][:1 + r % 4] for r in range(16)]
    batch = logits.pack(prompts, completions)
    old, advantages = torch.zeros(16, 4, device="cuda"), torch.ones(16, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            logp, mask = logits(batch, lambda z, ids: (token_logp(z, ids, 1.0),))
        losses, _ = grpo_loss(logp, old, old, advantages, mask, 0.1, 0.2)
        losses.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_c30_cudnn_attention_gives_no_gradient_that_is_not_a_number():
    """C30: with it (pytorch #196678) this gradient is NaN, and RL died at step 14."""
    load_model(BASE)  # switches it off
    torch.manual_seed(0)
    q, k, v = (0.1 * torch.randn(1, 1, 704, 64, device="cuda") for _ in range(3))
    q[..., 0], k[..., 0] = 1, -120 * 64 ** 0.5
    q, k, v = (x.bfloat16().requires_grad_() for x in (q, k, v))
    mask = torch.ones(704, 704, device="cuda", dtype=torch.bool).tril()[None, None]
    torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    assert q.grad.isfinite().all()


# ----- programs, each a process of its own -----

def program(*words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_score_answers():
    model, tokenizer, _ = toy(None)
    found = score(model, tokenizer, "What is 2 + 2 ?", ["It is 4 .", "It is 5 ."], k=8)
    assert len(found) == 2 and all(math.isfinite(s) and 8 <= s <= 80 for s in found)


def test_rl_goes_on_where_it_was(tmp_path):
    words = ["spct_rl.py", "--model", BASE, "--output", tmp_path, "--save_every", 1,
             "--prompts_per_step", 8]
    program(*words, "--steps", 2)
    program(*words, "--steps", 4)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "reward/mean" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    assert max(row["policy/ratio_error"] for row in rows) < 0.005
    assert rows[0]["policy/kl"] == pytest.approx(0, abs=1e-4)


def test_the_toy_recipe_with_default_sizes(tmp_path):
    """Every stage in bf16. The CPU's figures are results/demo.json; a seed moves them by some four
    points (results/training.csv)."""
    program("-m", "results.demo", "--output", tmp_path)
    here, cpu = (json.loads(path.read_text()) for path in (
        tmp_path / "summary.json", ROOT / "results" / "demo.json"))
    for stage in ("rft", "rl", "meta_rm"):
        rows = read_rows(tmp_path / stage / "metrics.jsonl")
        assert all(math.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))
        config = json.loads((tmp_path / stage / "config.json").read_text())
        assert config["device"] != "cpu" and config["precision"] == "bf16"
    rewards = [row["reward/mean"] for row in read_rows(tmp_path / "rl" / "metrics.jsonl")
               if "reward/mean" in row]
    assert sum(rewards[-10:]) > sum(rewards[:10]) + 3
    for judge in ("base", "rft", "grm"):
        assert abs(here[judge]["greedy"] - cpu[judge]["greedy"]) < 0.06, judge
    for k in ("8", "32"):
        assert abs(here["voting"][k] - cpu["voting"][k]) < 0.05, k
        assert abs(here["guided"][k] - cpu["guided"][k]) < 0.05, k
