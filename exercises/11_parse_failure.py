r"""Task 11: rewards for nothing, a hunt for three bugs.

Paper §3.2 (Eq. 11), App. G. 6 points, two per bug.

Reinforcement learning finds whatever pays. With this code the mean reward rose for days while ever
fewer judgments could be read: in three places it pays not to be read. Every function is meant to
do what its docstring says; find the places where it does not.

A judgment: {"text", "finished"}; finished is False if it was cut off at the token limit. The range
of the scores, and a box without its end, are not the point here (they are in task 2).
"""
import re


def scores_of(judgment, n):
    r"""The n scores in the last \boxed{...} of the text, or None.

    None: there is no such box, it does not hold n integers, or the judgment was cut off, so that
    its last box need not be its verdict.
    """
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", judgment["text"])
    parts = [part.strip() for part in boxes[-1].split(",")] if boxes else []
    if len(parts) != n or not all(re.fullmatch("[0-9]+", part) for part in parts):
        return None
    return [int(part) for part in parts]


def reward(judgment, rewards):
    """Eq. 11: +1.0 if the scores are correct (Eq. 10), -1.0 in every other case.

    rewards: ground truth, with one maximum; of a single response 0 or 1, and its score is correct
    if it is the same number.
    """
    scores = scores_of(judgment, len(rewards))
    if len(rewards) == 1:
        score = scores[0] if scores else 0
        return 1.0 if score == rewards[0] else -1.0
    if scores is None:
        return 0.0
    best = rewards.index(max(rewards))
    return 1.0 if all(scores[best] > s for i, s in enumerate(scores) if i != best) else -1.0
