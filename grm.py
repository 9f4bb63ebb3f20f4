r"""The pointwise generative reward model (GRM): one judgment, from the prompt to the scores.

Paper: "Inference-Time Scaling for Generalist Reward Modeling", arXiv 2504.02495 v3, sections 2 and 3.1.
A pointwise GRM reads a query x and n >= 1 responses {y_i}, writes its own principles for this query and their weights,
then a critique C, then one integer 1-10 per response, all in one generation by one model (Eqs. 7 and 9):

    {p_i} ~ p_theta(x, {y_i}),    C ~ r_theta(x, {y_i}, {p_i}),    {S_i} = f_extract(C)

In this file, in this order (the data record is in records.py): the prompt -> sampling judgments -> extracting the scores ->
when scores are correct (Eq. 10) -> the rule reward (Eq. 11) -> `score(...)`, the one call a user makes.

    python grm.py                                                  # judges one example with the embedded toy model
    python grm.py --prompt "How do I bake bread?" --response "..." --response "..."
    python grm.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data items.jsonl --output runs/judged

Where we differ from the paper: the prompts have the paper's structure (App. G) in our own words; `compact` is ours.
Read next: spct_rft.py.
"""
import argparse
import dataclasses
import os
import random
import re
from pathlib import Path

from plumbing import generation, served
from plumbing.records import PreferenceExample, clean, example_from_dict, read_jsonl  # noqa: F401 (read_jsonl: for users of grm)
from plumbing.runs import HERE, UserError, append_jsonl, command_line, open_run, read_flags, read_rows, share_threads

TOY_BASE = str(HERE / "toy_world" / "medium")


# ----- the prompt (App. G of the paper; structure theirs, wording ours) -----

FULL = """\
You are an expert at scoring answers. Below you find a conversation, whose last turn is the user's query, and one or \
more responses to that query. Judge them by the General Evaluation Criteria. {principles_task} give your answer.
{scale}
Work through the responses step by step before you score them, and be as strict as possible.
#### Evaluation Criteria ####
{general_criteria}
"""
COMPACT = """\
{short_task}
{principles_task} give the scores.
"""
BODY = """\
#### Conversation Context ####
{conversation}
{reference}#### Responses to be Scored ####
{responses}
{given_principles}{hint}#### Output Format Requirements ####
{output_format}"""

SCALE = {
    "1-10": "A score is an integer from 1 to 10; higher is better. 1: the response meets none of the criteria. "
            "6: it meets them only in part. 10: it meets all of them perfectly.",
    "0-1": "The score is 0 or 1. 1: the response is correct. 0: it is not.",
    "best": "The answer is the number of the best response.",
}
SHORT_TASK = {
    "1-10": "Score each response to the user's last message from 1 (worst) to 10 (best).",
    "0-1": "Score the response to the user's last message with 1 if it is correct and 0 if it is not.",
    "best": "Select the best response to the user's last message.",
}
PRINCIPLES_TASK = {
    True: "First state the specific criteria that matter for this query, with their weights, then analyse, then",
    False: "First analyse the responses, then",
    "given": "Weigh the responses by the specific criteria given below: first analyse, then",
}
# name: what it asks, then one example per band 9-10 / 6-8 / 3-5 / 1-2 (they double as guidance for the critique)
GENERAL_CRITERIA = {
    "Instruction Adherence": [
        ("Fully Adhered", "every part of the request and every constraint is met: a haiku was asked for, and it scans."),
        ("Partially Adhered", "the main request is met, a constraint is missed: four bullet points where three were asked."),
        ("Basically Adhered", "part of the request is met, but important parts are missing: two of five questions answered."),
        ("Not Adhered", "the request is ignored: a recipe is asked for and a restaurant is advertised.")],
    "Usefulness": [
        ("Highly Useful", "correct and ready to use: the code runs and handles the empty list."),
        ("Useful but Incomplete", "correct in the main, yet the user must add something: the command lacks one flag."),
        ("Limited Usefulness", "a hint in the right direction with errors: the formula is right, the result is not."),
        ("Useless or Incorrect", "wrong or misleading: it invents a law that does not exist.")],
    "Level of Detail": [
        ("Very Detailed", "all that is needed to understand and check it: each step of the proof is given."),
        ("Detailed but Slightly Lacking", "most of what is needed: one step is skipped."),
        ("Basically Detailed", "only the outline: the steps are named, not explained."),
        ("Not Detailed", "next to nothing: 'It depends.'")],
    "Relevance": [
        ("Highly Relevant", "every sentence serves the query."),
        ("Generally Relevant", "on topic, with a digression: a note on history in a cooking answer."),
        ("Partially Relevant", "much of it is about something else: mostly about the weather, a little about the trip."),
        ("Not Relevant", "about another subject altogether.")],
}
SINGLE_CRITERIA = {  # training on single responses: three criteria, bands without point ranges
    "Instruction Adherence": GENERAL_CRITERIA["Instruction Adherence"],
    "Clarity": [("Very Clear", "well ordered and unambiguous."), ("Clear", "understood at one reading."),
                ("Somewhat Unclear", "a reader must guess in places."), ("Unclear", "cannot be followed.")],
    "Accuracy": [("Fully Accurate", "every fact and step is right."), ("Mostly Accurate", "a slip that changes nothing."),
                 ("Partly Accurate", "an error that matters."), ("Inaccurate", "the main claim or result is wrong.")],
}


def describe_criteria(criteria, bands):
    lines = []
    for number, (name, levels) in enumerate(criteria.items(), 1):
        lines.append(f"{number}. {name}:")
        lines += [f"   - {level}{f' ({band} points)' if band else ''}: {text}"
                  for (level, text), band in zip(levels, bands, strict=True)]
    return "\n".join(lines)


def build_prompt(example, template="full", rating="1-10", principles=True, use_reference=False, hint=False):
    r"""The judge's prompt for one item, responses in the order of `example`: one user turn, no system turn.

    Source: paper App. G. rating "1-10" is the default prompt, for every n; "0-1" that of single responses in training (§3.2);
            "best" that of LLM-as-a-Judge (Eq. 6): the box holds the number of the best response instead of scores.
    Args:   template: "full", "compact" (the same blocks in fewer words, for small models), or a file with the fields
                {conversation} {responses} {output_format} (or a \boxed of its own), optionally the others of FULL, COMPACT, BODY.
            principles: True (Eq. 9: the model writes them), False (ablation of Table 4), or a list of given ones (Eq. 8).
            use_reference: adds a reference-answer block (App. E.1.3).
            hint: names the best response, in displayed order (§3.2, hinted sampling). Never part of a training prompt.
    Returns: [{"role": "user", "content": text}].
    Raises: UserError if what is asked for is not in the example, or the template file lacks a field.

    >>> item = PreferenceExample("x", [{"role": "user", "content": "Hi"}], ["Hello!", "Go away."], [1, 0])
    >>> print(build_prompt(item, "compact", hint=True)[0]["content"])
    Score each response to the user's last message from 1 (worst) to 10 (best).
    First state the specific criteria that matter for this query, with their weights, then analyse, then give the scores.
    #### Conversation Context ####
    User: Hi
    #### Responses to be Scored ####
    [The Begin of Response 1]
    Hello!
    [The End of Response 1]
    [The Begin of Response 2]
    Go away.
    [The End of Response 2]
    The best response is: Response 1
    #### Output Format Requirements ####
    Specific Criteria: <criteria and their weights>
    Analysis: <each response under the criteria>
    Scores: \boxed{x, x}
    """
    n = len(example.responses)
    if rating not in SCALE:
        raise UserError(f"rating {rating!r}: choose one of {sorted(SCALE)}")
    if rating == "0-1" and n != 1:
        raise UserError(f"item {example.id}: the 0-1 rating is for single responses and this item has {n}; use 1-10")
    if rating == "best" and n == 1:
        raise UserError(f"item {example.id}: a judge cannot select the best of a single response (Eq. 3); drop n = 1 items")
    if use_reference and not example.reference:
        raise UserError(f"item {example.id} has no 'reference'; add the field or drop --use_reference")
    given = principles if isinstance(principles, (list, tuple)) else None
    index = [""] if rating == "0-1" else [f" {i}" for i in range(1, n + 1)]  # a single response in training has no index
    boxes = ", ".join("x" * (1 if rating == "best" else n))
    criteria = SINGLE_CRITERIA if rating == "0-1" else GENERAL_CRITERIA
    bands = ("9-10", "6-8", "3-5", "1-2") if rating == "1-10" else (None,) * 4  # only the default prints point ranges
    fields = {
        "principles_task": PRINCIPLES_TASK["given" if given else bool(principles)],
        "scale": SCALE[rating],
        "short_task": SHORT_TASK[rating],
        "general_criteria": describe_criteria(criteria, bands),
        # Choice: a multi-turn conversation is printed as `User:` / `Assistant:` lines, its last turn is the query.
        "conversation": "\n".join(f"{m['role'].capitalize()}: {clean(m['content'])}" for m in example.prompt),
        "reference": f"#### Reference Answer ####\n{clean(example.reference)}\n" if use_reference else "",
        "responses": "\n".join(f"[The Begin of Response{i}]\n{clean(text)}\n[The End of Response{i}]"
                               for i, text in zip(index, example.responses, strict=True)),
        "given_principles": "#### Specific Criteria ####\n" + "\n".join(map(clean, given)) + "\n" if given else "",
        "hint": describe_hint(example) + "\n" if hint else "",
        "output_format": ("Specific Criteria: <criteria and their weights>\n" if principles is True else "")
        + f"Analysis: <each response under the criteria>\nScores: \\boxed{{{boxes}}}",
    }
    layout = {"full": FULL + BODY, "compact": COMPACT + BODY}.get(template) or read_template(
        template, [f for f in ("hint", "reference", "given_principles") if fields[f]])
    # Pitfall: one pass, so that a response that holds "{hint}" or "{responses}" is never expanded. (`clean`, in records.py,
    # has broken whatever in the texts of others looks like a delimiter or a heading.)
    return [{"role": "user", "content": re.sub(r"\{(\w+)\}", lambda m: fields.get(m[1], m[0]), layout)}]


def read_template(path, asked_for=()):
    if not Path(path).is_file():
        raise UserError(f"template {path!r}: neither 'full' nor 'compact' nor an existing file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"template {path}: not UTF-8; save it in that encoding") from None
    format_field = () if r"\boxed" in text else ("output_format",)  # a file may state the format in its own words
    missing = [f for f in ("conversation", "responses", *format_field, *asked_for) if "{" + f + "}" not in text]
    if missing:
        raise UserError(f"template {path}: the field {{{missing[0]}}} is missing; add it where it belongs")
    return text


def describe_hint(example):
    """Hint of §3.2: which response is best (1-based, displayed order); with the strength where the data has one."""
    if example.rewards is None:
        raise UserError(f"item {example.id} has no 'rewards', so there is no best response to hint at")
    if len(example.rewards) == 1:  # Choice: the paper's hint names the best response; a single one is called right or wrong
        return f"The response is {'correct' if example.rewards[0] == 1 else 'not correct'}."
    text = f"The best response is: Response {best_index(example.rewards) + 1}"
    # Choice: HelpSteer2's strength 1..3 in words (the paper says that it is given, not how).
    words = {1: "slightly better", 2: "better", 3: "much better"}
    strength = abs(example.preference_strength or 0)
    return text + (f" ({words[min(strength, 3)]} than the other)" if strength else "")


# ----- sampling judgments: C ~ r_theta(x, {y_i}, {p_i}) (Eq. 9) -----

@dataclasses.dataclass
class Judgment:
    """One generation of the judge. `scores` are in the ORIGINAL order of the responses, None if they did not parse."""
    sample: int
    permutation: list      # response permutation[i] was shown at place i
    prompt_ids: list
    completion_ids: list   # as sampled; with the end token if it was reached
    text: str
    scores: list | None
    reason: str            # "ok", "no_box", "wrong_count", "not_a_number", "out_of_range", "truncated", "too_long" (the prompt)
    logp: list             # nats, of each sampled token under the tempered distribution it was drawn from
    usage: tuple = ()      # of a served model, which gives no ids: its tokens of prompt and completion

    def token_counts(self):
        return self.usage or (len(self.prompt_ids), len(self.completion_ids))


def sample_judgments(model, tokenizer, examples, k, temperature=0.5, seed=0, template="full", rating="1-10",
                     principles=True, use_reference=False, hint=False, max_new_tokens=512, clamp=False, first_sample=0,
                     orders="random", progress=False, skip_long=False):
    """k judgments of every example, each with its own random order of the responses (§4: against position bias).

    Source: paper §3.1 Eqs. 7, 9 and §4. Temperature 0 is greedy decoding; the paper votes at 0.5. Defaults are for a real
    language model (the full template, 512 tokens); the scripts' flags default to the toy's (compact, 160).
    Choice: a judgment cut off by max_new_tokens is invalid even if it holds a box.
    Args:   seed: the random numbers depend on (seed, example id, sample index) only, never on the batch.
            rating: "1-10", "0-1", "best", or "train": 0-1 for single responses and 1-10 otherwise (§3.2).
            first_sample: index of the first sample.
            orders: "random": drawn for each sample; "opposite": samples 2i and 2i + 1 see reversed orders; "shared": one
            drawn order for all k (the samples of a GRPO group answer one and the same prompt); "original": none drawn.
            principles: as in build_prompt, or {example id: those of that item} where they are given per query (Eq. 8).
            skip_long: a prompt that does not fit the model gives an invalid judgment ("too_long") instead of a UserError.
            clamp: scores outside 1-10 are clamped, as the released model's card does; training counts them as invalid.
    Returns: one list of k Judgments per example.
    """
    jobs = []  # (example, sample index, permutation)
    for example in examples:
        for j in range(first_sample, first_sample + k):
            order = list(range(len(example.responses)))
            if orders != "original":
                drawn_for = {"random": j, "opposite": j // 2, "shared": ""}[orders]
                random.Random(f"{seed}/{example.id}/{drawn_for}").shuffle(order)
            if orders == "opposite" and j % 2:
                order.reverse()
            jobs.append((example, j, order))
    chats = [build_prompt(example.permuted(order), template, rating_of(example, rating),
                          principles[example.id] if isinstance(principles, dict) else principles, use_reference, hint)
             for example, _, order in jobs]
    # A served model (served.py) has no tokenizer here: it takes the messages and answers with text.
    prompts = chats if tokenizer is None else [encode_chat(tokenizer, chat) for chat in chats]
    rows = generation.generate(model, tokenizer, prompts, temperature=temperature, max_new_tokens=max_new_tokens,
                            seeds=[f"{seed}/{ex.id}/{j}" for ex, j, _ in jobs], progress=progress, skip_long=skip_long)
    results = []
    for (example, j, order), prompt, row in zip(jobs, prompts, rows, strict=True):
        # Pitfall: only the completion is decoded and parsed; whatever a response quotes stays in the prompt.
        text = tokenizer.decode(row.ids, skip_special_tokens=True) if row.text is None else row.text
        shown, reason = parse_judgment(text, len(order), rating_of(example, rating), clamp) if row.finished else (None, row.why)
        scores = None if shown is None else unpermute(shown, order)
        results.append(Judgment(j, order, prompt if tokenizer else [], row.ids, text, scores, reason, row.logp, row.usage))
    return [results[i:i + k] for i in range(0, len(results), k)]


def rating_of(example, rating):
    """§3.2: "train" is 0-1 for single responses, which are right or wrong, and 1-10 otherwise."""
    return ("0-1" if len(example.responses) == 1 else "1-10") if rating == "train" else rating


def unpermute(shown, permutation):
    """Scores in displayed order -> original order: the inverse of `PreferenceExample.permuted`.

    >>> unpermute([9, 5], [1, 0])
    [5, 9]
    """
    original = [None] * len(shown)
    for place, j in enumerate(permutation):
        original[j] = shown[place]
    return original


def encode_chat(tokenizer, messages, completion=None):
    """Token ids of the chat up to where the assistant writes (or, with `completion`, of its text and end token too).

    Special tokens exist only where the chat template puts them: in the text they are broken by a space.
    """
    made_for, special = getattr(tokenizer, "_special_in_text", (None, None))
    if special is None or made_for != tokenizer.chat_template:
        template = tokenizer.chat_template or ""
        tokens = {t.content for t in tokenizer.added_tokens_decoder.values()
                  if t.content.strip() and len(t.content) > 1 and (t.special or t.content in template)}
        special = re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) or r"(?!)")
        tokenizer._special_in_text = (tokenizer.chat_template, special)

    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)

    def disarm(text):
        while special.search(text):  # again, because breaking one token may leave another
            text = special.sub(lambda m: m[0][0] + " " + m[0][1:], text)
        return text

    def harmless(text):
        text = disarm(text.encode("utf-8", "ignore").decode())  # half a surrogate pair is no text
        normal = normalizer.normalize_str(text) if normalizer else text
        # the tokenizer's own normalizer may make a token, of fullwidth letters for example
        return disarm(normal) if special.search(normal) else text
    messages = [{**m, "content": harmless(m["content"])} for m in messages]
    # Pitfall: the template writes the BOS token itself, so the tokenizer must not add a second one.
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if completion is None:
        return ids
    return ids, tokenizer(harmless(completion), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


# ----- extracting the scores: {S_i} = f_extract(C) (Eq. 7) -----

BOX = re.compile(r"\\boxed\s*\{([^{}]*)(\}?)")


def parse_scores(text, n, lo=1, hi=10, clamp=False):
    r"""The n integer scores in the last \boxed{...} of a judgment, in displayed order.

    Source: paper Eq. 7 and App. G: 1 <= S_i <= 10 integers by default. The heading before the box varies; the box counts.
    Args:    lo, hi: the range of the rating, points.  clamp: move scores outside it to its ends.
    Returns: (list of n int, "ok"), or (None, reason): no_box, wrong_count, not_a_number, out_of_range.
    Choice:  only the last box counts, and nothing is repaired: no default score, no missing score filled in.

    >>> parse_scores(r"**Scores: \boxed{8, 9}**", 2)
    ([8, 9], 'ok')
    >>> parse_scores(r"Scores: \boxed{8, 9, 11}", 2)
    (None, 'wrong_count')
    """
    boxes = BOX.findall(text)
    if not boxes or not any(closed for _, closed in boxes):
        return None, "no_box"
    if not boxes[-1][1]:  # nested braces, or never closed: an earlier box is not the verdict instead
        return None, "not_a_number"
    parts = [part.strip() for part in boxes[-1][0].split(",")]
    if len(parts) != n:
        return None, "wrong_count"
    if not all(re.fullmatch(r"[+-]?[0-9]{1,9}", part) for part in parts):
        return None, "not_a_number"
    scores = [int(part) for part in parts]
    if clamp:
        scores = [min(max(s, lo), hi) for s in scores]
    if not all(lo <= s <= hi for s in scores):
        return None, "out_of_range"
    return scores, "ok"


def parse_judgment(text, n, rating, clamp=False):
    r"""`parse_scores` for a rating: "1-10", "0-1", or "best" (Eq. 6), where the chosen response gets 1 and the others 0.

    One-hot scores let Eq. 10, Eq. 11 and voting (majority, Eq. 13 = the sum of Eq. 14) serve the LLM-as-a-Judge as well.
    >>> parse_judgment(r"Scores: \boxed{2}", 3, "best")
    ([0, 1, 0], 'ok')
    """
    if rating == "best":
        chosen, reason = parse_scores(text, 1, 1, n)
        return (None, reason) if chosen is None else ([int(i == chosen[0]) for i in range(1, n + 1)], "ok")
    lo, hi = (0, 1) if rating == "0-1" else (1, 10)
    return parse_scores(text, n, lo, hi, clamp)


# ----- when scores are correct (Eq. 10) and the rule reward (Eq. 11) -----

def best_index(rewards):
    """j = argmax_l r_l, defined only if the maximum is unique. Raises ValueError otherwise."""
    if list(rewards).count(max(rewards)) > 1:
        raise ValueError(f"rewards {list(rewards)} have a tied maximum; drop the item (Eq. 10 needs one best response)")
    return list(rewards).index(max(rewards))


def is_correct(scores, rewards):
    """Whether the predicted scores are correct (Eq. 10).

    Source: paper §3.2, Eq. 10: n >= 2: for all i != j, S_j > S_i with j = argmax_l r_l;  n = 1: S_1 = r_1.
    Args:   scores: n int, original order, or None if the judgment did not parse.   rewards: n numbers.
    Raises: ValueError if the lengths differ or the best reward is tied.
    Choice: unparsed is incorrect. A tie for first place is incorrect (strict inequality).

    >>> is_correct([2, 7], [0, 1]), is_correct([7, 7], [0, 1]), is_correct([9, 3, 3], [5, 1, 1]), is_correct([1], [1])
    (True, False, True, True)
    """
    j = best_index(rewards)
    if scores is None:
        return False
    if len(scores) != len(rewards):
        raise ValueError(f"{len(scores)} scores for {len(rewards)} rewards")
    if len(scores) == 1:
        return scores[0] == rewards[0]
    return all(scores[j] > s for i, s in enumerate(scores) if i != j)


def rule_reward(scores, rewards):
    """+1.0 if the scores are correct, else -1.0: the outcome reward of RL (Eq. 11), without any format reward.

    >>> rule_reward([8, 3], [1, 0]), rule_reward(None, [1, 0])
    (1.0, -1.0)
    """
    return 1.0 if is_correct(scores, rewards) else -1.0


def sum_scores(sample_scores):
    """Sum per response over the judgments that parsed (Eq. 14); None if none did.

    >>> sum_scores([[1, 5], None, [4, 8]])
    [5, 13]
    """
    valid = [s for s in sample_scores if s is not None]
    return [sum(column) for column in zip(*valid, strict=True)] if valid else None


# ----- the one call a user makes -----

def score(model, tokenizer, prompt, responses, k=1, temperature=None, seed=0, **options):
    """Rewards of the responses to one prompt: the sum of k judgments per response (Eq. 14); n = 1, 2 or many.

    Args:    prompt: text or messages.  temperature: default 0 (greedy) for k = 1 and 0.5 for k > 1, as in the paper.
             options: of `sample_judgments` (template, max_new_tokens, ...).
    Returns: n numbers (k..10k when all judgments parsed), or n NaN if none of the k judgments parsed.
    """
    responses = responses if isinstance(responses, str) else list(responses)  # a lone text is an error, not a list of letters
    example = example_from_dict({"id": f"score/{prompt}", "prompt": prompt, "responses": responses}, "score()")
    temperature = (0.0 if k == 1 else 0.5) if temperature is None else temperature
    [judgments] = sample_judgments(model, tokenizer, [example], k, temperature, seed, clamp=True, **options)
    return sum_scores([j.scores for j in judgments]) or [float("nan")] * len(responses)


def add_judge_flags(parser):
    """The flags that every script with a judge in it shares."""
    parser.add_argument("--template", default="compact", help="full (the paper's structure), compact, or a file")
    parser.add_argument("--max_new_tokens", type=int, default=160, help="tokens per judgment (paper's outputs: 218-376)")
    parser.add_argument("--no_principles", action="store_true", help="without principle generation (Table 4)")
    parser.add_argument("--use_reference", action="store_true", help="show the reference answer (App. E.1.3)")
    parser.add_argument("--skip_bad", action="store_true", help="count and skip unreadable lines of a .jsonl file, and prompts "
                        "that do not fit the model (they count as unparsed)")


def judge_options(args):
    return {"template": args.template, "max_new_tokens": args.max_new_tokens, "principles": not args.no_principles,
            "use_reference": args.use_reference}


DEMO = {"id": "demo", "prompt": "How many steps does chess take ?", "rewards": [1, 0],
        "responses": ["This reply on chess is precise , thorough and focused .",
                      "My text about chess sounds cheerful , guessed and sketchy ."]}


@command_line
def main():
    parser = argparse.ArgumentParser(description="Judge responses with a pointwise GRM and print its judgments.")
    parser.add_argument("--model", default=TOY_BASE, help="hub id, folder or .gguf file of a causal LM")
    parser.add_argument("--prompt", help="the user's message")
    parser.add_argument("--response", action="append", help="one response; repeat the flag for more")
    parser.add_argument("--data", help="items to judge instead: toy, a .jsonl file, or a name that data.py knows")
    parser.add_argument("--output", help="folder for judgments.jsonl, one line per item")
    parser.add_argument("--k", type=int, default=1, help="judgments per item; their scores are summed (Eq. 14)")
    parser.add_argument("--temperature", type=float, help="default 0 for k = 1 and 0.5 for k > 1 (paper)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--limit", type=int, help="judge only the first items of --data")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(read_flags(parser))
    if args.prompt is not None or args.response:
        if args.prompt is None or not args.response or args.data:
            raise UserError("give --prompt with one or more --response, or --data, not both")
        examples = [example_from_dict({"id": "command-line", "prompt": args.prompt, "responses": args.response}, "arguments")]
    elif args.data:
        from plumbing.data import load_examples
        examples = load_examples(args.data, split="test", limit=args.limit, skip_bad=args.skip_bad)
    else:
        examples = [example_from_dict(DEMO)]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("grm.py is one process; infer_scale.py judges with several")
    share_threads()
    model, tokenizer = served.load_judge(args, args.model)
    temperature = (0.0 if args.k == 1 else 0.5) if args.temperature is None else args.temperature
    done = set()
    if args.output:
        done = {row["id"] for row in read_rows(open_run(args.output, args) / "judgments.jsonl")}
    for example in examples:
        if example.id in done:
            continue
        [judgments] = sample_judgments(model, tokenizer, [example], args.k, temperature, args.seed, clamp=True,
                                       skip_long=args.skip_bad, **judge_options(args))
        print(f"=== {example.id}: {example.prompt[-1]['content']}")
        for i, text in enumerate(example.responses, 1):
            print(f"Response {i}: {text}")
        for j in judgments:
            shown = ", ".join(str(i + 1) for i in j.permutation)
            print(f"--- judgment {j.sample} (responses shown in the order {shown}; parse: {j.reason})\n{j.text}")
        votes = sum_scores([j.scores for j in judgments])
        valid = sum(j.scores is not None for j in judgments)
        print(f"--- votes, original order, {valid} of {len(judgments)} judgments valid: {votes}\n")
        if args.output:
            append_jsonl(Path(args.output) / "judgments.jsonl", [{"id": example.id, "votes": votes, "judgments": [
                {"permutation": j.permutation, "text": j.text, "scores": j.scores, "reason": j.reason} for j in judgments]}])


if __name__ == "__main__":
    main()
