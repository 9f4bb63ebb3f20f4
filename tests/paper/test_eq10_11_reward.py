"""Eqs. 10 and 11: when scores are correct, and the reward of +1 or -1."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm import PreferenceExample, best_index, is_correct, rule_reward, unpermute


@pytest.mark.parametrize("scores, rewards, correct", [
    ([2, 7], [0, 1], True), ([7, 7], [0, 1], False), ([6, 1], [0, 1], False),
    ([9, 3, 3], [1, 0, 0], True), ([9, 9, 3], [1, 0, 0], False), ([9, 3, 10], [1, 0, 0], False),
    ([3, 2, 1], [0.3, 0.2, 0.1], True),
    ([3, 1, 2], [0.3, 0.2, 0.1], True),            # only the best response has to win
    ([1], [1], True), ([0], [0], True), ([1], [0], False), ([0], [1], False), ([5], [1], False),
    (None, [0, 1], False), (None, [1], False),
    (None, [0], False),                            # C35: unparsed never earns what 0 would
    ([8, 8], [0, 1], False), ([5, 9], [0, 1], True), ([7, 10], [0, 1], True),   # Table 17
])
def test_eq_10_by_hand_and_eq_11_from_it(scores, rewards, correct):
    """C24: a tie is wrong (strict >).  C35: an unparsed judgment of a wrong single response earns
    -1, not the +1 of a score of 0."""
    assert is_correct(scores, rewards) is correct
    assert rule_reward(scores, rewards) == (1.0 if correct else -1.0)


@pytest.mark.parametrize("scores, rewards", [([5, 7], [1, 1]), ([7, 7], [1, 1]), (None, [1, 1]),
                                             ([7, 2, 1], [1, 0]), ([7], [1, 0])])
def test_c24_tied_truth_and_a_wrong_count_are_errors_not_labels(scores, rewards):
    """C24: Eq. 10 needs one best response; an item without one has no label."""
    for function in (is_correct, rule_reward):
        with pytest.raises(ValueError):
            function(scores, rewards)


def test_best_index():
    assert [best_index(r) for r in ([0, 1], [0.2, 0.1], [-3, -2, -9], [0])] == [1, 0, 1, 0]


@given(st.lists(st.integers(1, 10), min_size=2, max_size=5), st.data())
def test_eq_10_does_not_depend_on_the_order(scores, data):
    rewards = data.draw(st.permutations(range(len(scores))))
    order = data.draw(st.permutations(range(len(scores))))
    moved = [scores[j] for j in order], [rewards[j] for j in order]
    assert is_correct(scores, rewards) == is_correct(*moved)


@given(st.permutations(range(5)), st.lists(st.integers(1, 10), min_size=5, max_size=5))
def test_unpermute_is_the_inverse_of_permuted(order, scores):
    item = PreferenceExample("x", [], list(map(str, scores)), scores)
    shown = item.permuted(order)
    assert shown.rewards == [scores[j] for j in order] == [int(t) for t in shown.responses]
    assert unpermute(shown.rewards, order) == scores
