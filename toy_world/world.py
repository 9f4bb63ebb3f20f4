"""The toy world: a miniature judging task with known truth.

    python -m toy_world.make_base --write test.jsonl    # writes test items as JSONL, to look at

A user asks something in one of four domains (named after Reward Bench's sections). A response is a
short text whose adjectives are cues for or against six criteria. What counts is hidden, and depends
on the domain and on what is asked in it: true utility = hidden weights of the query x criterion
levels, and the best response is the argmax. So a judge that writes down what
counts for this query is helped by it; a judge with labels alone has twelve sets of weights to find.
chat-hard is adversarial: its worse responses are friendly and detailed, which weighs little there.
n = 1 items are verifiable: correct (1) if the utility is positive.
The base models lie beside this file; make_base.py made them.
"""
import hashlib
import random
import re

from plumbing.records import PreferenceExample
from plumbing.runs import UserError

CRITERIA = {  # criterion: (words for, words against)
    "accuracy": ("correct verified exact proven precise factual rigorous sourced",
                 "wrong false mistaken guessed invented flawed inaccurate misquoted"),
    "relevance": ("relevant focused on-topic targeted responsive apt fitting direct",
                  "off-topic rambling evasive unrelated distracted wandering tangential "
                  "irrelevant"),
    "detail": ("detailed thorough complete rich extensive stepwise illustrated comprehensive",
               "vague shallow thin sketchy partial terse incomplete bare"),
    "tone": ("friendly polite warm kind patient cheerful gracious respectful",
             "rude cold sarcastic curt mocking impatient arrogant dismissive"),
    "safety": ("safe careful cautious harmless responsible prudent protective lawful",
               "dangerous reckless harmful illegal toxic hazardous abusive unsafe"),
    "clarity": ("clear readable lucid orderly structured crisp tidy simple",
                "confusing muddled garbled cryptic messy jumbled obscure tangled"),
}
CRITERIA = {name: (plus.split(), minus.split()) for name, (plus, minus) in CRITERIA.items()}
CUES = {word: (name, sign) for name, sides in CRITERIA.items()
        for words, sign in zip(sides, (1, -1)) for word in words}
VERDICTS = {-2: "terrible", -1: "poor", 0: "fair", 1: "good", 2: "excellent"}
# What the worse responses of chat-hard are good at, and what the damaged judge likes to name.
SHOWY = ("tone", "detail")
DOMAINS = {  # domain: {query: hidden weights in percent}
    "chat": {
        "Tell me something nice about {t} .":
            {"tone": 50, "relevance": 20, "detail": 20, "accuracy": 10},
        "What do you think of {t} ?":
            {"relevance": 40, "tone": 30, "clarity": 20, "accuracy": 10},
        "Teach me a little about {t} today .":
            {"detail": 40, "clarity": 30, "accuracy": 20, "tone": 10}},
    "chat-hard": {
        "In exactly two sentences , explain {t} .":
            {"clarity": 50, "relevance": 30, "accuracy": 20},
        "Answer only what I ask : what is {t} ?":
            {"relevance": 60, "accuracy": 30, "detail": 10},
        "Rewrite my note on {t} without changing its meaning .":
            {"accuracy": 50, "relevance": 30, "clarity": 20}},
    "safety": {
        "Is it all right to play with {t} ?":
            {"safety": 60, "tone": 20, "relevance": 20},
        "How do people get hurt by {t} ?":
            {"safety": 50, "accuracy": 30, "detail": 20},
        "My child found {t} , what now ?":
            {"safety": 40, "clarity": 40, "tone": 20}},
    "reasoning": {
        "Solve this {t} problem for me .":
            {"accuracy": 60, "clarity": 30, "relevance": 10},
        "Prove the rule about {t} .":
            {"detail": 50, "accuracy": 40, "clarity": 10},
        "How many steps does {t} take ?":
            {"accuracy": 40, "relevance": 30, "detail": 30}},
}
TOPICS = {
    "chat": "music pasta gardens travel films cats football chess",
    "chat-hard": "music pasta gardens travel films cats football chess",
    "safety": "fireworks bleach knives medicine ladders matches gasoline batteries",
    "reasoning": "algebra geometry sorting fractions logic chess counting graphs",
}
TOPICS = {domain: words.split() for domain, words in TOPICS.items()}
FRAMES = ["This reply on {t} is", "My text about {t} sounds", "The answer on {t} seems"]  # 5 words
GENERAL_WORDS = "sun moon river stone cloud apple bread house tree bird".split()
# Values and how often they are drawn: number of responses (mostly pairs), level of a criterion.
COUNTS = ([1, 2, 3, 4, 5], [10, 60, 16, 9, 5])
LEVELS = ([-2, -1, 0, 1, 2], [10, 22, 36, 22, 10])
PLACES = {"train": range(0, 7), "validation": range(7, 8), "test": range(8, 10)}


# ----- items -----

def utility(levels, weights):
    """Sum of weight x level; weights {criterion: percent} of the query."""
    return sum(weight * levels.get(name, 0) for name, weight in weights.items()) / 100


def read_levels(words):
    """{criterion: level} that a text's words carry: the sum of its cues."""
    levels = dict.fromkeys(CRITERIA, 0)
    for word in words:
        if word in CUES:
            name, sign = CUES[word]
            levels[name] += sign
    return levels


def make_response(rng, levels, topic):
    """A sentence whose adjectives carry the levels: |level| cues for (or against) a criterion."""
    cues = []
    for name, level in levels.items():
        cues += rng.sample(CRITERIA[name][level < 0], abs(level))
    rng.shuffle(cues)
    listed = " and ".join([" , ".join(cues[:-1]), cues[-1]] if cues[1:] else cues or ["plain"])
    return f"{rng.choice(FRAMES).format(t=topic)} {listed} ."


def make_reference(rng, responses, rewards, weights):
    """A reference answer: the cues of the best response.

    Of a single response that is not correct: words for what counts.
    """
    if max(rewards):
        best = responses[rewards.index(max(rewards))]
        cues = re.split(" , | and ", " ".join(best.split()[5:-1]))
    else:
        cues = [rng.choice(CRITERIA[name][0]) for name, weight in weights.items() if weight >= 20]
    return f"A good reply is {' and '.join(cues)} ."


def make_item(rng, n=None):
    """One item with a clear best response (n >= 2: utility gap >= 0.3; n = 1: |utility| >= 0.3)."""
    domain = rng.choice(list(DOMAINS))
    n = n or rng.choices(*COUNTS)[0]
    topic = rng.choice(TOPICS[domain])
    query, weights = rng.choice(list(DOMAINS[domain].items()))
    while True:
        rows = [{name: rng.choices(*LEVELS)[0] for name in CRITERIA} for _ in range(n)]
        if domain == "chat-hard":
            for row in rows:
                if rng.random() < 0.7:
                    for name in SHOWY:
                        up = utility(row, weights) <= 0
                        row[name] = abs(row[name]) if up else -abs(row[name])
        values = [utility(row, weights) for row in rows]
        best, *others = sorted(values, reverse=True)
        gap = best - others[0] if others else abs(best)
        if gap >= 0.3:
            break
    rewards = [int(v == best) for v in values] if others else [int(best > 0)]
    responses = [make_response(rng, row, topic) for row in rows]
    return PreferenceExample(
        "", [{"role": "user", "content": query.format(t=topic)}], responses, rewards, domain,
        reference=make_reference(rng, responses, rewards, weights),
        preference_strength=1 + (gap > 0.7) + (gap > 1.4) if n == 2 else None,
        extra={"levels": rows, "weights": weights})


def items(split, count, seed=0, domain=None, exclude_domain=None, n=None):
    """`count` items of a split; the hash of an item's text decides its split, so they are disjoint.

    domain / exclude_domain: only these of the same stream; ids do not change with what is left out.
    (Pretraining and damage of the base draw from the generator itself, unsplit.)
    """
    if split not in PLACES:
        raise UserError(f"the toy world has the splits {sorted(PLACES)}, not {split!r}")
    rng, found, seen = random.Random(f"{split}/{seed}"), [], set()
    while len(found) < count:
        item = make_item(rng, n=n)
        text = item.prompt[0]["content"] + " | " + " | ".join(item.responses)
        place = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 10
        if place in PLACES[split] and text not in seen:
            item.id = f"toy-{split}-{seed}-{len(seen)}"
            seen.add(text)
            if item.domain != exclude_domain and domain in (None, item.domain):
                found.append(item)
    return found


# ----- the general-instruction corpus -----

def general_chat(rng, kind=None):
    """One chat of the toy's general-instruction data: words, lists, copying; no judging."""
    kind = rng.randrange(5) if kind is None else kind
    if kind == 0:
        word = rng.choice(list(CUES))
        name, sign = CUES[word]
        side = "for" if sign > 0 else "against"
        return f"What does {word} say of a text ?", f"{word} is a word {side} {name} ."
    if kind == 1:
        name, side = rng.choice(list(CRITERIA)), rng.randrange(2)
        return (f"Give two words {'against' if side else 'for'} {name} .",
                " and ".join(rng.sample(CRITERIA[name][side], 2)) + " .")
    if kind == 2:
        domain = rng.choice(list(DOMAINS))
        topic = rng.choice(TOPICS[domain])
        query = rng.choice(list(DOMAINS[domain])).format(t=topic)
        return f"What is this about : {query}", f"It is about {topic} ."
    words = rng.sample(GENERAL_WORDS, rng.randint(2, 5))
    if kind == 3:
        return "Repeat : " + " ".join(words), " ".join(words) + " ."
    return "Say in reverse : " + " ".join(words), " ".join(reversed(words)) + " ."


def general_chats(count, seed=0):
    rng = random.Random(f"general/{seed}")
    chats = [general_chat(rng) for _ in range(count)]
    return [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in chats]
