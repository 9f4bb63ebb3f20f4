"""Task 5: the six bugs, one comment each."""
import torch


def advantages(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    # torch's default is the sample std (G - 1): 13 % smaller steps at G = 4
    return centred / rewards.std(1, keepdim=True, correction=0).clamp(min=1e-6)


def completion_mask(ids, end):
    # `ids != end` drops the end token itself, so that the model never learns to stop
    ended_before = (ids == end).cumsum(1) - (ids == end).long()
    return ended_before == 0


def token_logp(logits, ids, temperature):
    # without the temperature the ratio is not 1 even before the first update
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(-1, ids[..., None])[..., 0]


def grpo_loss(logp, logp_old, logp_ref, A, mask, beta=0.02, eps=0.2):
    ratio = (logp - logp_old).exp()                                                     # (B, T)
    A = A[:, None]                                                                      # (B, 1)
    policy = torch.minimum(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)                # (B, T)
    # logp - logp_ref (k1) has the right mean, but as a loss its gradient is zero on average
    d = logp_ref - logp                                                                 # (B, T)
    kl = d.exp() - d - 1                                                                # (B, T)
    # with a plus the policy is paid for leaving the reference
    objective = (policy - beta * kl) * mask                                             # (B, T)
    return -(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()


def build_prompt(query, responses, best=None):
    lines = [f"User: {query}"] + [f"Response {i}: {text}" for i, text in enumerate(responses, 1)]
    return "\n".join(lines + ([f"The best response is: Response {best}"] if best else []))


def hinted_sample(query, responses, best, judge):
    text = judge(build_prompt(query, responses, best))
    # trained with the hint, the model would wait for one that never comes at test time
    return build_prompt(query, responses), text
