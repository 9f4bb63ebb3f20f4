"""The record of a finished run: what the tables read, small enough to commit.

    runs/results/s0/grm/greedy/   ->   results/runs/s0/grm/greedy.json.gz
    the items that it judged      ->   results/runs/items-<hash>.json.gz, once for all such runs

A record holds command, commit and seconds, and of every judgment its scores, reason, tokens, order
and meta logit; of the toy's also what is true of its reasons (toy_world/truth.py). `load` gives the
rows of samples.jsonl back, without texts, and without the orders of votes, which follow from the
seed. Scalar scores have four decimals. Same run, same bytes.
"""
import functools
import gzip
import hashlib
import json
import math
import os
import threading
import zlib
from pathlib import Path

from eval import mean
from plumbing.data import load_examples
from plumbing.runs import UserError, read_json, read_rows
from toy_world.truth import truth_of, write_truth

RUNS, RECORDS = Path("runs/results"), Path("results/runs")
ITEM = ("id", "domain", "n", "rewards", "response_lengths", "cluster", "subset", "of")
DIGIT = "0123456789X"  # a score of 0..10 or a place is one character; X is 10


def write_gz(path, value):
    """A file that appears whole, also where two runs that end together write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    text = json.dumps(value, separators=(",", ":"))
    part.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    os.replace(part, path)


def read_gz(path):
    try:
        return json.loads(gzip.decompress(Path(path).read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); git checkout -- {path}, or "
                        "delete the record and run results.reproduce") from None


# ----- from a run folder to its record -----

def record_finished(seed):
    """Record every finished run of one seed that has no record yet, or that of an earlier run."""
    for mark in sorted((RUNS / f"s{seed}").rglob(".finished")):
        command, commit, seconds = mark.read_text(encoding="utf-8").split("\n")[:3]
        told = {"command": command.strip(), "commit": commit, "seconds": float(seconds.split()[0])}
        inside = [f for f in sorted(mark.parent.iterdir())
                  if f.is_dir() and not (f / ".finished").exists()]
        for folder in [mark.parent, *inside]:  # a baseline's run holds folders of several stages
            path = RECORDS / folder.parent.relative_to(RUNS) / f"{folder.name}.json.gz"
            if not path.exists() or not told.items() <= read_gz(path).items():
                found = record(folder)
                if found:
                    write_gz(path, told | found)
    load.cache_clear()


def record(folder, orders=False, items=None):
    """What the tables read of one run folder; {} if it holds nothing of that kind.

    orders: with the response orders of votes too.  items: folder of the items file, not RECORDS.
    """
    found = {name: read_json(folder / f"{name}.json") for name in ("report", "selection")
             if (folder / f"{name}.json").exists()}
    steps = [row for row in read_rows(folder / "metrics.jsonl") if "step" in row]
    if steps:
        found["updates"] = steps[-1]["step"]
    if steps and "reward/mean" in steps[0]:
        found["training"] = {k: [float(f"{row[k]:.5g}") for row in steps] for k in steps[0]}
    rows = read_rows(folder / "samples.jsonl")
    if rows and "samples" in rows[0]:  # RL keeps a few judgments under this name too
        config = next(f / "config.json" for f in (folder, folder.parent)
                      if (f / "config.json").exists())
        args = read_json(config)["args"]
        found |= record_samples(rows, orders, items)
        found["parameters"] = parameters(args.get("model"))
        if {"data": "toy", "rating": "1-10", "bon": None}.items() <= args.items():
            known = load_examples("toy", args["split"], args["limit"], domain=args.get("domain"))
            if [[len(r) for r in e.responses] for e in known] != [
                    r["response_lengths"] for r in rows]:
                raise UserError(f"{folder}: the toy world's items are not those that it judged, so "
                                "nobody can say what is true of its judgments; judge again")
            found["truth"] = ["".join(
                write_truth(truth_of(s["text"], item, s["permutation"], s["scores"]))
                for s in row["samples"]) for item, row in zip(known, rows, strict=True)]
    return found


def record_samples(rows, orders=False, folder=None):
    items = [{key: row[key] for key in ITEM if row.get(key) is not None} for row in rows]
    digest = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]
    path = (folder or RECORDS) / f"items-{digest}.json.gz"
    if not path.exists():
        write_gz(path, items)
    parts = [row["samples"] for row in rows]
    points = all(isinstance(x, int) for part in parts for s in part for x in s["scores"] or ())
    found = {
        "items": digest,
        "scores": ["".join(digits(s["scores"]) if s["scores"] else "-" * row["n"]
                           for s in row["samples"]) if points else
                   [s["scores"] and [round(x, 4) for x in s["scores"]] for s in row["samples"]]
                   for row in rows],
        "reasons": {f"{i}/{j}": s["reason"] for i, part in enumerate(parts)
                    for j, s in enumerate(part) if s["reason"] != "ok"},
        "tokens": [[s["tokens"] for s in part] for part in parts],
        "prompt_tokens": [round(mean(s["prompt_tokens"] for s in part), 2) for part in parts]}
    if orders or len(parts[0]) <= 2:
        found["permutations"] = ["".join(digits(s["permutation"]) for s in p) for p in parts]
    if "meta_logits" in rows[0]:
        found["meta_logits"] = [round_logits(row["meta_logits"]) for row in rows]
    return found


def digits(numbers):
    return "".join(DIGIT[x] for x in numbers)


def round_logits(logits):
    """Meta logits with the fewest decimals that keep their order, and with it every guided vote."""
    def order(z):
        return sorted((j for j in range(len(z)) if z[j] is not None), key=lambda j: -z[j])
    for decimals in (2, 3, 4):
        short = [z if z is None else round(z, decimals) for z in logits]
        if order(short) == order(logits):
            return short
    return logits


def parameters(model):
    """Number of parameters of the model in a local folder; None if it is not one."""
    from safetensors import safe_open
    count = 0
    for file in sorted(Path(model).glob("*.safetensors")) if model else ():
        with safe_open(file, framework="np") as opened:
            count += sum(math.prod(opened.get_slice(k).get_shape()) for k in opened.keys())
    return count or None


# ----- and back -----

def seeds_on_record():
    return tuple(sorted(int(folder.name[1:]) for folder in RECORDS.glob("s[0-9]*")
                        if folder.name[1:].isdigit()))


@functools.lru_cache(maxsize=8)  # a table reads one run many times; all at once need much memory
def load(seed, name):
    """The record of a run, "rows" as in samples.jsonl; None if it is not on record."""
    path = RECORDS / f"s{seed}" / f"{name}.json.gz"
    if not path.exists():
        return None
    found = read_gz(path)
    return {**found, "rows": list(rows_of(found)) if "items" in found else []}


def rows_of(found, folder=None):
    def points(text):
        return None if text[0] == "-" else [DIGIT.index(c) for c in text]
    for i, item in enumerate(read_gz((folder or RECORDS) / f"items-{found['items']}.json.gz")):
        n, scores = item["n"], found["scores"][i]
        if isinstance(scores, str):
            scores = [points(scores[j:j + n]) for j in range(0, len(scores), n)]
        row = {**item, "samples": [
            {"scores": s, "reason": found["reasons"].get(f"{i}/{j}", "ok"), "tokens": t,
             "prompt_tokens": found["prompt_tokens"][i]}
            for j, (s, t) in enumerate(zip(scores, found["tokens"][i], strict=True))]}
        if "permutations" in found:
            for j, s in enumerate(row["samples"]):
                s["permutation"] = points(found["permutations"][i][j * n:(j + 1) * n])
        if "meta_logits" in found:
            row["meta_logits"] = found["meta_logits"][i]
        yield row
