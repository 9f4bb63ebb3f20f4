"""Plumbing: where examples come from: the toy world, JSONL files, training sets and benchmarks (hub or local files).

Everything becomes the one record of records.py. `load_examples(name)` is the call that every script makes. A name is

    toy                  the embedded world
    file.jsonl           records, used as they are; file.jsonl#train, file.jsonl#validation, file.jsonl#test: that part
    helpsteer2           a set of LOADERS (bottom of this file; its hub id works too), through `datasets`
    helpsteer2@REVISION  the same at one commit of the hub, for a result that can be repeated
    helpsteer2:PATH      the same without network: a .jsonl, .json (also .gz) or .parquet file in the set's own columns,
                         or a folder of them (a checkout of the set), whose names may begin with the hub's split
    pairs:PATH           any chosen/rejected pairs, as they are or #split; also pairs:OWNER/NAME of the hub
    math:PATH            verified single answers (problem, response, is_correct), as they are or #split

Splits: a training set's own validation and test sets are used; one that it lacks is cut from its train rows, 90/5/5 by
a hash of the conversation's opening, so that one prompt never lies in two splits. Benchmarks have only `test`.
What metrics find in `extra`: `cluster` (same value = same prompt, for clustered intervals) and for benchmarks `section`
(= domain; the score is the mean over sections), `subset`, and for rewardbench `weight` (of the subset in its section).
The chosen response may stand first here: the sampler shuffles the responses of every sample.
"""
import gzip
import hashlib
import itertools
import json
import os
import random
import re
from pathlib import Path

from plumbing.records import example_from_dict, read_jsonl
from plumbing.runs import UserError


def load_examples(name, split="train", limit=None, seed=0, skip_bad=False, domain=None, exclude_domain=None):
    """Examples of a data set; the forms of `name` stand at the top of data.py.

    domain / exclude_domain keep or hold out one domain (generalisation runs).  limit: number of items at most; of a set
    in LOADERS evenly spaced ones, since these are sorted by source (the paper's R1 row: "evenly down-sampled" items).
    """
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1")
    if name == "toy":
        from toy_world import world as toy
        for given in (domain, exclude_domain):
            if given not in (None, *toy.DOMAINS):
                raise UserError(f"the toy world has the domains {', '.join(toy.DOMAINS)}, not {given!r}")
        if limit and limit > 100_000:
            raise UserError(f"--limit {limit}: the toy world makes up to 100000 items of a split")
        counts = {"train": 8000, "validation": 500, "test": 2250}
        return toy.items(split, limit or counts.get(split, 1), seed, domain, exclude_domain)
    whole, _, part = name.rpartition("#")
    name, part = (whole, part) if whole and part in ("train", "validation", "test") else (name, None)
    base, _, path = name.partition(":")
    base, _, revision = base.partition("@")
    known = next((k for k, (hubs, _, _) in LOADERS.items() if base == k or {base} == {h["path"] for h in hubs}), None)
    if known:
        examples = load_set(known, path, revision, part, split, skip_bad)
    elif Path(name).is_file():
        examples = [e for e in read_jsonl(name, skip_bad) if part in (None, hash_split(e))]
        for e in examples:
            e.extra.setdefault("cluster", opening_hash(e)[:16])  # intervals know where prompts repeat
    else:
        raise UserError(f"{name} does not exist; give --data a .jsonl file, toy, or one of {', '.join(LOADERS)} "
                        "(NAME from the hub, NAME:PATH from local files)")
    examples = [e for e in examples if e.domain != exclude_domain and domain in (None, e.domain)]
    if not examples:
        in_part = f" in its part {part}" if part else ""
        raise UserError(f"{name}: no item left{in_part} with domain {domain!r} and without {exclude_domain!r}")
    if known and limit and limit < len(examples):
        return [examples[i * len(examples) // limit] for i in range(limit)]
    return examples[:limit]


def load_chats(name, count, seed=0):
    """`count` chats of general-instruction data (§3.2, RFT mixture): "toy", a .jsonl of {"messages": [...]}, a name in
    CHATS (`count` of the first 10 x count chats on the hub), or NAME:PATH, local files with the same column."""
    if name == "toy":
        from toy_world import world as toy
        return toy.general_chats(count, seed)
    base, _, path = name.partition(":")
    if base in CHATS and not path:
        rows = itertools.islice(hub_rows(base, CHATS[base], "train"), 10 * count)
    elif base in CHATS or Path(name).is_file():
        rows = local_rows("", local_files(base, path or name))
    else:
        raise UserError(f"{name} does not exist; give --general_data a .jsonl file of chats, toy, {' or '.join(CHATS)}")
    chats = []
    for where, row in rows:
        try:
            messages = (json.loads(row) if isinstance(row, str) else row)["messages"]
            if len(messages) < 2 or messages[-1]["role"] != "assistant" or not all(
                    isinstance(m["content"], str) and m["role"] in ("system", "user", "assistant") for m in messages):
                raise ValueError("two or more {role, content}, the last one the assistant's")
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise UserError(f"{where}: field 'messages' must be a chat that ends with the assistant's turn "
                            f"({error})") from None
        chats.append(messages)
    random.Random(seed).shuffle(chats)
    return [chats[i % len(chats)] for i in range(count)] if chats else []


# ----- one set of LOADERS: rows -> examples of one split -----

def load_set(name, path, revision, part, split, skip_bad):
    """Examples of a set in LOADERS. `part`, the split behind a #, comes before `split`."""
    hubs, splits, schema = LOADERS[name]
    wanted, benchmark = part or split, isinstance(splits, str)
    if benchmark:
        if wanted != "test":
            raise UserError(f"{name} is a benchmark, with the split 'test' only (asked for: {wanted!r}); training or "
                            "selecting on it would spoil its score: choose a training set")
        splits = {"test": splits}
    elif not splits:  # pairs, math: the user's own
        wanted, splits = part, {"train": "train"}
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists() and not path.endswith(SUFFIXES):
            hubs, path = [{"path": path}], None
    if path:  # the splits that names of files tell; if they tell none, every row is cut by the hash
        files = local_files(name, path)
        splits = {ours: start for ours, start in splits.items() if any(f.name.startswith(start) for f in files)}
        if splits and not splits.keys() & {wanted, "train"}:
            raise UserError(f"{name}: {path} has no rows for the split {wanted!r}, only for {', '.join(splits)}")
    source = splits.get(wanted, splits.get("train", ""))
    rows = hub_rows(name, hubs, source, revision) if not path else local_rows(
        name, [f for f in files if f.name.startswith(source)])
    # whole: all rows are of the split, none is to be cut off by the hash
    whole = benchmark or wanted is None or (wanted in splits and wanted != "train")

    examples, dropped, skipped = [], 0, 0
    for index, (where, row) in enumerate(rows):
        try:
            found = row_examples(row, schema, f"{name}/{index}", where)
        except UserError:
            if not skip_bad:
                raise
            skipped += 1
            continue
        dropped += not found
        for example in found:
            place = example.extra.pop("split", None) or hash_split(example)
            if not whole and (place if place not in splits else "train") != wanted:
                continue
            # Eq. 10 needs one best response; two equal texts have none, whatever the label says.
            tied = example.rewards.count(max(example.rewards)) > 1
            if tied or len(example.responses) > 1 == len(set(example.responses)):
                dropped += 1
            else:
                examples.append(example)
    counts = f"{dropped} dropped (tied, or nothing to compare), {skipped} malformed rows skipped"
    if not examples:
        raise UserError(f"{name}{f', {path}' if path else ''}: no usable item"
                        f"{f' in the split {wanted}' if wanted else ''}; {counts}")
    if dropped or skipped:
        print(f"{name}: {len(examples)} items; {counts}")
    return examples


def row_examples(row, schema, row_id, where):
    """Examples of one row. Their ids are made of the row's place, since a set's own may repeat (rewardbench's do)."""
    try:
        if isinstance(row, str):
            row = json.loads(row)
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is JSON, but no text
        if not isinstance(row, dict):
            raise UserError("a row must be a JSON object")
        items = schema(row, where)
    except (ValueError, RecursionError) as error:  # UserErrors of the schema, and what is no JSON
        raise UserError(f"{where}: {error}") from None
    examples = []
    for number, item in enumerate(items):
        example = example_from_dict({**item, "id": f"{row_id}/{number}" if number else row_id}, where)
        example.extra["cluster"] = opening_hash(example)[:16]
        examples.append(example)
    return examples


def opening_hash(example):
    # The first user turn, not the whole prompt: items cut from one conversation at different depths stay together (one
    # item's prompt quotes the other's chosen response).
    opening = next(m["content"] for m in example.prompt if m["role"] == "user")
    return hashlib.sha256(" ".join(opening.split()).encode("utf-8", "surrogatepass")).hexdigest()


def hash_split(example):
    """train, validation or test (90/5/5), the same on every machine, decided by the prompt alone."""
    bucket = int(opening_hash(example), 16) % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


# ----- rows of local files and of the hub: (where, row); `where` names set, file and row in errors -----

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def local_files(name, path):
    path, files = Path(path), [Path(path)]
    if path.is_dir():
        path = path / "RMB_dataset" if (path / "RMB_dataset").is_dir() else path  # its checkout holds other JSON too
        # Trap: ReaLMistake's archive also holds example.jsonl, rows that its paper prints.
        files = sorted(f for f in path.rglob("*") if f.name.endswith(SUFFIXES) and (name, f.name) != (
            "realmistake", "example.jsonl") and not any(p.startswith(".") for p in f.relative_to(path).parts))
    if not files or not files[0].exists():
        raise UserError(f"{name}: {path} does not exist or holds no file ending in {', '.join(SUFFIXES)}")
    return files


def local_rows(name, files):
    for file in files:
        where = f"{name}, {file}" if name else str(file)
        try:
            for place, row in file_rows(file):
                yield f"{where}, {place}", row
        except Exception as error:  # not UTF-8, not JSON, not parquet, a torn archive: every library raises its own
            raise UserError(f"{where}: cannot be read ({error})") from None


def file_rows(file):
    """("line 7", text) of a JSONL file, whose caller parses it and may skip a bad one; ("row 7", row) of the others."""
    if file.suffix == ".parquet":
        import pyarrow.parquet
        batches = pyarrow.parquet.ParquetFile(file).iter_batches()
        yield from ((f"row {n}", row) for n, row in enumerate(row for batch in batches for row in batch.to_pylist()))
        return
    content = file.read_bytes()
    text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")
    if text.lstrip().startswith("["):
        yield from ((f"row {n}", row) for n, row in enumerate(json.loads(text)))
    else:  # Pitfall: splitlines() would also cut at a line separator inside a JSON string
        yield from ((f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


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
        except Exception as error:  # no network, gated, no such split: every library below raises its own
            problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UserError(f"{name}: cannot load {label} from the hub ({problem}); without network give local files "
                            f"with the same columns, {name}:PATH; a gated set needs `hf auth login`") from None


# ----- what the schemas below share: each turns one row into a list of records -----

ROLES = {"human": "user", "gpt": "assistant"}


def field(row, key, *kinds):
    """row[key], a text unless other `kinds` are given; a UserError that names the field if it is not."""
    if row.get(key) is None:
        raise UserError(f"field '{key}' is missing")
    if not isinstance(row[key], kinds or str):
        names = " or ".join(kind.__name__ for kind in kinds or [str])
        raise UserError(f"field '{key}' must be {names}, not {type(row[key]).__name__}")
    return row[key]


def messages(row, key):
    """A list of {role, content} without other keys; a text is one user turn."""
    value = field(row, key, str, list)
    value = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not value or not all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))
                            for m in value):
        raise UserError(f"field '{key}' must be a text or a list of {{role, content}} messages")
    return [{"role": ROLES.get(m["role"].lower(), m["role"].lower()), "content": m["content"]} for m in value]


def pair(prompt, first, second, sign, **more):
    """Record of two responses: sign > 0 if the first is better, < 0 if the second is, 0 for a tie (dropped later)."""
    return {"prompt": prompt, "responses": [first, second], "rewards": [int(sign > 0), int(sign < 0)], **more}


# ----- training sets -----

def chosen_rejected(row, where):
    """chosen / rejected, texts or message lists, with or without `prompt` (TRL's formats, Skywork, hh-rlhf, ...)."""
    texts = [field(row, key, str, list) for key in ("chosen", "rejected")]
    explicit = row.get("prompt") is not None
    if isinstance(texts[0], list) and isinstance(texts[1], list):
        # Trap: ultrafeedback_binarized repeats its `prompt` inside chosen and rejected.
        before = messages(row, "prompt") if explicit else []
        chats = [messages(row, key) for key in ("chosen", "rejected")]
        chats = [before + chat if chat[0]["role"] == "assistant" else chat for chat in chats]
        if chats[0][:-1] != chats[1][:-1] or any(chat[-1]["role"] != "assistant" for chat in chats):
            raise UserError("field 'rejected' must differ from 'chosen' in the last message, the assistant's, only")
        prompt, texts = chats[0][:-1], [chat[-1]["content"] for chat in chats]
    elif isinstance(texts[0], list) or isinstance(texts[1], list):
        raise UserError("field 'rejected' must be a text or a message list, as 'chosen' is")
    elif explicit:
        prompt = messages(row, "prompt")
    else:
        prompt, texts = shared_prefix(*texts)
        if any("\n\nHuman:" in text for text in texts):  # hh-rlhf: dialogues that part before their last turn
            return []
    # Trap: ultrafeedback_binarized has pairs with equal scores; they are ties.
    tie = row.get("score_chosen") is not None and row["score_chosen"] == row.get("score_rejected")
    # Skywork's `source` as domain: --exclude_domain can leave one out
    return [pair(prompt, *texts, sign=1 - tie, domain=row.get("source"))]


def shared_prefix(chosen, rejected):
    """(prompt, [response, response]) of two texts that begin with their prompt."""
    prefix = os.path.commonprefix([chosen, rejected])
    if chosen.startswith("\n\nHuman:"):  # hh-rlhf. Trap: the responses may begin alike, so cut at the turn
        cut = prefix.rfind("\n\nAssistant:")
        turns = re.split(r"\n\n(Human|Assistant):", chosen[:max(cut, 0)])[1:]
        prompt = [{"role": ROLES.get(who.lower(), who.lower()), "content": text.strip()}
                  for who, text in zip(turns[::2], turns[1::2], strict=True)]
        cut += len("\n\nAssistant:")
    else:  # Trap: "... is blue" and "... is black" share "... is bl", so cut between words
        cut = re.match(r"(.*\s)?", prefix, re.DOTALL).end()
        prompt = prefix[:cut].strip()
    if not prompt:
        raise UserError("field 'prompt' is missing, and 'chosen' and 'rejected' do not begin with the same prompt")
    return prompt, [chosen[cut:].strip(), rejected[cut:].strip()]


def helpsteer2(row, where):
    # A prompt of several turns is one text with a marker before every turn but the first, the user's.
    turns = ["User", *re.split(r"\s*<extra_id_1>(User|Assistant)\n", field(row, "prompt"))]
    prompt = [{"role": who.lower(), "content": text} for who, text in zip(turns[::2], turns[1::2], strict=True)]
    strength = field(row, "preference_strength", int)  # Trap: -3..3, and positive means that response 2 is better
    return [pair(prompt, field(row, "response_1"), field(row, "response_2"), -strength,
                 preference_strength=abs(strength), split="validation" if row.get("split") == "val" else None)]


def helpsteer3(row, where):
    strength = field(row, "overall_preference", int)  # Trap: negative means that response 1 is better; 0 is a tie
    return [pair(messages(row, "context"), field(row, "response1"), field(row, "response2"), -strength,
                 preference_strength=abs(strength), domain=row.get("domain"))]


def ultrafeedback(row, where):
    """Up to four responses. Choice: r_i is the mean over the rated aspects, not the set's separate `overall_score`."""
    responses, rewards = [], []
    for completion in field(row, "completions", list):
        try:
            ratings = [aspect["Rating"] for aspect in completion["annotations"].values()]
            if ratings and "N/A" not in ratings:  # Trap: a mean over fewer aspects is no match for the others
                rewards.append(sum(map(float, ratings)) / len(ratings))
                responses.append(completion["response"])
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError("field 'completions' must hold {response, annotations{aspect{Rating}}}, Rating a number or "
                            "N/A") from None
    prompt = field(row, "instruction")
    return [{"prompt": prompt, "responses": responses, "rewards": rewards}] if len(responses) > 1 else []


def offsetbias(row, where):
    label = field(row, "label", int)
    if label not in (1, 2):  # Trap: the number of the better output, neither an index nor a truth value
        raise UserError("field 'label' must be 1 or 2, the number of the better output")
    return [pair(field(row, "instruction"), field(row, "output_1"), field(row, "output_2"), 3 - 2 * label)]


def math_single(row, where):
    """A verified answer to a verifiable question: n = 1, r = 1 if it is right (§3.2)."""
    if field(row, "is_correct", bool, int) not in (0, 1):
        raise UserError("field 'is_correct' must be true or false")
    return [{"prompt": field(row, "problem"), "responses": [field(row, "response")], "domain": "math",
             "rewards": [int(row["is_correct"])], "reference": row.get("answer")}]


# ----- benchmarks -----

# section: {subset: its weight}. Trap: math-prm's 447 items weigh as much as the six code subsets together.
REWARDBENCH = {
    "chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95,
             "mt-bench-easy": 28, "mt-bench-med": 40},
    "chat-hard": {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
                  "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    "safety": {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154,
               "xstest-should-respond": 250, "donotanswer": 136},
    "reasoning": {"math-prm": 984, **{f"hep-{code}": 164 for code in ("cpp", "go", "java", "js", "python", "rust")}},
}
# Best-of-K set: the revision that published loaders pin
PPE = {"GPQA": "2f85cea6481db81daa2c8033c51b7811b7bbf648", "IFEval": "a4f7fae2443d96529dee6b65863a816a051b3a4d",
       "MATH": "c46ce3cda5417fe8d170e992d925f93856b5db40", "MBPP-Plus": "afa814632c1df94e76b6af2c1d282511114cd2b7",
       "MMLU-Pro": "d3a309b95d5a3a34efdd2b01a9e3ee10565bf0c7"}
REALMISTAKE = ("answerability_classification", "finegrained_fact_verification", "math_word_problem_generation")
REALMISTAKE_MODELS = {"gpt4": "gpt4", "gpt-4-0613": "gpt4", "llama2": "llama2", "Llama-2-70b-chat-hf": "llama2"}


def in_section(record, section, subset, source_id):
    return {**record, "domain": section, "section": section, "subset": subset, "source_id": source_id}


def rewardbench(row, where):
    subset = field(row, "subset")
    for section, weights in REWARDBENCH.items():
        if subset in weights:
            record = pair(field(row, "prompt"), field(row, "chosen"), field(row, "rejected"), 1, weight=weights[subset])
            return [in_section(record, section, subset, row.get("id"))]
    raise UserError(f"field 'subset' is {subset!r}, which is in none of the four sections")


def rewardbench2(row, where):
    subset, chosen, rejected = field(row, "subset"), field(row, "chosen", list), field(row, "rejected", list)
    record = {"prompt": field(row, "prompt"), "responses": chosen + rejected,
              "rewards": [1] * len(chosen) + [0] * len(rejected)}
    # The subset Ties is scored by margins between several right answers, not by accuracy: dropped, and counted so.
    return [in_section(record, subset, subset, row.get("id"))] if subset != "Ties" else []


def ppe_preference(row, where):
    winner = field(row, "winner")  # model_a, model_b, or a tie by some name; a prompt of several turns is one text here
    record = pair(field(row, "prompt"), field(row, "response_1"), field(row, "response_2"),
                  (winner == "model_a") - (winner == "model_b"), language=row.get("language"))
    return [in_section(record, "ppe_preference", None, row.get("question_id"))]


def ppe_reference(row):
    """What --use_reference shows (App. E.1.3), or None. Choice: the answer in the columns of each set; IFEval has none, so
    the constraints that its checker tests, with their arguments."""
    try:
        if "options" in row:  # MMLU-Pro
            return f"({row['answer']}) {row['options'][row['answer_index']]}"
        if "correct_choice" in row:  # GPQA
            return f"({'ABCD'[row['correct_choice_index']]}) {row['correct_choice']}"
        if "instruction_id_list" in row:
            return "\n".join(" ".join([name, *(f"{k}={v}" for k, v in given.items() if v is not None)])
                             for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True))
        return row.get("solution") or row.get("code")  # MATH, MBPP-Plus
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def ppe_correctness(row, where):
    """One item per sampled pair of a right and a wrong response; the file's or the hub's name tells the set."""
    subset = (re.findall("|".join(PPE), where) or [None])[-1]
    if subset is None:
        raise UserError(f"the file or its folder must be named after one of {', '.join(PPE)}")
    scores, items = field(row, "scores", list), []
    for places in field(row, "sampled_conflict_pairs", list):
        if not isinstance(places, list) or len(places) != 2 or not all(i in range(len(scores)) for i in places):
            raise UserError(f"field 'sampled_conflict_pairs' must hold pairs of places 0..{len(scores) - 1}")
        if any(scores[i] not in (0, 1) for i in places):
            raise UserError("field 'scores' must hold true or false")
        # Trap: pairs and `scores` count from 0, the columns from 1: response_1 ... response_32.
        first, second = (field(row, f"response_{i + 1}") for i in places)
        record = pair(field(row, "prompt"), first, second, scores[places[0]] - scores[places[1]], pair=places,
                      reference=ppe_reference(row))
        items.append(in_section(record, subset, subset, row.get("question_id")))
    return items


def rmb(row, where):
    """A pair, or one best response and its losers, which the GRM sees as one list (§5). Four sections, each over all
    its rows: {helpfulness, harmlessness} x {pairwise, bon}."""
    found = re.findall("(helpful|harmless)ness", f"{where} {row.get('category_path')}".lower())
    if not found and not re.search(r"\b(S\d+|multi)\.json", where):  # harmlessness has these files
        raise UserError("field 'category_path' or the file's folder must say Helpfulness or Harmlessness")
    domain = "helpfulness" if found and found[-1] == "helpful" else "harmlessness"
    kind = "bon" if "bon_best" in row else "pairwise"
    rivals = [field(row, "bon_best", dict), *field(row, "loser_list", list)] if kind == "bon" else [
        field(row, "chosen", dict), field(row, "reject", dict)]  # Trap: `reject`, not `rejected`
    if len(rivals) < 2 or not all(isinstance(rival, dict) for rival in rivals):
        raise UserError("field 'loser_list' must hold one or more {llm_name, answer}")
    record = {"prompt": messages(row, "conversation_input"), "responses": [field(rival, "answer") for rival in rivals],
              "rewards": [1] + [0] * (len(rivals) - 1), "category": row.get("category_path")}
    scenario = re.findall(r"(?:Helpful|Harmless)ness/([^/.,]+)", f"{where} {row.get('category_path')}")
    return [in_section(record, f"{domain}-{kind}", scenario[-1] if scenario else kind,
                       row.get("bon_uid" if kind == "bon" else "pair_uid"))]


def realmistake(row, where):
    """Is the one response free of errors? r = 1: no error, so that ROC-AUC rewards high scores for good responses."""
    key = "error_label" if "error_label" in row else "label"  # published copies have either
    if field(row, key) not in ("error", "no_error"):
        raise UserError(f"field '{key}' must be error or no_error")
    record = {"prompt": field(row, "input"), "responses": [field(row, "llm_response")],
              "rewards": [int(row[key] == "no_error")]}
    task, model = (re.findall("|".join(names), where) for names in (REALMISTAKE, REALMISTAKE_MODELS))
    return [in_section(record, task[-1] if task else "realmistake", REALMISTAKE_MODELS[model[-1]] if model else None, None)]


# name: (the hub's sets, splits, schema). Splits: {ours: the hub's} of a training set, the one of a benchmark, {} as is.
LOADERS = {
    "skywork": ([{"path": "Skywork/Skywork-Reward-Preference-80K-v0.2"}], {"train": "train"}, chosen_rejected),
    "helpsteer2": ([{"path": "nvidia/HelpSteer2", "data_dir": "preference"}], {"train": "train"}, helpsteer2),
    "helpsteer3": ([{"path": "nvidia/HelpSteer3", "name": "preference"}],
                   {"train": "train", "validation": "validation"}, helpsteer3),
    "ultrafeedback": ([{"path": "openbmb/UltraFeedback"}], {"train": "train"}, ultrafeedback),
    "ultrafeedback_binarized": ([{"path": "HuggingFaceH4/ultrafeedback_binarized"}],
                                {"train": "train_prefs", "test": "test_prefs"}, chosen_rejected),
    "offsetbias": ([{"path": "NCSOFT/offsetbias"}], {"train": "train"}, offsetbias),
    "hh-rlhf": ([{"path": "Anthropic/hh-rlhf"}], {"train": "train", "test": "test"}, chosen_rejected),
    "pairs": ([], {}, chosen_rejected),
    "math": ([], {}, math_single),
    "rewardbench": ([{"path": "allenai/reward-bench"}], "filtered", rewardbench),  # Trap: not `raw`
    "rewardbench2": ([{"path": "allenai/reward-bench-2"}], "test", rewardbench2),
    "ppe_preference": ([{"path": "lmarena-ai/PPE-Human-Preference-V1"}], "test", ppe_preference),
    "ppe_correctness": ([{"path": f"lmarena-ai/PPE-{name}-Best-of-K", "revision": revision}
                         for name, revision in PPE.items()], "train", ppe_correctness),
    "rmb": ([], "", rmb),  # a checkout of Zhou-Zoey/RMB-Reward-Model-Benchmark
    "realmistake": ([{"path": "ryokamoi/realmistake", "name": task, "split": model}
                     for task in REALMISTAKE for model in ("gpt4", "llama2")], "", realmistake),
}
CHATS = {"smoltalk": [{"path": "HuggingFaceTB/smoltalk", "name": "all", "streaming": True}]}
DATA_HELP = ("toy; a .jsonl file, whole (FILE#train, #validation, #test: that part, cut by a hash of the prompt); or NAME, "
             "NAME@REVISION (hub), NAME:PATH (local files), NAME one of " + ", ".join(LOADERS))
