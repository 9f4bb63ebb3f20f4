"""Task 1: when are scores correct?

Paper §3.2, Eqs. 10 and 11. 4 points. Do it before you open grm.py.

A judgment gave the scores S_1..S_n to n responses, whose ground-truth rewards are r_1..r_n. Eq. 10
calls the scores correct iff

    n >= 2:  S_j > S_i for every i other than j, where j = argmax_l r_l      (r has one maximum;
    that is guaranteed)
    n = 1:   S_1 = r_1

and Eq. 11 turns this into the reward of reinforcement learning: +1 if correct, -1 otherwise. A
judgment whose text held no readable scores (scores is None) is never correct.

Think first: is a tie at the top correct? Does the order among the worse responses matter?
"""


def is_correct(scores, rewards):
    """scores: n int, or None.  rewards: n numbers.  Returns True or False (Eq. 10)."""
    raise NotImplementedError


def rule_reward(scores, rewards):
    """Returns +1.0 or -1.0 (Eq. 11)."""
    raise NotImplementedError
