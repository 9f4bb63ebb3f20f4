r"""Task 11: the three bugs, one comment each."""
import re


def scores_of(judgment, n):
    # cut off while it was thinking aloud, it may have quoted a box that is not its verdict
    if not judgment["finished"]:
        return None
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", judgment["text"])
    parts = [part.strip() for part in boxes[-1].split(",")] if boxes else []
    if len(parts) != n or not all(re.fullmatch("[0-9]+", part) for part in parts):
        return None
    return [int(part) for part in parts]


def reward(judgment, rewards):
    scores = scores_of(judgment, len(rewards))
    # 0.0 is no punishment: in a group of wrong judgments the unreadable one has the advantage
    if scores is None:
        return -1.0
    # a failure read as the score 0 is "right" for every wrong response
    if len(rewards) == 1:
        return 1.0 if scores[0] == rewards[0] else -1.0
    best = rewards.index(max(rewards))
    return 1.0 if all(scores[best] > s for i, s in enumerate(scores) if i != best) else -1.0
