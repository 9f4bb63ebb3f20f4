"""Plumbing: where examples come from: the toy world, JSONL files, hub training sets and benchmarks.

Everything becomes the one record of records.py. `load_examples(name)` is the call that every script makes.
"""
from records import read_jsonl
from runs import UserError


def load_examples(name, split="train", limit=None, seed=0, skip_bad=False, domain=None, exclude_domain=None):
    """Examples of a data set: "toy", a .jsonl file, or a name in LOADERS.

    domain / exclude_domain keep or hold out one domain (generalisation runs).  limit: number of items at most.
    """
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1")
    if name == "toy":
        import toy
        counts = {"train": 8000, "validation": 500, "test": 2250}
        return toy.items(split, limit or counts[split], seed, domain, exclude_domain)
    examples = read_jsonl(name, skip_bad)
    examples = [e for e in examples if e.domain != exclude_domain and domain in (None, e.domain)][:limit]
    if not examples:
        raise UserError(f"{name}: no item left with domain {domain!r} and without {exclude_domain!r}")
    return examples


def load_chats(name, count, seed=0):
    """`count` chats of general-instruction data (§3.2, RFT mixture): "toy", or a .jsonl of {"messages": [...]}."""
    if name == "toy":
        import toy
        return toy.general_chats(count, seed)
    import json
    import random
    from pathlib import Path
    if not Path(name).is_file():
        raise UserError(f"{name} does not exist; give --general_data a .jsonl file of chats, or 'toy'")
    chats = []
    for number, line in enumerate(Path(name).read_text(encoding="utf-8").splitlines(), 1):
        try:
            messages = json.loads(line)["messages"]
            if messages[-1]["role"] != "assistant" or not all(isinstance(m["content"], str) for m in messages):
                raise ValueError("the last message must be the assistant's")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{name}, line {number}: field 'messages' must be a chat that ends with the assistant's turn "
                            f"({error})") from None
        chats.append(messages)
    random.Random(seed).shuffle(chats)
    return [chats[i % len(chats)] for i in range(count)] if chats else []
