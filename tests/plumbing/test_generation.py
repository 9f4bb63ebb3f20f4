"""plumbing/generation.py against the library's own generate and plain forward passes: tiny random
models of every supported architecture, CPU, fp32."""
import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, CHATML, make_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from plumbing import attention, decoding, generation
from plumbing.generation import Completion, CompletionLogits, complete, encode_chat
from plumbing.runs import UserError, save_model, write_json
from spct_rl import grpo_loss

ENDS = list(range(5, 65))  # a fifth of the vocabulary ends a row: rows leave at different times


def make_prompts(shared=20, lengths=(1, 40, 3, 17, 1, 9, 26), seed=0):
    """Token ids with one shared preamble and very different rests: more left padding than the tiny
    sliding windows."""
    rng = random.Random(seed)
    preamble = [rng.randrange(65, 297) for _ in range(shared)]
    return [preamble + [rng.randrange(65, 297) for _ in range(n)] for n in lengths]


def generate(model, tokenizer, prompts, temperature=1.0, max_new_tokens=12, seeds=None, **options):
    seeds = seeds or [f"0/row {i}/0" for i in range(len(prompts))]
    return generation.generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds,
                               **options)


def one_by_one(model, tokenizer, prompts, temperature=1.0, max_new_tokens=12):
    return [generate(model, tokenizer, [p], temperature, max_new_tokens, [f"0/row {i}/0"])[0]
            for i, p in enumerate(prompts)]


def same(rows, others):
    """Equal ids and ends; logp equal up to what adding in another order does to fp32."""
    assert [(r.ids, r.finished) for r in rows] == [(r.ids, r.finished) for r in others]
    for a, b in zip(rows, others, strict=True):
        assert len(a.logp) == len(a.ids) and np.allclose(a.logp, b.logp, atol=1e-4)


def ending(model, tokenizer):
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ENDS]
    return model


@pytest.fixture(params=[*ARCHITECTURES, "mistral"])
def any_model(request, tiny_model):
    return tiny_model(request.param)


class NothingWaits(TorchDispatchMode):
    """Refuses what makes Python wait for a GPU: reading a number, counting what a mask shows,
    making a tensor from a list."""
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as index"
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), name
        assert name != "lift_fresh" or not args[0].numel(), "a tensor from a list"
        return func(*args, **kwargs or {})


# ----- against the library -----

@pytest.mark.parametrize("shared, ends", [(0, False), (20, True)])
def test_c03_c04_greedy_ids_are_those_of_generate_one_prompt_at_a_time(any_model, toy_tokenizer,
                                                                       shared, ends):
    # Left padding, masks, positions and sliding windows (C3, C4): wrong ones change the ids.
    model = ending(any_model, toy_tokenizer) if ends else any_model
    prompts = make_prompts(shared)
    rows = generate(model, toy_tokenizer, prompts, 0, max_new_tokens=14)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                  max_new_tokens=14, pad_token_id=toy_tokenizer.pad_token_id)
        assert row.ids == expected[0, len(prompt):].tolist()
    assert not ends or 1 < len({len(r.ids) for r in rows}) and any(r.finished for r in rows)


@pytest.mark.parametrize("temperature", [0, 0.5, 1.3])
def test_logp_is_that_of_a_fresh_forward_pass_under_the_temperature(any_model, toy_tokenizer,
                                                                    temperature):
    prompts = make_prompts()
    rows = generate(any_model, toy_tokenizer, prompts, temperature)
    for prompt, row in zip(prompts, rows, strict=True):
        with torch.no_grad():
            logits = any_model(torch.tensor([prompt + row.ids])).logits[0, len(prompt) - 1:-1]
        logp = (logits.float() / (temperature or 1.0)).log_softmax(-1)           # (T, V)
        expected = logp.gather(1, torch.tensor(row.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(row.logp), expected, atol=1e-4)


def assert_drawn_from(p, tokens):
    """Chi-square of the tokens against the distribution p, within 4 standard deviations; rare
    tokens are counted as one."""
    seen, expected = np.bincount(tokens, minlength=len(p)), len(tokens) * p
    big = expected >= 5
    observed, expected = (np.append(x[big], x[~big].sum()) for x in (seen, expected))
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    assert freedom >= 10, "the test model is too sure of itself"
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_frequencies_match_the_softmax(tiny_model, toy_tokenizer, temperature):
    model, [prompt] = tiny_model("qwen2", initializer_range=0.15), make_prompts(lengths=[3])
    model.generation_config.eos_token_id = None
    rows = generate(model, toy_tokenizer, [prompt] * 6000, temperature, max_new_tokens=2,
                    seeds=[f"0/item/{j}" for j in range(6000)])
    with torch.no_grad():
        longer = torch.tensor([[*prompt, v] for v in range(len(toy_tokenizer))])
        first = model(torch.tensor([prompt])).logits[0, -1]                      # (V,)
        then = model(longer).logits[:, -1]                                       # (V, V)
    first, then = ((x / temperature).softmax(-1) for x in (first, then))
    first[toy_tokenizer.eos_token_id] = 0  # rows that end at once have no second token
    first = first / first.sum()
    assert_drawn_from(first.numpy(), [r.ids[0] for r in rows if len(r.ids) == 2])
    assert_drawn_from((first @ then).numpy(), [r.ids[1] for r in rows if len(r.ids) == 2])


def test_uniform_numbers_are_uniform_and_independent():
    table = np.stack([generation.uniforms(f"0/item/{j}", 16) for j in range(2000)])
    assert (table >= 0).all() and (table < 1).all()
    assert abs(table.mean() - 0.5) < 0.01 and abs(table.var() - 1 / 12) < 0.005
    assert np.abs(np.corrcoef(table.T) - np.eye(16)).max() < 0.1           # steps of one row
    neighbours = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]  # samples of an item
    assert abs(neighbours) < 0.03
    assert (generation.uniforms("a", 4) == generation.uniforms("a", 9)[:4]).all()
    fixed = [0.59656892, 0.41055117, 0.19402463]
    assert np.allclose(generation.uniforms("0/item/0", 3), fixed), "earlier runs are gone"


# ----- a row depends on its prompt and its seed, on nothing else -----

@pytest.mark.parametrize("temperature", [0, 1.0])
def test_c03_c04_left_padding_and_order_change_nothing(any_model, toy_tokenizer, temperature):
    model, prompts = ending(any_model, toy_tokenizer), make_prompts() * 2
    together = generate(model, toy_tokenizer, prompts, temperature)
    same(together, one_by_one(model, toy_tokenizer, prompts, temperature))
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    shuffled = generate(model, toy_tokenizer, [prompts[i] for i in order], temperature,
                        seeds=[f"0/row {i}/0" for i in order])
    same([together[i] for i in order], shuffled)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_all_ways_to_keep_keys_and_values_give_the_same_rows(any_model, toy_tokenizer, monkeypatch,
                                                             temperature):
    model, copies = ending(any_model, toy_tokenizer), (1, 7, 3, 1, 2, 5, 4)
    prompts = [p for p, n in zip(make_prompts(), copies, strict=True) for _ in range(n)]
    found = {}
    for kind in ["parts", "static", "copies"] if decoding.plain_attention(model) else ["copies"]:
        monkeypatch.setattr(generation, "kind_of_rows", lambda model, kind=kind: kind)
        found[kind] = generate(model, toy_tokenizer, prompts, temperature, max_new_tokens=16)
        same(found[kind], found.get("parts", found[kind]))


@pytest.mark.parametrize("kind", sorted(decoding.PLAIN))
def test_every_plain_architecture_is_plain(kind, toy_tokenizer, monkeypatch):
    model = ending(make_plain(kind), toy_tokenizer)
    assert decoding.plain_attention(model)
    prompts, forward = [p for p in make_prompts() for _ in range(2)], decoding.StaticRows.forward

    def recordable(self):  # what makes Python wait cannot be in a CUDA graph
        with NothingWaits():
            return forward(self)
    monkeypatch.setattr(decoding.StaticRows, "forward", recordable)
    monkeypatch.setattr(generation, "kind_of_rows", lambda model: "static")
    static = generate(model, toy_tokenizer, prompts)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(generate(model, toy_tokenizer, prompts)) == 14
    monkeypatch.setattr(generation, "kind_of_rows", lambda model: "parts")
    same(generate(model, toy_tokenizer, prompts), static)
    monkeypatch.setattr(generation, "kind_of_rows", lambda model: "copies")
    monkeypatch.setattr(decoding, "PLAIN", set())  # masks as the library likes them
    monkeypatch.setattr(generation, "plain_attention", lambda model: False)
    same(generate(model, toy_tokenizer, prompts), static)


def make_plain(kind):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=297, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=4,
        pad_token_id=0, bos_token_id=None, max_position_embeddings=256, sliding_window=None)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_token_budget_is_kept_and_changes_speed_only(tiny_model, toy_tokenizer, monkeypatch,
                                                     architecture):
    model, prompts = ending(tiny_model(architecture), toy_tokenizer), make_prompts() * 3
    plain, real = generate(model, toy_tokenizer, prompts), generation.generate_batch
    for budget in (1, 150, 400, 10**6):
        sizes = []
        monkeypatch.setattr(generation, "generate_batch",
                            lambda *args, sizes=sizes: sizes.append(args[2]) or real(*args))
        same(generate(model, toy_tokenizer, prompts, token_budget=budget), plain)
        assert sum(map(len, sizes)) == len(prompts) and (budget < 10**6) == (len(sizes) > 1)
        for batch in sizes:
            tokens = len(set(map(tuple, batch))) * max(map(len, batch)) + 12 * len(batch)
            assert len(batch) == 1 or tokens <= budget


def test_other_architectures_copy_and_say_so_once(tiny_model, toy_tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "told", set())
    said = []
    for name in ("gemma3", "gemma3", "llama"):
        model = tiny_model(name)
        rows = generate(model, toy_tokenizer, make_prompts())
        said.append(capsys.readouterr().out.count("a growing copy"))
    assert said == [1, 0, 0] and decoding.kind_of_rows(model) == "parts"
    with torch.autocast("cpu", torch.bfloat16):  # the update's attention rounds as "copies" does
        assert decoding.kind_of_rows(model) == "copies"
    monkeypatch.setattr(decoding, "SharedPrompts", None)
    model.set_attn_implementation("eager")
    same(rows, generate(model, toy_tokenizer, make_prompts()))


def test_a_batch_that_does_not_fit_the_gpu_is_halved_until_it_does(tiny_model, toy_tokenizer,
                                                                   monkeypatch):
    model, prompts, sizes = tiny_model(), make_prompts() * 2, []
    rows, real = generate(model, toy_tokenizer, prompts), generation.generate_batch

    def small_gpu(model, tokenizer, prompts, *args):
        sizes.append(len(prompts))
        if len(prompts) > limit:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                if len(prompts) == 14:
                    raise RuntimeError("the capture of a graph failed")
        return real(model, tokenizer, prompts, *args)
    monkeypatch.setattr(generation, "generate_batch", small_gpu)
    limit = 4
    same(generate(model, toy_tokenizer, prompts), rows)
    assert sizes == [14, 7, 3, 4, 7, 3, 4]
    limit = 0
    with pytest.raises(UserError, match="one judgment alone does not fit"):
        generate(model, toy_tokenizer, prompts)


def test_the_gpus_memory_decides_how_many_tokens_are_held(monkeypatch):
    # keys and values, 30 layers x 3 heads x 64 numbers x 2 bytes: 23,040 bytes a token
    class Weights:
        is_cuda = True
    config = SimpleNamespace(num_hidden_layers=30, num_key_value_heads=3, num_attention_heads=9,
                             hidden_size=576)
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, dtype=torch.bfloat16,
                            parameters=lambda: iter([Weights()]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 10 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 4 * 2**30)
    assert generation.tokens_that_fit(model) == 46 * 2**30 // 2 // 23_040


def test_rows_leave_a_static_batch_when_it_pays(tiny_model, toy_tokenizer, monkeypatch):
    """Where a graph has to be recorded again, few rows go on to the end; looks are rare."""
    model, prompts = ending(tiny_model(), toy_tokenizer), make_prompts() * 4
    monkeypatch.setattr(generation, "kind_of_rows", lambda model: "static")
    often, kept, keep = generate(model, toy_tokenizer, prompts), [], decoding.StaticRows.keep
    monkeypatch.setattr(decoding.StaticRows, "keep", lambda self, rows: (
        kept.append((len(self.ids), len(rows))), keep(self, rows)))
    same(generate(model, toy_tokenizer, prompts), often)
    assert len(kept) > 1 and all(a > b > 0 for a, b in kept)
    kept.clear()
    monkeypatch.setattr(decoding.StaticRows, "worth_leaving", lambda self, ended, left: False)
    same(generate(model, toy_tokenizer, prompts), often)
    assert not kept
    monkeypatch.undo()
    monkeypatch.setattr(generation, "kind_of_rows", lambda model: "static")
    init, drawn = decoding.StaticRows.__init__, []

    def looks_rarely(self, *args):
        init(self, *args)
        self.look, self.start = 5, self.used
    monkeypatch.setattr(decoding.StaticRows, "__init__", looks_rarely)
    monkeypatch.setattr(decoding.StaticRows, "keep", lambda self, rows: (
        drawn.append(self.used - self.start + 1), keep(self, rows)))
    same(generate(model, toy_tokenizer, prompts), often)
    assert drawn and all(n % 5 == 0 for n in drawn)
    on_a_gpu = SimpleNamespace(capture=True)
    assert decoding.StaticRows.worth_leaving(on_a_gpu, 85, 400)
    assert not decoding.StaticRows.worth_leaving(on_a_gpu, 10, 64)


def test_the_model_gets_its_attention_back(tiny_model, toy_tokenizer, monkeypatch):
    model, seen, real = tiny_model(), [], attention.attend
    before = model.config._attn_implementation

    def attend(*args):
        seen.append(model.config._attn_implementation)
        return real(*args)
    monkeypatch.setattr(attention, "attend", attend)
    generate(model, toy_tokenizer, make_prompts(), max_new_tokens=3)
    assert set(seen) == {"parts"} and model.config._attn_implementation == before
    monkeypatch.setattr(attention, "attend", None)
    with pytest.raises(TypeError):
        generate(model, toy_tokenizer, make_prompts())
    assert model.config._attn_implementation == before


def test_seeds_alone_decide(tiny_model, toy_tokenizer):
    model, [prompt] = tiny_model(), make_prompts(lengths=[3])
    rows = generate(model, toy_tokenizer, [prompt] * 8, temperature=1.5)
    assert len({tuple(r.ids) for r in rows}) == 8
    short, long = (generate(model, toy_tokenizer, make_prompts(), max_new_tokens=n)
                   for n in (5, 12))
    assert [r.ids for r in short] == [r.ids[:5] for r in long]  # a longer limit only continues
    for seed in (1, 2):  # the global random state plays no part, and is left alone
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        assert generate(model, toy_tokenizer, make_prompts()) == long
        assert torch.initial_seed() == seed


def test_rows_that_leave_do_not_change_the_others(any_model, toy_tokenizer):
    prompts = make_prompts(lengths=[5, 9, 14] * 8)
    never = generate(any_model, toy_tokenizer, prompts, max_new_tokens=16)
    rows = generate(ending(any_model, toy_tokenizer), toy_tokenizer, prompts, max_new_tokens=16)
    lengths = [len(r.ids) for r in rows]
    assert sum(r.finished for r in rows) > 6 and max(lengths) - min(lengths) > 6
    for row, free in zip(rows, never, strict=True):  # the same row, cut at its first end token
        assert row.ids == free.ids[:len(row.ids)]
        assert np.allclose(row.logp, free.logp[:len(row.ids)], atol=1e-4)


@pytest.mark.parametrize("prompts", [[], [[7]], [[7], [8]], [[7, 8, 9], [7, 8]], [[7, 8]] * 3,
                                     [[*range(70, 90)], [70]]])
def test_short_equal_and_nested_prompts(tiny_model, toy_tokenizer, prompts):
    for architecture in ("llama", "gpt2"):
        model = tiny_model(architecture)
        same(generate(model, toy_tokenizer, prompts), one_by_one(model, toy_tokenizer, prompts))


# ----- the end of a row -----

def test_c02_several_end_tokens(two_end_tokens):  # the tokenizer knows only one of them
    model, tokenizer = two_end_tokens
    both = sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")])
    turn_end = max(set(both) - {tokenizer.eos_token_id})
    for told, ends in ((both, both), (turn_end, both), (None, [tokenizer.eos_token_id])):
        model.generation_config.eos_token_id = told
        assert generation.end_token_ids(model, tokenizer) == ends


def test_c02_rows_end_on_any_end_token_and_keep_it(tiny_model, toy_tokenizer):
    model, ends = tiny_model(), {toy_tokenizer.eos_token_id, *ENDS}
    model.generation_config.eos_token_id = ENDS
    rows = generate(model, toy_tokenizer, make_prompts() * 10, max_new_tokens=10)
    assert {r.finished for r in rows} == {True, False}
    for row in rows:
        assert row.finished == (row.ids[-1] in ends) and not ends & set(row.ids[:-1])
        assert row.finished or (len(row.ids), row.why) == (10, "truncated")
    assert len({r.ids[-1] for r in rows if r.finished}) > 3
    last = next(r.ids for r in rows if not r.finished)  # an end token in the last step counts
    index = [r.ids for r in rows].index(last)
    assert last.index(last[-1]) == 9, "choose another seed"
    model.generation_config.eos_token_id = [*ENDS, last[-1]]
    again = generate(model, toy_tokenizer, make_prompts() * 10, max_new_tokens=10)[index]
    assert again.finished and again.ids == last


def test_c01_padding_with_the_end_token(byte_tokenizer):  # masks inferred from token values
    tokenizer = byte_tokenizer("mistral")
    eos = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == eos == 2
    model = make_tiny_model("llama", len(tokenizer), eos, eos)
    # inside prompts it is an ordinary token
    prompts = [[1, 2, 2, 70, 2], [1, 80], [1, 2, 90, 91, 92, 93, 94, 95]]
    same(generate(model, tokenizer, prompts), one_by_one(model, tokenizer, prompts))
    tokenizer = byte_tokenizer("base")
    assert tokenizer.pad_token_id is None and len(generate(model, tokenizer, prompts)) == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_prompts_that_do_not_fit_are_errors_or_skipped(tiny_model, toy_tokenizer, architecture):
    size = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    model, prompts = tiny_model(architecture, **{size: 32}), make_prompts(lengths=[0, 5, 0, 1])
    with pytest.raises(UserError, match="0/row 1/0 .*25 tokens .*12 new .*32.*--skip_bad"):
        generate(model, toy_tokenizer, prompts)
    rows = generate(model, toy_tokenizer, prompts, skip_long=True)  # 20 + 12 fit
    assert [row.why for row in rows] == ["truncated", "too_long", "truncated", "too_long"]
    assert all(row.ids == [] and not row.finished for row in (rows[1], rows[3]))
    same([rows[0], rows[2]], generate(model, toy_tokenizer, [prompts[0], prompts[2]],
                                      seeds=["0/row 0/0", "0/row 2/0"]))
    for wrong in (dict(max_new_tokens=0), dict(temperature=-1)):
        with pytest.raises(UserError):
            generate(model, toy_tokenizer, prompts[:1], **wrong)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_judge_of_nan_is_an_error(tiny_model, toy_tokenizer, temperature):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        generate(model, toy_tokenizer, [[5, 6, 7]], temperature)


# ----- one interface of local and served judges -----

def test_complete_renders_samples_and_decodes(two_end_tokens, capsys):
    model, tokenizer = two_end_tokens
    chats = [[{"role": "user", "content": text}] for text in ("Hi", "Why? " * 9, "x" * 500)]
    with pytest.raises(UserError, match="exceed the model's 512"):
        complete(model, tokenizer, chats, 1.0, 9, ["a", "b", "c"])
    found = complete(model, tokenizer, chats, 1.0, 9, ["a", "b", "c"], skip_long=True)
    assert [c.why for c in found] == ["truncated", "truncated", "too_long"]
    assert "1 of 3 prompts do not fit the model" in capsys.readouterr().out
    prompts = [encode_chat(tokenizer, chat) for chat in chats]
    rows = generate(model, tokenizer, prompts[:2], 1.0, 9, ["a", "b"])
    for c, row, prompt in zip(found, rows, prompts):
        assert (c.ids, c.logp, c.prompt_ids) == (row.ids, row.logp, prompt)
        assert c.text == tokenizer.decode(row.ids, skip_special_tokens=True)
        assert (c.prompt_tokens, c.tokens) == (len(prompt), len(row.ids))
    assert (found[2].text, found[2].ids, found[2].tokens) == ("", [], 0)


def test_complete_asks_a_served_judge_for_itself():
    class Served:
        def complete(self, *asked):
            return [Completion([], [], True, text=repr(asked))]
    [found] = complete(Served(), None, ["chat"], 0.5, 7, ["s"])
    assert found.text == repr((["chat"], 0.5, 7, ["s"], False))


# ----- the state of the model -----

def spy(model, monkeypatch):
    """Of every pass of the backbone: shape of the ids, use_cache, whether checkpointing works."""
    calls, backbone = [], generation.backbone(model)
    real = backbone.forward

    def forward(*args, **kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        checkpointing = backbone.training and model.is_activation_checkpointing
        calls.append((tuple(ids.shape), kwargs.get("use_cache"), checkpointing))
        return real(*args, **kwargs)
    monkeypatch.setattr(backbone, "forward", forward)
    return calls


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_c14_c15_sampling_is_without_dropout_and_checkpointing_and_restores_both(
        tiny_model, toy_tokenizer, monkeypatch, architecture):
    # Dropout would move the ratio of GRPO; checkpointing in train mode drops the cache silently.
    dropout = dict(attn_pdrop=0.5, resid_pdrop=0.5) if architecture == "gpt2" else dict(
        attention_dropout=0.5)
    model = tiny_model(architecture, **dropout)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quiet = generate(model, toy_tokenizer, make_prompts())
    assert not model.training
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.train()
    settings = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    calls = spy(model, monkeypatch)
    same(generate(model, toy_tokenizer, make_prompts()), quiet)
    assert calls and all(cache and not checkpointing for _, cache, checkpointing in calls)
    # shared prefix, prompts, then one token at a time
    assert [shape[1] for shape, _, _ in calls][2:] == [1] * 11
    assert model.is_activation_checkpointing and all(m.training for m in model.modules())
    assert [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()] == settings
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

    def stop(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(generation, "generate_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(model, toy_tokenizer, make_prompts())
    assert model.training


def test_every_distinct_prefix_is_computed_once(tiny_model, toy_tokenizer, monkeypatch):
    model, prompts = tiny_model(), make_prompts(shared=30, lengths=[4, 6, 6])
    logits = CompletionLogits(model, toy_tokenizer.pad_token_id)
    calls = spy(model, monkeypatch)
    generate(model, toy_tokenizer, [p for p in prompts for _ in range(8)], max_new_tokens=3)
    assert [shape for shape, _, _ in calls] == [(1, 30), (3, 6), (24, 1), (24, 1)]
    calls.clear()
    logits(logits.pack(prompts, [[70, 71, 72]] * 6), logp_of(1))
    # and so in the update: the preamble, each prompt's rest, all completions
    assert [shape for shape, _, _ in calls] == [(1, 30), (3, 6), (6, 2)]


# ----- logits of completions, with gradient -----

def logp_of(temperature, sizes=None):
    def function(logits, ids):  # (N, V), (N,)
        if sizes is not None:
            sizes.append(len(ids))
        logp = (logits / temperature).log_softmax(-1)
        return logp.gather(1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    return function


def completions_of(widths=(5, 1, 7, 2, 6, 4)):
    rng = random.Random(1)
    return [[rng.randrange(65, 297) for _ in range(n)] for n in widths]


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_gradients(a, b, atol=1e-5):
    assert a.keys() == b.keys() and any(g.abs().max() > 1e-3 for g in a.values())
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=atol), name


@pytest.mark.parametrize("mode", ["shared", "chunks", "checkpointing"])
def test_c03_c20_c26_logp_and_gradient_are_those_of_plain_forward_passes(any_model, monkeypatch,
                                                                         mode):
    # C3: masks and positions under left padding. C20: chunks of the vocabulary change nothing.
    # C26: checkpointing drops the cache, so each completion must then carry its own prompt.
    model, prompts, completions = any_model, make_prompts(lengths=[3, 25]), completions_of()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.4) if p.ndim > 1 else None  # a smoother model, for fp32's sake
    if mode == "checkpointing":
        model.train().activation_checkpointing_enable()
        monkeypatch.setattr(generation, "completion_states", None)
    sizes, chunk = [], 4 if mode == "chunks" else 2048
    logits = CompletionLogits(model, 0, chunk)
    logp, entropy, mask = logits(logits.pack(prompts, completions), logp_of(0.7, sizes))
    weights = torch.randn(logp.shape, generator=torch.Generator().manual_seed(0)) / mask.sum()
    (logp * weights).sum().backward()
    # made again in the backward pass, never kept
    assert sum(sizes) == 2 * sum(map(len, completions)) and max(sizes) == min(chunk, 25)
    assert mask.sum(1).tolist() == [len(c) for c in completions]
    assert not logp[~mask].any() and not entropy[~mask].any() and (entropy[mask] > 0).all()
    ours = gradients(model)
    model.eval()
    for r, completion in enumerate(completions):
        prompt, T = prompts[r // 3], len(completion)
        out = model(torch.tensor([prompt + completion]), use_cache=False)
        token_logp, spread = logp_of(0.7)(out.logits[0, len(prompt) - 1:-1],
                                          torch.tensor(completion))
        assert torch.allclose(logp[r, :T], token_logp, atol=1e-4)
        assert torch.allclose(entropy[r, :T], spread, atol=1e-3)
        (token_logp * weights[r, :T]).sum().backward()
    same_gradients(ours, gradients(model))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_micro_batch_waits_for_the_gpu(tiny_model, architecture, checkpointing):
    model, prompts, completions = tiny_model(architecture), make_prompts()[:2], completions_of()
    if checkpointing:
        model.train().activation_checkpointing_enable()
    logits = CompletionLogits(model, 0, chunk=8)
    batch = logits.pack(prompts, completions)
    advantages, old = torch.ones(6), torch.zeros(6, 7)
    with NothingWaits():
        logp, _, mask = logits(batch, logp_of(1))
        losses, _ = grpo_loss(logp, old, old, advantages, mask, 0.1, 0.2)
        losses.sum().backward()
    for waits in (lambda: losses[0].item(), lambda: logp[mask], lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError), NothingWaits():
            waits()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_c05_c14_c28_logp_is_what_the_sampler_drew_from(any_model, toy_tokenizer, checkpointing):
    # Two programs meet here: a ratio that is 1 by construction would test nothing (C28). It is not
    # 1 without the temperature (C5) or with dropout in the update (C14).
    model, prompts = ending(any_model, toy_tokenizer), make_prompts(lengths=[3, 25])
    for module in model.modules():
        for name in {"p", "dropout", "attention_dropout"} & vars(module).keys():
            if isinstance(getattr(module, name), float):
                setattr(module, name, 0.5)
    logits = CompletionLogits(model, toy_tokenizer.pad_token_id, chunk=5)
    if checkpointing:
        model.activation_checkpointing_enable()
    rows = generate(model.train(), toy_tokenizer, [p for p in prompts for _ in range(4)], 0.7)
    assert len({len(r.ids) for r in rows}) > 1
    batch = logits.pack(prompts, [r.ids for r in rows])
    logp, _, mask = logits(batch, logp_of(0.7))
    drawn = torch.zeros(mask.shape).masked_scatter(
        mask, torch.tensor([x for r in rows for x in r.logp]))
    assert torch.allclose(logp, drawn, atol=1e-4)
    assert (logits(batch, logp_of(1))[0] - drawn).abs().max() > 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_c01_the_end_token_stays_in_the_loss_when_it_also_pads(checkpointing, tiny_model):
    # C1: a mask made from token values drops the end token, and the model never learns to stop.
    model, eos = tiny_model(), 4
    if checkpointing:
        model.train().activation_checkpointing_enable()
    prompt, completions = [66, 67, eos, 68], [[70, 80, eos], [90, 91, 92, 93, eos]]
    logits = CompletionLogits(model, eos)
    logp, _, mask = logits(logits.pack([prompt] * 2, completions), logp_of(1))
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    logp.retain_grad()
    logp[mask].mean().backward()
    assert logp.grad[0, 2] != 0 and logp.grad[1, 4] != 0 and not logp.grad[0, 3:].any()
    with torch.no_grad():
        row = model(torch.tensor([[*prompt, 70, 80]])).logits[0, -1].log_softmax(-1)
    assert logp[0, 2].item() == pytest.approx(row[eos].item(), abs=1e-5)


def scaled(name, **options):
    import transformers as hf
    common = dict(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
                  pad_token_id=0, bos_token_id=None, eos_token_id=4, max_position_embeddings=64)
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**common, **options)
    return getattr(hf, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name, options", [("Granite", dict(logits_scaling=8.0)),
                                           ("Cohere", dict(logit_scale=0.25))])
def test_scaled_logits_are_trained_on_as_sampled(name, options, toy_tokenizer):
    model = scaled(name, **options)
    [row] = generate(model, toy_tokenizer, [[5, 6, 7]], 0.7, 8)
    logits = CompletionLogits(model, 0)
    logp = logits(logits.pack([[5, 6, 7]], [row.ids]), logp_of(0.7))[0][0]
    assert torch.allclose(logp, torch.tensor(row.logp), atol=1e-4)
    if name == "Cohere":
        model.logit_scale = 3.0  # not what its config says
        with pytest.raises(UserError, match="CohereForCausalLM changes its logits"):
            CompletionLogits(model, 0)


# ----- loading -----

def test_loading_mistakes_are_user_errors(tmp_path, tiny_model, toy_tokenizer, monkeypatch):
    (tmp_path / "empty").mkdir()
    tiny_model().save_pretrained(tmp_path / "no tokenizer")
    toy_tokenizer.save_pretrained(tmp_path / "no weights")
    tiny_model().config.save_pretrained(tmp_path / "no weights")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    for run in ("run", "unfinished run"):
        write_json(tmp_path / run / "config.json", {"args": {}, "script": "x.py"})
    tiny_model().save_pretrained(tmp_path / "run" / "model")
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: None)
    for name, said in {"nothing here": "does not exist", "empty": "no config.json",
                       "no weights": "could not be loaded", "no tokenizer": "save the tokenizer",
                       "run": "run/model[?]", "unfinished run": "no model in it",
                       "missing.gguf": "does not exist", "tiny.gguf": "pip install gguf"}.items():
        with pytest.raises(UserError, match=said) as error:
            generation.load_model(str(tmp_path / name), device="cpu")
        assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, sizes", [
    ("Lfm2", dict(layer_types=["conv", "full_attention"], num_attention_heads=2,
                  num_key_value_heads=1, intermediate_size=32)),
    ("Mamba", dict(state_size=4, expand=1)), ("Rwkv", dict(attention_hidden_size=16))])
def test_layers_with_a_state_are_refused_when_loaded(name, sizes, tmp_path, toy_tokenizer):
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(toy_tokenizer), hidden_size=16, num_hidden_layers=2, **sizes)
    save_model(tmp_path, getattr(transformers, f"{name}ForCausalLM")(config), toy_tokenizer)
    with pytest.raises(UserError, match="keep a state.*another --model") as error:
        generation.load_model(str(tmp_path), device="cpu")
    assert config.model_type in str(error.value) and "\n" not in str(error.value)


def test_a_saved_model_loads_ready_to_sample(tmp_path, tiny_model, toy_tokenizer, monkeypatch):
    model, saved = tiny_model("qwen3"), copy.deepcopy(toy_tokenizer)
    saved.padding_side = "right"
    save_model(tmp_path / "model", model, saved)
    rows = generate(model, toy_tokenizer, make_prompts())
    for choice in ("", "eager", "sdpa"):  # the user's choice
        monkeypatch.setenv("SPCT_ATTN", choice)
        loaded, tokenizer = generation.load_model(tmp_path / "model")
        assert not choice or loaded.config._attn_implementation == choice
        assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
        assert not loaded.training and loaded.dtype == torch.float32
        same(generate(loaded, tokenizer, make_prompts()), rows)
    monkeypatch.setenv("SPCT_ATTN", "nonsense")
    with pytest.raises(UserError, match="nonsense"):
        generation.load_model(tmp_path / "model")


def test_c18_a_base_model_gets_a_plain_template(tmp_path, byte_tokenizer, capsys):
    tokenizer = byte_tokenizer("base")
    save_model(tmp_path / "model", make_tiny_model("llama", len(tokenizer)), tokenizer)
    loaded = generation.load_model(tmp_path / "model")[1]
    generation.load_tokenizer(tmp_path / "model")
    assert capsys.readouterr().out.count("no chat template") == 1, "said once"
    assert loaded.pad_token_id == loaded.eos_token_id and loaded.padding_side == "left"
    ids = encode_chat(loaded, [{"role": "user", "content": "How ?"}])
    assert "How ?" in loaded.decode(ids)
    # C18: this tokenizer adds BOS, so the prompt has one, and only one.
    assert ids.count(loaded.bos_token_id) == 1 and ids[0] == loaded.bos_token_id


def write_gguf(path):
    """A tiny Llama with a byte tokenizer in one .gguf file, as llama.cpp ships models."""
    gguf = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>",
              *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    file = gguf.GGUFWriter(path, "llama")
    for name, value in dict(context_length=1024, embedding_length=32, block_count=2,
                            feed_forward_length=64, head_count=4, head_count_kv=2,
                            layer_norm_rms_eps=1e-5, rope_dimension_count=8,
                            vocab_size=len(tokens)).items():
        getattr(file, f"add_{name}")(value)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_types([3] * 3 + [1] * (len(tokens) - 3))  # 3: control token
    file.add_token_merges(["a b"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_chat_template(CHATML)
    draw, kinds = torch.Generator().manual_seed(0), gguf.GGMLQuantizationType
    layer = dict(attn_norm=(32,), attn_q=(32, 32), attn_k=(16, 32), attn_v=(16, 32),
                 attn_output=(32, 32), ffn_norm=(32,), ffn_gate=(64, 32), ffn_up=(64, 32),
                 ffn_down=(32, 64))
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    for name, shape in shapes.items():
        weights = (torch.randn(shape, generator=draw) * 0.3 + (len(shape) == 1)).numpy()
        kind = kinds.Q4_1 if name.endswith("ffn_up") else kinds.F32
        file.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def test_a_gguf_file_becomes_a_normal_checkpoint(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = generation.load_model(tmp_path / "tiny.gguf")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template == CHATML
    assert model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    assert not hasattr(model, "quantization_method")  # trainers refuse a model with this mark
    save_model(tmp_path / "saved", model, tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    names = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert not hasattr(plain.config, "quantization_config") and names.chat_template == CHATML
    chat = [{"role": "user", "content": "abacus"}]
    ids = encode_chat(names, chat)
    assert ids == encode_chat(tokenizer, chat) and names.convert_tokens_to_ids("ab") in ids
    assert torch.equal(plain(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)
    logits = CompletionLogits(model, tokenizer.pad_token_id)
    logits(logits.pack([ids], [[5, 6, 2]]), logp_of(1))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # it can be trained
