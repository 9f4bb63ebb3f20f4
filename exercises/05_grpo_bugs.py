"""Task 5: a bug hunt.

Paper §3.2, App. C.1, Eq. 15. 8 points: one per bug, and two for the whole loss being right.

This code runs without an error, and it has six bugs; the first five are known from public trainers.
Every function is meant to do what its docstring says; mend the code, not the docstrings. Shapes: Q
items, groups of G, B = Q * G completions of at most T tokens, V words.

The objective (Eq. 15), to be maximised; the loss is its negative:

  J = mean over B of 1/|o_i| sum_t { min[rho A, clip(rho, 1-eps, 1+eps) A] - beta * KL }
  rho = pi / pi_old,   KL = pi_ref/pi - log(pi_ref/pi) - 1    (the estimator k3, never negative)
"""
import torch


def advantages(rewards):
    """(Q, G) rewards -> (Q, G) advantages: centred, divided by the group's population std.

    Equal rewards give 0.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / rewards.std(1, keepdim=True).clamp(min=1e-6)


def completion_mask(ids, end):
    """(B, T) ids, the id of the end token -> (B, T) bool: the tokens that the model chose.

    These are all up to and with its first end token; what follows is padding (often with the same
    id). Without an end token all T count.
    """
    return ids != end


def token_logp(logits, ids, temperature):
    """(B, T, V) logits, (B, T) ids -> (B, T) log-probabilities.

    They are those of the distribution that the sampler drew from.
    """
    logp = logits.log_softmax(-1)
    return logp.gather(-1, ids[..., None])[..., 0]


def grpo_loss(logp, logp_old, logp_ref, A, mask, beta=0.02, eps=0.2):
    """-J; logp, logp_old, logp_ref (B, T): of policy, sampling policy and frozen reference.

    A (B,).
    """
    ratio = (logp - logp_old).exp()                                                     # (B, T)
    A = A[:, None]                                                                      # (B, 1)
    policy = torch.minimum(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)                # (B, T)
    kl = logp - logp_ref                                                                # (B, T)
    objective = (policy + beta * kl) * mask                                             # (B, T)
    return -(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()


def build_prompt(query, responses, best=None):
    """The judge's prompt; with `best` (counted from 1) it ends with a hint that names that one."""
    lines = [f"User: {query}"] + [f"Response {i}: {text}" for i, text in enumerate(responses, 1)]
    return "\n".join(lines + ([f"The best response is: Response {best}"] if best else []))


def hinted_sample(query, responses, best, judge):
    """Hinted sampling of §3.2: the judge writes with the hint in its prompt; training is without.

    judge: a function from a prompt to a text.  Returns (prompt to train on, text).
    """
    prompt = build_prompt(query, responses, best)
    return prompt, judge(prompt)
