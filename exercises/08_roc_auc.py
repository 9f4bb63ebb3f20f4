"""Task 8: ROC-AUC with ties. Paper App. E.1.2 (Table 13): single responses. 4 points.

A pointwise judge can also score a single response. With only right (1) and wrong (0) ones there is
no accuracy without a threshold; the paper reports the area under the ROC curve:

    AUC = P(score of a right response > score of a wrong one) + P(the two are equal) / 2

over all pairs of a right and a wrong response. Scores are integers 1-10, so ties are everywhere.
Without any right or without any wrong response the AUC does not exist: return None.
"""


def roc_auc(scores, labels):
    """scores: N numbers.  labels: N of 0 or 1.  Returns a float from 0 to 1, or None."""
    raise NotImplementedError
