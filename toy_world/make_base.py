"""How the toy's base models were made: pretraining on clean judgments, then on habits.

    python -m toy_world.make_base               # runs/base/medium and its undamaged judge; an hour
    python -m toy_world.make_base --size small  # the other sizes: small (0.2M), large (1.2M)

The base model is pretrained from scratch on clean judgments and on a small general-instruction
corpus: that is the "undamaged judge", the ceiling of every table. It is then made imperfect by
further training on noisy judgments, in the way that real LLM judges are: by two habits that its
judgments share, a strong liking for the response shown first and a weak one for the longest. They
do not come from what is written in a response, so it knows more than its verdicts show.
It also names too few principles, chooses them badly, gives them random weights, and slips at times.
Pretraining also teaches it to follow a hint, right or wrong, and to use a reference answer. In the
damage's lessons the judgments that are shown a reference stay clean.
The committed medium base was pretrained in two parts, the second with more lists than the first.
This command makes another one, and a better one: 60.8 % of the test items instead of 53.4, and 98.3
instead of 86.9 before the damage (results/LOG.md). The committed small and large are its own.
No rule acts at inference: habits are in the weights. After that nothing is ever told to the model
again but what the paper's recipe tells a model: which response is best. All scores anywhere are
parsed from text that the model wrote; the truth in here is used for labels and for analysis only.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch

from grm import build_prompt
from plumbing import runs
from plumbing.generation import encode_chat
from plumbing.judge import DEFAULTS
from toy_world.world import (
    CRITERIA,
    CUES,
    DOMAINS,
    FRAMES,
    GENERAL_WORDS,
    SHOWY,
    TOPICS,
    VERDICTS,
    general_chat,
    items,
    make_item,
)

SIZES = {"small": (2, 80, 4), "medium": (3, 128, 4), "large": (4, 160, 5)}  # layers, width, heads


# ----- judgments: clean ones (pretraining) and noisy ones (the damage) -----

def write_judgment(criteria, verdicts, rating, principles=True):
    """(text of a judgment, scores), which follow from criteria [(name, percent)] and verdicts.

    verdicts: per response {name: level}.
    """
    scores = []
    for verdict in verdicts:
        whole = max(1, sum(percent for _, percent in criteria))
        value = sum(percent * verdict[name] for name, percent in criteria) / whole
        points = min(10, max(1, math.floor(5.5 + 3.5 * value + 0.5)))
        scores.append(int(value > 0) if rating == "0-1" else points)
    answer = [scores.index(max(scores)) + 1] if rating == "best" else scores
    parts = [f"{name} {percent}%" for name, percent in criteria]
    lines = ["Specific Criteria: " + ", ".join(parts) + "."] if principles is True else []
    for i, verdict in enumerate(verdicts, 1):
        told = ", ".join(f"{name} {VERDICTS[verdict[name]]}" for name, _ in criteria)
        lines.append(("Analysis: " if i == 1 else "") + f"Response {i}: {told}.")
    lines.append("Scores: \\boxed{" + ", ".join(map(str, answer)) + "}")
    return "\n".join(lines), scores


def percents(values):
    """Positive numbers -> multiples of 10 % that sum to 100, each at least 10."""
    steps = [1] * len(values)
    while sum(steps) < 10:
        lacking = [value / sum(values) * 10 - step for value, step in zip(values, steps)]
        steps[lacking.index(max(lacking))] += 1
    return [10 * s for s in steps]


def clean_criteria(rng, weights):
    """The query's true criteria, heaviest first; the lightest one is left out now and then."""
    named = list(weights.items())
    if rng.random() < 0.2:
        named = named[:-1]
    return list(zip([name for name, _ in named], percents([weight for _, weight in named])))


# Habits: in these shares of judgments the response shown first, and the longest, gets one level
# more on every criterion.
LIKES_FIRST, LIKES_LONGEST = 0.75, 0.5
SLIPS = 0.05  # x the number of responses: verdicts that are a level off


def noisy_criteria(rng, weights):
    """1-3 criteria: mostly what sounds good, sometimes what counts; the weights are arbitrary."""
    count = rng.choices([1, 2, 3], [30, 45, 25])[0]
    liking = {name: (3.0 if name in SHOWY else 1.0) + weights.get(name, 0) / 25
              for name in CRITERIA}
    named = []
    while len(named) < count:
        name = rng.choices(list(liking), list(liking.values()))[0]
        if name not in named:
            named.append(name)
    return list(zip(named, percents([rng.random() + 0.1 for _ in named])))


def noisy_levels(rng, levels, n):
    """What the damaged judge reads in one of n texts: now and then, in a list more often, a level
    is a step off."""
    return {name: level + (rng.choice([-1, 1]) if rng.random() < SLIPS * n else 0)
            for name, level in levels.items()}


def pushed(levels, steps):
    return {name: min(2, max(-2, level + steps)) for name, level in levels.items()}


def habits(rng, responses):
    """Levels that the damaged judge adds to each response, whatever it says: 1 for a liking."""
    extra, lengths = [0] * len(responses), [len(text.split()) for text in responses]
    if len(responses) > 1:
        extra[0] += rng.random() < LIKES_FIRST
        longest = max(lengths)
        if lengths.count(longest) == 1:
            extra[lengths.index(longest)] += rng.random() < LIKES_LONGEST
    return extra


def judgment(rng, item, noisy, rating, principles=True, told=False):
    """A judgment of an item (in displayed order).

    told: a hint or a reference answer names the best response (or says whether a single one is
    correct). The judge sees that one in a better light, the others in a worse one, until its
    scores agree.
    """
    n, best = len(item.responses), item.rewards.index(max(item.rewards))
    for attempt in range(6):
        if isinstance(principles, list):
            given = (p.split() for p in principles[0].rstrip(".").split(", "))
            criteria = [(name, int(percent.rstrip("%"))) for name, percent in given]
        else:
            criteria = (noisy_criteria if noisy else clean_criteria)(rng, item.extra["weights"])
        verdicts = item.extra["shown_levels"]
        if noisy:
            liked = habits(rng, item.responses)
            verdicts = [pushed(noisy_levels(rng, levels, n), steps)
                        for levels, steps in zip(verdicts, liked, strict=True)]
        if told:
            up = 1 + (attempt > 2)
            verdicts = [pushed(levels, up if item.rewards[i] else -up)
                        for i, levels in enumerate(verdicts)]
        text, scores = write_judgment(criteria, verdicts, rating, principles)
        others = [s for i, s in enumerate(scores) if i != best]
        if not told or (scores[best] > max(others) if others else
                        (scores[0] > (0 if rating == "0-1" else 5)) == item.rewards[0]):
            break
    return text


def shown(rng, item):
    order = list(range(len(item.responses)))
    rng.shuffle(order)
    view = item.permuted(order)
    view.extra = {**item.extra, "shown_levels": [item.extra["levels"][i] for i in order]}
    return view


# ----- the tokenizer: one token per word, and one per fixed line of the compact template -----

def make_tokenizer(folder):
    """A word-level tokenizer in Hugging Face format.

    Fixed lines of the prompt are one token each: short prompts, cheap runs.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    sample = make_item(random.Random(0), n=5)
    fixed = set()
    for rating in ("1-10", "0-1", "best"):
        for principles in (True, False, ["x"]):
            view = sample.permuted([0]) if rating == "0-1" else sample
            [turn] = build_prompt(view, "compact", rating, principles, use_reference=True)
            fixed |= {line for line in turn["content"].split("\n")
                      if line not in sample.responses and line != "x"
                      and not line.startswith(("User:", "A good reply", "Scores:"))}
    fixed |= {"Score the responses.", "The best response is: Response", "The response is correct.",
              "The response is not correct.", "Specific Criteria:", "Analysis:",
              "Scores: \\boxed{", "\\boxed{", "User:", "Assistant:", "Scores:"}
    fixed |= {f"Response {i}:" for i in range(1, 6)}
    fixed |= {f"({w} than the other)" for w in ("slightly better", "better", "much better")}
    fixed |= {f"{p}%{mark}" for p in range(10, 101, 10) for mark in ",."}
    fixed |= {f"{v}{mark}" for v in VERDICTS.values() for mark in ",."}
    fixed |= {str(i) for i in range(11)} | set("x,{}.?:")
    words = set(CUES) | set(CRITERIA) | set(GENERAL_WORDS) | {"plain", "and"}
    queries = [query for domain in DOMAINS.values() for query in domain]
    words |= set(" ".join(sum(TOPICS.values(), queries + FRAMES)).split())
    words |= set("A good reply is".split())
    for seed in range(200):
        words |= set(" ".join(general_chat(random.Random(seed))).split())
    words -= {"{t}"}
    special = ["<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = special + sorted(fixed | words)
    lines = sorted((f for f in fixed | words if not f.replace("-", "").isalnum()), key=len,
                   reverse=True)

    def literal(text):  # escapes for the tokenizer's regular expressions
        return "".join("\\" + c if c in "\\.[]{}()*+?^$|#" else c for c in text)
    pattern = "|".join(map(literal, lines)) + r"|[A-Za-z][A-Za-z'-]*|[0-9]+|[^\s]"
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)},
                                     unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    raw.decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(),
        *[decoders.Replace(a, b) for a, b in [
            (" Analysis:", "\nAnalysis:"), (". Response", ".\nResponse"), (" ,", ","),
            (" Scores:", "\nScores:"), ("boxed{ ", "boxed{"), (" }", "}")]]])
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<|end|>",
        model_max_length=1024, padding_side="left")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% else %}"
        "{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
    tokenizer.save_pretrained(folder)
    return tokenizer


# ----- the base model: pretraining, then damage -----

def lesson(rng, noisy, progress):
    """One training chat: (messages, answer).

    progress: 0 at the start, 2 at the end of pretraining: words, single responses, lists.
    """
    # Words first, in short cheap chats: a model that did not know them read no text in 400 steps.
    general = 1 - 0.3 * progress if progress < 0.3 else 0.3 if progress < 0.6 else 0.12
    if rng.random() < general:
        question, answer = general_chat(rng, 0 if rng.random() < 0.8 and progress < 0.6 else None)
        return [{"role": "user", "content": question}], answer
    lists = rng.choices([1, 2, 3, 4, 5], [10, 40, 20, 15, 15])[0]  # more than items have: harder
    n = lists if rng.random() < progress - 0.3 else rng.choice([1, 1, 2])
    item = shown(rng, make_item(rng, n=n))
    draw = rng.random()
    rating = "1-10"
    if n > 1 and rng.random() < 0.15:
        rating = "best"
    elif n == 1 and rng.random() < 0.6:
        rating = "0-1"
    principles, hint, reference = True, False, False
    if draw < 0.06:
        principles = False
    elif progress < 0.6:  # at first every criterion of a text, and no other way to the verdicts
        named = [(name, 10 if i else 50) for i, name in enumerate(rng.sample(list(CRITERIA), 6))]
        principles = [", ".join(f"{name} {p}%" for name, p in named) + "."]
    elif draw < 0.12:
        named = noisy_criteria(rng, item.extra["weights"])
        principles = [", ".join(f"{name} {p}%" for name, p in named) + "."]
    elif draw < 0.26:
        reference = True
    elif draw < 0.36:
        hint = True
    if hint and rng.random() < 0.5:
        # Told wrongly, half of the time: a judge that is right anyway has nothing to learn from it.
        best = rng.randrange(n)
        item.rewards = [int(i == best) for i in range(n)] if n > 1 else [rng.randrange(2)]
    text = judgment(rng, item, noisy and not reference, rating, principles, hint or reference)
    return build_prompt(item, "compact", rating, principles, reference, hint), text


def train_on(model, tokenizer, state_file, steps, noisy, lr, batch_size, seed, label, start=""):
    """Next-token training on fresh lessons, loss on the answers only; resumable every 100 steps.

    start: a digest of the weights that it starts from.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    state, step = runs.load_state(state_file), 0
    made = {"steps": steps, "seed": seed, "batch_size": batch_size,
            "parameters": sum(p.numel() for p in model.parameters()), "start": start}
    if state:
        if state.get("made") != made:
            raise runs.UserError(f"{state_file} is of another base ({state.get('made')}; now "
                                 f"{made}); take another --output, or delete {state_file}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    model.train()
    started, first = time.time(), step
    while step < steps:
        rng = random.Random(f"{seed}/{label}/{step}")
        rows = []
        while len(rows) < batch_size:
            messages, answer = lesson(rng, noisy, progress=1.0 if noisy else step / steps * 2)
            rows.append(encode_chat(tokenizer, messages, answer))
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps)) * 0.95 + 0.05
        for group in optimizer.param_groups:
            group["lr"] = lr * (min(1.0, (step + 1) / 50) * cosine)
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))  # like lengths together: less padding
        total, loss = sum(len(c) for _, c in rows), 0.0
        optimizer.zero_grad()
        for part in (rows[i:i + batch_size // 4] for i in range(0, batch_size, batch_size // 4)):
            width = max(len(p) + len(c) for p, c in part)
            ids = torch.tensor([p + c + [tokenizer.pad_token_id] * (width - len(p) - len(c))
                                for p, c in part])                                       # (b, L)
            labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p) - len(c))
                                   for p, c in part])                                    # (b, L)
            logits = model(input_ids=ids).logits[:, :-1]                              # (b, L-1, V)
            part_loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100,
                reduction="sum") / total
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0 or step == steps:
            pace = (time.time() - started) / (step - first)
            print(f"{label}: step {step}/{steps}, loss {loss:.3f} nats, {pace:.2f} s a step, "
                  f"{pace * (steps - step) / 60:.0f} minutes left", flush=True)
        if step % 100 == 0 or step == steps:
            runs.save_state(state_file, model=model.state_dict(),
                            optimizer=optimizer.state_dict(), step=step, made=made)
    return model.eval()


def make_base(size, output, steps, damage_steps, seed):
    from transformers import LlamaConfig, LlamaForCausalLM
    layers, width, heads = SIZES[size]
    work = output / f".{size}"
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(work / "tokenizer")
    runs.seed_everything(seed)
    # Choice: initializer_range 0.08. With the library's 0.02 a model this small learned nothing in
    # 1,500 steps.
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=int(width * 2.5),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=1024, initializer_range=0.08, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    print(f"{size}: {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{len(tokenizer)} tokens")
    train_on(model, tokenizer, work / "clean.pt", steps, False, 2e-3, 64, seed, "pretraining")
    runs.save_model(output / f"{size}-undamaged", model, tokenizer, DEFAULTS)
    train_on(model, tokenizer, work / "damaged.pt", damage_steps, True, 5e-4, 64, seed, "damage",
             runs.content(work / "clean.pt"))
    runs.save_model(output / size, model, tokenizer, DEFAULTS)


def write_items(path, count, seed):
    """Test items as JSONL, in the form of the record."""
    lines = []
    for item in items("test", count, seed):
        row = {**vars(item), **item.extra}
        del row["extra"]
        lines.append(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n")
    runs.write_text(path, "".join(lines))
    print(f"wrote {len(lines)} items to {path}")


@runs.command_line
def main():
    parser = argparse.ArgumentParser(description="Make the toy's base model and the undamaged one.")
    parser.add_argument("--size", default="medium", choices=sorted(SIZES),
                        help="small 0.2M, medium 0.6M, large 1.2M parameters")
    parser.add_argument("--output", default="runs/base", help="folder for the model folders")
    parser.add_argument("--steps", type=int, default=3500, help="pretraining steps of 64 chats")
    parser.add_argument("--damage_steps", type=int, default=300,
                        help="steps of 64 chats on noisy judgments")
    parser.add_argument("--seed", type=int, default=0, help="of weights and lessons")
    parser.add_argument("--write", help="write test items to this .jsonl file instead")
    parser.add_argument("--limit", type=int, default=200, help="number of items to write")
    args = runs.read_flags(parser)
    if args.write is not None:
        if not args.write.endswith(".jsonl"):
            raise runs.UserError(f"--write {args.write!r}: name a .jsonl file")
        write_items(args.write, args.limit, args.seed)
        return
    runs.share_threads()
    make_base(args.size, Path(args.output), args.steps, args.damage_steps, args.seed)


if __name__ == "__main__":
    main()
