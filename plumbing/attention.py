"""One softmax over keys and values that many rows share; decoding.py uses it on a CPU.

The k judgments of an item share their prompt, and all items share the preamble, so while tokens
are drawn
  - keys and values of preamble and prompts are held once and read once per token, for all samples
    together (`SharedPrompts`);
  - those of the completions are written into one buffer in place (the library's cache copies all of
    it at every token);
  - attention is computed for each part by itself and joined at the common maximum
    (`attention_over_parts`).

Letters of shapes: U distinct prompts of W tokens, R of them after the preamble; b rows still being
sampled, one token each; H heads of the keys, n heads of the query for each of them, D their width;
S prompts multiplied together, with g rows each.
"""
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

# ----- the key/value cache: one buffer per layer, written in place -----

class BufferLayer(DynamicLayer):
    """Keys and values (B, H, length, D): a view of a larger buffer, which `update` fills.

    Measured on 2 cores (SmolLM2-135M, 32 rows, 620 + 48 tokens): concatenating at every token took
    longer than the model.
    """
    def __init__(self, keys, values, room):
        super().__init__()
        self.used = keys.shape[2]
        self.buffers = [x.new_empty(*x.shape[:2], self.used + room, x.shape[3])
                        for x in (keys, values)]
        for buffer, old in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, :self.used] = old
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.show()

    def show(self):
        self.keys, self.values = (b[:, :, :self.used] for b in self.buffers)

    def update(self, key_states, value_states, *args, **kwargs):
        end = self.used + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.used:end] = new
        self.used = end
        self.show()
        return self.keys, self.values

    def select(self, rows):
        """Keep these rows, in ascending order; what was never written is not copied."""
        for buffer in self.buffers:
            buffer[:len(rows), :, :self.used] = buffer[rows, :, :self.used]
        self.buffers = [b[:len(rows)] for b in self.buffers]
        self.show()


def buffer_cache(cache, rows, room, length=None):
    """A cache with some rows of `cache` (one may repeat), their first `length` tokens, and room."""
    new = DynamicCache()
    new.layers = [BufferLayer(layer.keys[rows, :, :length], layer.values[rows, :, :length], room)
                  for layer in cache.layers]
    return new


# ----- attention over parts -----

class SharedPrompts:
    """Keys and values of a batch's prompts: the preamble once, the rest of each prompt once."""
    def __init__(self, cache, shared, lengths):
        """cache: of the U prompts as `prefill` leaves it, the longest (without padding) last.

        shared: tokens of the preamble.  lengths: (U,) tokens.
        """
        layers = [(layer.keys, layer.values) for layer in cache.layers]          # (U, H, W, D) each
        self.preamble = [[x[-1:, :, :shared].clone() for x in pair]
                         for pair in layers] if shared else None
        self.prompts = [[x[:, :, shared:] for x in pair] for pair in layers]     # (U, H, R, D) each
        rest = self.prompts[0][0].shape[2]
        places = lengths[:, None] - rest + torch.arange(rest, device=lengths.device)
        # others are padding, or tokens that the preamble holds
        self.real = places >= shared                                             # (U, R)

    def arrange(self, source):
        """Note which prompt each row continues; prompts without rows are dropped.

        blocks: (first prompt, end prompt, their rows (S, g)). Prompts with about equally many rows
        (the same power of two, filled up by repeating a row) make one batched product.
        back: (b,) where each row is in the blocks laid end to end.
        source [0, 0, 1]: prompt 1 with its row 2 is a block (S = 1, g = 1), prompt 0 with rows 0
        and 1 another (1, 2); laid end to end that is 2, 0, 1, so back is [1, 2, 0].
        """
        counts = torch.bincount(source, minlength=len(self.real))
        owners = counts.argsort(stable=True)
        owners = owners[counts[owners] > 0]
        place = torch.empty_like(counts)
        place[owners] = torch.arange(len(owners), device=counts.device)
        self.source, counts = place[source], counts[owners]                      # (b,), (U',)
        self.prompts = [[x[owners] for x in pair] for pair in self.prompts]
        self.real = self.real[owners]
        rows, starts = self.source.argsort(stable=True), counts.cumsum(0) - counts
        sizes = 2 ** counts.float().log2().ceil().long()                                  # (U',)
        self.blocks, self.back, first, slots = [], torch.empty_like(source), 0, 0
        sizes, repeats = torch.unique_consecutive(sizes, return_counts=True)
        for size, many in zip(sizes.tolist(), repeats.tolist(), strict=True):
            end, member = first + many, torch.arange(size, device=source.device)
            taken = torch.minimum(member, counts[first:end, None] - 1)                    # (S, g)
            block = rows[starts[first:end, None] + taken]                                 # (S, g)
            self.blocks.append((first, end, block))
            new = taken == member
            slot = torch.arange(block.numel(), device=source.device).view(block.shape)
            self.back[block[new]] = slots + slot[new]
            first, slots = end, slots + block.numel()


def attend(query, keys, values, mask=None):
    """query: (S, g, H, n, D), g rows that share the keys (S, H, W, D); mask: (S, W) or None.

    Returns sum of exp(score - top) * value (S*g, H*n, D), top and sum of exp(score - top), both
    (S*g, H*n, 1).
    """
    S, g, H, n, D = query.shape
    query = query.transpose(1, 2).reshape(S, H, g * n, D)
    scores = (query @ keys.transpose(2, 3)).float()                              # (S, H, g*n, W)
    if mask is not None:
        scores.masked_fill_(~mask[:, None, None], torch.finfo(torch.float32).min)
    top = scores.amax(-1, keepdim=True)                                         # (S, H, g*n, 1)
    weights = scores.sub_(top).exp_()
    results = (weights.to(values.dtype) @ values).float(), top, weights.sum(-1, keepdim=True)
    return [x.view(S, H, g, n, -1).transpose(1, 2).reshape(S * g, H * n, -1) for x in results]


def attention_over_parts(module, query, key, value, attention_mask, scaling, shared=None, **kwargs):
    """Attention of one new token per row to preamble, prompt and its own completion.

    It stands in for the library's. query: (b, heads, 1, D).  key, value: (b, H, t, D) of the
    completions so far, one head for n of the query's: they are not expanded.
    shared: SharedPrompts.  The parts are joined at their common maximum: exactly one softmax.
    """
    b, heads, _, D = query.shape
    H = key.shape[1]
    query = (query * scaling).view(b, H, heads // H, D)
    parts = [attend(query[:, None], key, value)]
    keys, values = shared.prompts[module.layer_idx]
    blocks = [attend(query[rows], keys[first:end], values[first:end], shared.real[first:end])
              for first, end, rows in shared.blocks]
    parts.append([torch.cat(x)[shared.back] for x in zip(*blocks, strict=True)])
    if shared.preamble:
        parts.append(attend(query[None], *shared.preamble[module.layer_idx]))
    top = torch.stack([top for _, top, _ in parts]).amax(0)                    # (b, heads, 1)
    scales = [(part_top - top).exp() for _, part_top, _ in parts]
    out = sum(x * scale for (x, _, _), scale in zip(parts, scales, strict=True))
    total = sum(x * scale for (_, _, x), scale in zip(parts, scales, strict=True))
    return (out / total).to(value.dtype)[:, None], None                          # (b, 1, heads, D)


AttentionInterface.register("parts", attention_over_parts)

@contextmanager
def attention_of(model, name):
    """The model's attention function is the one registered as `name`."""
    before, model.config._attn_implementation = model.config._attn_implementation, name
    try:
        yield
    finally:
        model.config._attn_implementation = before
