"""Task 7: as many as the meta RM believes in. The threshold 1 is chosen on the practice samples."""


def k_meta(meta_logits):
    return max(1, sum(z > 1 for z in meta_logits))
