r"""The reward models that the paper compares its GRM with (App. C.2), trained on the same items.

  btrm       Bradley-Terry: one scalar per response, S = r(x, y)                             (Eq. 4)
  pairrm     PairRM: one scalar per pair, S = r(x, y_1, y_2); S > 0 names y_1                (Eq. 5)
  cloud      CLoud, semi-scalar: a critic judges each response alone, a second model reads the
             critique and gives a scalar; at inference k critiques, their rewards averaged  (Eq. 12)
  judge      LLM-as-a-Judge: the GRM's own recipe with another last line, the number of the best
             response; voting is the majority                                          (Eqs. 6, 13)
  tokenprob  of a judge's samples: the probability of each number at that place instead of the
             number it wrote                                                                 (Eq. 6)

    python -m extras.baselines btrm                     # toy world, about a minute -> runs/toy/btrm
    accelerate launch -m extras.baselines pairrm --model Qwen/Qwen2.5-0.5B --data helpsteer2 \
        --lr 1e-5 --batch_size 256 --output runs/qwen/pairrm
    python -m extras.baselines judge && python -m extras.baselines tokenprob  # reads judge/voting
    python eval.py --runs btrm=runs/toy/btrm pairrm=runs/toy/pairrm judge=runs/toy/judge/voting

Output: model/ (and critic/model, greedy/ of cloud; rft, rl, eval, voting of judge), metrics.jsonl,
and samples.jsonl of the test items in the format of infer_scale.py, so that eval.py compares all of
them with the GRM, paired by item.
Where we differ from the paper: `# Choice:` and `# Deviation:`, in the place that they concern.
"""
import argparse
import dataclasses
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from eval import SHORT, curve, main_table
from grm import (
    BOX,
    Judgment,
    build_prompt,
    sample_judgments,
    unpermute,
)
from infer_scale import sample_row, vote
from meta_rm import meta_ids, meta_logits, score_pairs
from plumbing import generation, runs
from plumbing.data import DATA_HELP, general_data, load_chats, load_examples
from plumbing.figures import print_table
from plumbing.generation import encode_chat
from plumbing.judge import TOY_BASE, add_judge_flags, judge_options, settle
from plumbing.runs import UserError, in_chunks, read_rows
from spct_rft import learning_rate, sft_loss

# ----- Eqs. 4 and 5: scalars and preferences -----

def preference_loss(S, signs):
    """Sum over B preferences of -log sigmoid(margin), nats; margin = sum of sign * S over the row.

    Bradley-Terry (Eq. 4): a row is (S_best, S_other) with signs (+1, -1). PairRM (Eq. 5): a row is
    one S with sign +1 if y_1 is better and -1 if y_2 is, which is binary cross-entropy.
    Args: S, signs (B, 2) or (B, 1).
    """
    return torch.nn.functional.softplus(-(signs * S).sum(1)).sum()


def pair_choice(S):
    """Number of the response that PairRM prefers: floor((3 - sgn S) / 2) (Eq. 5); S = 0 gives 1.

    >>> pair_choice(0.25), pair_choice(-0.7)
    (1, 2)
    """
    return math.floor((3 - ((S > 0) - (S < 0))) / 2)


def round_robin(S, n):
    """(one-hot scores, "ok") for the response that beats every other one, or (None, "no_winner").

    S: {(i, j): scalar of y_i shown before y_j}, one entry per pair.
    Source: paper, App. D: for lists, the (n - 1) pairs with the best response must all be right;
    that is, it wins all its games.
    >>> round_robin({(0, 1): -2.0, (0, 2): 1.0, (2, 1): -0.1}, 3)
    ([0, 1, 0], 'ok')
    """
    wins = [0] * n
    for pair, s in S.items():
        wins[pair[pair_choice(s) - 1]] += 1
    return ([int(w == n - 1) for w in wins], "ok") if n - 1 in wins else (None, "no_winner")


# ----- what the models read: (prompt ids, ids of the assistant's turn); a head on the last -----

def response_ids(tokenizer, example):
    """btrm: the conversation, and each response as the assistant's turn. One pair per response."""
    return [encode_chat(tokenizer, example.prompt, response) for response in example.responses]


def alone(example, i):
    """The item with response i only: what CLoud's critic and scalar head see."""
    return dataclasses.replace(example.permuted([i]), id=f"{example.id}/{i}")


def bradley_terry_rows(sequences, rewards):
    """Training rows [(sequence, +1), (sequence, -1)]: the best response against each other."""
    best = rewards.index(max(rewards))
    return [[(sequences[best], 1.0), (s, -1.0)] for i, s in enumerate(sequences) if i != best]


def pair_rows(tokenizer, example):
    """Training rows [(sequence, sign)]: the best response with each other one.

    The meta RM's prompt with two responses; the assistant's turn is the end token alone.
    Choice: in both orders, against position bias.
    """
    best = example.rewards.index(max(example.rewards))
    return [[(meta_ids(tokenizer, example.permuted(order), ""), sign)]
            for j in range(len(example.responses)) if j != best
            for order, sign in (([best, j], 1.0), ([j, best], -1.0))]


# ----- training: one loop for the scalar heads and for CLoud's critic -----

def train(folder, args, accelerator, model, tokenizer, rows, loss_of, label,
          weight_of=lambda row: 1):
    """Train `model` and save folder/model; a killed run continues, a finished one returns at once.

    loss_of(model, rows) -> summed loss; an update's loss is that of its rows, divided by the sum of
    weight_of(row).
    """
    if (folder / "model").exists():
        return
    steps = max(1, round(args.epochs * len(rows) / args.batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95),
                                  weight_decay=0.01)
    run = runs.Run(folder, args, accelerator)
    model, optimizer, step = run.prepare(model, optimizer, steps, label)
    model.train()
    accelerator.print(f"{label} on {accelerator.device}: {len(rows)} rows, {steps} updates of "
                      f"{args.batch_size}")
    while step < steps:
        started = time.time()
        runs.seed_everything(run.seed())
        drawn = runs.batch_indices(step, args.batch_size, len(rows), args.seed)
        batch = [rows[i] for i in drawn]
        weight, total = sum(weight_of(row) for row in batch), 0.0  # of all processes, known to each
        for part, sync in run.parts(model, run.mine(batch), args.micro_batch_size):
            with sync:
                loss = loss_of(model, part) / weight
                # Pitfall: parts add up; DDP averages over processes, hence the factor.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        loss = accelerator.reduce(total).item()
        norm = run.update(model, learning_rate(step, steps, args.lr), loss, batch)
        step = run.log(shown=("loss",), loss=loss, grad_norm=norm, seconds=time.time() - started)
    run.finish(tokenizer)


def train_scalar(output, args, accelerator, make_rows, label):
    """Train a scalar head on make_rows(tokenizer); (model, tokenizer) of the saved model."""
    if not (output / "model").exists():
        runs.seed_everything(args.seed)  # of the new head
        model, tokenizer = generation.load_model(
            args.model, accelerator.device, torch.float32, AutoModelForSequenceClassification,
            num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id

        def loss_of(model, part):
            S = meta_logits(model, [sequence for row in part for sequence, _ in row],
                            tokenizer.pad_token_id).view(len(part), -1)              # (b, 2 or 1)
            signs = torch.tensor([[sign for _, sign in row] for row in part], device=S.device)
            return preference_loss(S, signs)
        train(output, args, accelerator, model, tokenizer, make_rows(tokenizer), loss_of, label)
    return generation.load_model(str(output / "model"), accelerator.device,
                                 auto_class=AutoModelForSequenceClassification)


def scored(order, read, scores, reason="ok", written=0, text=""):
    """A judgment for `sample_row`, which counts all tokens that were read, and all written."""
    scores = scores and [round(s, 5) for s in scores]
    return Judgment(0, list(order), [], [], text, scores, reason, [],
                    sum(len(p) + len(c) for p, c in read), written)


# ----- the methods -----

def btrm(args, accelerator, output, items, test):
    """Bradley-Terry RM (Eq. 4). One judgment per item: a second would give the same scalar."""
    model, tokenizer = train_scalar(output, args, accelerator, lambda tokenizer: [
        row for e in items for row in bradley_terry_rows(response_ids(tokenizer, e), e.rewards)],
        "Bradley-Terry RM")

    def make_rows(chunk):
        read = [response_ids(tokenizer, e) for e in chunk]
        S = iter(score_pairs(model, [s for r in read for s in r], tokenizer.pad_token_id))
        return [sample_row(e, [scored(range(len(r)), r, [next(S) for _ in r])])
                for e, r in zip(chunk, read, strict=True)]
    return in_chunks(output / "samples.jsonl", test, make_rows, accelerator, 64, "scoring")


def pairrm(args, accelerator, output, items, test):
    """PairRM (Eq. 5). Two judgments per item, in opposite response orders, as eval.py judges."""
    model, tokenizer = train_scalar(output, args, accelerator, lambda tokenizer: [
        row for e in items for row in pair_rows(tokenizer, e)], "PairRM")

    def make_rows(chunk):
        games = []  # (order, {(i, j): sequence})
        for e in chunk:
            order = list(range(len(e.responses)))
            random.Random(f"{args.seed}/{e.id}").shuffle(order)
            games += [(view, {(i, j): meta_ids(tokenizer, e.permuted([i, j]), "")
                              for place, i in enumerate(view) for j in view[place + 1:]})
                      for view in (order, order[::-1])]
        S = iter(score_pairs(model, [s for _, pairs in games for s in pairs.values()],
                             tokenizer.pad_token_id))
        found = iter([scored(view, pairs.values(),
                             *round_robin({pair: next(S) for pair in pairs}, len(view)))
                      for view, pairs in games])
        return [sample_row(e, [next(found), next(found)]) for e in chunk]
    return in_chunks(output / "samples.jsonl", test, make_rows, accelerator, 64, "scoring")


def cloud(args, accelerator, output, items, test):
    """CLoud: critique first, then a scalar (Eq. 12). greedy/: one critique at temperature 0."""
    options = {**judge_options(args), "rating": "1-10", "orders": "original"}
    singles = [alone(e, i) for e in items for i in range(len(e.responses))]

    def criticise(model, tokenizer, temperature, name):
        def make_rows(chunk):
            found = sample_judgments(model, tokenizer, chunk, 1, temperature,
                                     f"{args.seed}/{name}", **options)
            return [{"id": e.id, "prompt_ids": j.prompt_ids, "completion_ids": j.completion_ids,
                     "text": j.text} for e, [j] in zip(chunk, found, strict=True)]
        return in_chunks(output / f"{name}.jsonl", singles, make_rows, accelerator, 256, name)

    # 1. the critic: SFT on general chats and on critiques, none rejected (a response alone has no
    # rank to get wrong)
    if not (output / "critic" / "model").exists():
        # Deviation: the base model writes them itself (paper: DeepSeek-V2.5-0905), as in our RFT
        # without --sampler.
        general = round(len(singles) * args.general_fraction / (1 - args.general_fraction))
        chats = load_chats(args.general_data, general, args.seed) if general else []
        rows = criticise(*generation.load_model(args.model, accelerator.device), 1.0, "critiques")
        rows = [(row["prompt_ids"], row["completion_ids"]) for row in rows]
        model, tokenizer = generation.load_model(args.model, accelerator.device, torch.float32)
        rows += [encode_chat(tokenizer, chat[:-1], chat[-1]["content"]) for chat in chats]
        train(output / "critic", args, accelerator, model, tokenizer, rows,
              lambda model, part: sft_loss(model, part, tokenizer.pad_token_id, accelerator.device),
              "CLoud's critic", weight_of=lambda row: len(row[1]))
    critic, tokenizer = generation.load_model(str(output / "critic" / "model"), accelerator.device)

    # 2. the scalar head. Choice: it learns from the fine-tuned critic's own critiques, the kind
    # that it will read.
    def head_rows(tokenizer):
        texts = iter(criticise(critic, tokenizer, args.temperature, "head_critiques"))
        return [row for e in items for row in bradley_terry_rows(
            [meta_ids(tokenizer, alone(e, i), next(texts)["text"])
             for i in range(len(e.responses))], e.rewards)]
    head, _ = train_scalar(output, args, accelerator, head_rows, "CLoud's scalar head")

    # 3. k critiques of each response of the test items
    def combine(parts):  # one (critique, what the head read, S) of each response -> one judgment
        return scored(range(len(parts)), [(c.prompt_ids, p + r) for c, (p, r), _ in parts],
                      [S for *_, S in parts], written=sum(c.tokens for c, *_ in parts),
                      text="\n\n".join(c.text for c, *_ in parts))

    def make_rows(chunk, k, temperature):
        views = [alone(e, i) for e in chunk for i in range(len(e.responses))]
        critiques = sample_judgments(critic, tokenizer, views, k, temperature, args.seed, **options)
        read = [meta_ids(tokenizer, view, c.text)
                for view, found in zip(views, critiques, strict=True) for c in found]
        scalars = zip(read, score_pairs(head, read, tokenizer.pad_token_id), strict=True)
        # per view: k times (critique, what the head read, S)
        heard = iter([[(c, *next(scalars)) for c in found] for found in critiques])
        # Eq. 12 averages S over the k samples. Votes are sums, as everywhere: the same ranking, k
        # times the scale.
        return [sample_row(e, [combine(parts) for parts in zip(
            *[next(heard) for _ in e.responses], strict=True)]) for e in chunk]
    in_chunks(output / "greedy" / "samples.jsonl", test, lambda chunk: make_rows(chunk, 1, 0.0),
              accelerator, 64, "greedy")
    return in_chunks(output / "samples.jsonl", test,
                     lambda chunk: make_rows(chunk, args.k, args.temperature),
                     accelerator, 64, f"k = {args.k}")


def judge(args, output):
    """LLM-as-a-Judge: four commands, spct_rft.py to infer_scale.py with --rating best.

    Deviation: the paper's RL data for it are pairs only; here lists of n > 2 too, since its prompt
    has room for them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("judge starts four programs; run it with python, or accelerate launch the "
                        "commands that it prints")
    common = ["--seed", args.seed, "--max_new_tokens", args.max_new_tokens]
    # the prompt travels with the model, so only the first stage is told
    asked = ["--rating", "best"] + (["--template", args.template] if args.template else [])
    asked += [f"--{yes if value else no}" for yes, no, value in (
        ("no_principles", "principles", args.no_principles),
        ("use_reference", "no_reference", args.use_reference)) if value is not None]
    tested = ["--model", output / "rl" / "model", "--data", args.test_data, *common]
    tested += ["--limit", args.test_limit] if args.test_limit else []
    commands = {
        "rft": ["spct_rft.py", "--model", args.model, "--data", args.data, "--limit", args.limit,
                *(["--general_data", args.general_data] if args.general_data else []),
                *common, *asked, *args.rft.split()],
        "rl": ["spct_rl.py", "--model", output / "rft" / "model", "--data", args.data, *common,
               *args.rl.split()],
        "eval": ["eval.py", *tested],
        "voting": ["infer_scale.py", *tested, "--k", args.k, "--temperature", args.temperature]}
    for name, (script, *flags) in commands.items():
        if (output / name / "model").exists():
            continue
        words = list(map(str, [*flags, "--output", output / name]))
        print(f"\n$ accelerate launch {script} {' '.join(words)}", flush=True)
        done = subprocess.run([sys.executable, str(runs.ROOT / script), *words])
        if done.returncode:
            sys.exit(done.returncode)


def answer_place(tokenizer, messages, before, n, thinking=None):
    r"""(ids up to the judge's answer, [the token that begins "1", ..., "n" there]).

    before: the judge's text up to and with its last "\boxed{".
    Pitfall: a tokenizer may join the brace and the digit, so the place is where the n continuations
    part. Deviation: the text is tokenised once, since samples.jsonl holds no ids.
    """
    whole = [sum(encode_chat(tokenizer, messages, before + str(i), True, thinking), [])
             for i in range(1, n + 1)]
    start = len(os.path.commonprefix(whole))
    first = [ids[start] for ids in whole]
    if len(set(first)) < n:
        raise UserError(f"tokenprob: two of the numbers 1 to {n} begin with the same token here; "
                        "leave out longer lists")
    return whole[0][:start], first


@torch.no_grad()
def token_probabilities(model, tokenizer, places, batch_size=64):
    """Per place (ids, n tokens): probabilities of the n tokens as the next one, of these only."""
    order = sorted(range(len(places)), key=lambda r: (len(places[r][0]), places[r][0]))
    result = [None] * len(places)
    for start in range(0, len(order), batch_size):
        part = order[start:start + batch_size]
        prompts = generation.pack_prompts([places[r][0] for r in part], tokenizer.pad_token_id,
                                          model.device)
        _, _, out = generation.prefill(model, model, prompts, logits_to_keep=1)
        for r, z in zip(part, out.logits[:, -1].float(), strict=True):                   # z (V,)
            result[r] = z[places[r][1]].softmax(-1).tolist()
    return result


def judged_before(args):
    """(flags, examples) of the run in --samples, which are still what they were."""
    folder = Path(args.samples)
    if not (folder / "samples.jsonl").exists():
        raise UserError(f"--samples {folder}: no samples.jsonl in it; run `python -m "
                        "extras.baselines judge` (or infer_scale.py --rating best) and give that "
                        "folder")
    config = runs.read_json(folder / "config.json")
    its = argparse.Namespace(**config["args"])
    if its.rating != "best":
        raise UserError(f"--samples {folder} was made with --rating {its.rating}; tokenprob needs "
                        "a judge's (--rating best)")
    examples = load_examples(its.data, its.split, its.limit, domain=its.domain)
    changed = runs.changes(config.get("made_from", {}), runs.made_from(its, examples), its)
    if changed:
        raise UserError(f"--samples {folder}: {', '.join(changed)}; judge again")
    return its, examples


def tokenprob(args, accelerator, output, its, examples):
    """LLM-as-a-Judge with token probabilities: its samples scored anew; votes are their sums.

    Choice: a judgment that did not parse stays without scores, so that both ways of reading the
    judge see the same ones.
    """
    by_id = {e.id: e for e in examples}
    model, tokenizer = generation.load_model(its.model, accelerator.device)

    def rescore(chunk):
        spots, places = [], []
        for row in chunk:
            for s in row["samples"]:
                if s["scores"] is not None:
                    shown = by_id[row["id"]].permuted(s["permutation"])
                    prompt = build_prompt(shown, its.template, "best", not its.no_principles,
                                          its.use_reference)
                    *_, box = BOX.finditer(s["text"])
                    before = s["text"][:box.start(1)]
                    places.append(answer_place(tokenizer, prompt, before, row["n"],
                                               getattr(its, "thinking", None)))
                    spots.append(s)
        found = token_probabilities(model, tokenizer, places)
        for s, shown in zip(spots, found, strict=True):
            s["scores"] = unpermute([round(p, 6) for p in shown], s["permutation"])
        return [{**{name: row[name] for name in row if not name.startswith("meta_")},
                 "votes": vote([s["scores"] for s in row["samples"]])} for row in chunk]
    return in_chunks(output / "samples.jsonl", read_rows(Path(args.samples) / "samples.jsonl"),
                     rescore, accelerator, 64, "reading")


# ----- the program -----

def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("method", choices=["btrm", "pairrm", "cloud", "judge", "tokenprob"],
                        help="which one (App. C.2)")
    parser.add_argument("--model", default=TOY_BASE,
                        help="model to train (paper: Gemma-2-27B for all)")
    parser.add_argument("--data", default="toy", help="items to train on (paper: the RL data "
                        f"without n = 1): {DATA_HELP}")
    parser.add_argument("--limit", type=int, default=1500,
                        help="training items before n = 1 is left out (paper: 237K)")
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run); of "
                        "judge: in --rft and --rl instead")
    parser.add_argument("--test_data",
                        help="items to evaluate on (their test split); default --data")
    parser.add_argument("--test_limit", type=int, help="only the first test items")
    parser.add_argument("--output", help="run folder; default runs/toy/<method>")
    parser.add_argument("--seed", type=int, default=0, help="data order, sampling, head")
    # btrm, pairrm, cloud
    parser.add_argument("--epochs", type=float, default=2.0,
                        help="passes over the training rows (paper: not stated)")
    parser.add_argument("--batch_size", type=int, default=64,
                        help="rows per update on all processes (paper: not stated)")
    parser.add_argument("--micro_batch_size", type=int, default=64,
                        help="rows per forward pass on one process")
    parser.add_argument("--lr", type=float, default=1e-3,
                        help="peak learning rate (paper: not stated)")
    # cloud, judge, tokenprob
    parser.add_argument("--k", type=int, default=8,
                        help="cloud, judge: judgments per test item (paper: 8 for baselines)")
    parser.add_argument("--temperature", type=float, default=0.5,
                        help="cloud, judge: of these judgments (paper: 0.5)")
    parser.add_argument("--general_data", help="cloud, judge: chats: a file of {messages}, "
                        "or toy (default for the toy's items only)")
    parser.add_argument("--general_fraction", type=float, default=0.85,
                        help="cloud: their share (paper: 1070K of 1256K)")
    parser.add_argument("--rft", default="",
                        help="judge: more flags for spct_rft.py, in one quoted text")
    parser.add_argument("--rl", default="", help="judge: more flags for spct_rl.py")
    parser.add_argument("--samples", default="runs/toy/judge/voting",
                        help="tokenprob: a judge's infer_scale.py run")
    parser.add_argument("--save_every", type=int, default=25,
                        help="updates between saves of the training state")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    args = runs.read_flags(parser)
    args.output = args.output or f"runs/toy/{args.method}"
    args.test_data = args.test_data or args.data
    if args.method == "cloud":
        settle(args, args.model)
    if args.general_fraction >= 1:
        raise UserError("--general_fraction must be at least 0 and below 1")
    if args.method != "judge":  # there spct_rft.py asks
        args.general_data = general_data(args, args.method == "cloud" and args.general_fraction > 0)
    return args


@runs.command_line
def main():
    args = read_arguments()

    # 1. what the GRM is trained on, without single responses (a preference needs two)
    accelerator, test = runs.start_accelerator(args), []
    if args.exclude_domain and args.method in ("judge", "tokenprob"):
        raise UserError(f"{args.method}: --exclude_domain belongs into --rft and --rl of judge")
    if args.method == "tokenprob":
        its, items = judged_before(args)
    else:
        items = load_examples(args.data, "train", args.limit, labelled=True, at_least=2,
                              exclude_domain=args.exclude_domain)
        test = load_examples(args.test_data, "test", args.test_limit, labelled=True,
                             at_least=2 if args.method == "pairrm" else 1)
        if not any(len(e.responses) > 1 for e in test):
            raise UserError(f"{args.test_data}: no test item with n >= 2 responses, so there is no "
                            "accuracy")
        seen = {str((e.prompt, e.responses)) for e in items}
        if any(str((e.prompt, e.responses)) in seen for e in test):
            raise UserError(f"{args.test_data}: some test items are training items; give another "
                            "--test_data, or --data FILE#train --test_data FILE#test")

    # 2. the run folder; train and score
    output = runs.open_run(args.output, args, accelerator, items + test)
    if args.method == "judge":
        judge(args, output)
        return
    if args.method == "tokenprob":
        rows = tokenprob(args, accelerator, output, its, items)
    else:
        method = {"btrm": btrm, "pairrm": pairrm, "cloud": cloud}[args.method]
        rows = method(args, accelerator, output, items, test)

    # 3. the tables of eval.py; in the first, accuracy is that of single judgments
    if accelerator.is_main_process:
        print_table(main_table({args.method: rows}), SHORT)
        if len(rows[0]["samples"]) > 2:
            print_table(curve(rows, args.method),
                        ["run", "method", "k", "accuracy", "low", "high", "tokens"])
        print(f"wrote {output}/samples.jsonl")


if __name__ == "__main__":
    main()
