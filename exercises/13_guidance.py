"""Task 13: when do votes help, and when the meta RM?

Paper §4, Eq. 14. 6 points.

Take pairs. Each of k judgments of an item is right with a probability p of that item. Two judges,
both right 73 times in 100:

  slips   p = 0.73 for every item: now and then it misreads a word;
  habit   p = 0.95 for six items in ten, 0.4 for the others: it likes the longer response, which is
          the worse one there.

Votes wash out what each judgment gets wrong on its own, and keep what all of them share. A meta RM
that lets a right judgment vote with probability t and a wrong one with probability f changes p: by
Bayes, what votes is right more often. Do the first three functions on paper.

In practice p is unknown; what one has is judgments of validation items. Rows to practise on, of
both judges with two meta RMs: `python -m exercises.check 13 --samples practice.jsonl`. Think first:
one of the meta RMs knows which items are easy, no more. What is its ROC-AUC over all judgments,
and what is it worth in a vote?
"""


def majority(p, k):
    """Probability that most of k judgments are right; half and half counts 1/2."""
    raise NotImplementedError


def let_through(p, t, f):
    """Probability that a judgment which may vote is right."""
    raise NotImplementedError


def turning_point(t, f):
    """The p above which more and more votes of those let through end up right."""
    raise NotImplementedError


def advice(rows):
    """rows: per item {"right": [k times True or False], "logits": [k floats of the meta RM]}.

    Three ways: "one" judgment, the mean over the k; "votes", the majority of all k; "guided", the
    majority of the k/2 with the highest logits. Half and half counts 1/2. Returns the cheapest one
    (in this order) whose accuracy on these rows is within 2 points of the best of the three.
    """
    raise NotImplementedError
