"""spct_rl.py: Eqs. 11 and 15 by hand, and what public trainers got wrong about them. Tiny random models, CPU, fp32.

`python tests/test_rl.py --flags` is spct_rl.py with a played judge (`play`): what the tests start as processes of their own.
"""
import json
import math
import os
import random
import signal
import socket
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import ddp_at_the_end, finished, make_tiny_model, started

import spct_rl
from grm import PreferenceExample, rule_reward, sample_judgments
from plumbing import generation
from plumbing.generation import TokenLogp
from plumbing.runs import batch_indices, read_rows
from spct_rl import group_advantages, grpo_loss, too_easy

NORMS = ["sequence", "token", "constant"]
P, REF = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.4, 0.35, 0.25]).double()  # policy and reference


def loss_of(logp, old, ref, A, mask=None, beta=0.0, eps=0.2, **options):
    """grpo_loss of (B, T) lists or tensors, every token counted unless a mask is given."""
    logp, old, ref, A = (torch.as_tensor(x) for x in (logp, old, ref, A))
    mask = torch.ones(logp.shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    return grpo_loss(logp, old, ref, A, mask, beta, eps, **options)


def mask_of(lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]                 # (B, T)


# ----- advantages -----

@pytest.mark.parametrize("rewards, ddof, expected", [
    ([1, -1, -1, -1], 0, [3**0.5] + [-1 / 3**0.5] * 3),   # 1.732, -0.577
    ([1, -1, -1, -1], 1, [1.5, -0.5, -0.5, -0.5]),
    ([1, 1, -1, -1], 0, [1, 1, -1, -1]),
    ([1, 1, 1, -1], 0, [1 / 3**0.5] * 3 + [-3**0.5]),
])
def test_c09_golden_advantages(rewards, ddof, expected):  # TRL #3991: the wrong std; torch and numpy differ in ddof
    advantages = group_advantages(torch.tensor(rewards).float(), 4, ddof=ddof)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_c09_population_std_is_the_default():
    assert group_advantages(torch.tensor([1.0, -1, -1, -1]), 4)[0].item() == pytest.approx(1.7320508, abs=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, 1 / 3])
def test_c09_equal_rewards_and_groups_of_one_give_exactly_zero(value, std, ddof):  # mlx-lm-lora #50: G = 2 explodes
    for G in (1, 2, 3, 4, 7):
        assert group_advantages(torch.full((2 * G,), value), G, std, ddof).tolist() == [0.0] * (2 * G)


def test_c09_without_std_advantages_are_only_centred():
    assert group_advantages(torch.tensor([1.0, -1, -1, -1]), 4, std=False).tolist() == [1.5, -0.5, -0.5, -0.5]


def test_c11_groups_are_rows_and_never_mixed():  # Search-R1 #88
    rewards = torch.tensor([1.0, -1, 1, 1, -1, -1, -1, 1, -1])
    expected = [a for i in (0, 3, 6) for a in group_advantages(rewards[i:i + 3], 3).tolist()]
    assert group_advantages(rewards, 3).tolist() == expected
    assert expected[0] > 0 > expected[1] and expected[3] > 0 > expected[4] and expected[7] > 0 > expected[6]


def test_c11_partial_group_is_an_error():
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(torch.ones(6), 4)


# ----- the loss of Eq. 15 -----

@pytest.mark.parametrize("ratio, A, objective", [(0.5, 1, 0.5), (0.5, -1, -0.8), (1.5, 1, 1.2), (1.5, -1, -1.5), (1.1, 1, 1.1)])
def test_golden_clip(ratio, A, objective):
    loss, stats = loss_of([[math.log(ratio)]], [[0.0]], [[0.0]], [float(A)])
    assert -loss.item() == pytest.approx(objective, abs=1e-6)
    assert stats["clipped"].item() == (objective != pytest.approx(ratio * A))


def expected_penalty(p, ref, kl):
    """E_{x ~ p} of the penalty, exactly: every outcome, weighted with its probability as sampling would (no gradient)."""
    logp = p.log()
    terms = [loss_of(logp[None, None, x], logp.detach()[None, None, x], ref.log()[None, None, x], [0.0], beta=1.0, kl=kl)[0]
             for x in range(len(p))]
    return (torch.stack(terms) * p.detach()).sum()


def kl_divergence(p, q):
    return (p * (p.log() - q.log())).sum()


def test_c06_golden_k3():
    assert expected_penalty(P, REF, "k3").item() == pytest.approx(0.188179, abs=1e-6)
    assert kl_divergence(P, REF).item() == pytest.approx(0.188179, abs=1e-6)
    d = P.log() - REF.log()  # the swapped sign, which must not come out
    assert (P * (d.exp() - d - 1)).sum().item() == pytest.approx(0.191107, abs=1e-6)


def six_categories(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_c06_c29_value_is_kl_of_policy_and_reference(kl):  # TRL #2854, verl #2953, OpenRLHF #1101
    for seed in range(5):
        p, ref = six_categories(seed).softmax(-1)
        assert expected_penalty(p, ref, kl).item() == pytest.approx(kl_divergence(p, ref).item(), abs=1e-12)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_c06_c29_gradient_under_sampling(kl):  # open-instruct #534: right value, another divergence's gradient
    for seed in range(5):
        logits, reference = six_categories(seed)
        logits.requires_grad_()
        p, ref = logits.softmax(-1), reference.softmax(-1)
        gradient, = torch.autograd.grad(expected_penalty(p, ref, kl), logits, retain_graph=True)
        exact = {"k1": 0 * logits.sum(), "k2": kl_divergence(p, ref), "k3": kl_divergence(ref, p)}[kl]
        expected, = torch.autograd.grad(exact, logits)
        assert torch.allclose(gradient, expected, atol=1e-12)
        assert kl == "k1" or expected.abs().max() > 0.05


def test_default_penalty_is_k3():
    logp, ref = [[-1.0, -0.3]], [[-0.5, -2.0]]
    assert torch.equal(loss_of(logp, logp, ref, [0.0], beta=0.5)[0], loss_of(logp, logp, ref, [0.0], beta=0.5, kl="k3")[0])
    assert loss_of(logp, logp, ref, [0.0], beta=0.5)[0] > 0  # a penalty, not a bonus for drifting


def two_tokens(dtype=torch.float64, seed=0, B=6, T=5):
    """Logits of a 2-token vocabulary at each position, sampled ids, and the log-probs of the sampling and reference policy."""
    generator = torch.Generator().manual_seed(seed)
    logits, old, ref = torch.randn(3, B, T, 2, generator=generator, dtype=dtype)
    ids = torch.randint(2, (B, T), generator=generator)
    old = logits + 0.3 * old

    def logp(x):
        return x.log_softmax(-1).gather(2, ids[..., None])[..., 0]                           # (B, T)
    A = torch.tensor([1.7, -0.6, 0.0, 1.0, -1.0, 0.4], dtype=dtype)
    return logits, logp, logp(old), logp(ref), A, mask_of([5, 1, 3, 4, 2, 5])


@pytest.mark.parametrize("length_norm", NORMS)
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_gradient_against_finite_differences(kl, length_norm):
    logits, logp, old, ref, A, mask = two_tokens()

    def loss(x):
        return grpo_loss(logp(x), old, ref, A, mask, 0.3, 0.2, kl, length_norm, constant=7)[0]
    x = logits.clone().requires_grad_()
    loss(x).backward()
    for place in range(logits.numel()):
        step = torch.zeros_like(logits).flatten()
        step[place] = 1e-6
        step = step.view_as(logits)
        slope = (loss(logits + step) - loss(logits - step)).item() / 2e-6
        assert x.grad.flatten()[place].item() == pytest.approx(slope, abs=1e-8)


def test_first_update_is_plain_reinforce():
    logits, logp, _, ref, A, mask = two_tokens()
    x = logits.clone().requires_grad_()
    grpo_loss(logp(x), logp(x).detach(), ref, A, mask, 0.0, 0.2)[0].backward()
    y = logits.clone().requires_grad_()
    (-(logp(y) * A[:, None] * mask).sum(1) / mask.sum(1)).mean().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-12) and x.grad.abs().max() > 0.01


@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_c07_overflow_is_bounded_and_counted(kl, log_ratio):  # verl and OpenRLHF clamp, TRL does not
    for old, ref in ((log_ratio, 0.0), (0.0, log_ratio), (-log_ratio, log_ratio)):
        for A in (1.0, -1.0):
            logp = torch.tensor([[0.0, -0.5, -0.7]], requires_grad=True)
            loss, stats = loss_of(logp, [[old, -0.5, -0.7]], [[ref, -0.5, -0.7]], [A], beta=0.1, kl=kl)
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(logp.grad).all() and logp.grad[0, 1] != 0
            assert stats["bounded"].item() == 1 and torch.isfinite(stats["kl"])


@pytest.mark.parametrize("length_norm, expected", [
    ("sequence", -(1 / 1 - 2 * 3 / 3) / 2),  # mean of each sequence, then over the rows
    ("token", -(1 - 2 * 3) / 4),
    ("constant", -(1 - 2 * 3) / (2 * 10)),
])
def test_c08_length_norms_by_hand(length_norm, expected):  # TRL #3187, open-instruct #1137
    zero, mask = torch.zeros(2, 3), mask_of([1, 3])
    loss, stats = grpo_loss(zero, zero, zero, torch.tensor([1.0, -2.0]), mask, 0.0, 0.2, length_norm=length_norm, constant=10)
    assert loss.item() == pytest.approx(expected, abs=1e-7)
    assert stats["tokens"].item() == 4


def test_length_norm_by_another_name_is_an_error():
    with pytest.raises(ValueError, match="length_norm"):
        loss_of([[0.0]], [[0.0]], [[0.0]], [1.0], length_norm="mean")


@pytest.mark.parametrize("length_norm", NORMS)
@pytest.mark.parametrize("parts", [[8], [2, 2, 2, 2], [3, 5], [1, 7]])
def test_c08_parts_add_up_to_the_whole_update(parts, length_norm):  # TRL #3021, ms-swift #10117
    generator = torch.Generator().manual_seed(1)
    lengths = [6, 1, 3, 2, 6, 5, 1, 4]
    logits, old, ref = torch.randn(3, 8, 6, 5, generator=generator)
    ids, A = torch.randint(5, (8, 6, 1), generator=generator), torch.randn(8, generator=generator)
    old, ref = ((logits + 0.3 * x).log_softmax(-1).gather(2, ids)[..., 0] for x in (old, ref))

    def gradient(parts, **whole):
        x, first, total = logits.clone().requires_grad_(), 0, 0.0
        for size in parts:
            rows = slice(first, first + size)
            T = max(lengths[rows])  # every part is padded to its own width
            logp = x[rows, :T].log_softmax(-1).gather(2, ids[rows, :T])[..., 0]
            loss, _ = grpo_loss(logp, old[rows, :T], ref[rows, :T], A[rows], mask_of(lengths[rows]), 0.1, 0.2,
                                length_norm=length_norm, constant=9, **whole)
            loss.backward()
            total, first = total + loss.item(), first + size
        return total, x.grad
    loss, expected = gradient([8])
    total, added = gradient(parts, rows=8, tokens=sum(lengths))
    assert total == pytest.approx(loss, abs=1e-6) and torch.allclose(added, expected, atol=1e-6)


def test_c10_zero_std_group_has_no_policy_gradient_but_kl_pulls():  # TRL #7068
    logits, logp, old, ref, _, mask = two_tokens()
    A = group_advantages(-torch.ones(6).double(), 3)

    def gradient(beta):
        x = logits.clone().requires_grad_()
        grpo_loss(logp(x), old, ref, A, mask, beta, 0.2)[0].backward()
        return x.grad
    assert not gradient(0.0).any()
    assert gradient(0.1).abs().max() > 1e-3
    assert torch.allclose(gradient(0.2), 2 * gradient(0.1), atol=1e-12)


@pytest.mark.parametrize("length_norm", NORMS)
def test_rows_without_a_token_cost_nothing(length_norm):  # all of an update's judgments truncated, with --mask_truncated
    logp = torch.randn(2, 3, requires_grad=True)
    loss, _ = grpo_loss(logp, logp.detach(), logp.detach() - 1, torch.tensor([1.0, -1.0]), torch.zeros(2, 3, dtype=torch.bool),
                        0.1, 0.2, length_norm=length_norm, rows=2, tokens=0.0, constant=3)
    loss.backward()
    assert loss.item() == 0 and not logp.grad.any()


@pytest.mark.parametrize("length_norm", NORMS)
def test_equals_the_loss_of_trl_on_the_same_tensors(length_norm):
    trl = pytest.importorskip("trl", reason="optional peer: pip install trl")
    from trl import GRPOTrainer
    assert trl
    logits, logp, old, ref, A, mask = two_tokens(torch.float32)

    def same(x):
        return x
    this = SimpleNamespace(
        loss_type={"sequence": "grpo", "token": "dapo", "constant": "dr_grpo"}[length_norm], epsilon_low=0.2, epsilon_high=0.2,
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token",
        beta=0.3, use_vllm=False, model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=7,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1), _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, gather=same, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda model, *args, **options: (logp(model), torch.zeros(mask.shape), None))
    ids = torch.zeros(mask.shape, dtype=torch.long)
    x = logits.clone().requires_grad_()
    theirs = GRPOTrainer._compute_loss(this, x, {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids, "completion_mask": mask.int(),
        "advantages": A, "old_per_token_logps": old, "ref_per_token_logps": ref, "num_items_in_batch": mask.sum()})
    theirs.backward()
    y = logits.clone().requires_grad_()
    ours, stats = grpo_loss(logp(y), old, ref, A, mask, 0.3, 0.2, length_norm=length_norm, constant=7)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6) and torch.allclose(x.grad, y.grad, atol=1e-7)
    [kl], [clipped] = this._metrics["train"]["kl"], this._metrics["train"]["clip_ratio/region_mean"]
    assert stats["kl"].item() / stats["tokens"].item() == pytest.approx(kl, abs=1e-6)
    assert stats["clipped"].item() / stats["tokens"].item() == pytest.approx(clipped, abs=1e-6) and clipped > 0


# ----- Eq. 11: what earns -1 -----

def test_c21_c24_unparsed_and_truncated_judgments_earn_minus_one(toy_tokenizer, monkeypatch):
    perfect = toy_tokenizer("Scores: \\boxed{9, 2}", add_special_tokens=False)["input_ids"]
    written = {"0/x/0": (perfect, True), "0/x/1": (perfect, False), "0/x/2": (perfect[:-1], True), "0/x/3": (perfect[1:-4], True)}

    def generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, **options):
        return [generation.Row(written[s][0] + [toy_tokenizer.eos_token_id] * written[s][1], [], written[s][1]) for s in seeds]
    monkeypatch.setattr(generation, "generate", generate)
    item = PreferenceExample("x", [{"role": "user", "content": "Hi"}], ["a", "b"], [1, 0])
    [group] = sample_judgments(None, toy_tokenizer, [item], 4, seed=0, template="compact", orders="original")
    assert [j.scores for j in group] == [[9, 2], None, None, None]
    assert group[1].reason == "truncated" and "boxed" in group[1].text
    assert [rule_reward(j.scores, item.rewards) for j in group] == [1.0, -1.0, -1.0, -1.0]
    assert too_easy(group[:1], item) and not too_easy(group, item)


# ----- the order of the data -----

@pytest.mark.parametrize("count, batch_size", [(12, 4), (10, 4), (3, 8), (7, 7), (1, 2)])
def test_batches_are_epochs_laid_end_to_end(count, batch_size):
    batches = [batch_indices(step, batch_size, count, seed=3) for step in range(3 * count)]
    flat = sum(batches, [])
    epochs = [flat[i:i + count] for i in range(0, len(flat), count)]
    assert all(len(b) == batch_size for b in batches) and all(sorted(e) == list(range(count)) for e in epochs[:3 * batch_size])
    assert count < 4 or len({tuple(e) for e in epochs}) > 1  # another order in every epoch
    assert batches == [batch_indices(step, batch_size, count, seed=3) for step in range(3 * count)]
    assert count < 4 or batches != [batch_indices(step, batch_size, count, seed=4) for step in range(3 * count)]


# ----- TokenLogp: log pi(o_t | q, o_<t) -----

def prompts_and_completions(seed=0, prompts=(4, 23), completions=(5, 1, 7, 2, 6, 4)):
    rng = random.Random(seed)
    return ([[rng.randrange(65, 297) for _ in range(n)] for n in prompts],
            [[rng.randrange(65, 297) for _ in range(n)] for n in completions])


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_gradients(a, b, atol=1e-5):
    assert a.keys() == b.keys() and any(g.abs().max() > 1e-3 for g in a.values())
    for name in a:
        assert torch.allclose(a[name], b[name], atol=atol), name


def update(model, forward, prompts, completions):
    """Loss and gradients of one GRPO part through a TokenLogp."""
    logp, _, mask = forward(prompts, completions, 0.7)
    old = logp.detach() + 0.1 * mask
    loss, _ = grpo_loss(logp, old, old - 0.2, torch.tensor([1.0, -0.5, 0.3, -1.2, 0.8, 0.1]), mask, 0.1, 0.2)
    loss.backward()
    return logp.detach(), loss.item(), gradients(model)


FOUR = pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2"])


@FOUR
def test_c03_shared_prompt_equals_whole_rows_one_by_one(architecture, tiny_model):  # TRL #2708 (no mask), #6800 (positions)
    model = tiny_model(architecture, initializer_range=0.15)
    prompts, completions = prompts_and_completions()
    logp, entropy, mask = TokenLogp(model, 0)(prompts, completions, 0.7)
    weights = torch.randn(logp.shape, generator=torch.Generator().manual_seed(0)) / mask.sum()
    (logp * weights).sum().backward()
    shared = gradients(model)
    for r, completion in enumerate(completions):
        prompt = prompts[r // 3]
        logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1:-1]
        whole = (logits / 0.7).log_softmax(-1)                                               # (T, V)
        token_logp = whole.gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert torch.allclose(logp[r, :len(completion)], token_logp, atol=1e-5)
        assert torch.allclose(entropy[r, :len(completion)], -(whole.exp() * whole).sum(-1), atol=1e-4)
        (token_logp * weights[r, :len(completion)]).sum().backward()
    same_gradients(shared, gradients(model))


@FOUR
def test_c20_chunks_of_the_vocabulary_projection_change_nothing(architecture, tiny_model, monkeypatch):  # TRL #2683, slime #1951
    model = tiny_model(architecture, initializer_range=0.15)
    prompts, completions = prompts_and_completions()
    whole = update(model, TokenLogp(model, 0), prompts, completions)
    sizes, project = [], TokenLogp.project

    def measured(self, hidden, *rest):
        sizes.append(len(hidden))
        return project(self, hidden, *rest)
    monkeypatch.setattr(TokenLogp, "project", measured)
    chunked = update(model, TokenLogp(model, 0, chunk=4), prompts, completions)
    assert sum(sizes) == 2 * sum(map(len, completions)) and max(sizes) == 4  # recomputed in the backward pass, never kept
    assert torch.allclose(whole[0], chunked[0], atol=1e-6) and whole[1] == pytest.approx(chunked[1], abs=1e-6)
    same_gradients(whole[2], chunked[2], 1e-6)


@FOUR
def test_c26_gradient_checkpointing_takes_whole_rows(architecture, tiny_model, monkeypatch):
    # In train mode checkpointing drops the cache with a warning only, and completions would lose their prompt.
    model = tiny_model(architecture, initializer_range=0.15).train()
    prompts, completions = prompts_and_completions()
    shared = update(model, TokenLogp(model, 0), prompts, completions)
    model.activation_checkpointing_enable()
    monkeypatch.setattr(generation, "completion_states", None)
    whole = update(model, TokenLogp(model, 0), prompts, completions)
    assert torch.allclose(shared[0], whole[0], atol=1e-5) and shared[1] == pytest.approx(whole[1], abs=1e-6)
    same_gradients(shared[2], whole[2])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_c01_the_end_token_stays_in_the_loss_when_it_also_pads(checkpointing, tiny_model):  # TRL #4970: masks from token values
    model, eos = tiny_model("llama", initializer_range=0.15), 4
    if checkpointing:
        model.train().activation_checkpointing_enable()
    completions = [[70, 80, eos], [90, 91, 92, 93, eos]]
    logp, _, mask = TokenLogp(model, pad_id=eos)([[66, 67, eos, 68]], completions, 1.0)
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    logp.retain_grad()
    grpo_loss(logp, logp.detach(), logp.detach(), torch.tensor([1.0, -1.0]), mask, 0.1, 0.2)[0].backward()
    assert logp.grad[0, 2] != 0 and logp.grad[1, 4] != 0 and not logp.grad[0, 3:].any()
    with torch.no_grad():
        row = model(torch.tensor([[66, 67, eos, 68, 70, 80]])).logits[0, -1].log_softmax(-1)
    assert logp[0, 2].item() == pytest.approx(row[eos].item(), abs=1e-5)


@FOUR
def test_c05_c28_recomputed_logp_is_what_the_sampler_drew_from(architecture, tiny_model, toy_tokenizer):  # TRL #3029, #4159
    model = tiny_model(architecture, initializer_range=0.2)
    model.generation_config.eos_token_id = [4, *range(5, 65)]
    prompts, _ = prompts_and_completions(prompts=(3, 25, 11))
    for temperature in (0.7, 1.0, 1.4):
        each, seeds = [p for p in prompts for _ in range(4)], [f"0/x/{i}" for i in range(12)]
        rows = generation.generate(model, toy_tokenizer, each, temperature, 9, seeds)
        logp, _, mask = TokenLogp(model.train(), 0)(prompts, [r.ids for r in rows], temperature)
        recorded = torch.zeros(mask.shape)
        for r, row in enumerate(rows):
            recorded[r, :len(row.logp)] = torch.tensor(row.logp)
        assert len({len(r.ids) for r in rows}) > 1 and mask.sum(1).tolist() == [len(r.ids) for r in rows]
        assert torch.allclose(logp, recorded, atol=1e-5)
        if temperature != 1:  # the test can fail: log-probs without the temperature are others
            untempered = TokenLogp(model, 0)(prompts, [r.ids for r in rows], 1.0)[0]
            assert (untempered - recorded).abs().max() > 0.1


def test_c14_sampling_is_without_dropout(tiny_model, toy_tokenizer):
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    prompts, _ = prompts_and_completions()
    calm = generation.generate(model, toy_tokenizer, prompts, 1.0, 8, ["0/a/0", "0/b/0"])
    assert generation.generate(model.train(), toy_tokenizer, prompts, 1.0, 8, ["0/a/0", "0/b/0"]) == calm and model.training


# ----- the whole script -----

def save_tiny(folder, tokenizer, architecture="llama", ends=range(5, 65), **options):
    """A random model that ends its judgments at various lengths, by one of several end tokens."""
    model = make_tiny_model(architecture, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id,
                            **{"initializer_range": 0.2, **options})
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy_tokenizer):
    return save_tiny(tmp_path_factory.mktemp("base"), toy_tokenizer)


def play(monkeypatch, wanted=lambda ids: sum(ids) % 2 == 0, sgd=False):
    """A random model never writes scores, so its judge is played: ids that are `wanted` stand for the right scores.

    Returns what happened: "rollouts" (per step the (example, group) pairs), "loss" (arguments of each grpo_loss), "parts"
    (prompts and completions of each forward pass of policy and reference), "models" (policy, reference).
    sgd: plain gradient steps instead of AdamW, which blows up rounding differences of tiny gradients.
    """
    seen, load, forward = defaultdict(list), generation.load_model, TokenLogp.forward

    def judged(model, tokenizer, examples, *args, **options):
        groups = sample_judgments(model, tokenizer, examples, *args, **options)
        for example, group in zip(examples, groups, strict=True):
            for j in group:
                j.scores = list(example.rewards) if wanted(j.completion_ids) else None
        seen["rollouts"].append(list(zip(examples, groups, strict=True)))
        return groups

    def loss(*args, **options):
        seen["loss"].append(args)
        return grpo_loss(*args, **options)

    def remembered(*args, **options):
        model, tokenizer = load(*args, **options)
        seen["models"].append(model)
        return model, tokenizer

    def spied(self, prompts, completions, temperature=1.0):
        seen["parts"].append((prompts, completions))
        return forward(self, prompts, completions, temperature)
    monkeypatch.setattr(spct_rl, "sample_judgments", judged)
    monkeypatch.setattr(spct_rl, "grpo_loss", loss)
    monkeypatch.setattr(generation, "load_model", remembered)
    monkeypatch.setattr(TokenLogp, "forward", spied)
    if sgd:
        monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr))
    return seen


def command(model, output, *flags):
    return [str(word) for word in (
        "spct_rl.py", "--model", model, "--output", output, "--data", "toy", "--limit", 20, "--prompts_per_step", 4,
        "--micro_batch_size", 8, "--max_new_tokens", 10, "--lr", 0.02, "--steps", 2, *flags)]


def train(monkeypatch, model, output, *flags):
    """spct_rl.py in this process; its metrics."""
    monkeypatch.setattr(sys, "argv", command(model, output, *flags))
    spct_rl.main()
    return read_rows(Path(output) / "metrics.jsonl")


def refused(monkeypatch, capsys, model, output, *flags):
    """The one line that spct_rl.py ends with at a user's mistake (exit code 2)."""
    monkeypatch.setattr(sys, "argv", command(model, output, *flags))
    with pytest.raises(SystemExit) as stop:
        spct_rl.main()
    err = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line and line.strip()]
    assert stop.value.code == 2 and len(err) == 1 and err[0].startswith("error: "), err
    return err[0]


def weights(folder):
    return generation.load_model(str(folder))[0].state_dict()


def untimed(rows):
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows]


def test_items_that_do_not_fit_stop_the_run_or_are_dropped(base, tmp_path, monkeypatch, capsys):
    items = [{"id": f"i{i}", "prompt": "Which ?", "responses": ["good", "bad " * (600 if i == 2 else 2)], "rewards": [1, 0]} for i in range(5)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    flags = ("--data", tmp_path / "items.jsonl")
    line = refused(monkeypatch, capsys, base, tmp_path / "out", *flags)
    assert "1 of 5 items (first: i2)" in line and not (tmp_path / "out" / "metrics.jsonl").exists() and "512" in line and "--skip_bad" in line
    seen = play(monkeypatch)
    metrics = train(monkeypatch, base, tmp_path / "out", *flags, "--skip_bad")  # the same folder: the flag may be added
    assert len(metrics) == 2 and "1 of 5 items dropped" in capsys.readouterr().out
    assert {example.id for step in seen["rollouts"] for example, _ in step} == {"i0", "i1", "i3", "i4"}


def test_c12_c13_c28_one_step_trains_and_starts_at_the_reference(base, tmp_path, monkeypatch):  # TRL #6700, #3194
    seen = play(monkeypatch)
    first, second = train(monkeypatch, base, tmp_path / "out", "--temperature", 0.7)
    assert first["policy/kl"] == pytest.approx(0, abs=1e-7) and first["policy/ratio_error"] < 1e-5
    assert first["policy/clip_frac"] == first["policy/bounded_frac"] == 0
    assert second["policy/kl"] > 1e-5 and second["policy/ratio_error"] < 1e-5 and first["opt/grad_norm"] > 0
    policy, reference = seen["models"]
    before, after = weights(base), weights(tmp_path / "out" / "model")
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items())
    assert all(not torch.equal(before[k], v) for k, v in after.items()) and before.keys() == after.keys()
    assert all(torch.equal(after[k], v) for k, v in policy.state_dict().items())
    assert not any(p.requires_grad for p in reference.parameters())


def test_c11_c17_the_sampled_ids_are_trained_on_with_their_own_advantage(base, tmp_path, monkeypatch, toy_tokenizer):  # TRL #5224
    seen = play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--steps", 1, "--prompts_per_step", 12)
    [rollout] = seen["rollouts"]
    expected, again = Counter(), 0
    for example, group in rollout:
        assert len(group) == 4 and len({tuple(j.prompt_ids) for j in group}) == 1
        advantages = group_advantages(torch.tensor([rule_reward(j.scores, example.rewards) for j in group]), 4).tolist()
        for j, A in zip(group, advantages, strict=True):
            expected[tuple(j.prompt_ids), tuple(j.completion_ids), tuple(j.logp), A] += 1
            text = toy_tokenizer.decode(j.completion_ids)
            again += toy_tokenizer(text, add_special_tokens=False)["input_ids"] != j.completion_ids
    assert again >= 4  # some ids do not survive decoding and encoding
    trained = Counter()
    for (_, old, _, A, mask, *_), (prompts, completions) in zip(seen["loss"], seen["parts"][1::2], strict=True):
        for r, completion in enumerate(completions):
            assert mask[r].sum() == len(completion)
            trained[tuple(prompts[r // 4]), tuple(completion), tuple(old[r, :len(completion)].tolist()), A[r].item()] += 1
    assert seen["parts"][::2] == seen["parts"][1::2]  # reference and policy see the same
    assert len(trained) == len(expected) and {k[:2] for k in trained} == {k[:2] for k in expected}
    for ids in {k[:2] for k in expected}:
        [(*_, old, A)], [(*_, logp, B)] = [k for k in trained if k[:2] == ids], [k for k in expected if k[:2] == ids]
        assert old == pytest.approx(logp, abs=1e-6) and A == pytest.approx(B, abs=1e-6)


def test_c10_c22_metrics_equal_a_count_by_hand(base, tmp_path, monkeypatch):
    seen, dead = play(monkeypatch), Counter()
    rows = train(monkeypatch, base, tmp_path / "out", "--steps", 3, "--G", 2, "--prompts_per_step", 8)
    for metrics, rollout in zip(rows, seen["rollouts"], strict=True):
        judgments = [j for _, group in rollout for j in group]
        groups = [[j.scores is not None for j in group] for _, group in rollout]
        right = sum(map(sum, groups))
        assert metrics["reward/mean"] == pytest.approx((right - (16 - right)) / 16) and metrics["reward/parse_rate"] == right / 16
        assert metrics["reward/frac_zero_std"] == (groups.count([True, True]) + groups.count([False, False])) / 8
        assert metrics["len/mean"] == sum(len(j.completion_ids) for j in judgments) / 16
        assert metrics["len/truncated_frac"] == sum(j.reason == "truncated" for j in judgments) / 16
        dead.update(map(tuple, groups))
    assert dead[True, True] and dead[False, False]
    samples = read_rows(tmp_path / "out" / "samples.jsonl")
    assert [r["step"] for r in samples] == [1, 1, 2, 2, 3, 3] and {r["rule_reward"] for r in samples} <= {1.0, -1.0}


@pytest.mark.parametrize("masked", [False, True])
def test_c21_truncated_judgments_stay_in_the_loss_unless_masked(masked, base, tmp_path, monkeypatch):
    seen = play(monkeypatch)
    flags = ["--mask_truncated"] if masked else []
    [metrics] = train(monkeypatch, base, tmp_path / "out", "--steps", 1, "--max_new_tokens", 4, "--length_norm", "token", *flags)
    assert 0 < metrics["len/truncated_frac"] < 1
    reasons = {tuple(j.completion_ids): j.reason for _, group in seen["rollouts"][0] for j in group}
    counted = 0
    for (_, _, _, _, mask, *_), (_, completions) in zip(seen["loss"], seen["parts"][1::2], strict=True):
        for r, completion in enumerate(completions):
            out = masked and reasons[tuple(completion)] == "truncated"
            assert mask[r].sum() == (0 if out else len(completion))
            counted += mask[r].sum().item()
    assert {args[-3:] for args in seen["loss"]} == {(16, counted, 4)}  # rows, tokens, constant of the whole update


def test_c21_only_truncated_judgments_and_all_of_them_masked(tmp_path, toy_tokenizer, monkeypatch):
    endless = save_tiny(tmp_path / "endless", toy_tokenizer, ends=())
    play(monkeypatch)
    for length_norm in NORMS:
        [metrics] = train(monkeypatch, endless, tmp_path / length_norm, "--steps", 1, "--max_new_tokens", 1, "--mask_truncated",
                          "--length_norm", length_norm)
        assert metrics["len/truncated_frac"] == 1 and metrics["opt/grad_norm"] == 0 and metrics["policy/loss"] == 0


def test_flags_reach_the_loss(base, tmp_path, monkeypatch):
    seen = play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--steps", 1, "--beta", 0.5, "--clip_eps", 0.1, "--kl", "k2", "--ddof", 1,
          "--length_norm", "constant", "--format_reward", 0.5, "--updates_per_rollout", 2)
    assert len(seen["loss"]) == 4 and {args[5:9] for args in seen["loss"]} == {(0.5, 0.1, "k2", "constant")}
    assert len(seen["parts"]) == 6  # 2 parts: the reference once, the policy in both updates
    first, second = [args[0] - args[1] for args in seen["loss"][::2]]
    assert first.abs().max() < 1e-5 < second.abs().max()  # the second update is off the policy that sampled
    advantages = sorted(round(a, 4) for args in seen["loss"][:2] for a in args[3].tolist())
    rewards = torch.tensor([1.5 if j.scores else -1.0 for _, group in seen["rollouts"][0] for j in group])
    assert advantages == pytest.approx(sorted(group_advantages(rewards, 4, ddof=1).tolist()), abs=1e-4)


def test_c13_ten_steps_raise_the_rewarded_behaviour(base, tmp_path, monkeypatch):
    play(monkeypatch, lambda ids: ids[0] % 4 == 0)
    rows = train(monkeypatch, base, tmp_path / "out", "--steps", 10, "--prompts_per_step", 16, "--micro_batch_size", 64,
                 "--lr", 0.05, "--beta", 0.0, "--max_new_tokens", 4)
    right = [(row["reward/mean"] + 1) / 2 for row in rows]
    assert right[0] < 0.4 and sum(right[-2:]) / 2 > 0.8, right


def test_c26_gradient_checkpointing_trains_the_same(base, tmp_path, monkeypatch):
    play(monkeypatch, sgd=True)
    [plain] = train(monkeypatch, base, tmp_path / "plain", "--steps", 1)
    [checkpointed] = train(monkeypatch, base, tmp_path / "checkpointed", "--steps", 1, "--gradient_checkpointing")
    assert {k: v for k, v in untimed([plain])[0].items()} == pytest.approx(untimed([checkpointed])[0], abs=1e-5)
    a, b = weights(tmp_path / "plain" / "model"), weights(tmp_path / "checkpointed" / "model")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


@pytest.mark.parametrize("flags", [[], ["--gradient_checkpointing"]])
def test_c14_dropout_does_not_move_the_ratio(flags, tmp_path, toy_tokenizer, monkeypatch):  # TRL's `disable_dropout`
    model = save_tiny(tmp_path / "gpt2", toy_tokenizer, "gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    play(monkeypatch)
    [metrics] = train(monkeypatch, model, tmp_path / "out", "--steps", 1, *flags)
    assert metrics["policy/ratio_error"] < 1e-4 and metrics["policy/kl"] == pytest.approx(0, abs=1e-6)


def test_easy_filter_drops_what_the_judge_gets_right_three_times(base, tmp_path, monkeypatch, capsys):
    seen = play(monkeypatch, lambda ids: ids[0] % 3 != 0)
    train(monkeypatch, base, tmp_path / "out", "--easy_filter", base, "--limit", 10)
    tried, *steps = seen["rollouts"]
    easy = {e.id for e, group in tried if all(j.scores for j in group)}
    assert 0 < len(easy) < 10 and all(len(group) == 3 for _, group in tried)
    assert {e.id for step in steps for e, _ in step} == {e.id for e, _ in tried} - easy
    assert f"{len(easy)} of 10 items dropped" in capsys.readouterr().out


def test_finished_run_stays_as_it_is(base, tmp_path, monkeypatch):
    play(monkeypatch)
    rows = train(monkeypatch, base, tmp_path / "out", "--steps", 1)
    before = weights(tmp_path / "out" / "model")
    assert train(monkeypatch, base, tmp_path / "out", "--steps", 1) == rows
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "out" / "model").items())


# ----- mistakes -----

ITEM = {"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [1, 0]}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("flags, word", [
    (["--temperature", 0], "--temperature"), (["--micro_batch_size", 6], "--micro_batch_size"), (["--G", 0], "--G"),
    (["--prompts_per_step", 0], "--prompts_per_step"), (["--data", "none.jsonl"], "none.jsonl"),
    (["--model", "no/such/model"], "no/such/model"),
])
def test_wrong_flags(flags, word, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert word in refused(monkeypatch, capsys, base, tmp_path / "out", *flags)


def test_wrong_data(base, tmp_path, monkeypatch, capsys):
    unlabelled = jsonl(tmp_path / "unlabelled.jsonl", ITEM, {**ITEM, "id": "b", "rewards": None})
    assert "item b has no 'rewards'" in refused(monkeypatch, capsys, base, tmp_path / "1", "--data", unlabelled)
    single = jsonl(tmp_path / "single.jsonl", {**ITEM, "responses": ["x"], "rewards": [1]})
    assert "best" in refused(monkeypatch, capsys, base, tmp_path / "2", "--data", single, "--rating", "best")
    play(monkeypatch, lambda ids: True)
    assert "too easy" in refused(monkeypatch, capsys, base, tmp_path / "3", "--easy_filter", base, "--limit", 3)


def test_other_folders_are_left_alone(base, tmp_path, monkeypatch, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine", encoding="utf-8")
    assert "not a run folder" in refused(monkeypatch, capsys, base, foreign)
    assert "not a run folder" in refused(monkeypatch, capsys, base, foreign, "--overwrite")
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    play(monkeypatch)
    train(monkeypatch, base, tmp_path / "run", "--steps", 1)
    before = weights(tmp_path / "run" / "model")
    line = refused(monkeypatch, capsys, base, tmp_path / "run", "--steps", 1, "--beta", 0.3)
    assert "--beta 0.02 there, 0.3 here" in line and "--overwrite" in line and "--lr" not in line
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "run" / "model").items())
    assert train(monkeypatch, base, tmp_path / "run", "--steps", 1, "--beta", 0.3, "--overwrite", "--save_every", 5)


def test_a_tracker_that_writes_files_gets_each_update_and_is_closed(base, tmp_path, monkeypatch, capsys):
    # files in the new run folder, as tensorboard's, once made the run refuse its own folder
    from accelerate import accelerator, tracking
    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name, logging_dir):
            self.file = Path(logging_dir) / run_name / "events"

        def start(self):
            self.file.parent.mkdir(parents=True, exist_ok=True)

        def log(self, values, step=None):
            with open(self.file, "a") as file:
                file.write(f"{step} {values['reward/mean']:.4f}\n")

        def finish(self):
            with open(self.file, "a") as file:
                file.write("closed")
    play(monkeypatch)
    monkeypatch.setattr(tracking, "_available_trackers", [])
    assert "not installed" in refused(monkeypatch, capsys, base, tmp_path / "run", "--log_with", "tensorboard")
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    monkeypatch.setitem(accelerator.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    rows = train(monkeypatch, base, tmp_path / "run", "--log_with", "tensorboard")
    assert (tmp_path / "run" / "spct" / "events").read_text().split("\n") == [
        *[f"{row['step']} {row['reward/mean']:.4f}" for row in rows], "closed"] and len(rows) == 2


# ----- processes of their own: killed and continued, and two at a time -----

def test_a_rank_that_hangs_fails_its_test_and_does_not_outlive_it(tmp_path):
    (tmp_path / "hangs.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(300)\n")
    with pytest.raises(pytest.fail.Exception, match="no end after 12 s"):
        finished(started(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "hangs.py")]), timeout=12)
    assert not [p for p in psutil.process_iter(['cmdline']) if str(tmp_path) in ' '.join(p.info['cmdline'] or []) and p.status() != 'zombie']


def test_c23_killed_and_continued_equals_uninterrupted_bitwise(base, tmp_path, monkeypatch):
    flags = ["--steps", 6, "--save_every", 3, "--temperature", 0.7]
    killed = started([__file__], *command(base, tmp_path / "killed", *flags)[1:], DIE_AT="4")
    play(monkeypatch)
    whole = train(monkeypatch, base, tmp_path / "whole", *flags)
    code, out = finished(killed)
    assert code == -signal.SIGKILL, out
    assert [r["step"] for r in read_rows(tmp_path / "killed" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (tmp_path / "killed" / "model").exists()
    for name in ("metrics.jsonl", "samples.jsonl"):  # a kill can tear the last line
        with open(tmp_path / "killed" / name, "a", encoding="utf-8") as file:
            file.write('{"step": 5, "rew')
    rows = train(monkeypatch, base, tmp_path / "killed", *flags)
    assert untimed(rows) == untimed(whole) and [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    a, b = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], v) for k, v in weights(base).items())
    assert read_rows(tmp_path / "killed" / "samples.jsonl") == read_rows(tmp_path / "whole" / "samples.jsonl")


THREE_UPDATES = ["--steps", 3, "--micro_batch_size", 4, "--lr", 0.5, "--temperature", 0.8]


@pytest.fixture(scope="module")
def two_and_one(base, tmp_path_factory):
    """The same three updates by two processes and by one: folder with two/, one/, and what each process saw."""
    folder = tmp_path_factory.mktemp("processes")
    flags = THREE_UPDATES
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = started(torchrun, __file__, *command(base, folder / "two", *flags)[1:], DUMP=str(folder))
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = play(monkeypatch, sgd=True)
        train(monkeypatch, base, folder / "one", *flags)
    code, out = finished(two)
    assert code == 0, out
    ranks = [json.loads((folder / f"{r}.json").read_text()) for r in (0, 1)]
    return SimpleNamespace(folder=folder, one=told(seen), ranks=ranks)


def told(seen):
    """Per step: item id -> the ids of its judgments."""
    return [{example.id: [j.completion_ids for j in group] for example, group in step} for step in seen["rollouts"]]


def test_c16_two_processes_finish_as_two(two_and_one):  # DeepSpeed #5539: they stop at different lengths
    assert json.loads((two_and_one.folder / "two" / "config.json").read_text())["processes"] == 2


def test_no_ddp_model_outlives_the_group_of_processes(two_and_one):  # pytorch #56297: a deadlock at exit
    assert [(two_and_one.folder / f"{r}.left").read_text() for r in (0, 1)] == ["[0]", "[0]"]


def test_c11_each_group_is_whole_and_on_one_process(two_and_one):  # verifiers #135, TRL #2803
    for one, first, second in zip(two_and_one.one, *two_and_one.ranks, strict=True):
        assert len(first) == len(second) == 2 and not first.keys() & second.keys()
        assert {**first, **second} == one and all(len(group) == 4 for group in one.values())
        assert first != second


def test_c27_processes_hold_equal_weights_after_training_on_different_data(two_and_one):
    first, second = (torch.load(two_and_one.folder / f"{r}.pt") for r in (0, 1))
    saved = weights(two_and_one.folder / "two" / "model")
    assert all(torch.equal(first[k], second[k]) and torch.equal(first[k], saved[k]) for k in first)


def test_c08_two_processes_train_to_the_weights_of_one(two_and_one, base):
    one, two = (weights(two_and_one.folder / name / "model") for name in ("one", "two"))
    moved = max((one[k] - v).abs().max().item() for k, v in weights(base).items())
    assert moved > 0.01 and all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


def test_c08_two_machines_train_to_the_weights_of_one(two_and_one, base, tmp_path):
    # two launchers on loopback, one process each, with one folder that both see: the lines that the README gives for two machines
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = [started(["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1",
                         "--master_addr", "127.0.0.1", "--master_port", port],
                        __file__, *command(base, tmp_path / "run", *THREE_UPDATES)[1:], DUMP=str(tmp_path)) for rank in (0, 1)]
    for machine in machines:
        code, out = finished(machine)
        assert code == 0, out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["processes"] == 2
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first != second and [{**a, **b} for a, b in zip(first, second, strict=True)] == two_and_one.one
    one, two = weights(two_and_one.folder / "one" / "model"), weights(tmp_path / "run" / "model")
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


def test_c22_two_processes_report_the_metrics_of_one(two_and_one):
    one, two = (untimed(read_rows(two_and_one.folder / name / "metrics.jsonl")) for name in ("one", "two"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    one, two = (read_rows(two_and_one.folder / name / "samples.jsonl") for name in ("one", "two"))
    assert [(row["step"], row["id"], row["text"], row["advantage"]) for row in one] == \
        [(row["step"], row["id"], row["text"], row["advantage"]) for row in two] and len(one) == 12


def main():
    """spct_rl.py with the played judge. DIE_AT: kill -9 at this step.  DUMP: where each process writes what it saw."""
    die_at, dump = int(os.environ.get("DIE_AT", 0)), os.environ.get("DUMP")
    log_metrics = spct_rl.log_metrics

    def logged(output, accelerator=None, **metrics):
        log_metrics(output, accelerator, **metrics)
        if metrics["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(spct_rl, "log_metrics", logged)
    seen, left = play(monkeypatch, sgd=bool(dump)), ddp_at_the_end(monkeypatch)
    spct_rl.main()
    if dump:
        rank = os.environ["RANK"]
        (Path(dump) / f"{rank}.left").write_text(str(left), encoding="utf-8")
        torch.save(seen["models"][0].state_dict(), Path(dump) / f"{rank}.pt")
        (Path(dump) / f"{rank}.json").write_text(json.dumps(told(seen)), encoding="utf-8")


if __name__ == "__main__":
    main()
