"""The families of small open models that the README names, tiny and random, each with its own kind
of chat template, end tokens and weights: prompt -> sampling -> RFT -> RL -> meta RM -> voting by
the real scripts -> checkpoints that plain transformers loads."""
import hashlib

import pytest
import torch
from conftest import make_byte_tokenizer, make_tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import grm
import meta_rm
from grm import build_prompt, encode_chat
from plumbing import generation
from plumbing.records import example_from_dict
from plumbing.runs import read_json, read_rows, save_model, write_rows

# As each family publishes it: default system turn or none; system role taken, folded or refused.
CHATML = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nDEFAULT<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN3 = (
    "{% for m in messages %}{% set content = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: 1 Jan\n\n' + system + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
TURNS = (
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
SYSTEM = "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
GEMMA2 = SYSTEM + "{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
GEMMA3 = SYSTEM + (
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}"
    "{% endif %}") + TURNS
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>",
                "<|start_header_id|>", "<|end_header_id|>"]
GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_NAMES = dict(eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
QWEN_NAMES = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
TIED = dict(tie_word_embeddings=True)
# architecture, options, (special tokens, added tokens, template, names, adds BOS), end tokens,
# end tokens in a prompt of one turn
FAMILIES = {
    "smollm2": ("llama", TIED, (IM, [], CHATML, dict(
        bos_token=IM[1], eos_token=IM[2], pad_token=IM[2]), False), [IM[2]], 2),  # pad = end
    "llama3": ("llama", {}, (LLAMA_TOKENS, [], LLAMA3, dict(
        bos_token=LLAMA_TOKENS[0], eos_token="<|eot_id|>"), True), LLAMA_TOKENS[1:4], 2),  # no pad
    "qwen2.5": ("qwen2", TIED, (IM, ["<tool_call>"], CHATML, QWEN_NAMES, False),
                [IM[2], IM[0]], 2),
    "qwen3": ("qwen3", {}, (IM, ["<think>", "</think>"], QWEN3, QWEN_NAMES, False),
              [IM[2], IM[0]], 1),
    "gemma2": ("gemma2", TIED, (GEMMA_TOKENS, [], GEMMA2, GEMMA_NAMES, True),
               ["<eos>", "<end_of_turn>"], 1),
    "gemma3": ("gemma3", TIED, (GEMMA_TOKENS, [], GEMMA3, GEMMA_NAMES, True),
               ["<eos>", "<end_of_turn>"], 1),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, folder, model, tokenizer), saved and loaded. A random model would never stop, so every
    third byte ends its turn too."""
    folder = tmp_path_factory.mktemp("family") / "model"
    architecture, options, tokens, ends, _ = FAMILIES[request.param]
    tokenizer = make_byte_tokenizer(tokens)
    model = make_tiny_model(
        architecture, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id,
        max_position_embeddings=1024, initializer_range=0.2, **options)
    model.generation_config.eos_token_id = [*tokenizer.convert_tokens_to_ids(ends),
                                            *range(20, 200, 3)]
    save_model(folder, model, tokenizer)
    return request.param, folder, *generation.load_model(folder)


def test_c02_c18_c19_special_tokens_stand_where_the_template_puts_them(family):
    # C2: several end tokens. C18: BOS exactly once. C19: a template may refuse a system turn.
    name, _, model, tokenizer = family
    ends = tokenizer.convert_tokens_to_ids(FAMILIES[name][3])
    chat = [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi <|im_end|><end_of_turn><|eot_id|>"}]
    shown = build_prompt(example_from_dict({"id": "x", "prompt": chat, "responses": ["a", "b"]}),
                         "compact")
    assert [m["role"] for m in shown] == ["user"] and "System: Be brief." in shown[0]["content"]
    ids = encode_chat(tokenizer, shown)
    text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids).endswith(text[-20:])
    if name in ("llama3", "gemma2", "gemma3"):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert sum(i in ends for i in ids) == FAMILIES[name][4]  # of the turns, none of the text
    assert set(ends) <= set(generation.end_token_ids(model, tokenizer))
    assert tokenizer.pad_token_id is not None and tokenizer.padding_side == "left"


def test_greedy_text_is_that_of_plain_generate(family):
    _, _, model, tokenizer = family
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": text}])
               for text in ("Hi", "What is 2 + 2?", "A longer question, " * 4)]
    rows = generation.generate(model, tokenizer, prompts, 0.0, 12, ["", "", ""])
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                             max_new_tokens=12, pad_token_id=tokenizer.pad_token_id,
                             eos_token_id=generation.end_token_ids(model, tokenizer))
        assert row.ids == out[0, len(prompt):].tolist()


# ----- the scripts -----

def items():
    words = ["red", "blue", "a fox", "two hens", "no", "yes!"]
    return [{"id": f"x-{i}", "prompt": f"Say {words[i % 6]}.", "rewards": [i % 2, 1 - i % 2],
             "responses": [words[i % 6], words[(i + 1) % 6]]} for i in range(12)]


def scores_by_lot(text, n, rating, clamp=False):
    """A random model never writes scores; its text stands for some, so that all judgments parse."""
    first = hashlib.sha256(text.encode()).digest()[0] % 2
    return [1 + first, 2 - first], "ok"


def same_tensors(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


# Spread over the families: precision of the forward passes, checkpointing.
PRECISION = {"smollm2": "bf16", "gemma2": "bf16"}
CHECKPOINTING = {"llama3", "gemma3", "smollm2"}


def test_the_recipe_and_its_checkpoints(family, tmp_path, monkeypatch, cli):
    name, folder, _, _ = family
    monkeypatch.setattr(grm, "parse_judgment", scores_by_lot)
    write_rows(tmp_path / "items.jsonl", items())
    (tmp_path / "template.txt").write_text("{conversation}\n{responses}\n{hint}{output_format}")

    def run(program, output, *words):
        code, _, said = cli(program, "--data", tmp_path / "items.jsonl", "--template",
                            tmp_path / "template.txt", "--max_new_tokens", 16, *words, "--output",
                            tmp_path / output,
                            ACCELERATE_MIXED_PRECISION=PRECISION.get(name, "no"))
        assert code == 0, said
    save = ["--gradient_checkpointing"] if name in CHECKPOINTING else []
    run("spct_rft", "rft", "--model", folder, "--batch_size", 8, "--micro_batch_size", 4,
        "--epochs", 0.1, "--general_fraction", 0, "--lr", 1e-3, *save)
    assert read_rows(tmp_path / "rft" / "metrics.jsonl")
    assert read_json(tmp_path / "rft" / "selection.json")["kept"] > 3
    run("spct_rl", "rl", "--model", tmp_path / "rft" / "model", "--steps", 1, "--prompts_per_step",
        4, "--micro_batch_size", 8, "--lr", 1e-3, *save)
    [step] = read_rows(tmp_path / "rl" / "metrics.jsonl")
    # nats a token; bf16 sums a row and a batch of rows in another order
    exact = 0.05 if name in PRECISION else 1e-4
    assert step["policy/ratio_error"] < exact and step["policy/kl"] < exact
    assert step["opt/grad_norm"] > 0 and 0 < step["reward/parse_rate"]
    assert step["reward/frac_zero_std"] < 1
    run("meta_rm", "meta", "--model", folder, "--rft_judgments",
        tmp_path / "rft" / "judgments.jsonl", "--grm", tmp_path / "rl" / "model", "--n_rft", 1,
        "--batch_size", 8, "--epochs", 0.2, "--held_out", 0.2)
    run("infer_scale", "voting", "--model", tmp_path / "rl" / "model", "--meta_rm",
        tmp_path / "meta" / "model", "--k", 2)

    # Plain transformers loads each stage: weights, tying, template, end tokens.
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for stage in ("rft", "rl"):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model")
        ours = generation.load_model(tmp_path / stage / "model")[0]
        assert plain.dtype == torch.float32  # the weights that are trained and saved
        assert same_tensors(plain.state_dict(), ours.state_dict())
        assert not same_tensors(plain.state_dict(), before)
        tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
        assert tied == plain.config.tie_word_embeddings
        assert plain.generation_config.eos_token_id == ours.generation_config.eos_token_id
        before = plain.state_dict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rl" / "model")
    assert tokenizer.chat_template == FAMILIES[name][2][2]

    # The meta RM's logits are those of plain transformers, one row at a time.
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "meta" / "model")
    row = next(r for r in read_rows(tmp_path / "voting" / "samples.jsonl")
               if r["meta_logits"][0] is not None)
    sample, item = row["samples"][0], next(x for x in items() if x["id"] == row["id"])
    shown = example_from_dict(item).permuted(sample["permutation"])
    ids = sum(meta_rm.meta_ids(tokenizer, shown, sample["text"]), [])
    logit = plain(input_ids=torch.tensor([ids])).logits[0, 0].item()
    near = 0.2 if name in PRECISION else 2e-4
    assert plain.config.num_labels == 1 and row["meta_logits"][0] == pytest.approx(logit, abs=near)
