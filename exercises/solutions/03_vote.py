"""Task 3: undo the order first, then add up."""


def unshuffle(shown, permutation):
    original = [None] * len(shown)
    for place, i in enumerate(permutation):
        original[i] = shown[place]
    return original


def vote(sample_scores):
    valid = [scores for scores in sample_scores if scores is not None]
    return [sum(column) for column in zip(*valid)] if valid else None


def guided_vote(sample_scores, meta_logits, k_meta):
    valid = [j for j, scores in enumerate(sample_scores) if scores is not None]
    best = sorted(valid, key=lambda j: meta_logits[j], reverse=True)[:k_meta]
    return vote([sample_scores[j] for j in best])
