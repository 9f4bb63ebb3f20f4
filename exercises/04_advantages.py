"""Task 4: group advantages. Paper App. C.1, Eq. 15 (GRPO). 4 points.

RL samples a group of G judgments for each of Q items. A judgment is compared with its own group
only:

    A_i = (r_i - mean(r)) / std(r)

Use the population standard deviation (divide by G, not by G - 1). If all rewards of a group are
equal, its advantages are exactly 0.0: there is nothing to learn from, and nothing may explode.

Work one out by hand first: rewards 1, -1, -1, -1 give 1.732, -0.577, -0.577, -0.577.
"""


def group_advantages(rewards, G):
    """rewards: flat list of Q * G floats, group after group.  Returns as many floats.

    Raises: ValueError if the rewards do not fill whole groups.
    """
    raise NotImplementedError
