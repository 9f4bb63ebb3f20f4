"""Eq. 14: voting by sum, its form guided by the meta RM, and the paper's own cases."""
import random

import pytest

from grm import is_correct, parse_judgment, sum_scores
from infer_scale import default_k_meta, meta_vote, vote

FIG3 = [[1, 5], [5, 6], [4, 8], [7, 6]]
TABLE17 = [[8, 8], [5, 9], [7, 10]]  # in original order


def test_fig_3_votes_and_guided_votes():
    """1 + 5 + 4 + 7 = 17 and 5 + 6 + 8 + 6 = 25; guided: judgments 1 and 3 give 1 + 4, 5 + 8."""
    assert vote(FIG3) == sum_scores(FIG3) == [17, 25]
    assert meta_vote(FIG3, [1.0, -1.0, 2.0, -2.0], k_meta=2) == [5, 13]


def test_table_17_labels_and_votes():
    """The tie is no correct judgment and has the lowest meta logit, so guided voting drops it."""
    assert [is_correct(s, [0, 1]) for s in TABLE17] == [False, True, True]
    assert vote(TABLE17) == [20, 27]
    assert meta_vote(TABLE17, [-15.7781, 1.3126, 1.6739], k_meta=2) == [12, 19]


def test_eq_13_majority_is_the_sum_of_one_hot_scores():
    named = [parse_judgment(rf"Scores: \boxed{{{i}}}", 3, "best")[0] for i in (2, 3, 2, 1, 2)]
    assert vote(named) == [1, 3, 1]


@pytest.mark.parametrize("scores, valid, votes", [
    ([[7, 5], [6, 8], [9, 4]], None, [22, 17]),
    ([[7, 5], None, [9, 4]], None, [16, 9]),               # what did not parse never votes
    ([[7, 5], [6, 8]], [False, True], [6, 8]),
    ([[7, 5], None, [6, 8]], [False, True, True], [6, 8]),
    ([None, None], None, None), ([[7, 5]], [False], None), ([[4]], None, [4]),
])
def test_votes_by_hand(scores, valid, votes):
    assert vote(scores, valid) == votes


@pytest.mark.parametrize("scores, logits, k_meta, valid, votes", [
    ([None, [1, 2], [5, 3]], [None, -1.0, -2.0], 2, None, [6, 5]),   # takes no one's place
    (FIG3, [0.0] * 4, 2, None, [6, 11]),                   # equal logits: the order of sampling
    (FIG3, [4.0, 3.0, 2.0, 1.0], 1, [False, True, True, True], [5, 6]),
    (FIG3, [-9.0, -8.0, -7.0, -6.0], 1, None, [7, 6]),     # the highest, not the largest
    ([None], [None], 1, None, None),
])
def test_guided_votes_by_hand(scores, logits, k_meta, valid, votes):
    assert meta_vote(scores, logits, k_meta, valid) == votes


def test_k_meta_is_half_of_k_and_at_least_one():
    assert [default_k_meta(k) for k in (1, 2, 3, 8, 32)] == [1, 1, 1, 4, 16]
    with pytest.raises(ValueError, match="k_meta"):
        meta_vote(FIG3, [0] * 4, 0)


def test_votes_lie_between_v_and_10v_and_all_kept_is_plain_voting():
    rng = random.Random(0)
    for _ in range(50):
        n, k = rng.randint(1, 5), rng.randint(1, 9)
        scores = [[rng.randint(1, 10) for _ in range(n)] for _ in range(k)]
        logits = [rng.gauss(0, 1) for _ in range(k)]
        assert all(k <= v <= 10 * k for v in vote(scores))
        assert meta_vote(scores, logits, k) == vote(scores)
        assert meta_vote(scores, logits, 1) == scores[logits.index(max(logits))]
