"""Plumbing: where examples come from: the toy world, files, training sets and benchmarks.

Everything becomes the one record of records.py. `load_examples(name)` is the call that every script
makes. A name is

    toy                  the embedded world
    file.jsonl           records, used as they are; also .json, .csv (a cell may hold a JSON list),
                         each also with .gz, .parquet, and a folder of one `save_to_disk`;
                         file.jsonl#train, #validation, #test: that part of it
    helpsteer2           a set of sets.SETS (its hub id works too), through `datasets`
    helpsteer2@REVISION  the same at one commit of the hub, for a result that can be repeated
    helpsteer2:PATH      the same without network: a file in the set's own columns, or a folder of
                         them (a checkout, `save_to_disk`) whose names may begin with
                         the hub's split, or lie in a folder of its name
    pairs:PATH           any chosen/rejected pairs, as they are or #split; also pairs:OWNER/NAME
    math:PATH            verified single answers (problem, response, is_correct), likewise

Splits: a training set's own validation and test sets are used; one that it lacks is cut from its
train rows, 90/5/5 by a hash of the conversation's opening, so that one prompt never lies in two
splits. Benchmarks have only `test`. What metrics find in `extra`: `cluster` (same value = same
prompt, for clustered intervals) and for benchmarks what sets.py says.
The chosen response may stand first here: the sampler shuffles the responses of every judgment.
"""
import argparse
import contextlib
import hashlib
import io
import itertools
import random
import re
from collections import Counter
from pathlib import Path

from plumbing.files import SUFFIXES, file_rows, from_text, local_files, parse_line
from plumbing.generation import encode_chat
from plumbing.records import collect, example_from_dict, read_jsonl, tell_apart, unread
from plumbing.runs import MODEL_FLAGS, UserError, changes, first_line, made_from, read_json
from plumbing.sets import CHATS, SETS
from toy_world import world

DATA_HELP = ("toy; a file of records, whole (FILE#train, #validation, #test: that part, cut by a "
             "hash of the prompt); or NAME, NAME@REVISION (hub), NAME:PATH (local files), NAME one "
             "of " + ", ".join(SETS))
TOY_ITEMS = {"train": 8000, "validation": 500, "test": 2250}


def load_examples(name, split="train", limit=None, seed=0, skip_bad=False, domain=None,
                  exclude_domain=None, labelled=False, at_least=1):
    """Examples of a data set; the forms of `name` stand at the top of this file.

    domain / exclude_domain: only this one, or all but it (generalisation runs).
    limit: number of items at most; of a named set evenly spaced ones, since these are sorted by
    source (the paper's R1 row: "evenly down-sampled" items).
    labelled: every item must have rewards.
    at_least: items with fewer responses are left out (after the limit) and counted.
    """
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1")
    if name == "toy":
        examples = toy_items(split, limit, seed, domain, exclude_domain)
    else:
        examples = named_items(name, split, limit, skip_bad, domain, exclude_domain)
    kept = [e for e in examples if len(e.responses) >= at_least]
    if not kept:
        raise UserError(f"{name}: no item with n >= {at_least} responses")
    if len(kept) < len(examples):
        print(f"{name}: {len(kept)} items; {len(examples) - len(kept)} left out for fewer than "
              f"{at_least} responses")
    unknown = next((e for e in kept if e.rewards is None), None)
    if labelled and unknown:
        raise UserError(f"{name}: item {unknown.id} has no 'rewards'; training and accuracy need "
                        f"the ground truth of every response{unread([unknown])}")
    return kept


def toy_items(split, limit, seed, domain, exclude_domain):
    for given in (domain, exclude_domain):
        if given not in (None, *world.DOMAINS):
            raise UserError(f"the toy world has the domains {', '.join(world.DOMAINS)}, "
                            f"not {given!r}")
    if limit and limit > 100_000:
        raise UserError(f"--limit {limit}: the toy world makes up to 100000 items of a split")
    return world.items(split, limit or TOY_ITEMS.get(split, 1), seed, domain, exclude_domain)


def named_items(name, split, limit, skip_bad, domain, exclude_domain):
    """Examples of a file of records or of a set in SETS."""
    whole, _, part = name.rpartition("#")
    if not whole or part not in ("train", "validation", "test"):
        if not Path(name).exists() and any(
                Path(p).exists() for p in (whole, whole.partition(":")[2]) if p):
            raise UserError(f"{name}: no part {part!r}; {whole}#train, #validation or #test")
        whole, part = name, None
    base, _, path = whole.partition(":")
    base, _, revision = base.partition("@")
    known = next((k for k, (hubs, _, _) in SETS.items()
                  if base == k or any(base == hub["path"] for hub in hubs)), None)
    if known:
        examples = load_set(known, path, revision, part, split, skip_bad)
    elif Path(whole).exists() and whole:
        examples = load_records(Path(whole), skip_bad)
        examples = [e for e in examples if part in (None, hash_split(e))]
    else:
        raise UserError(f"{whole} does not exist; give --data a .jsonl file, toy, or one of "
                        f"{', '.join(SETS)} (NAME from the hub, NAME:PATH from local files)")
    examples = [e for e in examples if e.domain != exclude_domain and domain in (None, e.domain)]
    if not examples:
        words = {" in its part {}": part, " of domain {!r}": domain,
                 " outside domain {!r}": exclude_domain}
        raise UserError(f"{whole}: no item left" + "".join(
            word.format(value) for word, value in words.items() if value is not None))
    if known and limit and limit < len(examples):
        return [examples[i * len(examples) // limit] for i in range(limit)]
    left = sorted({e.domain for e in examples} - {e.domain for e in examples[:limit]})
    if left:
        print(f"{whole}: none of the first {limit} items is of domain {', '.join(left[:5])}"
              f"{', ...' * (len(left) > 5)}; shuffle the file, or choose with --domain")
    return examples[:limit]


def tell_changes(folder):
    """Print it if the model of a run, or the file of items that it judged, is not as it was."""
    config = Path(folder) / "config.json"
    config = read_json(config) if config.exists() else {}
    its = argparse.Namespace(**{  # nothing is asked of the hub
        k: v for k, v in config.get("args", {}).items()
        if k not in MODEL_FLAGS or v and Path(v).exists()})
    data = getattr(its, "data", "")
    file = Path(re.sub(r"^\w+:|#\w+$", "", data))
    items = None
    if file.exists() and hasattr(its, "bon"):  # a run of `judge_set`, of a file
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what is dropped was told then
                items = load_examples(data, getattr(its, "split", "test"), its.limit,
                                      skip_bad=True, domain=getattr(its, "domain", None))
        except UserError:
            items = []
    for change in changes(config.get("made_from", {}), made_from(its, items), its):
        print(f"{folder}: {change} this run; its results are of then")


def tell_other_items(what, file, rows, by_id, data):
    """Raises UserError if rows of judgments, told by their ids, are of other texts or labels.

    rows: of judgments.jsonl of spct_rft.py.  by_id: {id: example} of `data`, all ids among them.
    """
    for row in rows:
        e = by_id[row["id"]]
        if row.get("rewards", e.rewards) != e.rewards:
            raise UserError(f"{what} {file}: item {e.id} was judged with other rewards than those "
                            f"of --data {data}; give the items that were judged")
        for judgment in row["non_hinted"]:
            n = len(judgment["permutation"])
            if n != len(e.responses):
                raise UserError(f"{what} {file}: item {e.id} was judged with {n} responses, and "
                                f"--data {data} has {len(e.responses)}; give the items that were "
                                "judged")
    config = Path(file).parent / "config.json"
    then = read_json(config).get("made_from", {}) if config.exists() else {}
    now = made_from(argparse.Namespace(), [by_id[row["id"]] for row in rows])
    if then.get("items", now["items"]) != now["items"]:
        raise UserError(f"{what} {file}: the items that were judged are not those of --data {data} "
                        "under the same ids; give the same items, or judge these")


def load_records(path, skip_bad):
    examples = read_jsonl(path, skip_bad)
    for e in examples:
        e.extra.setdefault("cluster", opening_hash(e)[:16])  # intervals know where prompts repeat
    return examples


def general_data(args, wanted=True):
    """The chats that --data is mixed with: --general_data, or the toy's sentences for the toy's
    items. Raises UserError where the toy's would be mixed with other items unasked, if `wanted`."""
    if wanted and args.data != "toy" and args.general_data is None:
        raise UserError(f"--data {args.data} would be mixed with the toy's general sentences; give "
                        "--general_data (a .jsonl of chats, or smoltalk), or --general_fraction 0")
    return args.general_data or "toy"


def try_chats(tokenizer, args, general):
    """Raises the UserError of --thinking, and of a chat of --general_data if `general`, at once."""
    encode_chat(tokenizer, [{"role": "user", "content": "?"}], thinking=args.thinking)
    if general:
        for chat in load_chats(args.general_data, 1, args.seed):
            encode_chat(tokenizer, chat[:-1], chat[-1]["content"])


def load_chats(name, count, seed=0):
    """`count` chats of general-instruction data (§3.2, RFT mixture).

    name: "toy", a file of {"messages": [...]}, a name in CHATS (`count` of the first 10 x count
    chats on the hub), or NAME:PATH, local files with the same column.
    """
    if name == "toy":
        return world.general_chats(count, seed)
    base, _, path = name.partition(":")
    if base in CHATS and not path:
        rows = itertools.islice(hub_rows(base, CHATS[base], "train"), 10 * count)
    elif base in CHATS or Path(name).exists():
        files = local_files(base if path else "", path or name)
        rows = itertools.chain.from_iterable(file_rows("", file) for file in files)
    else:
        raise UserError(f"{name} does not exist; give --general_data a .jsonl file of chats, toy, "
                        f"{' or '.join(CHATS)}")
    chats = []
    for where, row in rows:
        try:
            row = parse_line(row, where) if isinstance(row, bytes) else row
            chat = from_text(row["messages"], list)
            if len(chat) < 2 or chat[-1]["role"] != "assistant" or not all(
                    isinstance(m["content"], str) and m["role"] in ("system", "user", "assistant")
                    for m in chat):
                raise ValueError("two or more {role, content}, the last one the assistant's")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{where}: field 'messages' must be a chat that ends with the "
                            f"assistant's turn ({error})") from None
        chats.append(chat)
    if not chats:
        raise UserError(f"{name}: no chat in it; give --general_data another file, or pass "
                        "--general_fraction 0")
    random.Random(seed).shuffle(chats)
    return [chats[i % len(chats)] for i in range(count)]


# ----- one set of SETS: rows -> examples of one split -----

def load_set(name, path, revision, part, split, skip_bad):
    """Examples of a set. `part`, the split behind a #, comes before `split`."""
    hubs, splits, schema = SETS[name]
    wanted, benchmark = part or split, isinstance(splits, str)
    if benchmark:
        if wanted != "test":
            raise UserError(f"{name} is a benchmark, with the split 'test' only (asked for: "
                            f"{wanted!r}); training or selecting on it would spoil its score: "
                            "choose a training set")
        splits = {"test": splits}
    elif not splits:  # pairs, math: the user's own, as they are
        wanted, splits = part, {"train": "train"}
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not (
                Path(path).exists() or path.endswith(SUFFIXES)):
            hubs, path = [{"path": path}], None
    if path:  # names of files tell their splits; if they tell none, every row is cut by the hash
        files = local_files(name, path)
        splits = {ours: start for ours, start in splits.items()
                  if any(told(f, path, start) for f in files)}
        if splits and not splits.keys() & {wanted, "train"}:
            raise UserError(f"{name}: {path} has no rows for the split {wanted!r}, only for "
                            f"{', '.join(splits)}")
    source = splits.get(wanted, splits.get("train", ""))
    if path:
        rows = itertools.chain.from_iterable(
            file_rows(name, f) for f in files if told(f, path, source))
    else:
        rows = hub_rows(name, hubs, source, revision)
    own, seen = SETS[name][1] == {}, Counter()
    # whole: all rows are of the split, none is to be cut off by the hash
    whole = benchmark or wanted is None or (wanted in splits and wanted != "train")

    def convert(index, where, row):
        found = row_examples(row, schema, name, None if own else index, where)
        if own and row.get("id") is None:
            for e in found:
                tell_apart(e, seen)
        kept = [] if found else [None]
        for e in found:
            place = e.extra.pop("split", None) or hash_split(e)
            if whole or (place if place not in splits else "train") == wanted:
                kept.append(e)
        return kept
    label = f"{name}, {path}" if path else name
    return collect(rows, convert, label + (f", split {wanted}" if wanted else ""), skip_bad)


def told(file, path, split):
    """Whether the name of a set's file, or its folder below `path`, says that it is of a split."""
    return file.name.startswith(split) or file != Path(path) and file.parent.name == split


def row_examples(row, schema, name, index, where):
    """Examples of one row. Ids come from its place: a set's own may repeat (rewardbench).

    index: None for rows of the user's own, which have ids as records do: two files would give the
    same places to other texts.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be a JSON object")
    try:
        items = schema(row, where)
    except ValueError as error:  # UserErrors of the schema among them
        raise UserError(f"{where}: {error}") from None
    examples = []
    for number, item in enumerate(items):
        if index is not None:
            item = {**item, "id": f"{name}/{index}" + f"/{number}" * (number > 0)}
        example = example_from_dict(item, where)
        if item.get("id") is None:
            example.id = f"{name}/{example.id}"
        example.extra["cluster"] = opening_hash(example)[:16]
        examples.append(example)
    return examples


def opening_hash(example):
    # The first user turn, not the whole prompt: items cut from one conversation at different depths
    # stay together (one item's prompt quotes the other's chosen response).
    opening = next(m["content"] for m in example.prompt if m["role"] == "user")
    text = " ".join(opening.split())
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_split(example):
    """train, validation or test (90/5/5): the prompt alone decides, the same on every machine."""
    bucket = int(opening_hash(example), 16) % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


# ----- rows of local files and of the hub: (where, row); `where` names set, file and row -----

def hub_rows(name, hubs, split, revision=None):
    """Rows of sets of the hub; `hubs` are keyword arguments of datasets.load_dataset."""
    if not hubs:
        raise UserError(f"{name} is not on the hub; give local files: {name}:PATH")
    import datasets
    for hub in hubs:
        hub = {"split": split, **hub, **({"revision": revision} if revision else {})}
        label = "/".join(hub[k] for k in ("path", "name", "split") if k in hub)
        try:
            for number, row in enumerate(datasets.load_dataset(**hub)):
                yield f"{name}, {label}, row {number}", row
        except Exception as error:  # no network, gated, no such split: each library has its own
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{name}: cannot load {label} from the hub ({problem}); without "
                            f"network give local files with the same columns, {name}:PATH; a gated "
                            "set needs `hf auth login`") from None

