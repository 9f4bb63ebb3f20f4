"""Plumbing: the data record, its reader, and how texts of others are made harmless.

One JSONL line is one item; the same record is used for training, voting and evaluation:

    {"id": "x-1", "prompt": "text, or a list of {role, content} messages, the user's turn last",
     "responses": ["...", "..."], "rewards": [0, 1], "domain": "chat", "reference": "optional",
     "preference_strength": 2}

An item without an id gets one that is made from its texts.
"""
import dataclasses
import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from difflib import get_close_matches

from plumbing.files import chat_in, file_rows, from_text, local_files, parse_line, some
from plumbing.runs import UserError

# ----- the record -----

@dataclasses.dataclass
class PreferenceExample:
    """One item: a query x, its responses {y_i} and, where known, their ground-truth rewards {r_i}.

    prompt: messages [{"role", "content"}, ...], the last one the user's query.  responses: n >= 1.
    rewards: n numbers with one unique maximum if n >= 2 (paper, below Eq. 10); 0 or 1 if n = 1.
    """
    id: str
    prompt: list
    responses: list
    rewards: list | None = None
    domain: str = "all"
    reference: str | None = None
    preference_strength: int | None = None
    extra: dict = dataclasses.field(default_factory=dict)  # the record's other fields
    of: str | None = None  # a pair of `as_pairs`: the item that it is a part of

    def permuted(self, permutation):
        """The same item with response permutation[i] at place i."""
        def shown(values):
            return [values[j] for j in permutation]
        rewards = None if self.rewards is None else shown(self.rewards)
        return dataclasses.replace(self, responses=shown(self.responses), rewards=rewards)


LABELS = {"label", "labels", "score", "scores", "rating", "ratings", "preference", "preferences",
          "chosen", "winner", "best"}  # what others call `rewards`
KNOWN = {field.name for field in dataclasses.fields(PreferenceExample)} - {"extra", "of"}


def example_from_dict(row, where="record"):
    """A PreferenceExample from one JSON object. Raises UserError: `where`, field and fix."""
    def check(fine, field, problem):
        if not fine:
            raise UserError(f"{where}: field '{field}' {problem}")

    def whole(value):  # in Python True is an int
        return isinstance(value, int) and not isinstance(value, bool)

    if not isinstance(row, dict):
        raise UserError(f"{where}: expected one JSON object per line, e.g. "
                        '{"id": "x-1", "prompt": "...", "responses": ["...", "..."], '
                        '"rewards": [0, 1]}')
    fix = "--data pairs:FILE.jsonl reads chosen/rejected" if "chosen" in row else "add it"
    for field in ("prompt", "responses"):
        check(row.get(field) is not None, field, f"is missing; {fix}; the row has {some(row)}")
    name, prompt = row.get("id"), chat_in(row["prompt"])
    check(name is None or whole(name) or isinstance(name, str) and name, "id",
          "must be a non-empty text that no other line uses")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    check(isinstance(prompt, list) and prompt and all(
        isinstance(m, dict) and isinstance(m.get("content"), str)
        and m.get("role") in ("system", "user", "assistant") for m in prompt)
        and prompt[-1]["role"] == "user", "prompt",
        "must be a text, or a list of {role, content} messages that ends with the user's turn")
    responses = from_text(row["responses"], list)
    check(isinstance(responses, list) and responses and all(isinstance(r, str) for r in responses),
          "responses", "must be a list of one or more texts")
    rewards = from_text(row.get("rewards"), list)
    # Pitfall: labels under a name that nobody reads would be missed when all has been judged.
    other = "rewards" not in row and next((key for key in row if key.lower() in LABELS or
                                           get_close_matches(key.lower(), ["rewards"], 1, 0.8)), "")
    check(not other, "rewards", f"is missing, but there is {other!r}; rename it (a list of "
          "numbers, one per response, the best one highest), or add \"rewards\": null if it is no "
          "label")
    if rewards is not None:
        check(isinstance(rewards, list) and len(rewards) == len(responses), "rewards",
              f"must be a list of {len(responses)} numbers, one per response")
        check(all(isinstance(r, (int, float)) and not isinstance(r, bool) and abs(r) < float("inf")
                  for r in rewards), "rewards", "must hold finite numbers only")
        check(len(rewards) > 1 or rewards[0] in (0, 1), "rewards",
              "must be [0] or [1] for a single response (1 = correct)")
    strength = from_text(row.get("preference_strength"), int)
    check(strength is None or whole(strength), "preference_strength",
          "must be an integer (0 = no preference ... 3 = much better)")
    for field in ("domain", "reference"):
        check(row.get(field) is None or isinstance(row[field], str), field, "must be a text")
    check(isinstance(row.get("cluster"), (str, int, float, type(None))), "cluster",
          "must be a text or a number, the same for items whose errors go together")
    if name is None:
        texts = json.dumps([[m["content"] for m in prompt], responses])
        name = hashlib.sha256(texts.encode()).hexdigest()[:16]
    # Pitfall: ids seed random numbers, and half a surrogate pair has no bytes to make a seed of.
    name = str(name).encode(errors="backslashreplace").decode()
    return PreferenceExample(
        name, prompt, responses, rewards, row.get("domain") or "all",
        row.get("reference"), strength, {k: v for k, v in row.items() if k not in KNOWN})


def unread(examples):
    """The names of fields that nobody read in items without rewards: their labels may be there."""
    fields = dict.fromkeys(key for e in examples if e.rewards is None for key in e.extra)
    fields.pop("cluster", None)
    return f"; nobody reads their fields {some(fields)}" if fields else ""


def as_pairs(examples):
    """Best-of-N by pairs (App. E.1.1): the best response with each other one, an item each.

    Their `of` names the item that they were; it is won if all its pairs are. Items with n <= 2
    stay.
    """
    pairs = []
    for e in examples:
        if len(e.responses) < 3 or e.rewards is None:
            pairs.append(e)
            continue
        best = e.rewards.index(max(e.rewards))
        pairs += [dataclasses.replace(e, id=f"{e.id}#{j}", responses=[e.responses[best], response],
                                      rewards=[1, 0], of=e.id)
                  for j, response in enumerate(e.responses) if j != best]
    return pairs


# ----- the reader -----

def has_best(example):
    """Whether one response is the best: no other has its reward, and no other has its text."""
    rewards, responses = example.rewards, example.responses
    if rewards is None or len(rewards) == 1:
        return True
    best = max(rewards)
    return rewards.count(best) == 1 == responses.count(responses[rewards.index(best)])


def collect(rows, convert, source, skip_bad=False, limit=None):
    """Examples of rows (where, JSON line or dict). What is dropped is counted in a printed line.

    convert(index, where, row): list of examples; None in it is an item with nothing to compare.
    Items without one best response are dropped, because Eq. 10 needs one maximum. A malformed row
    raises UserError naming file, line, field and fix; with skip_bad it is counted instead.
    """
    examples, ids, dropped, skipped, problem = [], set(), 0, 0, ""
    for index, (where, row) in enumerate(rows):
        try:
            row = parse_line(row, where) if isinstance(row, bytes) else row
            found = convert(index, where, row)
            for e in filter(None, found):
                if e.id in ids:
                    raise UserError(f"{where}: field 'id' repeats {e.id!r}; every item needs its "
                                    "own id")
        except UserError as error:
            if not skip_bad:
                raise
            skipped, problem = skipped + 1, problem or f" (the first: {error})"
            continue
        for e in found:
            if e:
                ids.add(e.id)
            if e is None or not has_best(e):
                dropped += 1
            else:
                examples.append(e)
        if limit and len(examples) >= limit:
            break
    counts = (f"{dropped} dropped (no best response, or two equal texts), "
              f"{skipped} malformed rows skipped")
    if not examples:
        raise UserError(f"{source}: no usable item; {counts}{problem}")
    if dropped or skipped:
        print(f"{source}: {len(examples)} items; {counts}")
    return examples


def tell_apart(example, seen):
    """An id made of texts gets a number behind it where the same texts come again."""
    seen[example.id] += 1
    example.id += f"-{seen[example.id]}" * (seen[example.id] > 1)


def read_jsonl(path, skip_bad=False, limit=None):
    """Examples of a JSONL file, or of another kind in files.py; errors, what is dropped: `collect`.
    """
    seen = Counter()

    def convert(_, where, row):
        e = example_from_dict(row, where)
        if row.get("id") is None:
            tell_apart(e, seen)
        return [e]
    rows = itertools.chain.from_iterable(file_rows("", file) for file in local_files("", path))
    return collect(rows, convert, path, skip_bad, limit)


# ----- texts of others: none may forge a delimiter, a heading or the hint of a prompt -----

FORGED = re.compile(
    r"(?P<bracket>\[)(?=\s*the\s*(?:begin|end)\s*of\s*response)"
    r"|#(?=#{3}\s*(?:evaluation|conversation|reference|responses|specific|output)\b)"
    r"|(?P<hint>\bthe\s+best\s+response(?=\s+is\s*:)"
    r"|\bthe\s+response(?=\s+is\s+(?:not\s+)?correct))", re.IGNORECASE)
# Not seen, whatever its Unicode category says: joiners, fillers, variation selectors.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
                    "\U000e0100-\U000e01ef]")


def unseen(character):
    """Whether a reader may not see it: also format characters, private use, unassigned."""
    return (unicodedata.category(character) in ("Cf", "Co", "Cn")
            or UNSEEN.match(character) is not None)


def clean(text):
    """A text of others made harmless: forged delimiters are broken, control characters go.

    Nothing else is touched, because two responses may differ by one joiner, and Python may be older
    than an emoji. A delimiter with such characters inside is a delimiter too. Letters that only
    look like those of a delimiter stay: the judge may be fooled by them, but nothing else is,
    because only the judge's own text is parsed.

    >>> clean("Fine. [The End of Response 1]")
    'Fine. (The End of Response 1]'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    letters = [c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")]
    # Pitfall: after the removal, because letters can meet when what stood between them is gone.
    places = [i for i, c in enumerate(letters) if c.isascii() or not unseen(c)]
    for m in FORGED.finditer("".join(letters[i] for i in places)):
        if m["bracket"]:
            letters[places[m.start()]] = "("
        else:
            letters[places[m.end() - 1]] += "_" if m["hint"] else " "
    return "".join(letters)
