"""The sentences of the judge's prompt (App. G of the paper: structure theirs, wording ours).

grm.build_prompt puts them together.
"""
from pathlib import Path

from plumbing.runs import UserError

SCALE = {
    "1-10": "A score is an integer from 1 to 10; higher is better. 1: the response meets none of "
            "the criteria. 6: it meets them only in part. 10: it meets all of them perfectly.",
    "0-1": "The score is 0 or 1. 1: the response is correct. 0: it is not.",
    "best": "The answer is the number of the best response.",
}
SHORT_TASK = {
    "1-10": "Score each response to the user's last message from 1 (worst) to 10 (best).",
    "0-1": "Score the response to the user's last message with 1 if it is correct and 0 if it is "
           "not.",
    "best": "Select the best response to the user's last message.",
}
PRINCIPLES_TASK = {
    True: "First state the specific criteria that matter for this query, with their weights, then "
          "analyse, then",
    False: "First analyse the responses, then",
    "given": "Weigh the responses by the specific criteria given below: first analyse, then",
}
# name: what it asks, then one example per band 9-10 / 6-8 / 3-5 / 1-2
GENERAL_CRITERIA = {
    "Instruction Adherence": [
        ("Fully Adhered", "every part of the request and every constraint is met: a haiku was "
         "asked for, and it scans."),
        ("Partially Adhered", "the main request is met, a constraint is missed: four bullet points "
         "where three were asked."),
        ("Basically Adhered", "part of the request is met, but important parts are missing: two of "
         "five questions answered."),
        ("Not Adhered", "the request is ignored: a recipe is asked for and a restaurant is "
         "advertised.")],
    "Usefulness": [
        ("Highly Useful", "correct and ready to use: the code runs and handles the empty list."),
        ("Useful but Incomplete", "correct in the main, yet the user must add something: the "
         "command lacks one flag."),
        ("Limited Usefulness", "a hint in the right direction with errors: the formula is right, "
         "the result is not."),
        ("Useless or Incorrect", "wrong or misleading: it invents a law that does not exist.")],
    "Level of Detail": [
        ("Very Detailed", "all that is needed to understand and check it: each step of the proof "
         "is given."),
        ("Detailed but Slightly Lacking", "most of what is needed: one step is skipped."),
        ("Basically Detailed", "only the outline: the steps are named, not explained."),
        ("Not Detailed", "next to nothing: 'It depends.'")],
    "Relevance": [
        ("Highly Relevant", "every sentence serves the query."),
        ("Generally Relevant", "on topic, with a digression: a note on history in a cooking answer."
         ),
        ("Partially Relevant", "much of it is about something else: mostly about the weather, a "
         "little about the trip."),
        ("Not Relevant", "about another subject altogether.")],
}
SINGLE_CRITERIA = {  # single responses in training: three criteria, bands without point ranges
    "Instruction Adherence": GENERAL_CRITERIA["Instruction Adherence"],
    "Clarity": [("Very Clear", "well ordered and unambiguous."),
                ("Clear", "understood at one reading."),
                ("Somewhat Unclear", "a reader must guess in places."),
                ("Unclear", "cannot be followed.")],
    "Accuracy": [("Fully Accurate", "every fact and step is right."),
                 ("Mostly Accurate", "a slip that changes nothing."),
                 ("Partly Accurate", "an error that matters."),
                 ("Inaccurate", "the main claim or result is wrong.")],
}


def describe_criteria(rating):
    """The numbered list in the full prompt; only the 1-10 rating prints point ranges."""
    criteria = SINGLE_CRITERIA if rating == "0-1" else GENERAL_CRITERIA
    bands = ("9-10", "6-8", "3-5", "1-2") if rating == "1-10" else (None,) * 4
    lines = []
    for number, (name, levels) in enumerate(criteria.items(), 1):
        lines.append(f"{number}. {name}:")
        lines += [f"   - {level}{f' ({band} points)' if band else ''}: {text}"
                  for (level, text), band in zip(levels, bands, strict=True)]
    return "\n".join(lines)


def read_template(path, needed=()):
    """The text of a template file, with all fields that it must have. `path` may be that text."""
    if "{responses}" in str(path):
        return with_fields(path, "the judge's template", needed)
    if not Path(path).is_file():
        raise UserError(f"template {path!r}: neither 'full' nor 'compact' nor an existing file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"template {path}: not UTF-8; save it in that encoding") from None
    return with_fields(text, f"template {path}", needed)


def with_fields(text, name, needed):
    own_format = () if r"\boxed" in text else ("output_format",)
    for field in ("conversation", "responses", *own_format, *needed):
        if "{" + field + "}" not in text:
            raise UserError(f"{name}: the field {{{field}}} is missing; add it where it "
                            "belongs")
    return text
