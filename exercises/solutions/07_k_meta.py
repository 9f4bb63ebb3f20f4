"""Task 7: as many as the meta RM believes in. The threshold 3.5 is chosen on the practice
samples: this meta RM calls too much right, as one does that saw mostly right judgments.
"""


def k_meta(meta_logits):
    return max(1, sum(z > 3.5 for z in meta_logits))
