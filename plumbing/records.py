"""Plumbing: the one data record of this project, its reader, and how text written by others is made harmless.

One JSONL line is one item; the same record is used for training, voting and evaluation:

    {"id": "x-1", "prompt": "text, or a list of {role, content} messages that ends with the user's turn",
     "responses": ["...", "..."], "rewards": [0, 1], "domain": "chat", "reference": "optional", "preference_strength": 2}
"""
import dataclasses
import functools
import json
import re
import unicodedata
from pathlib import Path

from plumbing.runs import UserError

# ----- the record -----

@dataclasses.dataclass
class PreferenceExample:
    """One item: a query x, its responses {y_i} and, for training and evaluation, their ground-truth rewards {r_i}.

    prompt: messages [{"role", "content"}, ...], the last one the user's query.   responses: n >= 1 texts.
    rewards: n numbers with one unique maximum if n >= 2 (paper, below Eq. 10); 0 or 1 if n = 1; None if unknown.
    """
    id: str
    prompt: list
    responses: list
    rewards: list | None = None
    domain: str = "all"
    reference: str | None = None
    preference_strength: int | None = None
    extra: dict = dataclasses.field(default_factory=dict)

    def permuted(self, permutation):
        """The same item with response permutation[i] shown at place i."""
        return dataclasses.replace(self, responses=[self.responses[j] for j in permutation],
                                   rewards=None if self.rewards is None else [self.rewards[j] for j in permutation])


def example_from_dict(row, where="record"):
    """A PreferenceExample from one JSON object. Raises UserError naming `where`, the field and the fix."""
    def bad(field, problem):
        return UserError(f"{where}: field '{field}' {problem}")

    def texts(value):
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    if not isinstance(row, dict):
        raise UserError(f"{where}: expected one JSON object per line, e.g. "
                        '{"id": "x-1", "prompt": "...", "responses": ["...", "..."], "rewards": [0, 1]}')
    for field in ("id", "prompt", "responses"):
        if field not in row:
            raise bad(field, "is missing; " + ("--data pairs:FILE.jsonl reads chosen/rejected" if "chosen" in row else "add it"))
    if not isinstance(row["id"], (str, int)) or isinstance(row["id"], bool) or row["id"] == "":
        raise bad("id", "must be a non-empty text that no other line uses")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not (isinstance(prompt, list) and prompt and all(isinstance(m, dict) and isinstance(m.get("content"), str)
            and m.get("role") in ("system", "user", "assistant") for m in prompt) and prompt[-1]["role"] == "user"):
        raise bad("prompt", "must be a text, or a list of {role, content} messages that ends with the user's turn")
    responses = row["responses"]
    if not texts(responses) or not responses:
        raise bad("responses", "must be a list of one or more texts")
    rewards = row.get("rewards")
    if rewards is not None:
        if not isinstance(rewards, list) or len(rewards) != len(responses):
            raise bad("rewards", f"must be a list of {len(responses)} numbers, one per response")
        if not all(isinstance(r, (int, float)) and not isinstance(r, bool) and abs(r) < float("inf") for r in rewards):
            raise bad("rewards", "must hold finite numbers only")
        if len(rewards) == 1 and rewards[0] not in (0, 1):
            raise bad("rewards", "must be [0] or [1] for a single response (1 = correct)")
    strength = row.get("preference_strength")
    if strength is not None and (not isinstance(strength, int) or isinstance(strength, bool)):
        raise bad("preference_strength", "must be an integer (0 = no preference ... 3 = much better)")
    for field in ("domain", "reference"):
        if row.get(field) is not None and not isinstance(row[field], str):
            raise bad(field, "must be a text")
    known = {f.name for f in dataclasses.fields(PreferenceExample)} - {"extra"}
    return PreferenceExample(str(row["id"]), prompt, responses, rewards, row.get("domain") or "all", row.get("reference"),
                             strength, {k: v for k, v in row.items() if k not in known})


def as_pairs(examples):
    """Best-of-N by pairs (App. E.1.1): the best response against each other one, an item each; items with n <= 2 stay.

    `of` in their `extra` names the item that they were; it is won if all its pairs are.
    """
    pairs = []
    for e in examples:
        if len(e.responses) < 3 or e.rewards is None:
            pairs.append(e)
            continue
        best = e.rewards.index(max(e.rewards))
        pairs += [dataclasses.replace(e, id=f"{e.id}#{j}", responses=[e.responses[best], e.responses[j]], rewards=[1, 0],
                                      extra={**e.extra, "of": e.id}) for j in range(len(e.responses)) if j != best]
    return pairs


def read_jsonl(path, skip_bad=False, limit=None):
    """Examples of a JSONL file. Items whose best reward is tied are dropped and counted (Eq. 10 needs one maximum).

    Raises UserError naming file, line, field and fix; with `skip_bad` such lines are counted in a printed line instead.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give --data a .jsonl file or a name that data.py knows")
    examples, seen, skipped, tied = [], set(), 0, 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            try:
                row = json.loads(line.decode("utf-8"))
                json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is JSON, but no text
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON in UTF-8 ({error}); mend the line or pass --skip_bad") from None
            example = example_from_dict(row, where)
            if example.id in seen:
                raise UserError(f"{where}: field 'id' repeats {example.id!r}; every item needs its own id")
        except UserError:
            if not skip_bad:
                raise
            skipped += 1
            continue
        seen.add(example.id)
        if example.rewards is not None and example.rewards.count(max(example.rewards)) > 1:
            tied += 1
            continue
        examples.append(example)
        if limit and len(examples) == limit:
            break
    if skipped or tied:
        print(f"{path}: {len(examples)} items; {tied} dropped for a tied best reward, {skipped} unreadable lines skipped")
    if not examples:
        raise UserError(f"{path}: no usable item ({tied} had a tied best reward, {skipped} lines were unreadable)")
    return examples


# ----- untrusted text: no response or query may forge a delimiter, a heading or the hint of a prompt -----

FORGED = re.compile(r"\[(?=\s*the\s*(?:begin|end)\s*of\s*response)|#(?=#{3}\s*(?:evaluation|conversation|reference|"
                    r"responses|specific|output)\b)|\bthe\s+best\s+response(?=\s+is\s*:)|"
                    r"\bthe\s+response(?=\s+is\s+(?:not\s+)?correct)", re.IGNORECASE)
# Invisible, but no control characters: joiners, fillers, variation selectors.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# Letters and marks that look like those of the delimiters; compatibility forms and accents are left to NFKD below.
LOOKALIKE = str.maketrans("аɑαᴀьвβʙсᴄԁᴅеєεᴇƒғɡցɢһнʜіιıɪӏʟпηɴоοօᴏрρᴘгʀѕꜱтτᴛυսᴜνѵᴠхχ【〔⟦⁅❲♯∶꞉ː\u2800",
                          "aaaabbbbccddeeeeffggghhhiiiillnnnooooppprrsstttuuuvvvxx[[[[[#::: ")


@functools.cache
def looks_like(c):
    """The plain characters that one character looks like: without accents, compatibility forms and foreign look-alikes."""
    plain = unicodedata.normalize("NFKD", c).lower().translate(LOOKALIKE)
    return "".join(p for p in plain if not unicodedata.combining(p))


def clean(text):
    """Untrusted text made harmless: invisible control characters out, forged delimiters and headings broken."""
    text = UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    text = unicodedata.normalize("NFC", text)  # last, because letters can meet when what stood between them is gone
    # what a reader makes of it, and where each plain character comes from
    plain = text if text.isascii() else "".join(map(looks_like, text))
    place = range(len(text)) if plain is text else [i for i, c in enumerate(text) for _ in looks_like(c)]
    parts, end = [], 0
    for match in FORGED.finditer(plain):
        if match[0] == "[":
            start, stop, new = place[match.start()], place[match.start()] + 1, "("
        else:  # "#" and words: what follows is put apart
            start = stop = place[match.end() - 1] + 1
            new = " " if match[0] == "#" else "_"
        parts += [text[end:start], new]
        end = stop
    return "".join(parts) + text[end:]
