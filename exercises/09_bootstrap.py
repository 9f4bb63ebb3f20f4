"""Task 9: an interval where items are not independent.

Paper §5 gives no intervals; this repository does. 5 points.

A benchmark may hold several pairs of the same prompt (PPE Correctness: 32 responses to each). What
happens to them happens together, so resample whole prompts. The cluster bootstrap of a mean,
`draws` times over: draw C of the C clusters with replacement; take the mean over all values in the
drawn clusters (a cluster of ten counts ten values). The interval runs from the 2.5th to the 97.5th
percentile of these means.

numpy is at hand. The same seed must give the same interval.
"""


def bootstrap_interval(values, clusters=None, draws=2000, seed=0):
    """values: N numbers.  clusters: N labels (None: each value stands alone).

    Returns (low, high), floats. Raises ValueError without values.
    """
    raise NotImplementedError
