"""Plumbing: the prompt of a judge travels with its weights, as the file judge.json beside them.

    {"template": "compact", "rating": "train", "principles": true, "use_reference": false}

and "thinking" where it was switched ("on" or "off", of a chat template with `enable_thinking`).
A judge that is asked in another prompt than the one it was trained with may judge worse. So
programs take from this file what the command line does not say. Of a template file it has the text.
"""
import contextlib
import os
import re
import warnings
from collections import Counter
from numbers import Integral, Real
from pathlib import Path

from plumbing.prompt_texts import read_template
from plumbing.runs import ROOT, UserError, hub_file, read_json

TOY_BASE = str(ROOT / "toy_world" / "medium")
JUDGES = {"runs/toy/rl/model": "", "runs/toy/rft/model": " (spct_rl.py comes next in the recipe)",
          TOY_BASE: " (the untrained base; spct_rft.py and spct_rl.py train it)"}
JUDGE_HELP = ("the judge: hub id, folder or .gguf file; default: the toy's that is trained "
              "furthest, runs/toy/rl/model, else runs/toy/rft/model, else its base")
# A model without judge.json is asked so (rating "train": see grm.rating_of).
DEFAULTS = {"template": "compact", "rating": "train", "principles": True, "use_reference": False}
ORDERS = ("random", "opposite", "shared", "original")  # of the responses, see sample_judgments
KINDS = {**{name: type(value) for name, value in DEFAULTS.items()}, "thinking": str}


def default_judge():
    """The toy's judge that is trained furthest, for programs that are given none; printed."""
    name = next(name for name in JUDGES if Path(name).exists())
    if os.environ.get("RANK", "0") == "0":
        print(f"judge: {name}{JUDGES[name]}")
    return name


def add_judge_flags(parser):
    """The flags that every script with a judge in it shares; `settle` fills in what they leave."""
    parser.add_argument("--template", help="full (the paper's), compact, or a file; default: the "
                        "judge's own (judge.json beside its weights), or compact if it has none")
    parser.add_argument("--max_new_tokens", type=int, default=160,
                        help="tokens per judgment (paper's outputs: 218-376)")
    parser.add_argument("--no_principles", action="store_const", const=True,
                        help="without principle generation (Table 4)")
    parser.add_argument("--principles", action="store_const", const=False, dest="no_principles",
                        help="with it; default: as the judge was trained")
    parser.add_argument("--use_reference", action="store_const", const=True,
                        help="show the reference answer (App. E.1.3)")
    parser.add_argument("--no_reference", action="store_const", const=False, dest="use_reference",
                        help="hide it; default: as the judge was trained")
    parser.add_argument("--thinking", choices=["on", "off"], help="switch enable_thinking of the "
                        "chat template; default: as the judge was trained, else the template's own")
    parser.add_argument("--skip_bad", action="store_true",
                        help="count and skip unreadable lines of a .jsonl file, and prompts that "
                        "do not fit the model (they count as unparsed)")
    parser.set_defaults(rating=None)  # also of programs without the flag


def judge_settings(args):
    """What `settle` has settled, as judge.json has it."""
    thinking = {"thinking": args.thinking} if args.thinking else {}
    return {"template": args.template, "rating": args.rating,
            "principles": not args.no_principles, "use_reference": args.use_reference, **thinking}


def judge_options(args):
    """Options of `grm.sample_judgments` from the flags."""
    return {**judge_settings(args), "max_new_tokens": args.max_new_tokens}


def own_settings(name):
    """judge.json of a model folder, of the folder of a .gguf, or of a hub id; {} without one."""
    file = hub_file(str(name), "judge.json") if name else None
    own = {} if file is None else read_json(file)
    if not isinstance(own, dict) or any(
            not isinstance(value, KINDS.get(key, ())) for key, value in own.items()):
        raise UserError(f"{file}: not {{template, rating, principles, use_reference}} of a judge; "
                        "delete it and give these as flags")
    return own


def settings_of(judge):
    """`own_settings` of a loaded judge, completed by DEFAULTS, rating as in evaluation."""
    found = getattr(judge, "judge_settings", None)
    if found is None:
        name = getattr(judge, "name_or_path", None) or getattr(judge, "name", None)
        # the name on a server may be an alias: nobody else is asked what it means
        served = hasattr(judge, "complete") and not Path(name).exists()
        found = {**DEFAULTS, **({} if served else own_settings(name))}
        found["rating"] = evaluated(found["rating"])
        with contextlib.suppress(AttributeError):
            judge.judge_settings = found  # asked for once
    return found


def score_options(judge, k, temperature, options):
    """Options of `grm.sample_judgments` for a call of `grm.score`, in the judge's own prompt.

    Raises UserError that names what is wrong.
    """
    if isinstance(judge, (str, Path)):
        raise UserError("model: a name, not a model; give both that load_model(name) returns")
    for name, value in {"k": k, "max_new_tokens": options.get("max_new_tokens", 1)}.items():
        if not isinstance(value, Integral) or value < 1:
            raise UserError(f"{name}={value!r}: must be a whole number, at least 1")
    if not isinstance(temperature, Real) or not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature!r}: must be a finite number, at least 0")
    if options.get("orders", "random") not in ORDERS:
        raise UserError(f"orders={options['orders']!r}: choose one of {', '.join(ORDERS)}")
    if "clamp" in options:
        raise UserError("clamp: score() always clamps; sample_judgments() leaves the choice")
    return {**settings_of(judge), "clamp": True, **options}


@contextlib.contextmanager
def in_python(item_id):
    """Errors of `grm.score`: flags are the options that they are; its item's id is the prompt."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(item_id, "score()")
        message = message.replace("--skip_bad", "skip_long=True")
        message = message.replace("--no_reference", "use_reference=False")
        message = re.sub(r"--template (\w+)", r"template='\1'", message)
        raise UserError(re.sub(r"--(\w)", r"\1", message)) from None


def warn_of_no_score(judgments):
    """The warning of `grm.score`, at the line that called it."""
    reasons = dict(Counter(j.reason for j in judgments))
    warnings.warn(f"none of {len(judgments)} judgments parsed ({reasons}), so there is no score; "
                  f"the first begins {judgments[0].text[:200]!r}", stacklevel=3)


def evaluated(rating):
    """Single responses are trained 0-1 and evaluated 1-10; "best" stays "best"."""
    return "1-10" if rating == "train" else rating


def settle(args, *names, training=False):
    """Fill in the flags of the prompt that were not given, in place; a contradiction is printed.

    They come from the first of the models `names` that has a judge.json, else from DEFAULTS.
    training: keep the rating "train", which evaluation does not have.
    """
    if args.template not in (None, "full", "compact"):
        args.template = read_template(args.template)
    given = {"template": args.template, "rating": args.rating, "use_reference": args.use_reference,
             "thinking": args.thinking,
             "principles": None if args.no_principles is None else not args.no_principles}
    alias = getattr(args, "served_model", None)
    known = [n for n in names if n and (n != alias or Path(n).exists())]
    name, own = next(((n, own) for n in known if (own := own_settings(n))), (None, {}))
    used = {**DEFAULTS, **own, **{k: v for k, v in given.items() if v is not None}}
    if not training:
        used["rating"] = evaluated(used["rating"])
        own = {**own, "rating": evaluated(own["rating"])} if "rating" in own else own
    other = [k for k in own if own[k] != used[k]]
    if other and os.environ.get("RANK", "0") == "0":
        its, ours = (", ".join(in_words(k, settings[k]) for k in other) for settings in (own, used))
        print(f"{name} was trained with {its}; as the flags say, it is asked with {ours}")
    args.template, args.rating = used["template"], used["rating"]
    args.no_principles, args.use_reference = not used["principles"], used["use_reference"]
    args.thinking = used.get("thinking")


def in_words(key, value):
    if key == "template":
        return f"template {value if value in ('full', 'compact') else 'of its own'}"
    if key in ("rating", "thinking"):
        return f"{key} {value}"
    return ("" if value else "no ") + key.removeprefix("use_")
