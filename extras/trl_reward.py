r"""A trained GRM as the reward of another model's RL: a `reward_funcs` for TRL's GRPOTrainer.

    pip install "trl>=1.16,<2"
    python -m extras.trl_reward                                  # two steps on the toy world
    accelerate launch -m extras.trl_reward --policy Qwen/Qwen2.5-0.5B-Instruct \
        --judge runs/qwen/rl/model --max_new_tokens 512

GRPO compares the completions of one prompt with each other, and so does a GRM: a group is judged as
one list, k times, and each completion gets its mean score. The judge must be trained on lists as
long as the group (a judge of pairs: 2). Every device must hold whole groups:
per_device_train_batch_size x steps_per_generation is a multiple of num_generations.
"""
import argparse
import json
import math

import torch

from grm import score
from plumbing.generation import load_model
from plumbing.judge import (
    JUDGE_HELP,
    TOY_BASE,
    add_judge_flags,
    default_judge,
    judge_options,
    settle,
)
from plumbing.runs import UserError, command_line, read_flags
from toy_world import world


def grm_reward(judge, tokenizer, group, k=4, **options):
    """reward(prompts, completions) -> points 1..10 per completion, the mean of what parsed.

    group: completions per prompt (num_generations). So many of one prompt, wherever they stand in
        the batch, are one list; the same prompt twice is two lists.
    options: of `sample_judgments`.
    Choice: a list of which no judgment parses gets None, which TRL leaves out of means and updates.
    Choice: TRL calls this on every device with that device's completions. Where these are not whole
    groups, each is judged alone, so that a group has one scale, and that is said once.
    """
    told = []

    def reward(prompts, completions, **columns):
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        places, size = {}, group
        for i, prompt in enumerate(prompts):
            places.setdefault(json.dumps(prompt, sort_keys=True, default=str), []).append(i)
        if any(len(same) % group for same in places.values()):
            size = 1
            if not told:
                told.append(print(
                    f"the reward got {len(texts)} completions of {len(places)} prompts, which are "
                    f"no whole groups of {group}: each is judged alone; make "
                    "per_device_train_batch_size x steps_per_generation a multiple of the group"))
        points = [None] * len(texts)
        for same in places.values():
            for start in range(0, len(same), size):
                listed = same[start:start + size]
                means = score(judge, tokenizer, prompts[listed[0]], [texts[i] for i in listed], k=k,
                              mean=True, **options)
                for i, value in zip(listed, means, strict=True):
                    points[i] = None if math.isnan(value) else value
        return points
    return reward


@command_line
def main():
    parser = argparse.ArgumentParser(description="Train a policy with GRPO on the scores of a GRM.")
    parser.add_argument("--policy", default=TOY_BASE, help="model to train")
    parser.add_argument("--judge", help=JUDGE_HELP)
    parser.add_argument("--group", type=int, default=2, help="completions per prompt")
    parser.add_argument("--output", default="runs/trl", help="folder of the trainer")
    add_judge_flags(parser)
    args = read_flags(parser)
    args.judge = args.judge or default_judge()
    settle(args, args.judge)
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise UserError(f'{error.name} is missing or too old: pip install "trl>=1.16,<2"'
                        ) from error
    # your own: rows with a "prompt", text or messages
    prompts = [{"prompt": chat[:1]} for chat in world.general_chats(8)]
    gpu = torch.cuda.is_available()
    config = GRPOConfig(args.output, max_steps=2, per_device_train_batch_size=8,
                        num_generations=args.group, learning_rate=1e-5, max_completion_length=24,
                        bf16=gpu, use_cpu=not gpu, logging_steps=1, report_to="none")
    policy, tokenizer = load_model(args.policy, dtype=torch.float32)
    reward = grm_reward(*load_model(args.judge), args.group, skip_long=args.skip_bad,
                        **judge_options(args))
    trainer = GRPOTrainer(policy, reward, args=config, train_dataset=Dataset.from_list(prompts),
                          processing_class=tokenizer)
    trainer.train()
    print("mean points:", [round(row["reward"], 2) for row in trainer.state.log_history
                           if "reward" in row])


if __name__ == "__main__":
    main()
