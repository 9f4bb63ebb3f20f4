"""Task 10: does the judge like a place? Paper §4 ("to avoid positional biases"). 5 points.

rows are the lines of a samples.jsonl (infer_scale.py, eval.py): row["n"] responses, and
row["samples"], each with its "permutation" (permutation[0] is the response that was shown first)
and its "scores" in ORIGINAL order, or None.

A verdict is clear if one response alone has the highest score. Only clear verdicts count, over all
samples of all rows with n >= 2. If places do not matter, the response shown first wins 1/n of the
time, so compare with the mean of 1/n over these verdicts. All samples of a row judge the same
responses: they are one cluster (task 9).
"""


def first_position(rows):
    """(share of clear verdicts for the response shown first, share expected without bias)."""
    raise NotImplementedError


def is_biased(rows):
    """True if the 95 % interval of (share - expected), clustered by row, leaves 0 out.

    On whichever side.
    """
    raise NotImplementedError
