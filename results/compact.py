"""The compact record of a finished run: what the tables read, without texts and models, small enough to be committed.

    runs/results/s0/grm/greedy/         ->  results/runs/s0/grm/greedy.json.gz    command, commit, seconds, and per sample the scores,
                                                                                  reason, tokens, meta logit, response order
    (the items of one or more runs)     ->  results/runs/items-<hash>.json.gz     id, domain, n, rewards, length of the responses

`load` gives the rows of samples.jsonl back, without the texts, with a mean for the prompt tokens of an item, without the response
orders of voting (they follow from the seed), and with scalar scores and logits rounded as far as no credit or order changes. Same runs, same bytes: gzip without a time. Items are kept once for
all runs that judged them, because they would otherwise be most of every file.
"""
import functools
import gzip
import hashlib
import json
import os
import threading
from pathlib import Path

from infer_scale import block_credits, mean, powers_of_two
from plumbing.runs import read_json, read_rows

RUNS, COMPACT = Path("runs/results"), Path("results/runs")
ITEM = ("id", "domain", "n", "rewards", "response_lengths", "cluster", "subset", "of")
DIGIT = "0123456789X"  # one character for a score of 0..10 or a place, so that an item's samples are one string; X is 10


# ----- from a run folder to its record -----

def write_gz(path, value):
    """A file that appears whole, also where several runs that end together write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    temporary.write_bytes(gzip.compress(json.dumps(value, separators=(",", ":")).encode(), 9, mtime=0))
    os.replace(temporary, path)


def read_gz(path):
    return json.loads(gzip.decompress(Path(path).read_bytes()))


def record_finished(seed):
    """Make the records of all finished runs of one seed that have none yet, or that of an earlier run."""
    for mark in sorted((RUNS / f"s{seed}").rglob(".finished")):
        command, commit, seconds = mark.read_text(encoding="utf-8").split("\n")[:3]
        told = {"command": command.strip(), "commit": commit, "seconds": float(seconds.split()[0])}
        inside = [f for f in sorted(mark.parent.iterdir()) if f.is_dir() and not (f / ".finished").exists()]
        for folder in [mark.parent, *inside]:  # baselines.py makes folders of several stages
            path = COMPACT / folder.parent.relative_to(RUNS) / f"{folder.name}.json.gz"
            if not path.exists() or {k: v for k, v in read_gz(path).items() if k in told} != told:
                found = record(folder)
                if found:
                    write_gz(path, told | found)
    load.cache_clear()


def record(folder):
    """What the tables read of one run folder, or {} if it holds nothing of that kind."""
    found = {name: read_json(folder / f"{name}.json") for name in ("report", "selection") if (folder / f"{name}.json").exists()}
    steps = [row for row in read_rows(folder / "metrics.jsonl") if "step" in row]
    if steps:
        found["updates"] = steps[-1]["step"]
    if steps and "reward/mean" in steps[0]:
        found["training"] = {key: [float(f"{row[key]:.5g}") for row in steps] for key in steps[0]}
    rows = read_rows(folder / "samples.jsonl")
    if rows and "samples" in rows[0]:  # RL keeps a few judgments under this name too
        config = folder / "config.json" if (folder / "config.json").exists() else folder.parent / "config.json"  # a stage inside has its run's
        found |= record_samples(rows) | {"parameters": parameters(read_json(config)["args"].get("model"))}
    return found


def record_samples(rows):
    items = [{key: row[key] for key in ITEM if row.get(key) is not None} for row in rows]
    digest = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]
    if not (COMPACT / f"items-{digest}.json.gz").exists():
        write_gz(COMPACT / f"items-{digest}.json.gz", items)
    samples = [row["samples"] for row in rows]
    whole_points = all(isinstance(x, int) for part in samples for s in part if s["scores"] for x in s["scores"])
    found = {
        "items": digest,
        "scores": ["".join(characters(s["scores"]) if s["scores"] else "-" * row["n"] for s in row["samples"]) if whole_points
                   else fewer_digits(row) for row in rows],
        "reasons": {f"{i}/{j}": s["reason"] for i, part in enumerate(samples) for j, s in enumerate(part) if s["reason"] != "ok"},
        "tokens": [[s["tokens"] for s in part] for part in samples],
        "prompt_tokens": [round(mean(s["prompt_tokens"] for s in part), 2) for part in samples]}
    if len(samples[0]) <= 2:  # the many of voting are not kept: sample_judgments draws them from (seed, item id, sample index)
        found["permutations"] = ["".join(characters(s["permutation"]) for s in part) for part in samples]
    if "meta_logits" in rows[0]:
        found["meta_logits"] = [same_order(row["meta_logits"]) for row in rows]
    return found


def characters(numbers):
    return "".join(DIGIT[x] for x in numbers)


def fewer_digits(row):
    """Scalar scores of an item with the fewest decimals that leave its credit at every k as it is."""
    for digits in (2, 3, 4) if row["n"] > 1 else (4,):  # single responses are compared with each other, in the ROC-AUC
        short = [s["scores"] and [round(x, digits) for x in s["scores"]] for s in row["samples"]]
        view = {**row, "samples": [{"scores": s} for s in short]}
        if row["n"] == 1 or not row["rewards"] or all(block_credits(view, k) == block_credits(row, k)
                                                      for k in powers_of_two(len(short))):
            return short
    return [s["scores"] for s in row["samples"]]


def same_order(logits):
    """Meta logits of an item with the fewest decimals that leave their order as it is, and with it every guided vote."""
    def order(z):
        return sorted((j for j in range(len(z)) if z[j] is not None), key=lambda j: -z[j])
    for digits in (2, 3, 4):
        short = [z if z is None else round(z, digits) for z in logits]
        if order(short) == order(logits):
            return short
    return logits


def parameters(model):
    """Number of parameters of the judge in a local folder; None if it is not one (a baseline's run names its base model)."""
    if not model or not Path(model).is_dir():
        return None
    from safetensors import safe_open
    count = 0
    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            for key in opened.keys():
                size = 1
                for side in opened.get_slice(key).get_shape():
                    size *= side
                count += size
    return count or None


# ----- and back -----

def seeds_on_record():
    return sorted(int(folder.name[1:]) for folder in COMPACT.glob("s[0-9]*"))


@functools.lru_cache(maxsize=8)  # the tables read one run many times in a row; all of them at once would not fit into memory
def load(seed, name):
    """The record of a run, its "rows" as in samples.jsonl without texts ([] if it has none); None if there is no record."""
    path = COMPACT / f"s{seed}" / f"{name}.json.gz"
    if not path.exists():
        return None
    found = read_gz(path)
    return {**found, "rows": list(rows_of(found, items_of(found["items"]))) if "items" in found else []}


@functools.cache
def items_of(digest):
    return read_gz(COMPACT / f"items-{digest}.json.gz")


def rows_of(found, items):
    places = {c: i for i, c in enumerate(DIGIT)}

    def points(text):
        return None if text[0] == "-" else [places[c] for c in text]
    for i, item in enumerate(items):
        n, scores = item["n"], found["scores"][i]
        if isinstance(scores, str):
            scores = [points(scores[j:j + n]) for j in range(0, len(scores), n)]
        row = {**item, "samples": [
            {"scores": s, "reason": found["reasons"].get(f"{i}/{j}", "ok"), "tokens": t, "prompt_tokens": found["prompt_tokens"][i]}
            for j, (s, t) in enumerate(zip(scores, found["tokens"][i], strict=True))]}
        if "permutations" in found:
            for j, s in enumerate(row["samples"]):
                s["permutation"] = points(found["permutations"][i][j * n:(j + 1) * n])
        if "meta_logits" in found:
            row["meta_logits"] = found["meta_logits"][i]
        yield row
