"""One more token for each of many rows: three ways to keep what the rows have read so far.

generation.py computes every distinct prompt once. Then b rows, each of which continues one of the
prompts, go on token by token, and every token needs the keys and values of all tokens before it:

  static  a GPU: each row has a copy of its prompt and room for its completion, in tensors whose
          sizes never change. So the kernels of a token are recorded once (a CUDA graph) and
          replayed. Why: one token of a small model is hundreds of kernels, and starting them
          from Python takes longer than running them (docs/performance.md).
  parts   a CPU: nothing is copied; keys and values of a prompt are held once, read once per token
          for all its rows (attention.py). Why: here memory is the limit, and copies of a long
          prompt take 1.5 to 2 times as long (docs/performance.md).
  copies  any model: copies that grow, and the library's own attention.

Letters of shapes: U distinct prompts of W tokens; b rows; L = W + room places.
"""
import contextlib
import functools

import torch
from transformers import StaticCache

from plumbing.attention import SharedPrompts, attention_of, buffer_cache

# Architectures whose attention is one softmax over the keys that a mask shows, with positions that
# come from position_ids alone. Tested for each in tests/plumbing/test_generation.py.
PLAIN = {"llama", "mistral", "qwen2", "qwen3", "gpt2", "granite", "phi3", "olmo2"}
told = set()  # architectures for which the printed line was printed


def plain_attention(model):
    """Whether a boolean mask (B, 1, queries, keys) says all that the model's attention needs."""
    config = model.config
    windows = getattr(config, "use_sliding_window", True) and getattr(
        config, "sliding_window", None)
    return (config.model_type in PLAIN and not windows
            and config._attn_implementation in ("sdpa", "parts"))


def kind_of_rows(model):
    """"static", "parts" or "copies"; says so once if the model can only be copied."""
    if not plain_attention(model):
        kind = model.config.model_type
        if kind not in told:
            told.add(kind)
            print(f"{kind} with {model.config._attn_implementation} attention: every sample gets a "
                  "growing copy of its prompt's keys and values (slower)")
        return "copies"
    if next(model.parameters()).is_cuda:
        return "static"
    # Pitfall: parts rounds scores to bf16 where the library does not. The policy that RL samples
    # from must be the one that it updates, or the ratio is not 1.
    return "copies" if torch.is_autocast_enabled("cpu") else "parts"


class StaticRows:
    """Rows with fixed tensors; on a GPU a token is one replay of a CUDA graph."""

    def __init__(self, model, cache, mask, source, room, packed):
        W, device = mask.shape[1], mask.device
        self.model, self.used, self.graph, self.logits = model, W, None, None
        self.capture = mask.is_cuda
        self.look = 16 if mask.is_cuda else 1  # tokens between two looks for ended rows
        b, L = len(source), W + room
        self.ids = torch.zeros(b, 1, dtype=torch.long, device=device)
        self.positions = packed["lengths"][source, None] - 1         # (b, 1) of the last token
        self.seen = torch.zeros(b, 1, 1, L, dtype=torch.bool, device=device)
        self.seen[:, 0, 0, :W] = mask[source]
        self.cache = StaticCache(config=model.config, max_cache_len=L)
        for layer, old in zip(self.cache.layers, cache.layers, strict=True):
            layer.lazy_initialization(*(x[:1].expand(b, -1, -1, -1)
                                        for x in (old.keys, old.values)))
            layer.keys[:, :, :W], layer.values[:, :, :W] = old.keys[source], old.values[source]
            old.keys = old.values = None  # two copies of everything need not fit
        self.rewind()

    def rewind(self):
        """The next token is written at place `used`."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.used)

    def worth_leaving(self, ended, left):
        """Whether to copy and record again for fewer rows; `left`: tokens still to be drawn."""
        # On an H100 a row costs some 0.01 ms a token, recording some 150 ms (the prototype of
        # results/h100.json: 0.34 s for 32 rows, 1.89 s for 2,048).
        return ended * left > 16_000 if self.capture else ended > 0.2 * len(self.ids)

    def keep(self, rows):
        self.graph = self.logits = None  # first: they hold memory
        self.ids, self.positions, self.seen = self.ids[rows], self.positions[rows], self.seen[rows]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def step(self, token):
        """Logits (b, V) after one more token (b,) of each row."""
        self.ids.copy_(token[:, None])
        self.positions += 1
        self.seen[..., self.used] = True
        if not self.capture:
            logits = self.forward()
        else:
            if self.graph is None:
                self.record()
            self.graph.replay()
            logits = self.logits
        self.used += 1
        return logits.float()

    def forward(self):
        # Pitfall: autocast keeps its bf16 copies of the weights until its end. A graph would go on
        # reading them after that.
        kind = self.seen.device.type
        with (torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)
              if torch.is_autocast_enabled(kind) else contextlib.nullcontext()):
            return self.model(input_ids=self.ids, position_ids=self.positions,
                              attention_mask=self.seen, cache=self.cache, use_cache=True,
                              logits_to_keep=1).logits[:, -1]                      # (b, V)

    def record(self):
        """A CUDA graph of forward(); what the steps before it wrote is written again."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in the first calls
            for _ in range(2):
                self.forward()
                self.rewind()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's own thread may look at its events while this one records
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.logits = self.forward()
        self.rewind()


class GrowingRows:
    """Rows in one buffer per layer: copies of their prompts, or, with `share`, completions only."""
    look = 1

    def __init__(self, model, cache, mask, source, room, packed, share=False):
        self.model, self.used, self.shared = model, mask.shape[1], None
        self.positions = packed["lengths"][source] - 1                           # (b,)
        self.seen = torch.cat([mask[source], mask.new_ones(len(source), room)], 1)  # (b, L)
        if share:
            prefix = packed["prefix"]
            self.shared = SharedPrompts(cache, 0 if prefix is None else prefix.shape[1],
                                        packed["lengths"])
            self.shared.arrange(source)
        self.cache = buffer_cache(cache, source, room, 0 if share else None)

    def worth_leaving(self, ended, left):
        return ended > 0.2 * len(self.positions)  # a copy of the cache costs a few steps

    def keep(self, rows):
        self.positions, self.seen = self.positions[rows], self.seen[rows]
        if self.shared:
            self.shared.arrange(self.shared.source[rows])
        for layer in self.cache.layers:
            layer.select(rows)

    def step(self, token):
        """Logits (b, V) after one more token (b,) of each row."""
        self.positions = self.positions + 1
        self.used += 1
        seen = ({"shared": self.shared} if self.shared else
                {"attention_mask": self.seen[:, :self.used].long()})
        kind = "parts" if self.shared else self.model.config._attn_implementation
        with attention_of(self.model, kind):
            return self.model(input_ids=token[:, None], position_ids=self.positions[:, None],
                              cache=self.cache, use_cache=True, logits_to_keep=1,
                              **seen).logits[:, -1].float()


ROWS = {"static": StaticRows, "parts": functools.partial(GrowingRows, share=True),
        "copies": GrowingRows}
