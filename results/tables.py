"""The tables of results/README.md on the toy world, from the compact records of the runs (compact.py) and nothing else.

One function per table; it names rows: label, result, the paper's number, the row to compare with (rows.py does the rest). The
undamaged judge, from which the toy's base was made, stands in the tables as the ceiling.
"""
import functools
import math
from pathlib import Path

import eval as evaluation
from grm import is_correct
from infer_scale import item_credit, powers_of_two
from meta_rm import reliability, roc_auc
from results.compact import load
from results.failures import CLASSES
from results.principles import SETTINGS
from results.rows import (
    among,
    anything,
    finish,
    greedy_credit,
    greedy_tokens,
    in_domain,
    lists,
    means,
    nth_credit,
    over_seeds,
    row,
    several,
    single,
    single_score,
    voting_credit,
    write,
)

TRIES = {  # name: (flags, what is different); the meta RM of the tables was found by these
    "first": ("--batch_size 64 --lr 1e-3", "126 updates of 64"),
    "from-grm": ("--batch_size 64 --lr 1e-3 --model {grm}", "starts from the GRM"),
    "from-undamaged": ("--batch_size 64 --lr 1e-3 --model toy_world/medium-undamaged", "starts from the undamaged judge"),
    "items-6000": ("--batch_size 64 --lr 5e-4 --limit 6000", "four times the items, half the rate"),
    "epochs-4": ("--batch_size 64 --lr 1e-3 --epochs 4", "four epochs"),
    "grm-6000": ("--limit 6000 --epochs 2 --model {grm}", "6,000 items, two epochs of 16, starts from the GRM"),
}
GUIDES = ("first", "grm-6000")  # those of them that also guided votes
GUIDED = {"base/32/voting": "base", "grm/after_rft/32/voting": "GRM-RFT", "grm/voting": "GRM"}  # judgments with meta logits
JUDGES = {"base": "base", "grm/after_rft": "GRM-RFT", "grm": "GRM"}  # folder of the greedy run: name in the tables


# ----- the paper's main tables -----

def training(seeds):
    """Table 2 and 4: base < RFT < GRM, greedy and voted."""
    get = functools.partial(over_seeds, seeds)
    specs = [
        row("base, greedy", get("base/greedy", greedy_credit)),
        row("GRM-RFT, greedy", get("grm/after_rft/greedy", greedy_credit), "68.8", "base, greedy"),
        row("GRM, greedy", get("grm/greedy", greedy_credit), "69.9", "GRM-RFT, greedy"),
        row("general data only, greedy", get("general/after_rft/greedy", greedy_credit), "66.1", "base, greedy"),
        row("general data only, then RL, greedy", get("general/greedy", greedy_credit), "68.7", "general data only, greedy"),
        row("RL straight from the base, greedy", get("straight/greedy", greedy_credit), "", "base, greedy"),
        row("undamaged judge, greedy", get("undamaged/greedy", greedy_credit), "", "GRM, greedy"),
        row("base, Voting@8", get("base/voting", voting_credit(8))),
        row("GRM-RFT, Voting@8", get("grm/after_rft/voting", voting_credit(8)), "69.3", "base, Voting@8"),
        row("GRM, Voting@8", get("grm/8/voting", voting_credit(8)), "70.6", "GRM-RFT, Voting@8"),
        row("undamaged judge, Voting@8", get("undamaged/voting", voting_credit(8)), "", "GRM, Voting@8")]
    write("training", finish(specs))


def ceiling(seeds, keep=several):
    return row("undamaged judge, greedy", over_seeds(seeds, "undamaged/greedy", greedy_credit, keep))


def scaling(seeds):
    """Table 3 and Fig. 4(a): voting, guided voting and the controls; the paper's gains are against Voting@1, guided against voting."""
    def get(*key):
        return over_seeds(seeds, "grm/voting", voting_credit(*key))
    if get(1) is None:
        return
    paper = {("vote", 1): "67.9", ("vote", 8): "70.6", ("vote", 32): "71.0", ("guided", 8): "72.0", ("guided", 32): "72.8"}
    greedy = over_seeds(seeds, "grm/greedy", greedy_credit)
    chance = evaluation.mean(1 / r["n"] for r in evaluation.graded(load(min(get(1)["values"]), "grm/voting")["rows"]))
    specs = [row("greedy", greedy, "69.9", method="", k="", chance=chance)]
    for method in ("vote", "guided", "random", "oracle"):
        for k in powers_of_two(32):
            against = "greedy" if (method, k) == ("vote", 1) else "vote @1" if method == "vote" else f"vote @{k}"
            specs.append(row(f"{method} @{k}", get(k, method), paper.get((method, k), ""), against, method=method, k=k))
    specs += [row("vote @32 against vote @8", get(32), "71.0", "vote @8"),
              row("guided @32 against random 16 of 32", get(32, "guided"), "", "random @32"),
              row("undamaged judge, Voting@8", over_seeds(seeds, "undamaged/voting", voting_credit(8)))]
    write("scaling", finish(specs))


def k_meta(seeds):
    """Table 7: how many of 32 judgments vote."""
    def get(*key):
        return over_seeds(seeds, "grm/voting", voting_credit(*key))
    if get(32) is None:
        return
    paper = {1: "71.5", 8: "72.7", 16: "72.8"}
    specs = [row("none (Voting@32)", get(32), "71.0")]
    specs += [row(f"k_meta {m}", get(32, "guided", m), paper.get(m, ""), "none (Voting@32)",
                  random=evaluation.mean(means(get(32, "random", m)).values())) for m in (1, 2, 4, 8, 16, 24)]
    write("k_meta", finish([*specs, row("undamaged judge, Voting@8", over_seeds(seeds, "undamaged/voting", voting_credit(8)))]))


def guided_judges(seeds):
    """Not in the paper, whose meta RM guides one judge: the same meta RM for judges that are right less often."""
    specs = []
    for folder, judge in GUIDED.items():
        guided = all(r and "meta_logits" in r["rows"][0] for r in (load(s, folder) for s in seeds) if r)
        for k in (8, 32):
            vote, guide, control = (guided and over_seeds(seeds, folder, voting_credit(k, m)) for m in ("vote", "guided", "random"))
            specs += [row(f"{judge}, Voting@{k}", vote), row(f"{judge}, guided @{k}", guide, "", f"{judge}, Voting@{k}"),
                      row(f"{judge}, random {k // 2} of {k}", control, "", f"{judge}, guided @{k}")]
    write("guided_judges", finish([*specs, row("undamaged judge, Voting@8", over_seeds(seeds, "undamaged/voting", voting_credit(8)))]))


def methods(seeds):
    """Tables 2 and 3: what the GRM is compared with. updates: optimizer steps of the stages, one after the other, first seed."""
    get = functools.partial(over_seeds, seeds)

    def updates(*stages):
        found = [load(min(seeds, default=0), stage) for stage in stages]
        return " + ".join(str(r["updates"]) for r in found) if all(r and "updates" in r for r in found) else ""
    specs = [
        row("LLM-as-a-Judge, greedy", get("judge/eval", greedy_credit), "67.8", "GRM, greedy", updates=updates("judge/rft", "judge/rl")),
        row("Bradley-Terry (BTRM)", get("btrm", greedy_credit), "68.6", "GRM, greedy", updates=updates("btrm")),
        row("CLoud, greedy", get("cloud/greedy", greedy_credit), "68.7", "GRM, greedy", updates=updates("cloud/critic", "cloud")),
        row("PairRM", get("pairrm", greedy_credit), "69.0", "GRM, greedy", updates=updates("pairrm")),
        row("GRM-RFT, greedy", get("grm/after_rft/greedy", greedy_credit), "68.8", "GRM, greedy", updates=updates("grm/rft")),
        row("GRM, greedy", get("grm/greedy", greedy_credit), "69.9", updates=updates("grm/rft", "grm/rl")),
        row("LLM-as-a-Judge, Voting@1", get("judge/voting", voting_credit(1)), "67.0", "LLM-as-a-Judge, greedy"),
        row("LLM-as-a-Judge, Voting@8", get("judge/voting", voting_credit(8)), "67.6", "GRM, Voting@8"),
        row("LLM-as-a-Judge, TokenProb@8", get("judge/tokenprob", voting_credit(8)), "68.1", "LLM-as-a-Judge, Voting@8"),
        row("CLoud @1", get("cloud", voting_credit(1)), "68.5"),
        row("CLoud @8", get("cloud", voting_credit(8)), "68.8", "CLoud @1"),
        row("GRM-RFT, Voting@1", get("grm/after_rft/voting", voting_credit(1)), "67.8", "GRM-RFT, greedy"),
        row("GRM-RFT, Voting@8", get("grm/after_rft/voting", voting_credit(8)), "69.3", "GRM-RFT, Voting@1"),
        row("GRM, Voting@8", get("grm/8/voting", voting_credit(8)), "70.6", "GRM, greedy"),
        row("GRM, Voting@32", get("grm/voting", voting_credit(32)), "71.0", "GRM, Voting@8"),
        row("GRM, guided @32", get("grm/voting", voting_credit(32, "guided")), "72.8", "GRM, Voting@32"),
        ceiling(seeds), row("undamaged judge, Voting@8", get("undamaged/voting", voting_credit(8)))]
    write("methods", finish(specs))


def ablations(seeds):
    """Table 4: RFT without one of its parts (greedy, before RL), and the whole recipe without principles."""
    get = functools.partial(over_seeds, seeds)

    def part(name):
        return get(f"ablations/{name}/greedy", greedy_credit)

    def voted(name):
        return get(f"{name}/voting", voting_credit(8))
    specs = [
        row("GRM-RFT", get("grm/after_rft/greedy", greedy_credit), "68.8"),
        row("RFT without hinted sampling (1)", part("no-hinted"), "68.0", "GRM-RFT"),
        row("RFT without non-hinted sampling (2)", part("no-non-hinted"), "67.4", "GRM-RFT"),
        row("RFT without rejective sampling (1 and 2)", get("general/after_rft/greedy", greedy_credit), "66.1", "GRM-RFT"),
        row("RFT without general data", part("no-general"), "63.3", "GRM-RFT"),
        row("GRM", get("grm/greedy", greedy_credit), "69.9"),
        row("GRM without rejective sampling", get("general/greedy", greedy_credit), "68.7", "GRM"),
        row("GRM without principles", part("no-principles"), "67.5", "GRM"),
        row("GRM-RFT, Voting@8", voted("grm/after_rft"), "69.3"),
        row("RFT without hinted sampling (1), Voting@8", voted("ablations/no-hinted"), "", "GRM-RFT, Voting@8"),
        row("RFT without non-hinted sampling (2), Voting@8", voted("ablations/no-non-hinted"), "", "GRM-RFT, Voting@8"),
        row("RFT without rejective sampling (1 and 2), Voting@8", voted("general/after_rft"), "", "GRM-RFT, Voting@8"),
        row("RFT without general data, Voting@8", voted("ablations/no-general"), "", "GRM-RFT, Voting@8"),
        row("GRM, Voting@8", voted("grm/8"), "70.6"),
        row("GRM without rejective sampling, Voting@8", voted("general"), "", "GRM, Voting@8"),
        row("GRM without principles, Voting@8", voted("ablations/no-principles"), "68.0", "GRM, Voting@8"),
        ceiling(seeds), row("undamaged judge, Voting@8", voted("undamaged"))]
    write("ablations", finish(specs))


def kl(seeds):
    """App. C.1: the KL coefficient, and whether one domain falls behind the others. The paper reports a tendency, no numbers."""
    names = {"0": "kl/0/greedy", "0.01": "kl/0.01/greedy", "0.02": "grm/greedy", "0.08": "kl/0.08/greedy", "0.3": "kl/0.3/greedy"}
    specs = [row(f"beta {beta}", over_seeds(seeds, name, greedy_credit), "collapse on some subsets" if beta == "0" else "",
                 None if beta == "0.02" else "beta 0.02", gain=-1 if beta == "0" else None) for beta, name in names.items()]
    write("kl", finish([*specs, ceiling(seeds)], domain_differences=True))


def heldout_safety(seeds):
    """A domain held out of training (safety): the GRM and the meta RM. The paper's nearest: Reward Bench without MATH data, Table 15."""
    base = over_seeds(seeds, "base/greedy", greedy_credit, in_domain("safety"))
    get = functools.partial(over_seeds, seeds, keep=among(frozenset(base["domain"] if base else ())))  # votes were cast on more items
    specs = [row("base, greedy", base),
             row("GRM, greedy", get("grm/greedy", greedy_credit), "86.0"),
             row("GRM without safety, greedy", get("heldout/greedy", greedy_credit), "83.0 without MATH data", "GRM, greedy"),
             row("GRM, Voting@32", get("heldout/reference", voting_credit(32)), "", "GRM, greedy"),
             row("GRM, guided @32", get("heldout/reference", voting_credit(32, "guided")), "", "GRM, Voting@32"),
             row("GRM without safety, Voting@32", get("heldout/voting", voting_credit(32)), "", "GRM without safety, greedy"),
             row("GRM and meta RM without safety, guided @32", get("heldout/voting", voting_credit(32, "guided")), "",
                 "GRM without safety, Voting@32"),
             row("GRM without safety, random 16 of 32", get("heldout/voting", voting_credit(32, "random")), "",
                 "GRM and meta RM without safety, guided @32"),
             ceiling(seeds, in_domain("safety"))]
    write("heldout_safety", finish(specs))


# ----- the paper's smaller tables -----

def lengths(seeds):
    """Fig. 7: tokens of greedy judgments before and after RL."""
    paper = {"chat": ("241", "265"), "chat-hard": ("259", "259"), "safety": ("245", "218"), "reasoning": ("260", "376")}
    specs = []
    for domain, (before, after) in paper.items():
        rft, grm = (over_seeds(seeds, f"{name}/greedy", greedy_tokens, in_domain(domain, 1)) for name in ("grm/after_rft", "grm"))
        specs += [row(f"{domain}, GRM-RFT", rft, before), row(f"{domain}, GRM", grm, after, f"{domain}, GRM-RFT")]
    for name, label, against in (("base", "base", None), ("grm/after_rft", "GRM-RFT", "base"), ("grm", "GRM", "GRM-RFT"),
                                 ("undamaged", "undamaged judge", "GRM")):
        specs.append(row(f"all, {label}", over_seeds(seeds, f"{name}/greedy", greedy_tokens, anything), "", against and f"all, {against}"))
    write("lengths", finish(specs, "tokens"))


def single_responses(seeds):
    """Table 13: right or wrong single responses (n = 1), told apart by their score; the paper's base is Gemma-2-27B-it."""
    def get(name, k=None):
        return over_seeds(seeds, name, single_score(k), single)
    specs = [row("base, greedy", get("base/greedy"), "65.8"),
             row("Bradley-Terry (BTRM)", get("btrm"), "69.3", "GRM, greedy"),
             row("GRM-RFT, greedy", get("grm/after_rft/greedy"), "", "base, greedy"),
             row("GRM, greedy", get("grm/greedy"), "72.2", "base, greedy"),
             row("GRM, Voting@8", get("grm/8/voting", 8), "74.4", "GRM, greedy"),
             row("undamaged judge, greedy", get("undamaged/greedy"), "", "GRM, greedy")]
    write("single_responses", finish(specs, "auc"))


def list_or_pairs(seeds):
    """Table 11: items with n > 2 as one list, or the best response against each other one, all to be won."""
    paper = {"GRM, list": ("62.3/57.0", 59.65), "GRM, pairs": ("62.1/57.5", 59.8)}
    specs = []
    for name, label in (("base", "base"), ("grm", "GRM"), ("undamaged", "undamaged judge")):
        for kind, folder in (("list", f"{name}/greedy"), ("pairs", f"bon/{name}/greedy")):
            text, number = paper.get(f"{label}, {kind}", ("", None))
            specs.append(row(f"{label}, {kind}", over_seeds(seeds, folder, greedy_credit, lists), text,
                             f"{label}, list" if kind == "pairs" else None, number))
    write("list_or_pairs", finish(specs))


def reference(seeds):
    """Table 12: what a reference answer in the prompt does (the paper's numbers: PPE Correctness)."""
    get = functools.partial(over_seeds, seeds)
    specs = [row("base", get("base/greedy", greedy_credit)),
             row("base, reference shown", get("reference/base/greedy", greedy_credit), "", "base"),
             row("GRM", get("grm/greedy", greedy_credit), "59.8"),
             row("GRM, Voting@32", get("grm/voting", voting_credit(32)), "60.4", "GRM"),
             row("GRM, guided @32, k_meta 8", get("grm/voting", voting_credit(32, "guided", 8)), "64.7", "GRM, Voting@32"),
             row("GRM, reference shown", get("reference/grm/greedy", greedy_credit), "91.6", "GRM"),
             row("undamaged judge", get("undamaged/greedy", greedy_credit)),
             row("undamaged judge, reference shown", get("reference/undamaged/greedy", greedy_credit), "", "undamaged judge")]
    write("reference", finish(specs))


def principles(seeds):
    """Tables 1 and 14 (Chat Hard / IFEval): the settings of results/principles.py. The paper's base is Gemma-2-27B-it; its judge
    that borrows the GRM's principles is GPT-4o, so there its gain stands instead of a number."""
    oracle = "own, filtered (oracle)"
    paper = {"base, none": ("59.1/56.1", 57.6), "base, own": ("64.0/55.8", 59.9), f"base, {oracle}": ("68.0/57.3", None),
             "base, the GRM's": ("GPT-4o: 75.9/55.6 to 78.1/58.3", None), "GRM, own": ("78.3/59.8", 69.05),
             f"GRM, {oracle}": ("77.0/58.5", None)}
    gains = {"base, the GRM's": 2.45, f"base, {oracle}": 2.75}  # the mean of 2.2 and 2.7; of 4.0 and 1.5 (over "own")
    specs, ids = [], frozenset()
    for name, judge in (("base", "base"), ("rft", "GRM-RFT"), ("grm", "GRM")):
        for j, setting in enumerate(SETTINGS):
            if judge == "GRM" and setting.startswith("the GRM"):
                continue  # its own once more
            result = over_seeds(seeds, f"principles/{name}", nth_credit(j))
            ids = ids or frozenset(result["domain"] if result else ())
            label, against = f"{judge}, {setting}", {"none": None, "own": "none", oracle: "own, given", SETTINGS[5]: SETTINGS[4]}.get(setting, "own")
            text, number = paper.get(label, ("", None))
            specs.append(row(label, result, text, against and f"{judge}, {against}", number, gains.get(label)))
    write("principles", finish([*specs, ceiling(seeds, among(ids))]))


def failures(seeds):
    """App. F.2: what the wrong greedy judgments are wrong in (results/failures.py); the paper's counts are of 10 errors each in
    Reward Bench / PPE Preference / PPE Correctness / RMB, decided by hand."""
    paper = {"wrong critique": "21 of 40 (4/5/7/5)", "wrong weights": "13 of 40 (4/4/3/2)", "wrong principles": "2 of 40 (1/1/0/0)"}
    reports = {judge: {seed: load(seed, f"failures/{judge}") for seed in seeds if load(seed, f"failures/{judge}")}
               for judge in ("base", "rft", "grm", "undamaged")}

    def share(judge, kind):
        """The wrong judgments as items: 1 if they are of this class."""
        found = {seed: {i: float(c == kind) for i, c in r["report"]["items"].items()} for seed, r in reports[judge].items()}
        return found and {"values": found, "domain": {}, "label": {}, "untrained": False, "judge": judge,
                          "commits": {r["commit"] for r in reports[judge].values()}}
    specs = []
    for kind in CLASSES:
        others = {f"share_{judge}": evaluation.mean(means(share(judge, kind)).values()) if reports[judge] else ""
                  for judge in ("base", "rft", "undamaged")}
        specs.append(row(kind, share("grm", kind), paper.get(kind, ""), **others,
                         count=sum(r["report"]["classes"][kind] for r in reports["grm"].values())))
    write("failures", finish(specs, "share"))


# ----- the same compute -----

def compute(seeds):
    """Fig. 4 with its axis in FLOPs: sizes of the toy judge after RFT and RL, voted. FLOPs per item = 2 x parameters x k x (prompt +
    generated tokens), mflops; or with every distinct prompt (response order) of an item computed once, mflops_shared. The paper's Reward Bench: its 16B, 27B and 671B stand beside small, medium and large."""
    paper = {"small, greedy": "82.9", "small, Voting@8": "84.9", "medium, greedy": "86.0", "medium, Voting@8": "87.7",
             "medium, Voting@32": "88.5", "large, greedy": "88.4"}
    against = {"small, Voting@8": "medium, greedy", "medium, greedy": "small, greedy", "medium, Voting@8": "large, greedy",
               "medium, Voting@32": "large, greedy", "large, greedy": "medium, greedy"}
    specs = []
    for size, greedy, voted in (("small", "sizes/small/greedy", "sizes/small/voting"), ("medium", "grm/greedy", "grm/voting"),
                                ("large", "sizes/large/greedy", "sizes/large/voting")):
        runs = {name: [r for r in (load(s, name) for s in seeds) if r and r["parameters"]] for name in (greedy, voted)}
        k_max = min((len(r["rows"][0]["samples"]) for r in runs[voted]), default=0)
        for k in [0, *(powers_of_two(k_max) if k_max else [])]:
            label = f"{size}, Voting@{k}" if k else f"{size}, greedy"
            name = voted if k else greedy
            result = over_seeds(seeds, name, voting_credit(k) if k else greedy_credit)
            specs.append(row(label, result, paper.get(label, ""), against.get(label), size=size, k=k or 1,
                             greedy=int(not k), mflops=flops_per_item(runs[name], max(k, 1)) / 1e6 if runs[name] else "",
                             mflops_shared=flops_per_item(runs[name], max(k, 1), shared=True) / 1e6 if runs[name] else ""))
    for small, large in (("small", "medium"), ("medium", "large")):
        rich = next(s for s in specs if s["label"] == f"{large}, greedy")
        cheap = [s for s in specs if s["more"]["size"] == small and s["result"] and not s["more"]["greedy"]]
        for axis, how in (("mflops", ""), ("mflops_shared", ", prompts shared")):
            within = [s for s in cheap if rich["result"] and s["more"][axis] <= rich["more"][axis]]
            if within:
                best = within[-1]
                specs.append({**best, "label": f"{best['label']} for at most the compute of {large}, greedy{how}", "paper": "", "number": None,
                              "against": f"{large}, greedy", "more": {**best["more"], "size": ""}})
    undamaged = ceiling(seeds)
    write("compute", finish([*specs, undamaged]))


def flops_per_item(records, k, shared=False):
    """2 x parameters x tokens of k judgments, mean over the items of all runs; the attention's own products are left out.
    shared: an item has n! prompts, one per response order, of which k draws meet n! (1 - (1 - 1/n!)^k) on average."""
    def tokens(row):
        orders = math.factorial(row["n"])
        prompts = orders * (1 - (1 - 1 / orders) ** k) if shared else k
        return sum(per_prompt * evaluation.mean(s[kind] for s in row["samples"]) for per_prompt, kind in ((prompts, "prompt_tokens"), (k, "tokens")))
    return 2 * evaluation.mean(r["parameters"] * evaluation.mean(tokens(row) for row in evaluation.graded(r["rows"])) for r in records)


# ----- why guidance gains little here -----

def margin(scores):
    """How clearly a judgment prefers its first choice: highest minus second highest score."""
    first, second = sorted(scores, reverse=True)[:2]
    return first - second


def guidance(seeds):
    """What the judgments are, and the judge's own margin beside the meta RM as a guide."""
    rows = []
    for seed in seeds:
        record = load(seed, "grm/voting")
        if not record:
            continue
        samples = evaluation.graded(record["rows"])
        parsed = [(s["scores"], z, r["rewards"]) for r in samples for s, z in zip(r["samples"], r["meta_logits"], strict=True)
                  if s["scores"]]
        labels = [is_correct(scores, rewards) for scores, _, rewards in parsed]
        clear = [j for j, (scores, _, _) in enumerate(parsed) if margin(scores)]  # a judgment without a margin is wrong by definition
        tied = [not y and scores[rewards.index(max(rewards))] == max(scores)
                for (scores, _, rewards), y in zip(parsed, labels, strict=True)]
        by_margin = [{**r, "meta_logits": [s["scores"] and margin(s["scores"]) for s in r["samples"]]} for r in samples]
        rows.append({"seed": seed, "judgments": len(parsed), "correct": evaluation.mean(labels), "tied": evaluation.mean(tied),
                     "wrong": 1 - evaluation.mean(labels) - evaluation.mean(tied),
                     "auc_meta_rm": roc_auc([z for _, z, _ in parsed], labels),
                     "auc_margin": roc_auc([margin(scores) for scores, _, _ in parsed], labels),
                     "auc_meta_rm_untied": roc_auc([parsed[j][1] for j in clear], [labels[j] for j in clear]),
                     "auc_margin_untied": roc_auc([margin(parsed[j][0]) for j in clear], [labels[j] for j in clear]),
                     **{f"{name}@{k}": evaluation.mean(item_credit(r, k, method) for r in used) for k in (8, 32)
                        for name, method, used in (("vote", "vote", samples), ("guided", "guided", samples),
                                                   ("by_margin", "guided", by_margin), ("random", "random", samples))},
                     "commit": record["commit"]})
    write("guidance", rows)


def calibration(seeds):
    """The meta RM's probabilities on the judgments of the test items, by the judge that wrote them and by domain: means over seeds.
    error: mean distance of predicted and true share of correct judgments over five bins of equal width, weighted by their counts.
    auc: over the judgments of all items; auc_within: mean of the items' own, which is what decides who votes (items of one label left out)."""
    def separate(item):
        pairs = [(z, is_correct(s["scores"], item["rewards"])) for s, z in zip(item["samples"], item["meta_logits"], strict=True) if s["scores"]]
        return roc_auc([z for z, _ in pairs], [y for _, y in pairs])
    rows = []
    heldout = {"heldout/reference": "GRM, safety items", "heldout/voting": "GRM and meta RM without safety, safety items"}
    for folder, judge in {**GUIDED, **heldout}.items():
        measured = {}
        for seed in seeds:
            record = load(seed, folder)
            if not record or "meta_logits" not in record["rows"][0]:
                continue
            graded = evaluation.graded(record["rows"])
            for domain, part in ({"all": graded} | (evaluation.by_domain(graded) if folder in GUIDED else {})).items():
                pairs = [(z, is_correct(s["scores"], r["rewards"])) for r in part for s, z in zip(r["samples"], r["meta_logits"], strict=True)
                         if s["scores"]]
                logits, labels = zip(*pairs, strict=True)
                bins = reliability(list(logits), list(labels))
                own = [separate(r) for r in part]
                measured.setdefault(domain, []).append({
                    "judgments": len(pairs), "correct": evaluation.mean(labels), "auc": roc_auc(logits, labels),
                    "auc_within": evaluation.mean(x for x in own if x is not None),
                    "predicted": sum(b["count"] * b["predicted"] for b in bins) / len(pairs),
                    "error": sum(b["count"] * abs(b["predicted"] - b["correct"]) for b in bins) / len(pairs), "commit": record["commit"]})
        for domain, found in measured.items():
            rows.append({"judge": judge, "domain": domain, "seeds": len(found),
                         **{key: evaluation.mean(f[key] for f in found) for key in ("judgments", "correct", "predicted", "error", "auc", "auc_within")},
                         "commit": " ".join(sorted({f["commit"] for f in found}))})
    write("calibration", rows)


def meta_rm_tries(seeds):
    """The meta RMs that were tried, on the first seed: held-out ROC-AUC by source, and what their guidance did to eight votes."""
    rows = []
    for name, what in [*((f"tries/{name}", what) for name, (_, what) in TRIES.items()),
                       ("grm/meta_rm", "6,000 items, two epochs of 16: the meta RM of the tables")]:
        record = load(min(seeds, default=0), name)
        if record:
            held = record["report"]["held_out"]
            voted = load(min(seeds), "grm/voting" if name == "grm/meta_rm" else f"{name}/voting")
            graded = evaluation.graded(voted["rows"]) if voted else []
            vote, guided = ([item_credit(r, 8, m) for r in graded] for m in ("vote", "guided"))
            ends = evaluation.paired_ci(vote, guided) if graded else ("", "")
            rows.append({"run": what, "updates": record["updates"], **{f"auc_{source}": held[source]["auc"] for source in ("grm", "rft")},
                         "vote@8": evaluation.mean(vote) if graded else "", "guided@8": evaluation.mean(guided) if graded else "",
                         "difference_low": ends[0], "difference_high": ends[1], "seed": min(seeds), "commit": record["commit"]})
    write("meta_rm_tries", rows)


def meta_rm(seeds):
    """Held-out reports of the meta RMs."""
    reports = [(seed, kind, load(seed, f"{kind}/meta_rm")) for seed in seeds for kind in ("grm", "heldout")]
    write("meta_rm", [{"seed": seed, "trained": kind, "part": part, **numbers, "judgments": record["report"]["judgments"],
                       "unparsed": record["report"]["unparsed"], "commit": record["commit"]}
                      for seed, kind, record in reports if record for part, numbers in record["report"]["held_out"].items()])


def domains(seeds):
    """Every measure of eval.py by domain, and voting by domain."""
    rows = []
    for folder, label in {**JUDGES, "undamaged": "undamaged judge"}.items():
        for seed in seeds:
            record = load(seed, f"{folder}/greedy")
            if record:
                rows += [{**found, "seed": seed, "commit": record["commit"]}
                         for found in evaluation.main_table({label: record["rows"]})]
    voted = [("base/32/voting", "base", "vote", k) for k in (1, 8, 32)] + [("grm/voting", "GRM", "vote", k) for k in (1, 8, 32)]
    for folder, label, method, k in [*voted, ("grm/voting", "GRM", "guided", 32)]:
        for seed in seeds:
            record = load(seed, folder)
            samples = record["rows"] if record else []
            for domain, part in ({"all": samples} | evaluation.by_domain(samples) if samples else {}).items():
                values = [item_credit(r, k, method) for r in evaluation.graded(part)]
                low, high = evaluation.bootstrap_ci(values)
                rows.append({"run": f"{label}, {method} @{k}", "domain": domain, "items": len(values), "seed": seed,
                             "accuracy": evaluation.mean(values), "low": low, "high": high, "commit": record["commit"]})
    write("domains", rows)


def rl_training(seeds):
    """The course of RL training."""
    rows = []
    for kind in ("grm", "general", "straight"):
        for seed in seeds:
            record = load(seed, f"{kind}/rl")
            columns = record["training"] if record else {}
            rows += [{"run": kind, "seed": seed, **dict(zip(columns, values, strict=True)), "commit": record["commit"]}
                     for values in zip(*columns.values(), strict=True)]
    if rows:
        evaluation.write_csv(Path("results/rl_training.csv"), rows)


TABLES = [training, scaling, k_meta, guided_judges, methods, ablations, kl, heldout_safety, lengths, single_responses, list_or_pairs, reference,
          principles, failures, compute, guidance, calibration, meta_rm_tries, meta_rm, domains, rl_training]


def make_tables(seeds, names=None):
    """Write the tables, or those named, to results/ from the records in results/runs."""
    load.cache_clear()
    over_seeds.cache_clear()
    for table in TABLES:
        if names is None or table.__name__ in names:
            table(tuple(seeds))
