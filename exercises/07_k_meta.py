"""Task 7: a better rule for k_meta. Paper §4, Table 7. 6 points.

Guided voting keeps the k_meta judgments with the highest meta logits; the paper takes k_meta = k/2
for every item. But on an easy item nearly all judgments are right and more votes help; on a hard
one most are wrong. Write a rule that looks at the logits of the item. It is graded on items that
you have not seen (16 judgments each, from the generator of toy_world/; the meta RM is simulated:
its logits separate right from wrong, but where the border lies is for you to see, and one judgment
in twenty it likes for no reason at all):

  1 point    an integer from 1 to k for every item;
  1 point    above as many judgments drawn at RANDOM (paired 95 % interval above 0);
  2 points   above the paper's k/2 (paired 95 % interval above 0);
  2 points   above every fixed number k_meta = 1, 2, 4, 8, 12, 16.

Practice samples: `python -m exercises.check 7 --samples practice.jsonl`; a line has "samples"
(their "scores" in original order), "meta_logits" and "rewards". Choose your rule on these; do not
tune it on the grade.
"""


def k_meta(meta_logits):
    """meta_logits: k floats, in the order of sampling.

    Returns how many judgments may vote. The paper: max(1, k // 2).
    """
    raise NotImplementedError
