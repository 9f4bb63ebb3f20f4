"""How models are loaded and many judgments are generated fast; nothing of the paper is in here.

Parallel sampling is what the paper scales, and judgments share most of their input, so:
  - every distinct prefix is computed once: the preamble of all prompts, then each distinct prompt;
  - on a CPU their keys and values are read once per token for all samples, on a GPU a token is one
    recorded sequence of kernels (decoding.py);
  - finished rows leave the batch; prompts are sorted by length; the vocabulary projection runs on
    the last token only;
  - each row draws its own random numbers, so a judgment depends on its seed and prompt, not on its
    neighbours.
"""
import dataclasses
import hashlib
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import torch
from jinja2 import TemplateError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from plumbing.decoding import ROWS, kind_of_rows, plain_attention
from plumbing.runs import UserError, content, default_device, first_line, in_bf16, read_json

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# A base model without a chat template gets this one (Choice; printed when it happens).
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ '### ' + m['role'].capitalize() + '\n' + m['content'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant\n' }}{% endif %}")


told = set()  # models for which the line about the template was printed

TOKENS_ON_A_GPU = 8192  # of a micro-batch of RL, if --micro_batch_size is not given


# ----- loading -----

def find_model(name):
    """Words for `from_pretrained` of a hub id, a local folder or a .gguf file. Raises UserError."""
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {name} does not exist")
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"model {name}: reading .gguf files needs one more package; "
                            "pip install gguf")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.exists():
        if (path / "model" / "config.json").is_file():
            raise UserError(f"model {name} is the folder of a run; did you mean {name}/model?")
        if not (path / "config.json").is_file():
            raise UserError(f"model {name}: no config.json in it, so it is no Hugging Face model "
                            "folder; give one")
        if {"args", "script"} <= set(read_json(path / "config.json")):
            raise UserError(f"model {name} is the folder of a run that has no model in it (yet); a "
                            "training run writes one when it ends")
    elif (path.is_absolute() or str(name).startswith(".") or str(name).count("/") > 1
            or path.parts[:1] == ("runs",)):  # no hub id: a run that is not there
        raise UserError(f"model {name} does not exist")
    return {"pretrained_model_name_or_path": name}


def load_tokenizer(name):
    """Tokenizer of a model, with a chat template and a pad token, padding on the left."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(**find_model(name))
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("its vocabulary is empty")
    except UserError:
        raise
    except Exception as error:  # the library raises many types here
        raise UserError(f"model {name}: no tokenizer could be loaded ({first_line(error)}); "
                        "save the tokenizer into the same folder") from None
    if tokenizer.chat_template is None:
        if name not in told:
            told.add(name)
            print(f"{name} has no chat template; using a plain built-in one")
        # Pitfall: chats are tokenised without the tokenizer's own BOS, so the template has to write
        # it (Gemma needs it).
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {name}: its tokenizer has no end token, so no judgment would ever "
                        "end; name one as eos_token in its tokenizer_config.json")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(name, device=None, dtype=None, auto_class=AutoModelForCausalLM, **options):
    """(model, tokenizer) of a hub id, a local folder or a .gguf file, in eval mode.

    dtype defaults to bf16 on a GPU and fp32 on a CPU (runs.in_bf16). The environment variable
    SPCT_ATTN chooses the library's attn_implementation. Raises UserError naming what is missing.
    """
    # Pitfall: cuDNN's attention, the default on an H100, gives NaN gradients for some lengths
    # (pytorch #196678): RL died at step 14.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if os.environ.get("SPCT_ATTN"):
        options.setdefault("attn_implementation", os.environ["SPCT_ATTN"])
    device = device or default_device()
    dtype = dtype or (torch.bfloat16 if in_bf16(device) else torch.float32)
    tokenizer, where = load_tokenizer(name), find_model(name)
    try:
        # Pitfall: weights in any other format than safetensors could run code when loaded.
        model = auto_class.from_pretrained(dtype=dtype, use_safetensors=True, **where, **options)
    except Exception as error:  # here too
        raise UserError(f"model {name} could not be loaded ({first_line(error)})") from None
    refuse_states(name, model)
    if getattr(model, "hf_quantizer", None):
        # A .gguf is dequantised now. Pitfall: with these marks saving and training refuse.
        model.hf_quantizer.remove_quantization_config(model)
    if getattr(model, "generation_config", None) is not None:  # saved with what is trained
        ends = end_token_ids(model, tokenizer)
        model.generation_config.eos_token_id = ends if len(ends) != 1 else ends[0]
    return model.to(device).eval(), tokenizer


def refuse_states(name, model):
    """Raises UserError unless all that a layer remembers is keys and values, one pair per token.

    Pitfall: a recurrent or convolutional layer keeps a state instead. It cannot be cut after a
    shared prefix, and it takes left padding for text.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    other = kinds - {"full_attention", "sliding_attention", "chunked_attention"}
    if other or model._is_stateful and not kinds:
        raise UserError(f"model {name}: layers of {config.model_type} keep a state "
                        f"({', '.join(sorted(other)) or 'recurrent'}), and here only layers of "
                        "attention can be sampled and trained; give another --model, or ask this "
                        "one through a server, --endpoint")


def end_token_ids(model, tokenizer):
    """All ids that end a turn. Pitfall: many models have several, the tokenizer knows only one."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    own = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    return sorted(set(ids) | own)


def fingerprint(folder):
    """Names the weights of a meta RM by their content (of large files 256 blocks).

    Why: logits are kept beside the samples. A meta RM trained again at the same path must not be
    taken for the one that gave them.
    """
    find_model(folder)  # a run's folder, for example, is told
    files, config = list(Path(folder).glob("*.safetensors")), Path(folder) / "config.json"
    kind = (read_json(config).get("architectures") or [""])[0] if config.exists() else ""
    # Pitfall: transformers gives a judge without a scalar head a random one, and says so nowhere.
    if not files or not kind.endswith("ForSequenceClassification"):
        raise UserError(f"meta RM {folder}: not the folder of a model with a scalar head; run "
                        "meta_rm.py and give its model folder as --meta_rm")
    return content(folder)


# ----- chats -> token ids -----

THOUGHT = ("<think>", "</think>")  # what a judge that thinks aloud writes around its thoughts


def encode_chat(tokenizer, messages, completion=None, own=False, thinking=None):
    """Token ids of the chat up to where the assistant writes.

    With `completion`: (those ids, ids of its text and the end token). own: a judge of ours wrote
    it, so the tags of its thoughts are its own.  thinking: see `render_chat`.
    """
    ids = token_ids(tokenizer, render_chat(tokenizer, messages, thinking))
    if completion is None:
        return ids
    text = harmless(tokenizer, completion, THOUGHT if own else ())
    return ids, token_ids(tokenizer, text) + [tokenizer.eos_token_id]


def token_ids(tokenizer, text):
    """Ids of a text as it is. Words that the tokenizer does not know are told, once."""
    # Pitfall: the template writes the BOS token itself; the tokenizer must not add a second one.
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if unknown in ids and unknown != tokenizer.eos_token_id and tokenizer.is_fast and (
            not hasattr(tokenizer, "_told_unknown")):
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        words = dict.fromkeys(text[start:end] for token, (start, end) in zip(
            ids, places["offset_mapping"], strict=True) if token == unknown)
        tqdm.write(f"WARNING: the model's tokenizer does not know {len(words)} words of a text and "
                   f"reads each as {tokenizer.unk_token}: {', '.join(map(repr, [*words][:8]))}")
        tokenizer._told_unknown = True
    return ids


def harmless(tokenizer, text, keep=()):
    """The text with a space in each special token: they exist only where the template puts them.

    keep: those that stay, see `special_tokens`.
    """
    special = special_tokens(tokenizer, keep)
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)

    def disarm(text):
        while special.search(text):  # again, because breaking one token may leave another
            text = special.sub(lambda m: m[0][0] + " " + m[0][1:], text)
        return text
    text = disarm(text.encode("utf-8", "ignore").decode())  # half a surrogate pair is no text
    normal = normalizer.normalize_str(text) if normalizer else text
    # the tokenizer's own normalizer may make a token, of fullwidth letters for example
    return disarm(normal) if special.search(normal) else text


def thinking_switch(thinking):
    """What a chat template is told: "on" and True, "off" and False mean the same; None: nothing.

    >>> thinking_switch("off"), thinking_switch(True), thinking_switch(None)
    ({'enable_thinking': False}, {'enable_thinking': True}, {})
    """
    if thinking is None:
        return {}
    if not isinstance(thinking, bool) and thinking not in ("on", "off"):
        raise UserError(f"thinking={thinking!r}: choose 'on', 'off' or None")
    return {"enable_thinking": thinking in (True, "on")}


def render_chat(tokenizer, messages, thinking=None):
    """The chat's text by the tokenizer's template, up to where the assistant writes.

    thinking: see `thinking_switch`, for a template that has `enable_thinking`.
    Choice: a template may know no system turn (Gemma), or want turns that alternate, the user's
    first. Then neighbours are joined, a system turn to the user's turn, and an answer that opens
    the chat gets an empty user turn before it. Raises UserError if that does not help.
    """
    problem, switch = "", thinking_switch(thinking)
    if switch and "enable_thinking" not in tokenizer.chat_template:
        raise UserError("--thinking: the model's chat template has no switch enable_thinking; "
                        "leave the flag out")

    def render(turns):
        nonlocal problem
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True,
                                                 **switch)
        except TemplateError as error:
            problem = first_line(error)
    messages = [{**m, "content": harmless(tokenizer, m["content"])} for m in messages]
    text = render(messages)
    system = [m["content"].strip() for m in messages if m["role"] == "system"]
    if system and text:  # some templates leave it out, or write it as if it were an answer
        answered = render([m if m["role"] == "user" else {**m, "role": "assistant"}
                           for m in messages])
        if text == answered or not all(content in text for content in system):
            text = None
    if text is None:
        turns = []
        for m in messages:
            role = "assistant" if m["role"] == "assistant" else "user"
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += "\n" + m["content"]
            else:
                turns += [{"role": "user", "content": ""}] * (not turns and role == "assistant")
                turns.append({"role": role, "content": m["content"]})
        text = render(turns)
    if text is None:
        raise UserError(f"the model's chat template refuses a chat ({problem}); mend the template "
                        "in the model's folder, or leave the chat out")
    return text


def special_tokens(tokenizer, keep=()):
    """A regular expression for the tokenizer's special tokens and those of its chat template, but
    not for those in `keep`."""
    template = tokenizer.chat_template or ""
    made_for, special = getattr(tokenizer, "_special_in_text", (None, None))
    if made_for != (template, keep):
        tokens = {t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()
                  and len(t.content) > 1 and (t.special or t.content in template)} - set(keep)
        longest_first = sorted(tokens, key=len, reverse=True)
        special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        tokenizer._special_in_text = ((template, keep), special)
    return special


# ----- generation -----

@dataclasses.dataclass
class Completion:
    """What a judge, local or served, wrote behind one prompt."""
    ids: list            # sampled token ids, with the end token if it was reached; [] if served
    logp: list           # nats, of each id under the tempered distribution it was drawn from
    finished: bool       # ended by an end token
    why: str = "truncated"  # if not finished; or one of REMARKS
    text: str = ""
    prompt_ids: list = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    prompt: str = ""     # as it was sent: by the chat template; to a server the message


# What is said of completions whose `why` is one of these.
REMARKS = {
    "too_long": "prompts do not fit the model: not judged, counted as unparsed (too_long)",
    "filtered": "prompts or judgments met the server's content filter: counted as unparsed "
                "(filtered)",
    "thoughts": "answers of the server are thoughts only (no content, but reasoning_content): they "
                "are read as the judgments"}


def complete(judge, tokenizer, chats, temperature, max_new_tokens, seeds, skip_long=False,
             thinking=None):
    """One Completion per chat (messages), same order. thinking: see `render_chat`.

    Raises UserError on a prompt that does not fit the model, unless `skip_long`.
    judge: a local model, or a served one (served.py), which has its own tokenizer.
    """
    if hasattr(judge, "complete"):
        asked = {} if thinking is None else {"thinking": thinking}
        found = judge.complete(chats, temperature, max_new_tokens, seeds, skip_long, **asked)
    else:
        texts = [render_chat(tokenizer, chat, thinking) for chat in chats]
        prompts = [token_ids(tokenizer, text) for text in texts]
        found = generate(judge, tokenizer, prompts, temperature, max_new_tokens, seeds,
                         skip_long=skip_long)
        for completion, text, ids in zip(found, texts, prompts, strict=True):
            # Pitfall: only what was generated is decoded, so what a response quotes is never parsed
            completion.text = decode(tokenizer, completion.ids)
            completion.prompt, completion.prompt_ids = text, ids
            completion.prompt_tokens, completion.tokens = len(ids), len(completion.ids)
    for why, said in REMARKS.items():
        count = sum(completion.why == why for completion in found)
        if count:
            tqdm.write(f"{count} of {len(found)} {said}")
    return found


def decode(tokenizer, ids):
    """The text of sampled ids without special tokens; the tags of thoughts stay, also where the
    tokenizer calls them special: a box inside a thought would else be taken for the verdict."""
    added = tokenizer.added_tokens_decoder.items()
    if any(t.special and t.content in THOUGHT for _, t in added):
        special = {i for i, t in added if t.special and t.content not in THOUGHT}
        return tokenizer.decode([i for i in ids if i not in special])
    return tokenizer.decode(ids, skip_special_tokens=True)


def uniforms(seed, count):
    """`count` numbers in [0, 1) that depend on the seed text alone."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key)).random(count)


def fits(model, prompt, max_new_tokens):
    room = getattr(model.config, "max_position_embeddings", None)
    return not room or len(prompt) + max_new_tokens <= room


def exceeds(model, prompt, max_new_tokens, item):
    """The UserError of a prompt (token ids) that does not fit; `item` says whose it is."""
    return UserError(f"{item}: its prompt of {len(prompt)} tokens and {max_new_tokens} new ones "
                     f"exceed the model's {model.config.max_position_embeddings}; shorten or drop "
                     "it, lower --max_new_tokens, use --template compact, or pass --skip_bad")


def drop_long(examples, prompt_of, model, tokenizer, args, accelerator):
    """The items whose prompt fits the model; the others raise UserError unless --skip_bad.

    prompt_of: (example, args) -> messages.
    """
    def long(e):
        ids = encode_chat(tokenizer, prompt_of(e, args), thinking=args.thinking)
        return None if fits(model, ids, args.max_new_tokens) else ids
    dropped = {e.id: ids for e in examples if (ids := long(e))}
    if dropped and (not args.skip_bad or len(dropped) == len(examples)):
        item, ids = min(dropped.items())
        raise exceeds(model, ids, args.max_new_tokens,
                      f"{len(dropped)} of {len(examples)} items, item {item} for example")
    if dropped:
        accelerator.print(f"{len(dropped)} of {len(examples)} items dropped: their prompts do not "
                          "fit the model")
    return [e for e in examples if e.id not in dropped]


@torch.no_grad()
def generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, token_budget=None,
             skip_long=False):
    """One Completion (ids, logp, finished) per prompt (token ids), same order.

    temperature 0 takes the most likely token. Row r draws with the random numbers of seeds[r].
    token_budget: tokens (prompts + completions) held at once; decides the batch size.
    skip_long: a prompt that does not fit gives an empty completion instead of a UserError.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise UserError("--max_new_tokens must be at least 1 and --temperature at least 0")
    long = [r for r, prompt in enumerate(prompts) if not fits(model, prompt, max_new_tokens)]
    if long and not skip_long:
        raise exceeds(model, prompts[long[0]], max_new_tokens,
                      f"{seeds[long[0]]} (seed/item/sample)")
    was_training = model.training
    # Pitfalls: dropout would make the ratio of GRPO differ from 1, and gradient checkpointing drops
    # the cache; both are in force in training mode only.
    model.eval()
    fitting = set(range(len(prompts))) - set(long)
    order = sorted(fitting, key=lambda r: (len(prompts[r]), prompts[r]))
    rows, done = [Completion([], [], False, "too_long") for _ in prompts], 0
    kind = kind_of_rows(model) if order else None
    budget = token_budget or int(os.environ.get("SPCT_TOKEN_BUDGET", 0)) or tokens_that_fit(model)

    def fill(batch):
        try:
            found = generate_batch(model, tokenizer, [prompts[r] for r in batch], temperature,
                                   max_new_tokens, [seeds[r] for r in batch], kind)
        except RuntimeError as error:  # while a graph is recorded another error may cover it
            if not isinstance(error, torch.OutOfMemoryError) and not isinstance(
                    error.__context__, torch.OutOfMemoryError):
                raise
            if len(batch) == 1:
                raise UserError("one judgment alone does not fit the GPU's memory; use a smaller "
                                "--model, or lower --max_new_tokens") from None
            found = None  # outside of `except`, which keeps the tensors of the failed try alive
        if found is None:
            half = len(batch) // 2
            fill(batch[:half])
            fill(batch[half:])
        else:
            for r, row in zip(batch, found, strict=True):
                rows[r] = row
    try:
        while done < len(order):
            batch, copies = [], 0
            while done < len(order):
                prompt = prompts[order[done]]  # the longest of the batch so far
                copies += not (kind == "parts" and batch and prompt == prompts[batch[-1]])
                needed = copies * len(prompt) + (len(batch) + 1) * max_new_tokens
                if batch and needed > budget:
                    break
                batch.append(order[done])
                done += 1
            fill(batch)
    finally:
        model.train(was_training)
    return rows


def tokens_that_fit(model):
    """Tokens of keys and values to hold at once: half of a GPU's free memory; on a CPU 64,000."""
    if not next(model.parameters()).is_cuda:
        return 64_000
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize  # bytes of a token
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int((torch.cuda.mem_get_info()[0] + unused) / 2 / size)


def pack_prompts(prompts, pad_id, device):
    """U token lists as tensors: {"prefix": (1, S) ids that all begin with, or None; "rest": (U,
    W - S), the last W - S ids of each, padded on the left; "lengths": (U,); W is the longest}."""
    shortest, shared = min(map(len, prompts)), 0
    while len(prompts) > 1 and shared < shortest - 1 and len({p[shared] for p in prompts}) == 1:
        shared += 1
    return {"prefix": torch.tensor([prompts[0][:shared]], device=device) if shared else None,
            "rest": left_pad(prompts, pad_id, device)[0][:, shared:],
            "lengths": torch.tensor([len(p) for p in prompts], device=device)}


def prefill(model, forward, prompts, **options):
    """Keys and values of U prompts, and what `forward` (the model, or its backbone) gives for their
    last tokens. The prefix that all share is computed once.

    Layout of the W places: [left padding][shared prefix][rest].
    Pitfall: a sliding window counts places in the cache, so padding may stand on the left only.
    The last tokens of the prefix are computed again where a prompt is shorter than the longest, in
    places that would hold padding anyway.
    prompts: of pack_prompts.  Returns cache, mask (U, W) bool, and the output for the rest.
    """
    prefix, rest, lengths = prompts["prefix"], prompts["rest"], prompts["lengths"]
    shared = 0 if prefix is None else prefix.shape[1]
    width = shared + rest.shape[1]
    places = torch.arange(width, device=lengths.device) - (width - lengths[:, None])  # (U, W)
    cache, mask = DynamicCache(), places >= 0
    if shared:
        backbone(model)(input_ids=prefix, cache=cache, use_cache=True)
        chosen = places[:, :shared].clamp(min=0)                                 # (U, shared)
        for layer in cache.layers:
            layer.keys, layer.values = (
                x[0][:, chosen].transpose(0, 1) for x in (layer.keys, layer.values))
    out = forward(input_ids=rest, position_ids=places[:, shared:].clamp(min=0), cache=cache,
                  attention_mask=seen_by(model, mask, rest.shape[1]), use_cache=True, **options)
    return cache, mask, out


def seen_by(model, mask, last):
    """The attention mask of the last tokens of rows whose real tokens are mask (B, L) bool.

    Where the library needs no more than who sees what, (B, 1, last, L), it is made here. Pitfall:
    of a mask (B, L) the library asks at each pass whether it hides anything, and a GPU has to
    finish all its work for the answer.
    """
    if not plain_attention(model):
        return mask.long()
    L = mask.shape[1]
    causal = torch.ones(last, L, dtype=torch.bool, device=mask.device).tril(L - last)
    return (causal & mask[:, None, :])[:, None]


def backbone(model):
    """The transformer without its vocabulary projection."""
    return getattr(model, model.base_model_prefix)


def generate_batch(model, tokenizer, prompts, temperature, max_new_tokens, seeds, kind):
    """Completions of one batch: prompts once each, then token by token until all rows have ended.

    kind: how the rows keep their keys and values, a name of decoding.ROWS.
    """
    device = next(model.parameters()).device
    distinct = sorted({tuple(p) for p in prompts}, key=lambda p: (len(p), p))
    index = {p: i for i, p in enumerate(distinct)}
    packed = pack_prompts([list(p) for p in distinct], tokenizer.pad_token_id or 0, device)
    cache, mask, out = prefill(model, model, packed, logits_to_keep=1)
    source = torch.tensor([index[tuple(p)] for p in prompts], device=device)     # (B,) -> distinct
    logits = out.logits[:, -1].float()[source]                                   # (B, V)
    rows = ROWS[kind](model, cache, mask, source, max_new_tokens, packed)
    del cache, out
    ends = torch.tensor(end_token_ids(model, tokenizer), device=device)
    draws = np.stack([uniforms(s, max_new_tokens) for s in seeds])
    draws = torch.from_numpy(draws).to(device)                                   # (B, T)
    alive = torch.arange(len(prompts), device=device)        # (b,) rows still in the batch
    ids = torch.full((len(prompts), max_new_tokens), -1, device=device)          # (B, T)
    logps = torch.zeros(len(prompts), max_new_tokens, device=device)             # (B, T) nats
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        token, logp = choose(logits, temperature, draws[alive, t])               # (b,) each
        ids[alive, t], logps[alive, t] = token, logp
        finished[alive] |= (token[:, None] == ends).any(1)
        if t + 1 == max_new_tokens:
            break
        if (t + 1) % rows.look == 0:
            ended = finished[alive]                                              # (b,)
            count = int(ended.sum())
            if count == len(alive):
                break
            if rows.worth_leaving(count, max_new_tokens - t - 1):
                keep = (~ended).nonzero()[:, 0]
                rows.keep(keep)
                alive, token = alive[keep], token[keep]
        logits = rows.step(token)                                                # (b, V)
    if torch.isnan(logps).any():
        raise UserError("the judge's probabilities are not numbers (NaN): its weights are broken "
                        "or overflow in this precision")
    is_end = torch.isin(ids, ends).int()                                         # (B, T)
    # up to the first end token
    counts = torch.where(finished, is_end.argmax(1) + 1, max_new_tokens).tolist()
    return [Completion(i[:c], p[:c], f) for i, p, f, c in
            zip(ids.tolist(), logps.tolist(), finished.tolist(), counts, strict=True)]


def choose(logits, temperature, draws):
    """Tokens (b,) and their logp (b,) nats, of logits (b, V) and random numbers (b,) in [0, 1)."""
    if temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    chosen, last = [], logits.shape[-1] - 1
    # Bounds the copies of a large vocabulary; on a CPU they should also fit its caches.
    size = max(1, 2**(24 if logits.is_cuda else 20) // logits.shape[-1])
    for part, u in zip(logits.split(size), draws.split(size), strict=True):
        logp = (part / temperature).log_softmax(-1)                              # (size, V)
        cumulative = logp.exp().double().cumsum(-1)                              # inverse CDF
        token = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)
        token = token.clamp(max=last)
        chosen.append((token[:, 0], logp.gather(1, token)[:, 0]))
    return [torch.cat(x) for x in zip(*chosen, strict=True)]


# ----- logits of completions, with gradient: what Eq. 15 is computed from -----

class CompletionLogits(torch.nn.Module):
    """Applies a function to the logits at every completion token, a chunk of tokens at a time.

    A group of G completions shares its prompt: P + G*T tokens go through the model, not G*(P + T),
    and the preamble of all prompts goes through it once. Keys and values are repeated with their
    gradient, so the gradient is the same (tested).
    Pitfall: everything is inside one forward(), so that DDP sees it and averages the gradients.
    Pitfall: gradient checkpointing drops the cache in train mode; then each completion carries its
    own prompt.
    Pitfall: nothing in here may need a number from the GPU, or Python waits for it at every
    micro-batch; so tensors are made by `pack` before, all sizes from lists.
    """
    def __init__(self, model, pad_id, chunk=2048):
        super().__init__()
        self.model, self.pad_id, self.chunk = model, pad_id, chunk
        self.scale = logit_scale(model)
        # Pitfall: dropout in the update would make the ratio of GRPO differ from 1
        for module in model.modules():
            for name in {"p", "dropout", "attention_dropout"} & vars(module).keys():
                if isinstance(getattr(module, name), float):
                    setattr(module, name, 0.0)

    def pack(self, prompts, completions):
        """The tensors that forward() takes, of Q prompts and Q*G completions, group after group.

        prompts, completions: token lists.  "places": (N,) where the N tokens stand in (B, T).
        """
        device, group = next(self.model.parameters()).device, len(completions) // len(prompts)
        checkpointing = getattr(self.model, "is_activation_checkpointing", False)
        T = max(map(len, completions))
        batch = {"completions": right_pad(completions, self.pad_id, device),     # (B, T) each
                 "places": torch.tensor([r * T + t for r, c in enumerate(completions)
                                         for t in range(len(c))], device=device)}
        if checkpointing:
            rows = [prompts[r // group] + c for r, c in enumerate(completions)]
            return batch | {"rows": right_pad(rows, self.pad_id, device),        # (B, P + T) each
                            "starts": torch.tensor([len(row) - len(c) for row, c in
                                                    zip(rows, completions)], device=device)}
        return batch | {"prompts": pack_prompts(prompts, self.pad_id, device),
                        "source": torch.arange(len(prompts), device=device)
                        .repeat_interleave(group, output_size=len(completions))}

    def forward(self, batch, function):
        """function(logits (N, V) fp32, ids (N,)) -> tuple of (N,), applied to N tokens at a time.

        batch: of pack(). Returns a tuple of (B, T), 0 on padding, and the mask (B, T) bool.
        """
        (target, mask), places = batch["completions"], batch["places"]
        states = whole_states if "rows" in batch else completion_states
        hidden = states(self.model, batch).flatten(0, 1)[places]                 # (N, D)
        ids = target.flatten()[places]                                           # (N,)

        def project(hidden, ids):
            return function(head_logits(self.model, hidden, self.scale), ids)
        # Pitfall: (N, V) logits are never held at once; the backward pass makes each chunk again.
        parts = [torch.utils.checkpoint.checkpoint(
            project, hidden[i:i + self.chunk], ids[i:i + self.chunk], use_reentrant=False,
            preserve_rng_state=False) for i in range(0, len(ids), self.chunk)]
        zero = torch.zeros(mask.numel(), device=mask.device)
        found = [zero.index_copy(0, places, torch.cat(x)).view(mask.shape)
                 for x in zip(*parts, strict=True)]                              # (B, T) each
        return *found, mask


def whole_states(model, batch):
    """As completion_states, each row with a prompt of its own. Nothing is shared or cached."""
    (ids, real), starts, T = batch["rows"], batch["starts"], batch["completions"][0].shape[1]
    hidden = backbone(model)(input_ids=ids, attention_mask=seen_by(model, real, ids.shape[1]),
                             use_cache=False).last_hidden_state
    places = starts[:, None] - 1 + torch.arange(T, device=ids.device)            # (B, T)
    places = places.clamp(max=ids.shape[1] - 1)  # only of padding
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def head_logits(model, hidden, scale):
    """Logits (N, V) in fp32 of last hidden states (N, D)."""
    logits = model.get_output_embeddings()(hidden).float() * scale
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits  # Gemma 2


@torch.no_grad()
def logit_scale(model):
    """The factor between vocabulary projection and logits: 1 mostly; Granite divides, Cohere
    multiplies.

    Pitfall: a model that does anything else to its logits would be trained on wrong probabilities
    without a sign of it, so one pass of two tokens compares. Raises UserError if they differ.
    """
    ids = torch.tensor([[1, 2]], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[0].float()
    hidden = backbone(model)(input_ids=ids).last_hidden_state[0]
    divided = getattr(model.config, "logits_scaling", None)
    times = getattr(model.config, "logit_scale", None)
    for scale in (1.0, *([1 / divided] if divided else []), *([times] if times else [])):
        near = 0.02 * float(logits.std())
        if torch.allclose(head_logits(model, hidden, scale), logits, rtol=0.02, atol=near):
            return scale
    raise UserError(f"{type(model).__name__} changes its logits in a way that generation.py does "
                    f"not know (config: logits_scaling {divided}, logit_scale {times}); RL needs "
                    "its exact log-probabilities: add the rule to head_logits")


def groups_by_length(groups, size, device):
    """Micro-batches of whole groups of judgments: lists of indices, of like length, so that little
    is padding.

    size: judgments in each at most. None: 32 on a CPU; on a GPU as many groups as have, with
    padding, TOKENS_ON_A_GPU.
    """
    G = len(groups[0])
    prompt_lengths = [len(group[0].prompt_ids) for group in groups]
    longest = [max(len(j.completion_ids) for j in group) for group in groups]
    size = size or (32 if device.type == "cpu" else None)

    def too_large(batch):
        if size:
            return len(batch) > size // G
        tokens = max(prompt_lengths[q] for q in batch) + G * max(longest[q] for q in batch)
        return len(batch) * tokens > TOKENS_ON_A_GPU
    batches = [[]]
    for q in sorted(range(len(groups)), key=lambda q: prompt_lengths[q] + longest[q]):
        if batches[-1] and too_large([*batches[-1], q]):
            batches.append([])
        batches[-1].append(q)
    return batches


def completion_states(model, batch):
    """Hidden states (B, T, D) at the places that predict each completion token.

    Row r of the B completions continues prompt source[r]. Place 0 is the prompt's last token.
    """
    cache, mask, out = prefill(model, backbone(model), batch["prompts"])         # mask (U, W)
    source, (ids, real) = batch["source"], batch["completions"]                  # (B, T) each
    last = out.last_hidden_state[:, -1:][source]                                 # (B, 1, D)
    new = ids.shape[1] - 1
    if not new:
        return last
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[source], layer.values[source]
    positions = batch["prompts"]["lengths"][source, None] + torch.arange(new, device=ids.device)
    seen = torch.cat([mask[source], real[:, :-1]], 1)                            # (B, W + T - 1)
    rest = backbone(model)(input_ids=ids[:, :-1], attention_mask=seen_by(model, seen, new),
                           position_ids=positions, cache=cache, use_cache=True)
    return torch.cat([last, rest.last_hidden_state], 1)


def left_pad(rows, pad_id, device):
    """ids (B, P) and mask (B, P) bool, padding on the left; as `right_pad`."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(r)) + r for r in rows], device=device)
    lengths = torch.tensor([len(r) for r in rows], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]


def right_pad(rows, pad_id, device):
    """ids (B, T) and mask (B, T) bool, padding on the right.

    Pitfall: the mask comes from lengths, never from token values; pad may be the end token.
    """
    width = max(map(len, rows))
    ids = torch.tensor([r + [pad_id] * (width - len(r)) for r in rows], device=device)
    lengths = torch.tensor([len(r) for r in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]
