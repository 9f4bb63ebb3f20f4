"""The families of small open models that the README names, tiny and random, each with its own kind of chat template, end tokens
and weights: prompt -> sampling -> RFT -> RL -> meta RM -> voting by the real scripts -> a checkpoint that plain transformers loads."""
import hashlib
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_byte_tokenizer, make_tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import grm
import infer_scale
import meta_rm
import spct_rft
import spct_rl
from grm import build_prompt, encode_chat
from plumbing import generation
from plumbing.records import example_from_dict
from plumbing.runs import UserError, read_json, read_rows, save_model, write_rows

# Templates in the form that each family publishes: default system turn or none, system role taken, folded or refused.
CHATML = ("{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nDEFAULT<|im_end|>\n' }}"
          "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN3 = ("{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in content %}"
         "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
         "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
         "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
         "{% endif %}{% endif %}")
LLAMA3 = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
          "{% else %}{% set system = '' %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: 1 Jan\n\n' + system + '<|eot_id|>' }}"
          "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
TURNS = ("{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
         "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
GEMMA2 = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
          "{% set first = '' %}" + TURNS)
GEMMA3 = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}"
          "{% else %}{% set first = '' %}{% endif %}" + TURNS)
GEMMA_TOKENS = (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], [])
FAMILIES = {  # architecture, its options, (special tokens, other added tokens), template, names, tokenizer adds BOS, end tokens
    "smollm2": ("llama", dict(tie_word_embeddings=True), (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], []), CHATML,
                dict(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"), False, ["<|im_end|>"]),  # pad = end
    "llama3": ("llama", {}, (["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
                             []), LLAMA3, dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"), True,  # no pad token
               ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]),
    "qwen2.5": ("qwen2", dict(tie_word_embeddings=True), (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>"]), CHATML,
                dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"), False, ["<|im_end|>", "<|endoftext|>"]),
    "qwen3": ("qwen3", {}, (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]), QWEN3,
              dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"), False, ["<|im_end|>", "<|endoftext|>"]),
    "gemma2": ("gemma2", dict(tie_word_embeddings=True), GEMMA_TOKENS, GEMMA2,
               dict(eos_token="<eos>", bos_token="<bos>", pad_token="<pad>"), True, ["<eos>", "<end_of_turn>"]),
    "gemma3": ("gemma3", dict(tie_word_embeddings=True), GEMMA_TOKENS, GEMMA3,
               dict(eos_token="<eos>", bos_token="<bos>", pad_token="<pad>"), True, ["<eos>", "<end_of_turn>"]),
}


def load_family(name, folder, ends=()):
    """(model, tokenizer) as `load_model` gives them, from a folder in the Hugging Face format. ends: more ids that end a turn."""
    architecture, options, tokens, template, names, adds_bos, end_tokens = FAMILIES[name]
    tokenizer = make_byte_tokenizer((*tokens, template, names, adds_bos))
    model = make_tiny_model(architecture, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id,
                            **{"max_position_embeddings": 1024, "initializer_range": 0.2, **options})
    model.generation_config.eos_token_id = [*tokenizer.convert_tokens_to_ids(end_tokens), *ends]
    save_model(folder, model, tokenizer)
    return generation.load_model(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, folder, model, tokenizer). A random model would never stop, so every third byte ends its turn too."""
    folder = tmp_path_factory.mktemp(request.param.replace(".", "")) / "model"
    return request.param, folder, *load_family(request.param, folder, range(20, 200, 3))


def items(count=12):
    words = ["red", "blue", "a fox", "two hens", "no", "yes!"]
    return [{"id": f"x-{i}", "prompt": f"Say {words[i % 6]}.", "responses": [words[i % 6], words[(i + 1) % 6]], "rewards": [i % 2, 1 - i % 2]}
            for i in range(count)]


# ----- the prompt -----

def test_special_tokens_stand_where_the_template_puts_them(family):
    name, _, model, tokenizer = family
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|><end_of_turn><|eot_id|>"}]
    shown = build_prompt(example_from_dict({"id": "x", "prompt": chat, "responses": ["a", "b"]}), "compact")
    assert [m["role"] for m in shown] == ["user"] and "System: Be brief." in shown[0]["content"]  # Gemma 2 refuses a system turn
    ids = encode_chat(tokenizer, shown)
    text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids).endswith(text[-20:])
    bos = "" if name.startswith("qwen") else tokenizer.bos_token
    if name in ("llama3", "gemma2", "gemma3"):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    ends = {"smollm2": 2, "qwen2.5": 2, "qwen3": 1, "llama3": 2, "gemma2": 1, "gemma3": 1}[name]  # of the turns, none of the text
    assert sum(i in tokenizer.convert_tokens_to_ids(FAMILIES[name][-1]) for i in ids) == ends
    assert bos in tokenizer.decode(ids)


def test_every_end_token_of_the_family_ends_a_judgment(family):
    name, _, model, tokenizer = family
    assert set(tokenizer.convert_tokens_to_ids(FAMILIES[name][-1])) <= set(generation.end_token_ids(model, tokenizer))
    assert tokenizer.pad_token_id is not None and tokenizer.padding_side == "left"


# ----- sampling -----

def test_greedy_text_is_that_of_plain_generate(family):
    _, _, model, tokenizer = family
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": text}]) for text in ("Hi", "What is 2 + 2?", "A longer question, " * 4)]
    rows = generation.generate(model, tokenizer, prompts, 0.0, 12, ["", "", ""])
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
                             eos_token_id=generation.end_token_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id)
        assert row.ids == out[0, len(prompt):].tolist()


def test_attention_implementation_is_the_users_choice(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    eager = {}
    for choice in ("eager", "sdpa"):
        monkeypatch.setenv("SPCT_ATTN", choice)
        model, tokenizer = load_family("qwen3", folder) if not folder.exists() else generation.load_model(folder)
        assert model.config._attn_implementation == choice
        eager[choice] = generation.generate(model, tokenizer, [[5, 6, 7], [5, 6, 7, 8, 9]], 0.0, 12, ["", ""])
    assert [r.ids for r in eager["eager"]] == [r.ids for r in eager["sdpa"]]
    monkeypatch.setenv("SPCT_ATTN", "nonsense")
    with pytest.raises(UserError, match="nonsense"):
        generation.load_model(folder)


# ----- .gguf files -----

def write_gguf(path):
    """A tiny Llama with a byte tokenizer in one .gguf file, as llama.cpp ships models."""
    gguf = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    file = gguf.GGUFWriter(path, "llama")
    for name, value in dict(context_length=1024, embedding_length=32, block_count=2, feed_forward_length=64, head_count=4, head_count_kv=2,
                            layer_norm_rms_eps=1e-5, rope_dimension_count=8, vocab_size=len(tokens)).items():
        getattr(file, f"add_{name}")(value)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_types([3] * 3 + [1] * (len(tokens) - 3))  # 3: control token
    file.add_token_merges(["a b"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_chat_template(CHATML)
    draw = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for i in range(2):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in dict(
            attn_norm=(32,), attn_q=(32, 32), attn_k=(16, 32), attn_v=(16, 32), attn_output=(32, 32), ffn_norm=(32,), ffn_gate=(64, 32),
            ffn_up=(64, 32), ffn_down=(32, 64)).items()}
    for name, shape in shapes.items():
        weights = (torch.randn(shape, generator=draw) * 0.3 + (len(shape) == 1)).numpy()
        kind = gguf.GGMLQuantizationType.Q4_1 if name.endswith("ffn_up") else gguf.GGMLQuantizationType.F32
        file.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def test_gguf_file_becomes_a_normal_checkpoint(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = generation.load_model(tmp_path / "tiny.gguf")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template == CHATML and model.dtype == torch.float32
    save_model(tmp_path / "saved", model, tokenizer)
    plain, names = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert not hasattr(plain.config, "quantization_config") and names.chat_template == CHATML
    ids = encode_chat(names, [{"role": "user", "content": "abacus"}])
    assert ids == encode_chat(tokenizer, [{"role": "user", "content": "abacus"}]) and names.convert_tokens_to_ids("ab") in ids
    assert torch.equal(plain(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)
    generation.TokenLogp(model, tokenizer.pad_token_id)([ids], [[5, 6, 2]])[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # it can be trained


def test_gguf_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        generation.load_model(tmp_path / "tiny.gguf")


# ----- the scripts -----

def scores_by_lot(text, n, rating, clamp=False):
    """A random model never writes scores, so its text stands for some: every finished judgment parses."""
    first = hashlib.sha256(text.encode()).digest()[0] % 2
    return [1 + first, 2 - first], "ok"


def run(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
    script.main()


@pytest.fixture(autouse=True, scope="module")
def leave_no_precision_behind():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def same_tensors(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


# The rest of the requirements, spread over the families: precision of the forward passes, checkpointing.
PRECISION = {"smollm2": "bf16", "gemma2": "bf16"}
CHECKPOINTING = {"llama3", "gemma3", "smollm2"}


def test_the_recipe_and_its_checkpoints(family, tmp_path, monkeypatch):
    name, folder, _, _ = family
    AcceleratorState._reset_state(reset_partial_state=True)  # the library keeps one precision per process
    monkeypatch.setattr(grm, "parse_judgment", scores_by_lot)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", PRECISION.get(name, "no"))
    write_rows(tmp_path / "items.jsonl", items())
    (tmp_path / "template.txt").write_text("{conversation}\n{responses}\n{hint}{output_format}")
    common = ["--data", tmp_path / "items.jsonl", "--template", tmp_path / "template.txt", "--max_new_tokens", 16]
    save = ["--gradient_checkpointing"] if name in CHECKPOINTING else []

    run(monkeypatch, spct_rft, "--model", folder, "--output", tmp_path / "rft", "--batch_size", 8, "--micro_batch_size", 4,
        "--epochs", 0.1, "--general_fraction", 0, "--lr", 1e-3, *save, *common)
    assert len(read_rows(tmp_path / "rft" / "metrics.jsonl")) >= 1 and read_json(tmp_path / "rft" / "selection.json")["kept"] > 3

    run(monkeypatch, spct_rl, "--model", tmp_path / "rft" / "model", "--output", tmp_path / "rl", "--steps", 1, "--prompts_per_step", 4,
        "--micro_batch_size", 8, "--lr", 1e-3, *save, *common)
    [step] = read_rows(tmp_path / "rl" / "metrics.jsonl")
    exact = 1e-4 if name not in PRECISION else 0.05  # nats a token; bf16 sums a row and a batch of rows in another order
    assert step["policy/ratio_error"] < exact and step["policy/kl"] < exact and step["opt/grad_norm"] > 0
    assert 0 < step["reward/parse_rate"] and step["reward/frac_zero_std"] < 1

    run(monkeypatch, meta_rm, "--model", folder, "--output", tmp_path / "meta", "--trajectories", tmp_path / "rft" / "trajectories.jsonl",
        "--grm", tmp_path / "rl" / "model", "--n_rft", 1, "--batch_size", 8, "--epochs", 0.2, "--held_out", 0.2, *common)
    run(monkeypatch, infer_scale, "--model", tmp_path / "rl" / "model", "--meta_rm", tmp_path / "meta" / "model", "--k", 2,
        "--output", tmp_path / "voting", *common)

    # plain transformers loads each stage: weights, tying, template, end tokens
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for stage in ("rft", "rl"):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model")
        ours = generation.load_model(tmp_path / stage / "model")[0]
        assert plain.dtype == torch.float32 and same_tensors(plain.state_dict(), ours.float().state_dict()) == (name not in PRECISION)
        assert not same_tensors(plain.state_dict(), before)
        assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) == plain.config.tie_word_embeddings
        assert plain.generation_config.eos_token_id == ours.generation_config.eos_token_id
        before = plain.state_dict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rl" / "model")
    assert tokenizer.chat_template == FAMILIES[name][3]

    # the meta RM's logits are those of plain transformers, one row at a time
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "meta" / "model")
    row = next(r for r in read_rows(tmp_path / "voting" / "samples.jsonl") if r["meta_logits"][0] is not None)
    shown = example_from_dict(next(x for x in items() if x["id"] == row["id"])).permuted(row["samples"][0]["permutation"])
    ids = sum(meta_rm.meta_ids(tokenizer, shown, row["samples"][0]["text"]), [])
    logit = plain(input_ids=torch.tensor([ids])).logits[0, 0].item()
    assert plain.config.num_labels == 1 and row["meta_logits"][0] == pytest.approx(logit, abs=2e-4 if name not in PRECISION else 0.2)


# ----- logits that are not the head's output -----

def scaled(name, **options):
    import transformers as hf
    common = dict(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=4, max_position_embeddings=64)
    torch.manual_seed(0)
    return getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**common, **options)).eval()


@pytest.mark.parametrize("name, options", [("Granite", dict(logits_scaling=8.0)), ("Cohere", dict(logit_scale=0.25))])
def test_scaled_logits_are_trained_on_as_sampled(name, options, toy_tokenizer):
    model = scaled(name, **options)
    [row] = generation.generate(model, toy_tokenizer, [[5, 6, 7]], 0.7, 8, ["0"])
    logp = generation.TokenLogp(model, 0)([[5, 6, 7]], [row.ids], 0.7)[0][0]
    assert torch.allclose(logp, torch.tensor(row.logp), atol=1e-4)


def test_logits_of_an_unknown_kind_are_refused():
    model = scaled("Cohere")
    model.logit_scale = 3.0  # not what its config says
    with pytest.raises(UserError, match="CohereForCausalLM changes its logits"):
        generation.TokenLogp(model, 0)
