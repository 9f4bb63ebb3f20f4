"""Task 4: a dead group is told by its spread, not saved by a small number in the denominator."""


def group_advantages(rewards, G):
    if len(rewards) % G:
        raise ValueError(f"{len(rewards)} rewards do not fill groups of {G}")
    advantages = []
    for start in range(0, len(rewards), G):
        group = rewards[start:start + G]
        mean = sum(group) / G
        std = (sum((r - mean) ** 2 for r in group) / G) ** 0.5
        advantages += [(r - mean) / std if std > 1e-6 else 0.0 for r in group]
    return advantages
