"""Task 7: as many as the meta RM believes in. Of thresholds by half points, 3 is the best one on
the practice samples, though all from 2 to 3.5 are within a point of it. It is above 0: this meta RM
calls too much right, as one does that saw mostly right judgments.
"""


def k_meta(meta_logits):
    return max(1, sum(z > 3 for z in meta_logits))
