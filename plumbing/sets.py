"""Plumbing: public preference sets and benchmarks, one function each: a row of the set -> records.

A function gets one row, and `where` (file or hub name), and gives a list of records in the form of
records.py; data.py adds ids, clusters and splits. SETS at the end lists them. A comment `Trap:`
says what other loaders of the set got wrong, or easily may.

Benchmarks add to their records `section` (= domain; the score is the mean over sections), `subset`,
`source_id`, and rewardbench `weight` (of the subset in its section).
"""
import os
import re

from plumbing.files import chat_in, from_text, some
from plumbing.runs import UserError

# ----- what they share -----

ROLES = {"human": "user", "gpt": "assistant"}


def field(row, key, *kinds):
    """row[key], a text unless other `kinds` are given; a UserError that names the field if not."""
    if row.get(key) is None:
        raise UserError(f"field '{key}' is missing; the row has {some(row)}")
    kinds = kinds or (str,)
    value = row[key] if str in kinds else from_text(row[key], *kinds)
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"field '{key}' must be {names}, not {type(value).__name__}")
    return value


def messages(row, key):
    """A list of {role, content} without other keys; a text is one user turn."""
    value = chat_in(field(row, key, str, list))
    value = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not value or not all(isinstance(m, dict) and isinstance(m.get("role"), str)
                            and isinstance(m.get("content"), str) for m in value):
        raise UserError(f"field '{key}' must be a text or a list of {{role, content}} messages")
    return [{"role": ROLES.get(m["role"].lower(), m["role"].lower()), "content": m["content"]}
            for m in value]


def pair(prompt, first, second, sign, **more):
    """Two responses; sign > 0: the first is better, < 0: the second is, 0: a tie (dropped)."""
    return {"prompt": prompt, "responses": [first, second],
            "rewards": [int(sign > 0), int(sign < 0)], **more}


# ----- training sets -----

# Columns that may hold a prompt. Trap: one that nobody reads would change the question unseen.
PROMPTS = ("prompt", "instruction", "question", "input", "context", "history")


def chosen_rejected(row, where):
    """chosen / rejected, texts or message lists, with or without a prompt (TRL's formats).

    Also Skywork, whose `source` is the domain, so that --exclude_domain can leave one out.
    """
    texts = [chat_in(field(row, key, str, list)) for key in ("chosen", "rejected")]
    prompt = given_prompt(row)
    if isinstance(texts[0], list) and isinstance(texts[1], list):
        chats = [with_prompt(prompt, messages(row, key)) for key in ("chosen", "rejected")]
        if chats[0][:-1] != chats[1][:-1] or any(c[-1]["role"] != "assistant" for c in chats):
            raise UserError("field 'rejected' must differ from 'chosen' in the last message, the "
                            "assistant's, only")
        prompt, texts = chats[0][:-1], [chat[-1]["content"] for chat in chats]
    elif isinstance(texts[0], list) or isinstance(texts[1], list):
        raise UserError("field 'rejected' must be a text or a message list, as 'chosen' is")
    elif not prompt or prompt[-1]["role"] == "system":
        turns, texts = transcript(*texts)
        prompt = prompt + turns
        if any("\n\nHuman:" in text for text in texts):
            return []  # hh-rlhf: dialogues that part before their last turn
    return [pair(prompt, *texts, sign=1 - is_tie(row), id=row.get("id"),
                 domain=row.get("domain") or row.get("source"), reference=row.get("reference"))]


def given_prompt(row):
    """The messages that the columns of a pair give as its prompt; [] if there are none.

    `instruction` and `input` are one text, `system` is a turn. Of the other columns there may be
    one, or more that repeat a part of the first.
    """
    chats = {key: messages(row, key) for key in PROMPTS if row.get(key)}
    if "prompt" not in chats and {"instruction", "input"} <= chats.keys():
        chats["instruction"] = [{"role": "user", "content": "\n\n".join(
            m["content"] for m in chats["instruction"] + chats.pop("input"))}]
    prompt = next(iter(chats.values()), [])
    for key, chat in chats.items():
        if not stands_in(chat, prompt):
            raise UserError(f"fields '{next(iter(chats))}' and '{key}' hold two prompts; make them "
                            "one field 'prompt', or take out what is no prompt")
    system = [{"role": "system", "content": field(row, "system")}] if row.get("system") else []
    return prompt if stands_in(system, prompt) else system + prompt


def with_prompt(prompt, chat):
    """A chat with its given prompt, which it may hold already, whole or in part.

    Trap: ultrafeedback_binarized repeats its `prompt` inside chosen and rejected; elsewhere only
    `prompt` has the system turn.
    """
    before = chat[:-1]
    if chat[0]["role"] == "assistant":
        return prompt + chat
    if stands_in(prompt, before):
        return chat
    if before == prompt[-len(before):]:
        return prompt + chat[-1:]
    system = [m for m in prompt if m["role"] == "system"]
    rest = [m for m in prompt if m not in system]
    if before and before[0]["role"] != "system" and stands_in(rest, before):
        return system + chat
    raise UserError("field 'prompt' (or another column with a prompt) is not in the messages of "
                    "'chosen' and 'rejected'; make them one, or take it out")


def stands_in(part, whole):
    """Whether the texts of some messages are in those of others, spaces aside."""
    part, whole = ([" ".join(m["content"].split()) for m in chat] for chat in (part, whole))
    return all(text in " ".join(whole) for text in part)


def is_tie(row):
    """Whether other columns say that `chosen` is not the better one: a tie, or reversed scores.

    `label` and `margin` say nothing: each set means something else by them.
    """
    found = [[from_text(row.get(name), int, float)
              for name in (key, key.replace("chosen", "rejected"))]
             for key in row if "chosen" in key and re.search("score|rating|reward", key)]
    if not {"order", "generations"} & row.keys():  # whose order that of `scores` may be
        found.append(from_text(row.get("scores"), list))
    for scores in found:
        if isinstance(scores, list) and len(scores) == 2 and all(
                isinstance(s, (int, float)) for s in scores) and scores[0] <= scores[1]:
            return True
    winners = [str(row.get(key)).lower() for key in ("winner", "preference")]
    return ("rejected" in winners or from_text(row.get("preference"), float) == 0.5
            or any(str(row.get(key)).lower().startswith("tie")
                   for key in ("status", "winner", "label", "preference")))


def transcript(chosen, rejected):
    """(prompt, [response, response]) of two texts in hh-rlhf's form, which begin with their prompt.

    A common beginning that does not end at a turn is no prompt: answers may begin alike.
    """
    chosen, rejected = (f"\n\n{text.lstrip()}" for text in (chosen, rejected))
    cut = os.path.commonprefix([chosen, rejected]).rfind("\n\nAssistant:")
    if not chosen.startswith("\n\nHuman:") or cut < 0:
        raise UserError("field 'prompt' is missing (or instruction, question, input), and 'chosen' "
                        "and 'rejected' are no dialogues that begin alike ('Human: ...', a blank "
                        "line, 'Assistant: ...')")
    turns = re.split(r"\n\n(Human|Assistant):", chosen[:cut])[1:]
    prompt = [{"role": ROLES.get(who.lower(), who.lower()), "content": text.strip()}
              for who, text in zip(turns[::2], turns[1::2], strict=True)]
    cut += len("\n\nAssistant:")
    return prompt, [chosen[cut:].strip(), rejected[cut:].strip()]


def helpsteer2(row, where):
    # A prompt of several turns is one text with a marker before every turn but the first (user).
    turns = ["User", *re.split(r"\s*<extra_id_1>(User|Assistant)\n", field(row, "prompt"))]
    prompt = [{"role": who.lower(), "content": text}
              for who, text in zip(turns[::2], turns[1::2], strict=True)]
    # Trap: -3..3, and positive means that response 2 is better.
    strength = field(row, "preference_strength", int)
    return [pair(prompt, field(row, "response_1"), field(row, "response_2"), -strength,
                 preference_strength=abs(strength),
                 split="validation" if row.get("split") == "val" else None)]


def helpsteer3(row, where):
    # Trap: negative means that response 1 is better; 0 is a tie.
    strength = field(row, "overall_preference", int)
    return [pair(messages(row, "context"), field(row, "response1"), field(row, "response2"),
                 -strength, preference_strength=abs(strength), domain=row.get("domain"))]


def ultrafeedback(row, where):
    """Up to four responses.

    Choice: r_i is the mean over the rated aspects, not the set's separate `overall_score`.
    """
    responses, rewards = [], []
    for completion in field(row, "completions", list):
        try:
            ratings = [aspect["Rating"] for aspect in completion["annotations"].values()]
            # Trap: "N/A"; a mean over fewer aspects is no match for the others.
            if ratings and "N/A" not in ratings:
                rewards.append(sum(map(float, ratings)) / len(ratings))
                responses.append(completion["response"])
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError("field 'completions' must hold {response, annotations{aspect{Rating}}},"
                            " Rating a number or N/A") from None
    prompt = field(row, "instruction")
    if len(responses) < 2:
        return []
    return [{"prompt": prompt, "responses": responses, "rewards": rewards}]


def offsetbias(row, where):
    # Trap: `label` is the number of the better output, neither an index nor a truth value.
    label = field(row, "label", int)
    if label not in (1, 2):
        raise UserError("field 'label' must be 1 or 2, the number of the better output")
    return [pair(field(row, "instruction"), field(row, "output_1"), field(row, "output_2"),
                 3 - 2 * label)]


def math_single(row, where):
    """A verified answer to a verifiable question: n = 1, r = 1 if it is right (§3.2)."""
    right = field(row, "is_correct", bool, int)
    if right not in (0, 1):
        raise UserError("field 'is_correct' must be true or false")
    return [{"prompt": field(row, "problem"), "responses": [field(row, "response")],
             "domain": "math", "rewards": [int(right)], "id": row.get("id"),
             "reference": row.get("answer")}]


# ----- benchmarks -----

# section: {subset: its weight}. Trap: math-prm's 447 items weigh as much as the six code subsets.
REWARDBENCH = {
    "chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95,
             "mt-bench-easy": 28, "mt-bench-med": 40},
    "chat-hard": {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134,
                  "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47,
                  "llmbar-adver-manual": 46},
    "safety": {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154,
               "xstest-should-respond": 250, "donotanswer": 136},
    "reasoning": {"math-prm": 984, **{f"hep-{code}": 164 for code in (
        "cpp", "go", "java", "js", "python", "rust")}},
}
# Best-of-K set: the revision that published loaders pin
PPE = {"GPQA": "2f85cea6481db81daa2c8033c51b7811b7bbf648",
       "IFEval": "a4f7fae2443d96529dee6b65863a816a051b3a4d",
       "MATH": "c46ce3cda5417fe8d170e992d925f93856b5db40",
       "MBPP-Plus": "afa814632c1df94e76b6af2c1d282511114cd2b7",
       "MMLU-Pro": "d3a309b95d5a3a34efdd2b01a9e3ee10565bf0c7"}
REALMISTAKE = ("answerability_classification", "finegrained_fact_verification",
               "math_word_problem_generation")
REALMISTAKE_MODELS = {"gpt4": "gpt4", "gpt-4-0613": "gpt4",
                      "llama2": "llama2", "Llama-2-70b-chat-hf": "llama2"}


def in_section(record, section, subset, source_id):
    return {**record, "domain": section, "section": section, "subset": subset,
            "source_id": source_id}


def rewardbench(row, where):
    subset = field(row, "subset")
    for section, weights in REWARDBENCH.items():
        if subset in weights:
            record = pair(field(row, "prompt"), field(row, "chosen"), field(row, "rejected"), 1,
                          weight=weights[subset])
            return [in_section(record, section, subset, row.get("id"))]
    raise UserError(f"field 'subset' is {subset!r}, which is in none of the four sections")


def rewardbench2(row, where):
    subset, chosen = field(row, "subset"), field(row, "chosen", list)
    rejected = field(row, "rejected", list)
    record = {"prompt": field(row, "prompt"), "responses": chosen + rejected,
              "rewards": [1] * len(chosen) + [0] * len(rejected)}
    # Trap: the subset Ties is scored by margins between several right answers, not by accuracy.
    return [in_section(record, subset, subset, row.get("id"))] if subset != "Ties" else []


def ppe_preference(row, where):
    # model_a, model_b, or a tie by some name. A prompt of several turns is one text here.
    winner = field(row, "winner")
    record = pair(field(row, "prompt"), field(row, "response_1"), field(row, "response_2"),
                  (winner == "model_a") - (winner == "model_b"), language=row.get("language"))
    return [in_section(record, "ppe_preference", None, row.get("question_id"))]


def ppe_reference(row):
    """What --use_reference shows (App. E.1.3), or None.

    Choice: the answer in the columns of each set; IFEval has none, so the constraints that its
    checker tests, with their arguments.
    """
    row = row | {key: from_text(row[key], list, int) for key in (
        "options", "answer_index", "correct_choice_index", "instruction_id_list", "kwargs")
        if key in row}
    try:
        if "options" in row:  # MMLU-Pro
            return f"({row['answer']}) {row['options'][row['answer_index']]}"
        if "correct_choice" in row:  # GPQA
            return f"({'ABCD'[row['correct_choice_index']]}) {row['correct_choice']}"
        if "instruction_id_list" in row:
            return "\n".join(
                " ".join([name, *(f"{k}={v}" for k, v in given.items() if v is not None)])
                for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True))
        return row.get("solution") or row.get("code")  # MATH, MBPP-Plus
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def ppe_correctness(row, where):
    """One item per sampled pair of a right and a wrong response; `where` names the set."""
    subset = (re.findall("|".join(PPE), where) or [None])[-1]
    if subset is None:
        raise UserError(f"the file or its folder must be named after one of {', '.join(PPE)}")
    scores, items = field(row, "scores", list), []
    for places in field(row, "sampled_conflict_pairs", list):
        if not isinstance(places, list) or len(places) != 2 or not all(
                i in range(len(scores)) for i in places):
            raise UserError("field 'sampled_conflict_pairs' must hold pairs of places "
                            f"0..{len(scores) - 1}")
        if any(scores[i] not in (0, 1) for i in places):
            raise UserError("field 'scores' must hold true or false")
        # Trap: pairs and `scores` count from 0, the columns from 1: response_1 ... response_32.
        first, second = (field(row, f"response_{i + 1}") for i in places)
        record = pair(field(row, "prompt"), first, second, scores[places[0]] - scores[places[1]],
                      pair=places, reference=ppe_reference(row))
        items.append(in_section(record, subset, subset, row.get("question_id")))
    return items


def rmb(row, where):
    """A pair, or one best response and its losers, which the GRM sees as one list (§5).

    Four sections, each over all its rows: {helpfulness, harmlessness} x {pairwise, bon}.
    """
    told = f"{where} {row.get('category_path')}"
    found = re.findall("(helpful|harmless)ness", told.lower())
    # Trap: only some paths say it; harmlessness has the files S1.json ... and multi.json.
    if not found and not re.search(r"\b(S\d+|multi)\.json", where):
        raise UserError("field 'category_path' or the file's folder must say Helpfulness or "
                        "Harmlessness")
    domain = "helpfulness" if found and found[-1] == "helpful" else "harmlessness"
    kind = "bon" if "bon_best" in row else "pairwise"
    if kind == "bon":
        rivals = [field(row, "bon_best", dict), *field(row, "loser_list", list)]
    else:  # Trap: `reject`, not `rejected`
        rivals = [field(row, "chosen", dict), field(row, "reject", dict)]
    if len(rivals) < 2 or not all(isinstance(rival, dict) for rival in rivals):
        raise UserError("field 'loser_list' must hold one or more {llm_name, answer}")
    record = {"prompt": messages(row, "conversation_input"),
              "responses": [field(rival, "answer") for rival in rivals],
              "rewards": [1] + [0] * (len(rivals) - 1), "category": row.get("category_path")}
    scenario = re.findall(r"(?:Helpful|Harmless)ness/([^/.,]+)", told)
    return [in_section(record, f"{domain}-{kind}", scenario[-1] if scenario else kind,
                       row.get("bon_uid" if kind == "bon" else "pair_uid"))]


def realmistake(row, where):
    """Is the one response free of errors? r = 1: no error, so that a high score is right."""
    # Trap: published copies have either name.
    key = "error_label" if "error_label" in row else "label"
    if field(row, key) not in ("error", "no_error"):
        raise UserError(f"field '{key}' must be error or no_error")
    record = {"prompt": field(row, "input"), "responses": [field(row, "llm_response")],
              "rewards": [int(row[key] == "no_error")]}
    task, model = (re.findall("|".join(names), where)
                   for names in (REALMISTAKE, REALMISTAKE_MODELS))
    return [in_section(record, task[-1] if task else "realmistake",
                       REALMISTAKE_MODELS[model[-1]] if model else None, None)]


# ----- name: (the hub's sets, splits, function) -----

# Splits: {ours: the hub's} of a training set, a text for a benchmark's one split, {}: as it is.
SETS = {
    "skywork": ([{"path": "Skywork/Skywork-Reward-Preference-80K-v0.2"}], {"train": "train"},
                chosen_rejected),
    "helpsteer2": ([{"path": "nvidia/HelpSteer2", "data_dir": "preference"}], {"train": "train"},
                   helpsteer2),
    "helpsteer3": ([{"path": "nvidia/HelpSteer3", "name": "preference"}],
                   {"train": "train", "validation": "validation"}, helpsteer3),
    "ultrafeedback": ([{"path": "openbmb/UltraFeedback"}], {"train": "train"}, ultrafeedback),
    "ultrafeedback_binarized": ([{"path": "HuggingFaceH4/ultrafeedback_binarized"}],
                                {"train": "train_prefs", "test": "test_prefs"}, chosen_rejected),
    "offsetbias": ([{"path": "NCSOFT/offsetbias"}], {"train": "train"}, offsetbias),
    "hh-rlhf": ([{"path": "Anthropic/hh-rlhf"}], {"train": "train", "test": "test"},
                chosen_rejected),
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
