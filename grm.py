r"""The pointwise generative reward model (GRM): one judgment, from the prompt to the scores.

Paper: "Inference-Time Scaling for Generalist Reward Modeling", arXiv 2504.02495 v3, §2 and §3.1.

A scalar reward model gives the same number however often you ask it, so more compute at inference
buys nothing. A *generative* one writes its reasons first, and every sample reasons differently.
A *pointwise* one gives each response a score of its own, so one, two or many responses are all the
same task. The GRM is both (§2.1): it reads a query x and n >= 1 responses {y_i}, writes principles
for this query with their weights, then a critique C, then one integer from 1 to 10 per response.
All of it is one generation of one model (Eqs. 7 and 9):

    {p_i} ~ p_theta(x, {y_i}),    C ~ r_theta(x, {y_i}, {p_i}),    {S_i} = f_extract(C)

In this file, in this order: the prompt -> sampling judgments -> extracting the scores -> when
scores are correct (Eq. 10) -> the rule reward (Eq. 11) -> `score(...)`, the one call a user makes.

    python grm.py --show_prompt                   # one example; the toy's judge, trained or not
    python grm.py --prompt "How do I bake bread?" --response "..." --response "..."
    python grm.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data items.jsonl --template full

Where we differ from the paper:
  1. The prompts have the paper's structure (App. G) in our own words; `compact` is ours.
  2. Where the paper is silent, a line says `# Choice:`; docs/choices.md lists them.
Read next: spct_rft.py.
"""
import argparse
import dataclasses
import os
import random
import re

from plumbing import served
from plumbing.data import load_examples
from plumbing.figures import print_item, was_clamped
from plumbing.generation import complete, encode_chat  # noqa: F401 (encode_chat: for users of grm)
from plumbing.judge import (
    JUDGE_HELP,
    add_judge_flags,
    default_judge,
    in_python,
    judge_options,
    score_options,
    settle,
    warn_of_no_score,
)
from plumbing.prompt_texts import (
    PRINCIPLES_TASK,
    SCALE,
    SHORT_TASK,
    describe_criteria,
    read_template,
)
from plumbing.records import PreferenceExample, clean, example_from_dict, read_jsonl  # noqa: F401
from plumbing.runs import (
    UserError,
    append_jsonl,
    command_line,
    open_run,
    read_flags,
    read_rows,
    share_threads,
)

# ----- the prompt (App. G of the paper; structure theirs, wording ours) -----

# The general criteria are only a frame. The judge is asked to write *specific* criteria first,
# because what makes a good answer differs from query to query: a haiku is not judged like a proof.
# These are the two layouts; the sentences that fill them are in plumbing/prompt_texts.py.
FULL = """\
You are an expert at scoring answers. Below you find a conversation, whose last turn is the \
user's query, and one or more responses to that query. Judge them by the General Evaluation \
Criteria. {principles_task} give your answer.
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

def render_conversation(messages):
    # Choice: a multi-turn conversation is printed as `User:` / `Assistant:` lines; its last turn is
    # the query. `clean` breaks whatever in a text looks like a delimiter or a heading of ours.
    return "\n".join(f"{m['role'].capitalize()}: {clean(m['content'])}" for m in messages)


def render_responses(responses, numbered=True):
    number = [f" {i}" if numbered else "" for i in range(1, len(responses) + 1)]
    return "\n".join(f"[The Begin of Response{i}]\n{clean(text)}\n[The End of Response{i}]"
                     for i, text in zip(number, responses, strict=True))


def build_prompt(example, template="full", rating="1-10", principles=True, use_reference=False,
                 hint=False):
    r"""The judge's prompt for one item, responses in the order of `example`: one user turn.

    Source: paper App. G. There is no system turn, because some models have none.
    Args:   template: "full", "compact" (the same blocks in fewer words, for small models), or a
                file with the fields {conversation} {responses} {output_format} (or a \boxed of its
                own), optionally the others of FULL, COMPACT and BODY.
            rating: "1-10", the default for every n; "0-1" for single responses in training (§3.2);
                "best" for LLM-as-a-Judge (Eq. 6): the box holds the number of the best response.
            principles: True (Eq. 9: the model writes them), False (ablation of Table 4), or a list
                of given ones (Eq. 8).
            use_reference: adds a reference-answer block (App. E.1.3).
            hint: names the best response in displayed order (§3.2, hinted sampling). Never part of
                a training prompt.
    Returns: [{"role": "user", "content": text}].
    Raises: UserError if what is asked for is not in the example, or the template lacks a field.

    >>> item = PreferenceExample("x", [{"role": "user", "content": "Hi"}], ["Hello!", "Go away."])
    >>> print(build_prompt(item, "compact")[0]["content"])  # doctest: +ELLIPSIS
    Score each response to the user's last message from 1 (worst) to 10 (best).
    First state the specific criteria that matter for this query, with their weights, then ...
    #### Conversation Context ####
    User: Hi
    #### Responses to be Scored ####
    [The Begin of Response 1]
    Hello!
    [The End of Response 1]
    [The Begin of Response 2]
    Go away.
    [The End of Response 2]
    #### Output Format Requirements ####
    Specific Criteria: <criteria and their weights>
    Analysis: <each response under the criteria>
    Scores: \boxed{x, x}
    """
    n = len(example.responses)
    if rating not in SCALE:
        raise UserError(f"rating {rating!r}: choose one of {sorted(SCALE)}")
    if rating == "0-1" and n != 1:
        raise UserError(f"item {example.id}: the 0-1 rating is for single responses and this item "
                        f"has {n}; use 1-10")
    if rating == "best" and n == 1:
        raise UserError(f"item {example.id}: a judge cannot select the best of a single response "
                        "(Eq. 3); drop n = 1 items")
    if use_reference and not example.reference:
        raise UserError(f"item {example.id} has no 'reference'; add the field or judge without it "
                        "(--no_reference)")
    given = principles if isinstance(principles, (list, tuple)) else None
    if not isinstance(principles, bool) and (
            given is None or not all(isinstance(p, str) for p in given)):
        raise UserError(f"principles={principles!r}: give True, False or a list of texts")
    boxes = ", ".join("x" * (1 if rating == "best" else n))
    specific = "Specific Criteria: <criteria and their weights>\n" if principles is True else ""
    fields = {
        "principles_task": PRINCIPLES_TASK["given" if given else bool(principles)],
        "scale": SCALE[rating],
        "short_task": SHORT_TASK[rating],
        "general_criteria": describe_criteria(rating),
        "conversation": render_conversation(example.prompt),
        "reference": (f"#### Reference Answer ####\n{clean(example.reference)}\n"
                      if use_reference else ""),
        "responses": render_responses(example.responses, numbered=rating != "0-1"),
        "given_principles": ("#### Specific Criteria ####\n" + "\n".join(map(clean, given)) + "\n"
                             if given else ""),
        # Choice: the hint stands before the output format (the paper appends it).
        "hint": describe_hint(example) + "\n" if hint else "",
        "output_format": f"{specific}Analysis: <each response under the criteria>\n"
                         f"Scores: \\boxed{{{boxes}}}",
    }
    needed = [name for name in ("hint", "reference", "given_principles") if fields[name]]
    layout = {"full": FULL + BODY, "compact": COMPACT + BODY}.get(template)
    layout = layout or read_template(template, needed)
    # Pitfall: one pass, so that a response that holds "{hint}" or "{responses}" is never expanded.
    text = re.sub(r"\{(\w+)\}", lambda m: fields.get(m[1], m[0]), layout)
    return [{"role": "user", "content": text}]


def describe_hint(example):
    """The hint of §3.2: which response is best (1-based, in displayed order), and by how much."""
    if example.rewards is None:
        raise UserError(f"item {example.id} has no 'rewards', so there is no best response to hint "
                        "at")
    if len(example.rewards) == 1:
        # Choice: the paper's hint names the best response; a single one is called right or wrong.
        return f"The response is {'correct' if example.rewards[0] == 1 else 'not correct'}."
    text = f"The best response is: Response {best_index(example.rewards) + 1}"
    # Choice: HelpSteer2's strength 1..3 in words (the paper says that it is given, not how).
    words = {1: "slightly better", 2: "better", 3: "much better"}
    strength = abs(example.preference_strength or 0)
    return text + (f" ({words[min(strength, 3)]} than the other)" if strength else "")


# ----- sampling judgments: C ~ r_theta(x, {y_i}, {p_i}) (Eq. 9) -----

@dataclasses.dataclass
class Judgment:
    """One generation of the judge. `scores` are in the ORIGINAL order of the responses."""
    sample: int
    permutation: list      # response permutation[i] was shown at place i
    prompt_ids: list       # [] of a served judge, which gives no ids
    completion_ids: list   # as sampled; with the end token if it was reached
    text: str
    scores: list | None    # None if they did not parse
    reason: str            # "ok", or why not: of `parse_scores`; truncated, too_long, filtered
    logp: list             # nats, of each id under the tempered distribution it was drawn from
    prompt_tokens: int = 0
    tokens: int = 0
    prompt: str = ""       # as the chat template made it; of a served judge, the message


def sample_judgments(model, tokenizer, examples, k, temperature=0.5, seed=0, *, orders="random",
                     first_sample=0, max_new_tokens=512, clamp=False, skip_long=False,
                     thinking=None, **prompt):
    """k judgments of every example, each with its own random order of the responses.

    Why shuffle: judges like some places better than others. Orders that differ from sample to
    sample cancel that when the scores are summed (§4).
    Source: paper §3.1, Eqs. 7 and 9, and §4. Temperature 0 is greedy; the paper votes at 0.5.
    Args:   model, tokenizer: a local judge; or a served one and None (plumbing/served.py).
            seed: random numbers depend on (seed, example id, sample index), never on the batch.
            orders: "random": drawn for each sample; "opposite": samples 2i and 2i + 1 see reversed
                orders; "shared": one drawn order for all k (a GRPO group answers one and the same
                prompt); "original": none drawn.
            first_sample: where the sample indices begin; other indices, other random numbers.
            clamp: scores outside the rating's range are moved to its ends, as the released model's
                card does; training counts them as invalid.
            skip_long: a prompt that does not fit gives an invalid judgment ("too_long") instead of
                a UserError.
            thinking: "on" (or True) or "off" (or False) for a chat template that has
                `enable_thinking`; None leaves it alone.
            prompt: of `build_prompt`: template, rating, principles, use_reference, hint. rating may
                also be "train" (see `rating_of`), principles a dict {example id: given ones}.
    Returns: one list of k Judgments per example.
    Choice: a judgment cut off by max_new_tokens is invalid even if it holds a box.
    """
    rating, principles = prompt.pop("rating", "1-10"), prompt.pop("principles", True)
    jobs, chats = [], []
    for example in examples:
        for j in range(first_sample, first_sample + k):
            order = list(range(len(example.responses)))
            if orders != "original":
                drawn_for = {"random": j, "opposite": j // 2, "shared": ""}[orders]
                random.Random(f"{seed}/{example.id}/{drawn_for}").shuffle(order)
            if orders == "opposite" and j % 2:
                order.reverse()
            given = principles[example.id] if isinstance(principles, dict) else principles
            jobs.append((example, j, order))
            chats.append(build_prompt(example.permuted(order), rating=rating_of(example, rating),
                                      principles=given, **prompt))
    found = complete(model, tokenizer, chats, temperature, max_new_tokens,
                     seeds=[f"{seed}/{e.id}/{j}" for e, j, _ in jobs], skip_long=skip_long,
                     thinking=thinking)
    judgments = []
    for (example, j, order), c in zip(jobs, found, strict=True):
        shown, reason = None, c.why
        if c.finished:
            shown, reason = parse_judgment(c.text, len(order), rating_of(example, rating), clamp)
        scores = None if shown is None else unpermute(shown, order)
        judgments.append(Judgment(j, order, c.prompt_ids, c.ids, c.text, scores, reason, c.logp,
                                  c.prompt_tokens, c.tokens, c.prompt))
    return [judgments[i:i + k] for i in range(0, len(judgments), k)]


def rating_of(example, rating):
    """§3.2: "train" is 0-1 for a single response, which is right or wrong, and 1-10 otherwise."""
    if rating != "train":
        return rating
    return "0-1" if len(example.responses) == 1 else "1-10"


def unpermute(shown, permutation):
    """Scores in displayed order -> original order: the inverse of `PreferenceExample.permuted`.

    >>> unpermute([9, 5], [1, 0])
    [5, 9]
    """
    original = [None] * len(shown)
    for place, j in enumerate(permutation):
        original[j] = shown[place]
    return original


# ----- extracting the scores: {S_i} = f_extract(C) (Eq. 7) -----

# The scores are read from the text. So a judgment can fail to have any: that is data, counted by
# its reason, and never repaired. An invented score would be a reward that nobody gave.
BOX = re.compile(r"\\boxed\s*\{([^{}]*)(\}?)")


def parse_scores(text, n, lo=1, hi=10, clamp=False):
    r"""The n integer scores in the last \boxed{...} of a judgment, in displayed order.

    Source: paper Eq. 7 and App. G: integers, 1 <= S_i <= 10 by default.
    Args:    lo, hi: the range of the rating, points.  clamp: move scores outside it to its ends.
    Returns: (list of n int, "ok"), or (None, reason): no_box, wrong_count, not_a_number,
             out_of_range.
    Choice:  only the last box counts, whatever heading stands before it. No default score.
    Choice:  what stands inside <think>...</think> is no verdict.

    >>> parse_scores(r"**Scores: \boxed{8, 9}**", 2)
    ([8, 9], 'ok')
    >>> parse_scores(r"Scores: \boxed{8, 9, 11}", 2)
    (None, 'wrong_count')
    """
    # one tag alone: the prompt opened the thought, or it has no end
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    boxes = BOX.findall(text)
    if not boxes or not any(closed for _, closed in boxes):
        return None, "no_box"
    inside, closed = boxes[-1]
    if not closed:  # nested braces, or never closed: an earlier box is not the verdict instead
        return None, "not_a_number"
    parts = [part.strip() for part in inside.split(",")]
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
    r"""`parse_scores` for a rating; "best" (Eq. 6) gives the chosen response 1 and the others 0.

    With such one-hot scores Eq. 10, Eq. 11 and voting (majority, Eq. 13 = the sum of Eq. 14) serve
    the LLM-as-a-Judge as well.
    >>> parse_judgment(r"Scores: \boxed{2}", 3, "best")
    ([0, 1, 0], 'ok')
    """
    if rating == "best":
        chosen, reason = parse_scores(text, 1, 1, n)
        if chosen is None:
            return None, reason
        return [int(i == chosen[0]) for i in range(1, n + 1)], "ok"
    lo, hi = (0, 1) if rating == "0-1" else (1, 10)
    return parse_scores(text, n, lo, hi, clamp)


# ----- when scores are correct (Eq. 10) and the rule reward (Eq. 11) -----

# Data sets say which response is better, not that it deserves a 7. So a judgment is graded by the
# one thing the data know: does the best response get the highest score, and no other the same?

def best_index(rewards):
    """j = argmax_l r_l. Raises ValueError if the maximum is tied, because then no j is best."""
    if list(rewards).count(max(rewards)) > 1:
        raise ValueError(f"rewards {list(rewards)} have a tied maximum; drop the item (Eq. 10 "
                         "needs one best response)")
    return list(rewards).index(max(rewards))


def is_correct(scores, rewards):
    """Whether the predicted scores are correct (Eq. 10).

    Source: paper §3.2, Eq. 10: n >= 2: for all i != j, S_j > S_i with j = argmax_l r_l;
            n = 1: S_1 = r_1.
    Args:   scores: n int, original order, or None if the judgment did not parse.
            rewards: n numbers.
    Raises: ValueError if the lengths differ or the best reward is tied.
    Choice: unparsed is incorrect. A tie for first place is incorrect (the inequality is strict).

    >>> is_correct([2, 7], [0, 1]), is_correct([7, 7], [0, 1]), is_correct([9, 3, 3], [5, 1, 1])
    (True, False, True)
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
    """+1.0 if the scores are correct, else -1.0 (Eq. 11). There is no reward for the format.

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

def score(model, tokenizer, prompt, responses, k=1, temperature=None, seed=0, mean=False,
          **options):
    """Rewards of the responses to one prompt: the sum of k judgments per response (Eq. 14).

    Args:    prompt: text or messages.  responses: 1, 2 or many texts.
             temperature: default 0 (greedy) for k = 1 and 0.5 for k > 1, as in the paper.
             mean: the sum divided by the number of judgments that parsed.
             options: of `sample_judgments` (template, max_new_tokens, ...); where the prompt is
             not given, it is the model's own (plumbing/judge.py).
    Returns: n numbers (k..10k when all judgments parsed; 1..10 as a mean), or n NaN and a warning
             that says why if none of the k parsed.
    """
    if not isinstance(responses, str):  # a lone text is an error, not a list of letters
        responses = list(responses)
    example = example_from_dict({"id": f"score/{prompt}", "prompt": prompt, "responses": responses},
                                "score()")
    temperature = (0.0 if k == 1 else 0.5) if temperature is None else temperature
    with in_python(example.id):
        [judgments] = sample_judgments(model, tokenizer, [example], k, temperature, seed,
                                       **score_options(model, k, temperature, options))
    valid = [j.scores for j in judgments if j.scores is not None]
    if not valid:
        warn_of_no_score(judgments)
        return [float("nan")] * len(responses)
    votes = sum_scores(valid)
    return [v / len(valid) for v in votes] if mean else votes


# ----- the program: judge and print -----

DEMO = {"id": "demo", "prompt": "How many steps does chess take ?", "rewards": [1, 0],
        "responses": ["This reply on chess is precise , thorough and focused .",
                      "My text about chess sounds cheerful , guessed and sketchy ."]}


def read_arguments():
    parser = argparse.ArgumentParser(description="Judge responses with a pointwise GRM.")
    parser.add_argument("--model", help=JUDGE_HELP)
    parser.add_argument("--prompt", help="the user's message")
    parser.add_argument("--response", action="append", help="one response; repeat it for more")
    parser.add_argument("--data", help="items to judge instead: toy, a file, or a known set")
    parser.add_argument("--show_prompt", action="store_true", help="print it too, as it was sent")
    parser.add_argument("--output", help="folder for judgments.jsonl, one line per item")
    parser.add_argument("--k", type=int, default=1, help="judgments per item, summed (Eq. 14)")
    parser.add_argument("--temperature", type=float,
                        help="default 0 for k = 1 and 0.5 for k > 1 (paper)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--limit", type=int, help="judge only the first items of --data")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(read_flags(parser))
    given = [args.prompt is not None, bool(args.response), args.data is not None]
    if given not in ([False] * 3, [True, True, False], [False, False, True]):
        raise UserError("give --prompt with one or more --response, or --data, not both")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("grm.py is one process; infer_scale.py judges with several")
    if args.temperature is None:
        args.temperature = 0.0 if args.k == 1 else 0.5
    args.model = args.model or default_judge()
    settle(args, args.model)
    return args


@command_line
def main():
    args = read_arguments()

    # 1. items
    if args.data:
        examples = load_examples(args.data, "test", args.limit, skip_bad=args.skip_bad)
    elif args.response:
        examples = [example_from_dict({"id": "command-line", "prompt": args.prompt,
                                       "responses": args.response}, "arguments")]
    else:
        examples = [example_from_dict(DEMO)]
    output = open_run(args.output, args, items=examples) if args.output else None
    # a killed run continues behind its last item
    done = {row["id"] for row in read_rows(output / "judgments.jsonl")} if output else set()

    # 2. judge each, print each
    share_threads()
    model, tokenizer = served.load_judge(args, args.model)
    for example in (e for e in examples if e.id not in done):
        [judgments] = sample_judgments(model, tokenizer, [example], args.k, args.temperature,
                                       args.seed, clamp=True, skip_long=args.skip_bad,
                                       **judge_options(args))
        votes = sum_scores([j.scores for j in judgments])
        graded = example.rewards and len(example.rewards) > 1  # n = 1 is scored 1-10 here
        rewards = [rule_reward(j.scores, example.rewards) for j in judgments] if graded else None
        clamped = [was_clamped(j.text, j.scores, parse_scores) for j in judgments]
        print_item(example, judgments, votes, rewards, clamped, args.show_prompt)
        if output:
            append_jsonl(output / "judgments.jsonl", [{
                "id": example.id, "votes": votes, "judgments": [
                    {"permutation": j.permutation, "text": j.text, "scores": j.scores,
                     "reason": j.reason} for j in judgments]}])


if __name__ == "__main__":
    main()
