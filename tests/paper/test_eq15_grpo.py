"""Eq. 15: log pi(o_t), group advantages and the loss, each by hand and in closed form."""
import math
import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from plumbing.generation import CompletionLogits, generate
from spct_rl import group_advantages, grpo_loss, token_logp

NORMS = ["sequence", "token", "constant"]
KLS = ["k3", "corrected", "k2", "k1"]
# policy and reference of the golden numbers
P, REF = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], dtype=torch.float64)


def loss_of(logp, old, ref, A, mask=None, beta=0.0, eps=0.2, **options):
    """grpo_loss of (B, T) lists or tensors; every token counts unless a mask is given."""
    logp, old, ref, A = (torch.as_tensor(x) for x in (logp, old, ref, A))
    mask = torch.ones(logp.shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    return grpo_loss(logp, old, ref, A, mask, beta, eps, **options)


def mask_of(lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]       # (B, T)


def length_of(norm, lengths, constant=7):
    """What grpo_loss divides by: the mean length of the whole update, or a constant."""
    return {"sequence": None, "token": sum(lengths) / len(lengths), "constant": constant}[norm]


# ----- log pi(o_t) -----

@pytest.mark.parametrize("temperature, expected", [
    (1.0, [0.7, 0.2, 0.1]),
    (0.5, [0.49 / 0.54, 0.04 / 0.54, 0.01 / 0.54]),  # T = 1/2 squares the probabilities
])
def test_c05_token_logp_by_hand(temperature, expected):
    """C05: log-probs must be those of the tempered distribution that was sampled from."""
    logits = P.log().repeat(3, 1) + torch.tensor([[0.0], [5.0], [-3.0]])  # a shift changes nothing
    logp = token_logp(logits, torch.tensor([0, 1, 2]), temperature)
    assert logp.tolist() == pytest.approx([math.log(p) for p in expected], abs=1e-12)


def test_c05_token_logp_equals_log_softmax():
    """C05: also for large logits, whose exp would overflow, and with a gradient."""
    logits = 300 * torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    ids = torch.tensor([0, 10, 3, 3, 7])
    expected = (y / 0.7).log_softmax(-1)[torch.arange(5), ids]
    logp = token_logp(x, ids, 0.7)
    assert logp.shape == (5,) and torch.allclose(logp, expected) and torch.isfinite(logp).all()
    (logp.sum() + expected.sum()).backward()
    assert torch.allclose(x.grad, y.grad) and x.grad.abs().max() > 0.1


# ----- advantages -----

@pytest.mark.parametrize("rewards, ddof, expected", [
    ([1, -1, -1, -1], 0, [3**0.5] + [-1 / 3**0.5] * 3),   # 1.732, -0.577
    ([1, -1, -1, -1], 1, [1.5, -0.5, -0.5, -0.5]),
    ([1, 1, -1, -1], 0, [1, 1, -1, -1]),
    ([1, 1, 1, -1], 0, [1 / 3**0.5] * 3 + [-3**0.5]),
])
def test_c09_golden_advantages(rewards, ddof, expected):
    """C09: libraries differ in the std (n or n - 1), a step of 15 %; the default is n."""
    rewards = torch.tensor([rewards]).float()
    for found in [group_advantages(rewards, ddof=ddof)] + [group_advantages(rewards)] * (not ddof):
        assert found.shape == (1, 4)
        assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("std", [True, False])
def test_c09_equal_rewards_and_groups_of_one_give_exactly_zero(std, ddof):
    """C09: a group of two with a std near 0 once exploded; rounding must not make one."""
    for value in (1.0, -1.0, 0.1, 1 / 3):
        for G in (1, 2, 3, 4, 7):
            found = group_advantages(torch.full((2, G), value), std, ddof)
            assert found.tolist() == [[0.0] * G] * 2


def test_c09_without_std_advantages_are_only_centred():
    """C09: Dr. GRPO leaves the division out."""
    found = group_advantages(torch.tensor([[1.0, -1, -1, -1]]), std=False)
    assert found.tolist() == [[1.5, -0.5, -0.5, -0.5]]


def test_c11_groups_are_rows_and_never_mixed():
    """C11: a trainer that mixed groups up "worked"; every row is centred by itself."""
    rewards = torch.tensor([[1.0, -1, 1], [1, -1, -1], [-1, 1, -1]])
    found = group_advantages(rewards)
    assert found.tolist() == [group_advantages(row[None])[0].tolist() for row in rewards]
    assert torch.equal(found > 0, rewards > 0)
    assert found.sum(1).tolist() == pytest.approx([0] * 3, abs=1e-6)


# ----- the loss -----

@pytest.mark.parametrize("ratio, A, objective", [
    (0.5, 1, 0.5), (0.5, -1, -0.8), (1.5, 1, 1.2), (1.5, -1, -1.5), (1.1, 1, 1.1)])
def test_golden_clip(ratio, A, objective):
    losses, stats = loss_of([[math.log(ratio)]], [[0.0]], [[0.0]], [float(A)])
    assert losses.tolist() == pytest.approx([-objective], abs=1e-6)
    assert stats["clipped"].item() == (objective != pytest.approx(ratio * A))


def test_eq_15_by_hand():
    """Two completions of 1 and 2 tokens, beta 0.5, eps 0.2; the mean of the losses is -J.

    1: rho = 1.5, A = 1 -> 1.2; ref/pi = 1/2 -> k3 = 1/2 - ln(1/2) - 1 = 0.193147.
    2: A = -2: rho = 1 -> -2, ref/pi = 1 -> k3 = 0;  rho = 0.5 -> min(-1, -1.6) = -1.6,
       ref/pi = 2 -> k3 = 2 - ln 2 - 1 = 0.306853.
    """
    ln = math.log
    logp = [[ln(0.6), -1.0], [ln(0.3), ln(0.2)]]
    old = [[ln(0.4), -9.0], [ln(0.3), ln(0.4)]]
    ref = [[ln(0.3), -5.0], [ln(0.3), ln(0.4)]]
    losses, stats = loss_of(logp, old, ref, [1.0, -2.0], mask_of([1, 2]), 0.5)
    first, second = 1.2 - 0.5 * 0.193147, (-2 + (-1.6 - 0.5 * 0.306853)) / 2
    assert losses.shape == (2,) and losses.tolist() == pytest.approx([-first, -second], abs=1e-6)
    assert losses.mean().item() == pytest.approx(-(first + second) / 2, abs=1e-6)
    assert stats["tokens"].item() == 3 and stats["clipped"].item() == 2  # padding is not counted
    assert stats["kl"].item() == pytest.approx(0.193147 + 0.306853, abs=1e-5)
    assert stats["bounded"].item() == 0


# ----- the KL term: value and gradient, exactly, over every outcome -----

def penalty(p, ref, kl):
    """E of the KL term over tokens drawn from a fixed pi_old = p: every outcome, weighted."""
    logp, old = p.log()[:, None], p.detach().log()[:, None]                        # (V, 1)
    A = torch.zeros(len(p), dtype=p.dtype)
    losses, _ = loss_of(logp, old, ref.log()[:, None], A, beta=1.0, kl=kl)
    return (losses * p.detach()).sum()


def kl_divergence(p, q):
    return (p * (p.log() - q.log())).sum()


@pytest.mark.parametrize("kl, gradient", [
    ("k3", [0.300, -0.150, -0.150]),         # pi - ref: that of KL(ref || pi)
    ("corrected", [0.260, -0.150, -0.110]),  # pi (log pi/ref - KL): that of KL(pi || ref)
    ("k2", [0.260, -0.150, -0.110]),
    ("k1", [0.0, 0.0, 0.0]),                 # only noise
])
def test_c06_c31_golden_kl_estimators(kl, gradient):
    """C06, C31: an estimator may have the right value and the gradient of another divergence.

    DeepSeek-V3.2 corrects k3 by pi/pi_old, through which the gradient flows too.
    """
    z = P.log().clone().requires_grad_()
    value = penalty(z.softmax(-1), REF, kl)
    found, = torch.autograd.grad(value, z)
    assert found.tolist() == pytest.approx(gradient, abs=5e-4)
    if kl != "k2":
        assert value.item() == pytest.approx(0.188179, abs=1e-6)
        assert value.item() == pytest.approx(kl_divergence(P, REF).item(), abs=1e-12)


@pytest.mark.parametrize("kl", KLS)
def test_c06_c29_c31_values_and_gradients_against_the_exact_divergence(kl):
    """C29: value and gradient are each tested against the right divergence, on 6 categories."""
    for seed in range(5):
        z, reference = torch.randn(2, 6, dtype=torch.float64,
                                   generator=torch.Generator().manual_seed(seed))
        z.requires_grad_()
        p, ref = z.softmax(-1), reference.softmax(-1)
        value = penalty(p, ref, kl)
        if kl != "k2":
            assert value.item() == pytest.approx(kl_divergence(p, ref).item(), abs=1e-12)
        exact = {"k1": 0 * z.sum(), "k3": kl_divergence(ref, p)}.get(kl, kl_divergence(p, ref))
        found, = torch.autograd.grad(value, z, retain_graph=True)
        expected, = torch.autograd.grad(exact, z)
        assert torch.allclose(found, expected, atol=1e-12)
        assert kl == "k1" or expected.abs().max() > 0.05


def test_c06_default_penalty_is_k3_with_its_sign():
    """C06: with the swapped sign k3 has the value 0.191107, and k1 would reward drifting."""
    assert penalty(P, REF, "k3").item() != pytest.approx(0.191107, abs=1e-3)
    logp, ref = [[-1.0, -0.3]], [[-0.5, -2.0]]
    default, k3 = (loss_of(logp, logp, ref, [0.0], beta=0.5, **o)[0] for o in ({}, {"kl": "k3"}))
    assert torch.equal(default, k3) and default > 0
    with pytest.raises((ValueError, KeyError)):
        loss_of(logp, logp, ref, [0.0], beta=0.5, kl="k4")


@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
@pytest.mark.parametrize("kl", KLS)
def test_c07_overflow_is_bounded_and_counted(kl, log_ratio):
    """C07: one token that the policy finds impossible gives exp(large) in rho and in k3."""
    for old, ref in ((log_ratio, 0.0), (0.0, log_ratio), (-log_ratio, log_ratio)):
        for A in (1.0, -1.0):
            logp = torch.tensor([[0.0, -0.5, -0.7]], requires_grad=True)
            [loss], stats = loss_of(logp, [[old, -0.5, -0.7]], [[ref, -0.5, -0.7]], [A], beta=0.1,
                                    kl=kl)
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(logp.grad).all() and logp.grad[0, 1]
            assert stats["bounded"].item() == 1 and torch.isfinite(stats["kl"])


# ----- gradients, length norms and parts -----

LENGTHS = [5, 1, 3, 4, 2, 5]


def two_tokens(dtype=torch.float64):
    """Logits of a 2-token vocabulary, sampled ids, and log-probs of sampler and reference."""
    generator = torch.Generator().manual_seed(0)
    logits, old, ref = torch.randn(3, 6, 5, 2, generator=generator, dtype=dtype)
    ids = torch.randint(2, (6, 5), generator=generator)

    def logp(x):
        return x.log_softmax(-1).gather(2, ids[..., None])[..., 0]                 # (B, T)
    A = torch.tensor([1.7, -0.6, 0.0, 1.0, -1.0, 0.4], dtype=dtype)
    return logits, logp, logp(logits + 0.3 * old), logp(ref), A, mask_of(LENGTHS)


@pytest.mark.parametrize("length_norm", NORMS)
@pytest.mark.parametrize("kl", KLS)
def test_gradient_against_finite_differences(kl, length_norm):
    logits, logp, old, ref, A, mask = two_tokens()
    length = length_of(length_norm, LENGTHS)

    def loss(x):
        return grpo_loss(logp(x), old, ref, A, mask, 0.3, 0.2, kl, length_norm, length)[0].mean()
    x = logits.clone().requires_grad_()
    loss(x).backward()
    for place in range(logits.numel()):
        step = torch.zeros(logits.numel(), dtype=logits.dtype)
        step[place] = 1e-6
        step = step.view_as(logits)
        slope = (loss(logits + step) - loss(logits - step)).item() / 2e-6
        assert x.grad.flatten()[place].item() == pytest.approx(slope, abs=1e-8)


def test_first_update_is_plain_reinforce():
    logits, logp, _, ref, A, mask = two_tokens()
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    grpo_loss(logp(x), logp(x).detach(), ref, A, mask, 0.0, 0.2)[0].mean().backward()
    (-(logp(y) * A[:, None] * mask).sum(1) / mask.sum(1)).mean().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-12) and x.grad.abs().max() > 0.01


@pytest.mark.parametrize("length_norm, expected", [
    ("sequence", [-1 / 1, 2 * 3 / 3]),    # 1/|o_i|, the paper
    ("token", [-1 / 2, 2 * 3 / 2]),       # mean over 4 tokens: 2 tokens per completion
    ("constant", [-1 / 10, 2 * 3 / 10]),
])
def test_c08_length_norms_by_hand(length_norm, expected):
    """C08: trainers changed the form of this mean more than once; lengths 1 and 3, A 1 and -2."""
    zero, length = torch.zeros(2, 3), length_of(length_norm, [1, 3], 10)
    losses, _ = grpo_loss(zero, zero, zero, torch.tensor([1.0, -2.0]), mask_of([1, 3]), 0.0, 0.2,
                          length_norm=length_norm, length=length)
    assert losses.tolist() == pytest.approx(expected, abs=1e-7)


def test_length_norm_by_another_name_is_an_error():
    with pytest.raises((ValueError, KeyError), match="mean"):
        loss_of([[0.0]], [[0.0]], [[0.0]], [1.0], length_norm="mean")


@pytest.mark.parametrize("length_norm", NORMS)
@pytest.mark.parametrize("parts", [[2, 2, 2, 2], [3, 5], [1, 7]])
def test_c08_parts_add_up_to_the_whole_update(parts, length_norm):
    """C08: micro-batches of unequal lengths must give the gradient of one batch."""
    generator = torch.Generator().manual_seed(1)
    lengths = [6, 1, 3, 2, 6, 5, 1, 4]
    logits, old, ref = torch.randn(3, 8, 6, 5, generator=generator)
    ids = torch.randint(5, (8, 6, 1), generator=generator)
    A = torch.randn(8, generator=generator)
    old, ref = ((logits + 0.3 * x).log_softmax(-1).gather(2, ids)[..., 0] for x in (old, ref))

    def gradient(parts):
        x, first, total = logits.clone().requires_grad_(), 0, 0.0
        for size in parts:
            rows = slice(first, first + size)
            T = max(lengths[rows])  # every part is padded to its own width
            logp = x[rows, :T].log_softmax(-1).gather(2, ids[rows, :T])[..., 0]
            losses, _ = grpo_loss(logp, old[rows, :T], ref[rows, :T], A[rows],
                                  mask_of(lengths[rows]), 0.1, 0.2, length_norm=length_norm,
                                  length=length_of(length_norm, lengths))
            loss = losses.sum() / len(lengths)
            loss.backward()
            total, first = total + loss.item(), first + size
        return total, x.grad
    (loss, expected), (total, added) = gradient([8]), gradient(parts)
    assert total == pytest.approx(loss, abs=1e-6) and torch.allclose(added, expected, atol=1e-6)


def test_c10_zero_std_group_has_no_policy_gradient_but_kl_pulls():
    """C10: a group of equal rewards is not without effect, the KL term still acts on it."""
    logits, logp, old, ref, _, mask = two_tokens()
    A = group_advantages(-torch.ones(2, 3).double()).flatten()

    def gradient(beta):
        x = logits.clone().requires_grad_()
        grpo_loss(logp(x), old, ref, A, mask, beta, 0.2)[0].mean().backward()
        return x.grad
    assert not gradient(0.0).any() and gradient(0.1).abs().max() > 1e-3
    assert torch.allclose(gradient(0.2), 2 * gradient(0.1), atol=1e-12)


@pytest.mark.parametrize("length_norm", NORMS)
def test_rows_without_a_token_cost_nothing(length_norm):
    """All judgments of a part can be cut off and masked; then no |o_i| is above 0."""
    logp = torch.randn(2, 3, requires_grad=True)
    losses, _ = grpo_loss(logp, logp.detach(), logp.detach() - 1, torch.tensor([1.0, -1.0]),
                          torch.zeros(2, 3, dtype=torch.bool), 0.1, 0.2, length_norm=length_norm,
                          length=length_of(length_norm, [0, 4]))
    losses.mean().backward()
    assert losses.tolist() == [0, 0] and not logp.grad.any()


@pytest.mark.parametrize("kl", ["k3", "corrected"])
@pytest.mark.parametrize("length_norm", NORMS)
def test_c31_equals_the_loss_of_trl_on_the_same_tensors(length_norm, kl):
    """C31: TRL corrects k3 by default; its use_bias_correction_kl=False is the paper's loss."""
    GRPOTrainer = pytest.importorskip("trl", reason="optional peer: pip install trl").GRPOTrainer
    logits, logp, old, ref, A, mask = two_tokens(torch.float32)
    this = SimpleNamespace(
        loss_type={"sequence": "grpo", "token": "dapo", "constant": "dr_grpo"}[length_norm],
        epsilon_low=0.2, epsilon_high=0.2, beta=0.3, max_completion_length=7, use_vllm=False,
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True), _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=kl == "corrected", delta=None,
                             steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x,
                                    reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda model, *args, **options: (
            logp(model), torch.zeros(mask.shape), None))
    ids = torch.zeros(mask.shape, dtype=torch.long)
    x, y = (logits.clone().requires_grad_() for _ in range(2))
    theirs = GRPOTrainer._compute_loss(this, x, {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids,
        "completion_mask": mask.int(), "advantages": A, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "num_items_in_batch": mask.sum()})
    theirs.backward()
    losses, stats = grpo_loss(logp(y), old, ref, A, mask, 0.3, 0.2, kl, length_norm,
                              length_of(length_norm, LENGTHS))
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(x.grad, y.grad, atol=1e-7)
    metrics, tokens = this._metrics["train"], stats["tokens"].item()
    [clipped] = metrics["clip_ratio/region_mean"]
    assert stats["clipped"].item() / tokens == pytest.approx(clipped, abs=1e-6) and clipped > 0
    if kl == "k3":
        assert stats["kl"].item() / tokens == pytest.approx(metrics["kl"][0], abs=1e-6)


# ----- the log-probs of the update against those of the sampler -----

@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_c05_c28_logp_is_what_the_sampler_drew_from(temperature, tiny_model, toy_tokenizer):
    """C28: two programs meet here, and so rho = 1 at the first update; with logp_old = logp it
    would be 1 by construction.  C05: it is not 1 without the temperature.

    tests/plumbing/test_generation.py has padding, prompts that are shared, chunks and dropout.
    """
    model = tiny_model(initializer_range=0.2)
    model.generation_config.eos_token_id = [4, *range(5, 65)]
    prompts, rng = [], random.Random(0)
    for size in (3, 25, 11):
        prompts.append([rng.randrange(65, 297) for _ in range(size)])
    rows = generate(model, toy_tokenizer, [p for p in prompts for _ in range(4)], temperature, 9,
                    [f"0/x/{i}" for i in range(12)])

    def logp_at(temperature):
        logits = CompletionLogits(model, 0)
        return logits(logits.pack(prompts, [r.ids for r in rows]),
                      lambda logits, ids: (token_logp(logits, ids, temperature),))
    logp, mask = logp_at(temperature)
    assert mask.sum(1).tolist() == [len(r.ids) for r in rows] and len(set(mask.sum(1).tolist())) > 1
    old = torch.zeros(mask.shape).masked_scatter(
        mask, torch.tensor([x for r in rows for x in r.logp]))
    losses, stats = loss_of(logp, old, old, torch.arange(12.0), mask, beta=1.0)
    assert torch.allclose(logp, old, atol=1e-5) and stats["clipped"].item() == 0
    assert losses.tolist() == pytest.approx([-i for i in range(12)], abs=1e-3)
    if temperature != 1:  # the test can fail
        assert (logp_at(1.0)[0] - old).abs().max() > 0.1
