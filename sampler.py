r"""Plumbing: how models are loaded and many judgments are generated fast. Imports nothing of ours but runs.py.

Parallel sampling is what the paper scales, and judgments share most of their input, so:
  - every distinct prefix is computed once: first the preamble that all prompts share, then each distinct prompt;
  - its keys and values are also held once and read once per token, for all samples together (`SharedPrompts`);
  - those of the completions are written into one buffer in place (the library's cache copies all of it at every token);
  - finished rows leave the batch; prompts are sorted by length; the vocabulary projection runs on the last token only;
  - each row draws its own random numbers, so a judgment depends on its seed and prompt, not on its neighbours.
"""
import dataclasses
import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging as transformers_logging

from runs import UserError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# A base model without a chat template gets this one (Choice; printed when it happens).
PLAIN_TEMPLATE = ("{% for m in messages %}{{ '### ' + m['role'].capitalize() + '\n' + m['content'] + '\n' }}"
                  "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                  "{% if add_generation_prompt %}{{ '### Assistant\n' }}{% endif %}")


# ----- loading -----

def find_model(name, trust_remote_code=False):
    """The words that `from_pretrained` needs for a hub id, a local folder or a .gguf file. Raises UserError."""
    path = Path(name)
    where = {"trust_remote_code": trust_remote_code}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {name} does not exist")
        name, where["gguf_file"] = str(path.parent), path.name
    elif path.exists():
        if not (path / "config.json").is_file():
            raise UserError(f"model {name}: no config.json in it, so it is no Hugging Face model folder; give one as --model")
    elif path.is_absolute() or str(name).startswith(".") or str(name).count("/") > 1:
        raise UserError(f"model {name} does not exist")
    return {"pretrained_model_name_or_path": name, **where}


def load_tokenizer(name, trust_remote_code=False):
    """Tokenizer of a model (see `find_model`), with a chat template and a pad token, padding on the left."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(**find_model(name, trust_remote_code))
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("its vocabulary is empty")
    except UserError:
        raise
    except Exception as error:  # the library raises many types here; the message says which file
        raise UserError(f"model {name}: no tokenizer could be loaded ({first_line(error)}); "
                        "save the tokenizer into the same folder") from None
    if tokenizer.chat_template is None:
        print(f"{name} has no chat template; using a plain built-in one")
        # Pitfall: chats are tokenised without the tokenizer's own BOS, so the template has to write it (Gemma needs it).
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name, device=None, dtype=None, auto_class=AutoModelForCausalLM, trust_remote_code=False, **options):
    """(model, tokenizer) of a hub id, a local folder or a .gguf file, in eval mode.

    dtype defaults to bf16 on a GPU and fp32 on a CPU. Raises UserError naming what is missing.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.bfloat16 if str(device).startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32)
    tokenizer, where = load_tokenizer(name, trust_remote_code), find_model(name, trust_remote_code)
    try:
        # Pitfall: weights in any other format than safetensors could run code while they are loaded.
        model = auto_class.from_pretrained(dtype=dtype, use_safetensors=True, **where, **options)
    except Exception as error:  # the library raises many types here too (a file cut short, another library's format, ...)
        raise UserError(f"model {name} could not be loaded ({first_line(error)})") from None
    if "gguf_file" in where and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are dequantised now, and save_pretrained refuses otherwise
        model.hf_quantizer = None
    return model.to(device).eval(), tokenizer


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def end_token_ids(model, tokenizer):
    """All ids that end a turn (Pitfall C2: many models have several, and the tokenizer knows only one)."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return sorted(set(ids) | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()))


# ----- the key/value cache: one buffer per layer, written in place -----

class BufferLayer(DynamicLayer):
    """Keys and values (B, H, length, D) as a view of a larger buffer; `update` writes the new tokens behind them.

    Measured on 2 cores (SmolLM2-135M, 32 rows, 620 + 48 tokens): concatenating at every token took longer than the model.
    """
    def __init__(self, keys, values, room):
        super().__init__()
        self.used = keys.shape[2]
        self.buffers = [torch.cat([x, x.new_empty(*x.shape[:2], room, x.shape[3])], dim=2) for x in (keys, values)]
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
        self.buffers = [b[rows] for b in self.buffers]
        self.show()


def buffer_cache(cache, rows, room, length=None):
    """A new cache with the given rows of `cache` (a row may repeat), their first `length` tokens, and room for more."""
    new = DynamicCache()
    new.layers = [BufferLayer(layer.keys[rows, :, :length], layer.values[rows, :, :length], room) for layer in cache.layers]
    return new


# ----- attention over parts: keys and values that rows share are held once, and read once per token -----

class SharedPrompts:
    """Keys and values of a batch's prompts: the preamble of all rows once, the rest of each distinct prompt once.

    Measured on one core (SmolLM2-135M, 4 prompts of 620 tokens x 8 samples, 48 new tokens) against a copy of the prompt for
    each row: 19 instead of 25 CPU seconds, 1.1 instead of 2.0 GB; more samples gain more.
    """
    def __init__(self, cache, shared, lengths):
        """cache: of the U prompts as `prefill` leaves it.  shared: tokens of the preamble.  lengths: (U,) tokens."""
        layers = [(layer.keys, layer.values) for layer in cache.layers]                   # (U, H, W, D) each
        self.preamble = [[x[-1:, :, :shared].clone() for x in pair] for pair in layers] if shared else None
        self.prompts = [[x[:, :, shared:] for x in pair] for pair in layers]              # (U, H, R, D) each; see arrange
        rest = self.prompts[0][0].shape[2]
        self.places = lengths[:, None] - rest + torch.arange(rest, device=lengths.device)                 # (U, R)
        self.real = self.places >= shared  # others are padding, or tokens that the preamble holds            (U, R)

    def arrange(self, source):
        """Take note which prompt each row continues; prompts without rows are dropped (keys and values are copied once).

        blocks: (first prompt, end prompt, their rows (S, g)): prompts with about equally many rows (the same power of two,
        filled up by repeating a row) make one batched product.  back: (b,) where each row is in the blocks laid end to end.
        """
        counts = torch.bincount(source, minlength=len(self.real))
        owners = counts.argsort(stable=True)
        owners = owners[counts[owners] > 0]
        place = torch.empty_like(counts)
        place[owners] = torch.arange(len(owners), device=counts.device)
        self.source, counts = place[source], counts[owners]                               # (b,), (U',)
        self.prompts = [[x[owners] for x in pair] for pair in self.prompts]
        self.places, self.real = self.places[owners], self.real[owners]
        rows, starts = self.source.argsort(stable=True), counts.cumsum(0) - counts
        sizes = 2 ** counts.float().log2().ceil().long()                                  # (U',)
        self.blocks, self.back, first, slots = [], torch.empty_like(source), 0, 0
        for size, many in zip(*(x.tolist() for x in torch.unique_consecutive(sizes, return_counts=True)), strict=True):
            end, member = first + many, torch.arange(size, device=source.device)
            taken = torch.minimum(member, counts[first:end, None] - 1)                    # (S, g)
            block = rows[starts[first:end, None] + taken]                                 # (S, g)
            self.blocks.append((first, end, block))
            new = taken == member
            self.back[block[new]] = slots + torch.arange(block.numel(), device=source.device).view(block.shape)[new]
            first, slots = end, slots + block.numel()

    def at(self, positions):
        """positions: (b,) of the tokens about to be computed."""
        self.positions, self.masks = positions[:, None], {}
        return self

    def mask(self, part, window, length):
        """Which keys of a part each row sees: (b, length) bool, or None for all. Made once per token, not per layer."""
        if (part, window) not in self.masks:
            seen, places = None, torch.arange(length, device=self.positions.device)
            if part == "prompts":
                seen, places = self.real[self.source], self.places[self.source]
            elif part == "own":
                places = places + self.positions + 1 - length
            if window:
                near = places > self.positions - window                                   # (b, length)
                seen = near if seen is None else seen & near
            self.masks[part, window] = None if seen is None or bool(seen.all()) else seen
        return self.masks[part, window]


def attend(query, keys, values, mask, softcap):
    """query: (S, g, H, n, D), g rows that share the keys (S, H, W, D); mask: (S, g, W) or None.

    Returns sum of exp(score - top) * value, top and sum of exp(score - top): (S*g, H*n, D), and (S*g, H*n, 1) twice.
    """
    S, g, H, n, D = query.shape
    scores = (query.transpose(1, 2).reshape(S, H, g * n, D) @ keys.transpose(2, 3)).float()               # (S, H, g*n, W)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:  # Pitfall: not -inf, for a sliding window may hide all of a part
        scores.view(S, H, g, n, -1).masked_fill_(~mask[:, None, :, None], torch.finfo(torch.float32).min)
    top = scores.amax(-1, keepdim=True)                                                                   # (S, H, g*n, 1)
    weights = scores.sub_(top).exp_()
    results = (weights.to(values.dtype) @ values).float(), top, weights.sum(-1, keepdim=True)
    return [x.view(S, H, g, n, -1).transpose(1, 2).reshape(S * g, H * n, -1) for x in results]


def attention_over_parts(module, query, key, value, attention_mask, scaling, sliding_window=None, softcap=None, shared=None,
                         **kwargs):
    """Attention of one new token per row to preamble, prompt and its own completion; stands in for the library's.

    query: (b, heads, 1, D).  key, value: (b, H, t, D) of the completions so far, one head for n of the query's: they are not
    expanded.  shared: SharedPrompts.  The parts are joined at their common maximum, so this is exactly one softmax.
    """
    b, heads, _, D = query.shape
    H, window = key.shape[1], sliding_window
    query = (query * scaling).view(b, H, heads // H, D)
    mask = shared.mask("own", window, key.shape[2])
    parts = [attend(query[:, None], key, value, None if mask is None else mask[:, None], softcap)]
    keys, values = shared.prompts[module.layer_idx]
    mask = shared.mask("prompts", window, keys.shape[2])
    blocks = [attend(query[rows], keys[first:end], values[first:end], None if mask is None else mask[rows], softcap)
              for first, end, rows in shared.blocks]
    parts.append([torch.cat(x)[shared.back] for x in zip(*blocks, strict=True)])
    if shared.preamble:
        keys, values = shared.preamble[module.layer_idx]
        mask = shared.mask("preamble", window, keys.shape[2])
        parts.append(attend(query[None], keys, values, None if mask is None else mask[None], softcap))
    top = torch.stack([top for _, top, _ in parts]).amax(0)                                               # (b, heads, 1)
    scales = [(part_top - top).exp() for _, part_top, _ in parts]
    out = sum(x * scale for (x, _, _), scale in zip(parts, scales, strict=True))
    total = sum(x * scale for (_, _, x), scale in zip(parts, scales, strict=True))
    return (out / total).to(value.dtype)[:, None], None                                                   # (b, 1, heads, D)


AttentionInterface.register("parts", attention_over_parts)
# Architectures whose attention is covered by the function above (tested); others get copies of the prompt, see generate_batch.
SHARES_PROMPTS = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2"}
told = set()       # architectures for which the printed line was printed
SHARE_FROM = 128  # tokens: shorter prompts are as cheap to copy (measured on the toy model)


def shares_prompts(model, width):
    """Whether prompts of at most `width` tokens are attended to in parts; says so once if the model is not covered."""
    kind = model.config.model_type
    if kind not in SHARES_PROMPTS and kind not in told:
        told.add(kind)
        print(f"{kind}: every sample gets its own copy of its prompt's keys and values (more memory, slower)")
    return kind in SHARES_PROMPTS and width >= SHARE_FROM


@contextmanager
def attention_of(model, name):
    """The model's attention function is the one registered as `name`."""
    before, model.config._attn_implementation = model.config._attn_implementation, name
    try:
        yield
    finally:
        model.config._attn_implementation = before


# ----- generation -----

@dataclasses.dataclass
class Row:
    ids: list        # sampled token ids, with the end token if it was reached
    logp: list       # log-probability (nats) of each of them, under the tempered distribution it was drawn from
    finished: bool   # ended by an end token, not by max_new_tokens
    why: str = "truncated"   # if it is not finished; "too_long": the prompt does not fit, and nothing was sampled
    text: str | None = None  # of a served model (served.py), which gives no ids
    usage: tuple = ()        # of a served model: tokens of prompt and completion, as the server counts them


def uniforms(seed, count):
    """`count` numbers in [0, 1) that depend on the seed text alone."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key)).random(count)


@torch.no_grad()
def generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, token_budget=None, progress=False, skip_long=False):
    """One completion per prompt (token id lists; equal prompts are computed once). Same order as `prompts`.

    temperature 0 takes the most likely token. Row r draws its tokens with the random numbers of seeds[r].
    token_budget: tokens (prompts + completions) held at once; decides the batch size.
    skip_long: a prompt that does not fit the model gives an empty, unfinished row instead of a UserError.
    A served model (served.py) comes without a tokenizer, and its prompts are chat messages.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise UserError("--max_new_tokens must be at least 1 and --temperature at least 0")
    if tokenizer is None:
        return say_skipped(model.generate(prompts, temperature, max_new_tokens, seeds, skip_long, progress))
    long = [r for r, prompt in enumerate(prompts) if not fits(model, prompt, max_new_tokens)]
    if long and not skip_long:
        raise UserError(f"a prompt of {len(prompts[long[0]])} tokens ({seeds[long[0]]}: seed/item/sample) and {max_new_tokens} "
                        f"new ones exceed the model's {model.config.max_position_embeddings}; shorten or drop that item, lower "
                        "--max_new_tokens, use --template compact, or pass --skip_bad")
    was_training = model.training
    # Pitfalls: dropout would make the ratio of GRPO differ from 1, and gradient checkpointing drops the cache;
    # both are in force in training mode only.
    model.eval()
    token_budget = token_budget or int(os.environ.get("SPCT_TOKEN_BUDGET", 0)) or (
        400_000 if next(model.parameters()).is_cuda else 64_000)
    order = sorted(set(range(len(prompts))) - set(long), key=lambda r: (len(prompts[r]), prompts[r]))
    rows, done = [Row([], [], False, "too_long", "") for _ in prompts], 0
    try:
        sharing = bool(order) and shares_prompts(model, len(prompts[order[-1]]))
        with tqdm(total=len(order), desc="judgments", unit="", disable=not progress) as bar:
            while done < len(order):
                batch, copies = [], 0
                while done < len(order):
                    prompt = prompts[order[done]]  # the longest of the batch so far
                    copies += not (sharing and batch and prompt == prompts[batch[-1]])
                    if batch and copies * len(prompt) + (len(batch) + 1) * max_new_tokens > token_budget:
                        break
                    batch.append(order[done])
                    done += 1
                for r, row in zip(batch, generate_batch(model, tokenizer, [prompts[r] for r in batch], temperature,
                                                        max_new_tokens, [seeds[r] for r in batch], sharing), strict=True):
                    rows[r] = row
                bar.update(len(batch))
    finally:
        model.train(was_training)
    return say_skipped(rows)


def fits(model, prompt, max_new_tokens):
    room = getattr(model.config, "max_position_embeddings", None)
    return not room or len(prompt) + max_new_tokens <= room


def say_skipped(rows):
    skipped = sum(row.why == "too_long" for row in rows)
    if skipped:
        tqdm.write(f"{skipped} of {len(rows)} prompts do not fit the model: not judged, counted as unparsed (too_long)")
    return rows


def prefill(model, distinct, pad_id):
    """Keys and values of the distinct prompts, and the logits after their last token.

    The prefix that all of them share is computed once. Layout: [left padding][shared prefix][rest of the prompt].
    Pitfall: a sliding window counts places in the cache, so padding may stand on the left only. The last tokens of
    the prefix are computed again where a prompt is shorter than the longest, in places that would hold padding anyway.
    Returns cache, attention mask (U, W), logits (U, V), length of the shared prefix.
    """
    device = next(model.parameters()).device
    shortest = min(map(len, distinct))
    shared = 0
    while len(distinct) > 1 and shared < shortest - 1 and len({p[shared] for p in distinct}) == 1:
        shared += 1
    width = max(map(len, distinct))
    rest = width - shared
    ids = torch.tensor([[pad_id] * (rest - len(p)) + p[-rest:] for p in distinct], device=device)         # (U, R)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in distinct], device=device)         # (U, W)
    cache = DynamicCache()
    if shared:
        prefix = torch.tensor([distinct[0][:shared]], device=device)                                      # (1, shared)
        backbone(model)(input_ids=prefix, past_key_values=cache, use_cache=True)
        places = torch.arange(shared, device=device) - (width - mask.sum(1, keepdim=True))                # (U, shared)
        for layer in cache.layers:
            layer.keys, layer.values = (x[0][:, places.clamp(min=0)].transpose(0, 1) for x in (layer.keys, layer.values))
        cache = buffer_cache(cache, slice(None), rest)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]                                             # (U, R)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1)
    return cache, mask, out.logits[:, -1].float(), shared


def backbone(model):
    """The transformer without its vocabulary projection."""
    return getattr(model, model.base_model_prefix)


def generate_batch(model, tokenizer, prompts, temperature, max_new_tokens, seeds, sharing):
    device = next(model.parameters()).device
    distinct = sorted({tuple(p) for p in prompts}, key=lambda p: (len(p), p))
    index = {p: i for i, p in enumerate(distinct)}
    cache, mask, logits, shared = prefill(model, [list(p) for p in distinct], tokenizer.pad_token_id or 0)
    source = torch.tensor([index[tuple(p)] for p in prompts], device=device)              # (B,) row -> distinct prompt
    alive = torch.arange(len(prompts), device=device)                                     # (b,) rows still in the batch
    parts, attention = None, model.config._attn_implementation
    if sharing:
        parts, attention = SharedPrompts(cache, shared, mask.sum(1)), "parts"
        parts.arrange(source)
    cache = buffer_cache(cache, source, max_new_tokens, 0 if parts else None)
    mask, logits = mask[source], logits[source]
    ends = torch.tensor(end_token_ids(model, tokenizer), device=device)
    draws = torch.from_numpy(np.stack([uniforms(s, max_new_tokens) for s in seeds])).to(device)           # (B, T)
    length = mask.sum(1)                                                                  # (B,) next position
    width = mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(len(prompts), max_new_tokens)], dim=1)          # (B, W + T)
    ids = torch.full((len(prompts), max_new_tokens), -1, device=device)                   # (B, T)
    logps = torch.zeros(len(prompts), max_new_tokens, device=device)                      # (B, T) nats
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        token, logp = choose(logits, temperature, draws[alive, t])                        # (b,) each
        ids[alive, t], logps[alive, t] = token, logp
        finished[alive[torch.isin(token, ends)]] = True
        ended = finished[alive]                                                           # (b,)
        if t + 1 == max_new_tokens or bool(ended.all()):
            break
        if ended.float().mean() > 0.2:  # a copy of the cache costs a few steps, so finished rows leave in groups
            keep = (~ended).nonzero()[:, 0]
            if parts:
                parts.arrange(parts.source[keep])
            for layer in cache.layers:
                layer.select(keep)
            alive, token = alive[keep], token[keep]
        positions = length[alive] + t                                                     # (b,)
        seen = {"shared": parts.at(positions)} if parts else {"attention_mask": mask[alive, :width + t + 1]}
        with attention_of(model, attention):
            out = model(input_ids=token[:, None], position_ids=positions[:, None], past_key_values=cache, use_cache=True,
                        logits_to_keep=1, **seen)
        logits = out.logits[:, -1].float()                                                # (b, V)
    if torch.isnan(logps).any():
        raise UserError("the judge's probabilities are not numbers (NaN): its weights are broken or overflow in this precision")
    is_end = torch.isin(ids, ends).int()                                                  # (B, T)
    counts = torch.where(finished, is_end.argmax(1) + 1, max_new_tokens).tolist()         # up to the first end token
    return [Row(i[:c], p[:c], f) for i, p, f, c in zip(ids.tolist(), logps.tolist(), finished.tolist(), counts, strict=True)]


def choose(logits, temperature, draws):
    """Tokens (b,) and their log-probabilities (b,) nats, of logits (b, V) and random numbers (b,) in [0, 1)."""
    if temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    chosen = []
    for part, u in zip(logits.split(64), draws.split(64), strict=True):  # bounds the copies of a large vocabulary
        logp = (part / temperature).log_softmax(-1)                                       # (64, V)
        cumulative = logp.exp().double().cumsum(-1)                                       # inverse-CDF sampling
        token = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        chosen.append((token[:, 0], logp.gather(1, token)[:, 0]))
    return [torch.cat(x) for x in zip(*chosen, strict=True)]


# ----- log-probabilities of completions, with gradient -----

class TokenLogp(torch.nn.Module):
    """log pi(o_t | q, o_<t) of completions, the prompt of a group computed once, the vocabulary in chunks.

    A group of G completions shares its prompt: P + G*T tokens go through the model instead of G*(P + T); keys and values
    of the prompt are repeated with their gradient, so the gradient is the same (a test proves it).
    Pitfall: everything is inside one forward(), so that DDP sees it and averages the gradients.
    Pitfall: gradient checkpointing drops the cache in train mode; then each completion carries its own prompt.
    """
    def __init__(self, model, pad_id, chunk=2048):
        super().__init__()
        self.model, self.pad_id, self.chunk = model, pad_id, chunk
        for module in model.modules():  # Pitfall: dropout in the update would make the ratio of GRPO differ from 1
            for name in {"p", "dropout", "attention_dropout"} & vars(module).keys():
                if isinstance(getattr(module, name), float):
                    setattr(module, name, 0.0)

    def forward(self, prompts, completions, temperature=1.0):
        """Args: prompts: Q token lists.  completions: Q*G token lists, group after group.  temperature > 0 as sampled.

        Returns: logp (B, T) nats, entropy (B, T) nats without gradient, mask (B, T) bool; 0 / 0 / False on padding.
        """
        device = next(self.model.parameters()).device
        group = len(completions) // len(prompts)
        if getattr(self.model, "is_activation_checkpointing", False) and self.model.training:
            prompts, group = [p for p in prompts for _ in range(group)], 1
            hidden = self.whole_rows(prompts, completions, device)
        else:
            source = [q for q in range(len(prompts)) for _ in range(group)]
            hidden = completion_states(self.model, prompts, completions, source, self.pad_id)                # (B, T, D)
        width = hidden.shape[1]
        target = torch.tensor([c + [self.pad_id] * (width - len(c)) for c in completions], device=device)     # (B, T)
        # Pitfall: the mask comes from lengths, never from token values; pad may be the end token.
        mask = torch.tensor([[True] * len(c) + [False] * (width - len(c)) for c in completions], device=device)
        flat, ids = hidden[mask], target[mask]                                                               # (N, D), (N,)
        # Pitfall: (N, V) logits are never held at once; each chunk is recomputed in the backward pass.
        parts = [torch.utils.checkpoint.checkpoint(self.project, flat[i:i + self.chunk], ids[i:i + self.chunk], temperature,
                                                   use_reentrant=False) for i in range(0, len(ids), self.chunk)]
        logp = torch.zeros(mask.shape, device=device).masked_scatter(mask, torch.cat([p[0] for p in parts]))
        entropy = torch.zeros(mask.shape, device=device).masked_scatter(mask, torch.cat([p[1] for p in parts]))
        return logp, entropy, mask

    def project(self, hidden, ids, temperature):
        logits = self.model.get_output_embeddings()(hidden).float()                                          # (N, V)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        if cap:  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        # Pitfall: the log-probabilities of the tempered distribution that was sampled from.
        logp = (logits / temperature).log_softmax(-1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, ids[:, None])[:, 0], entropy

    def whole_rows(self, prompts, completions, device):
        width = max(map(len, completions))
        rows = [p + c + [self.pad_id] * (width - len(c)) for p, c in zip(prompts, completions, strict=True)]
        ids, mask = left_pad(rows, self.pad_id, device)                                                      # (B, P + T)
        for r, c in enumerate(completions):
            mask[r, mask.shape[1] - width + len(c):] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = backbone(self.model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return hidden.last_hidden_state[:, -width - 1:-1]


def completion_states(model, prompts, completions, source, pad_id):
    """Hidden states (B, T, D) at the positions that predict each completion token; every prompt is computed once.

    Row r of the B completions continues prompts[source[r]]. Position 0 is the prompt's last token.
    """
    device = next(model.parameters()).device
    ids, mask = left_pad(prompts, pad_id, device)                                                            # (Q, P)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = backbone(model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True,
                          past_key_values=DynamicCache())
    source = torch.tensor(source, device=device)
    last = out.last_hidden_state[:, -1:][source]                                                             # (B, 1, D)
    width = max(map(len, completions))
    if width == 1:
        return last
    cache = DynamicCache()
    for i, layer in enumerate(out.past_key_values.layers):
        cache.update(layer.keys[source], layer.values[source], i)
    inputs = torch.tensor([(c + [pad_id] * (width - len(c)))[:-1] for c in completions], device=device)       # (B, T-1)
    ones = torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in completions], device=device)[:, :-1]
    start = mask.sum(1)[source, None]                                                                        # (B, 1)
    rest = backbone(model)(
        input_ids=inputs, attention_mask=torch.cat([mask[source], ones], 1), use_cache=True, past_key_values=cache,
        position_ids=start + torch.arange(width - 1, device=device))
    return torch.cat([last, rest.last_hidden_state], 1)


def left_pad(rows, pad_id, device):
    """ids and attention mask (B, L), padding on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask
