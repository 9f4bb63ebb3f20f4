"""Task 3: voting and guided voting. Paper §4, Eq. 14, Fig. 3, Table 17. 4 points.

k judgments of the same item; each saw the responses in an order of its own (against position bias).
Eq. 14:

    S*_i = sum over the k judgments j of S_{i,j}

where i counts the responses in their ORIGINAL order. A judgment that did not parse (None) does not
vote. Guided voting sums only the k_meta judgments that the meta RM likes best (highest logit);
unparsed ones take no place among them.

Fig. 3: the scores (1, 5), (5, 6), (4, 8), (7, 6) vote 17 : 25; the meta RM keeps the first and the
third: 5 : 13.
"""


def unshuffle(shown, permutation):
    """Scores as displayed -> scores in original order.

    permutation[place] is the index of the response that was shown at that place.
    """
    raise NotImplementedError


def vote(sample_scores):
    """sample_scores: k times n scores in original order, or None.

    Returns n sums, or None if none is valid.
    """
    raise NotImplementedError


def guided_vote(sample_scores, meta_logits, k_meta):
    """meta_logits: k numbers, None where the judgment did not parse.

    Returns n sums, or None if none is valid. With fewer than k_meta valid judgments all of them
    vote.
    """
    raise NotImplementedError
