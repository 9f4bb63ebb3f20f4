"""Task 1: strict inequality against each of the others; nothing else matters."""


def is_correct(scores, rewards):
    if scores is None:
        return False
    if len(scores) == 1:
        return scores[0] == rewards[0]
    j = rewards.index(max(rewards))
    return all(scores[j] > s for i, s in enumerate(scores) if i != j)


def rule_reward(scores, rewards):
    return 1.0 if is_correct(scores, rewards) else -1.0
