"""generation.py against the library's own generate, and sample_judgments on top of it. Tiny random models, CPU, fp32."""
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, make_tiny_model

import grm
from grm import PreferenceExample, sample_judgments
from plumbing import attention, generation
from plumbing.runs import UserError

ends_often = list(range(5, 65))  # a fifth of the vocabulary ends a row, so that rows leave at different times


def make_prompts(shared=20, lengths=(1, 40, 3, 17, 1, 9, 26), seed=0, vocab_size=297):
    """Token id lists with one shared preamble and very different rests: more left padding than the tiny sliding windows."""
    rng = random.Random(seed)
    preamble = [rng.randrange(65, vocab_size) for _ in range(shared)]
    return [preamble + [rng.randrange(65, vocab_size) for _ in range(n)] for n in lengths]


def generate(model, tokenizer, prompts, temperature=1.0, max_new_tokens=12, seeds=None, **options):
    seeds = seeds or [f"0/row {i}/0" for i in range(len(prompts))]
    return generation.generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, **options)


def same(rows, others):
    """Equal ids and ends; log-probs equal up to what adding in another order does to fp32."""
    assert [(r.ids, r.finished) for r in rows] == [(r.ids, r.finished) for r in others]
    for a, b in zip(rows, others, strict=True):
        assert len(a.logp) == len(a.ids) and np.allclose(a.logp, b.logp, atol=1e-4)


@pytest.fixture(params=[*ARCHITECTURES, "mistral"])
def any_model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(params=ARCHITECTURES)
def model(request, tiny_model):
    return tiny_model(request.param)


# ----- against the library -----

@pytest.mark.parametrize("ends", ["one", "many"])
@pytest.mark.parametrize("shared", [0, 20])
def test_greedy_ids_are_those_of_generate_on_one_prompt_at_a_time(any_model, toy_tokenizer, shared, ends):
    model = any_model
    if ends == "many":
        model.generation_config.eos_token_id = [toy_tokenizer.eos_token_id, *ends_often]
    prompts = make_prompts(shared)
    rows = generate(model, toy_tokenizer, prompts, temperature=0, max_new_tokens=14)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14,
                                  pad_token_id=toy_tokenizer.pad_token_id)[0, len(prompt):].tolist()
        assert row.ids == expected
    if ends == "many":
        assert 1 < len({len(r.ids) for r in rows}) and any(r.finished for r in rows)


def test_logp_is_that_of_a_fresh_forward_pass_under_the_temperature(model, toy_tokenizer):
    for temperature in (0, 0.5, 0.7, 1.3):
        prompts = make_prompts()
        for prompt, row in zip(prompts, generate(model, toy_tokenizer, prompts, temperature), strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + row.ids])).logits[0, len(prompt) - 1:-1].float()  # (T, V)
            logp = (logits / (temperature or 1.0)).log_softmax(-1)
            expected = logp.gather(1, torch.tensor(row.ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(row.logp), expected, atol=1e-4)


# ----- a row depends on its prompt and its seed, on nothing else -----

@pytest.mark.parametrize("temperature", [0, 1.0])
def test_left_padding_changes_nothing(model, toy_tokenizer, temperature):  # Pitfall: mask, positions, sliding window
    prompts = make_prompts()
    seeds = [f"0/x/{i}" for i in range(len(prompts))]
    together = generate(model, toy_tokenizer, prompts, temperature, seeds=seeds)
    alone = [generate(model, toy_tokenizer, [p], temperature, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)]
    same(together, alone)


def test_shuffled_batch_gives_the_same_rows(model, toy_tokenizer):
    model.generation_config.eos_token_id = [toy_tokenizer.eos_token_id, *ends_often]
    prompts = make_prompts() * 3
    seeds = [f"0/x/{i}" for i in range(len(prompts))]
    rows = generate(model, toy_tokenizer, prompts, seeds=seeds)
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    shuffled = generate(model, toy_tokenizer, [prompts[i] for i in order], seeds=[seeds[i] for i in order])
    same([rows[i] for i in order], shuffled)


def test_shuffled_batch_gives_the_same_greedy_text(model, toy_tokenizer):
    prompts = make_prompts()
    texts = [toy_tokenizer.decode(r.ids) for r in generate(model, toy_tokenizer, prompts, temperature=0)]
    backwards = [toy_tokenizer.decode(r.ids) for r in generate(model, toy_tokenizer, prompts[::-1], temperature=0)]
    assert texts == backwards[::-1]


@pytest.mark.parametrize("token_budget", [1, 100, 300, 10**6])
def test_token_budget_changes_speed_only(tiny_model, toy_tokenizer, token_budget):
    for architecture in ("llama", "gemma2"):
        model = tiny_model(architecture)
        model.generation_config.eos_token_id = [toy_tokenizer.eos_token_id, *ends_often]
        prompts = make_prompts() * 2
        same(generate(model, toy_tokenizer, prompts, token_budget=token_budget), generate(model, toy_tokenizer, prompts))


def test_token_budget_is_kept(tiny_model, toy_tokenizer, monkeypatch):
    sizes, real = [], generation.generate_batch
    monkeypatch.setattr(generation, "generate_batch", lambda *args: sizes.append(args[2]) or real(*args))
    generate(tiny_model(), toy_tokenizer, make_prompts() * 4, max_new_tokens=4, token_budget=150)
    assert sum(map(len, sizes)) == 28 and len(sizes) < 10
    assert all(len(b) == 1 or len(set(map(tuple, b))) * max(map(len, b)) + 4 * len(b) <= 150 for b in sizes)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_shared_prompts_and_copied_prompts_give_the_same_rows(any_model, toy_tokenizer, monkeypatch, temperature):
    model = any_model
    model.generation_config.eos_token_id = [toy_tokenizer.eos_token_id, *ends_often]
    prompts = [p for p, copies in zip(make_prompts(), (1, 7, 3, 1, 2, 5, 4), strict=True) for _ in range(copies)]
    shared = generate(model, toy_tokenizer, prompts, temperature, max_new_tokens=16)
    monkeypatch.setattr(attention, "SHARES_PROMPTS", set())
    same(shared, generate(model, toy_tokenizer, prompts, temperature, max_new_tokens=16))


def test_other_architectures_copy_and_say_so_once(tiny_model, toy_tokenizer, monkeypatch, capsys):
    model = tiny_model()
    rows = generate(model, toy_tokenizer, make_prompts())
    monkeypatch.setattr(attention, "SHARES_PROMPTS", set())
    monkeypatch.setattr(attention, "told", set())
    monkeypatch.setattr(generation, "SharedPrompts", None)
    same(rows, generate(model, toy_tokenizer, make_prompts()))
    generate(model, toy_tokenizer, make_prompts())
    assert capsys.readouterr().out.count("llama: every sample gets its own copy") == 1


def test_the_model_gets_its_attention_back(tiny_model, toy_tokenizer, monkeypatch):
    model = tiny_model()
    assert {make_tiny_model(a, 300).config.model_type for a in [*ARCHITECTURES, "mistral"]} == attention.SHARES_PROMPTS
    before, seen = model.config._attn_implementation, []
    real = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: seen.append(model.config._attn_implementation) or real(*args))
    generate(model, toy_tokenizer, make_prompts(), max_new_tokens=3)
    assert set(seen) == {"parts"} and model.config._attn_implementation == before
    monkeypatch.setattr(attention, "attend", None)
    with pytest.raises(TypeError):
        generate(model, toy_tokenizer, make_prompts())
    assert model.config._attn_implementation == before


def test_longer_limit_only_continues(tiny_model, toy_tokenizer):
    short, long = (generate(tiny_model(), toy_tokenizer, make_prompts(), max_new_tokens=n) for n in (5, 12))
    assert [r.ids for r in short] == [r.ids[:5] for r in long]


def test_different_seeds_give_different_rows(tiny_model, toy_tokenizer):
    [prompt] = make_prompts(lengths=[3])
    rows = generate(tiny_model(), toy_tokenizer, [prompt] * 8, temperature=1.5)
    assert len({tuple(r.ids) for r in rows}) == 8


def test_global_random_state_plays_no_part(tiny_model, toy_tokenizer):
    model, results = tiny_model(), []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        results.append([r.ids for r in generate(model, toy_tokenizer, make_prompts())])
        assert torch.initial_seed() == seed
    assert results[0] == results[1]


def test_rows_that_leave_do_not_change_the_others(model, toy_tokenizer):
    prompts = make_prompts(lengths=[5, 9, 14] * 8)
    never = generate(model, toy_tokenizer, prompts, max_new_tokens=16)
    model.generation_config.eos_token_id = [toy_tokenizer.eos_token_id, *ends_often]
    rows = generate(model, toy_tokenizer, prompts, max_new_tokens=16)
    lengths = [len(r.ids) for r in rows]
    assert sum(r.finished for r in rows) > 6 and max(lengths) - min(lengths) > 6
    for row, free in zip(rows, never, strict=True):
        assert row.ids == free.ids[:len(row.ids)]  # the same row, cut at its first end token
        assert np.allclose(row.logp, free.logp[:len(row.ids)], atol=1e-4)


@pytest.mark.parametrize("prompts", [[[7]], [[7], [8]], [[7, 8, 9], [7, 8]], [[7, 8]] * 3, [list(range(70, 90)), [70]]])
def test_short_equal_and_nested_prompts(tiny_model, toy_tokenizer, prompts):
    for architecture in ("llama", "gpt2"):
        model = tiny_model(architecture)
        alone = [generate(model, toy_tokenizer, [p], seeds=[f"0/row {i}/0"])[0] for i, p in enumerate(prompts)]
        same(generate(model, toy_tokenizer, prompts), alone)


def test_nothing_to_do(tiny_model, toy_tokenizer):
    assert generate(tiny_model(), toy_tokenizer, []) == []


# ----- the end of a row -----

def ends_of(model, tokenizer, ends):
    model.generation_config.eos_token_id = ends
    return generation.end_token_ids(model, tokenizer)


def test_several_end_tokens(two_end_tokens):  # Pitfall: the tokenizer knows only one of them
    model, tokenizer = two_end_tokens
    turn_end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert generation.end_token_ids(model, tokenizer) == sorted([tokenizer.eos_token_id, turn_end])
    assert ends_of(model, tokenizer, turn_end) == sorted([tokenizer.eos_token_id, turn_end])
    assert ends_of(model, tokenizer, None) == [tokenizer.eos_token_id]


def test_rows_end_on_any_end_token_and_keep_it(tiny_model, toy_tokenizer):
    model = tiny_model()
    model.generation_config.eos_token_id = ends_often
    ends = {toy_tokenizer.eos_token_id, *ends_often}
    rows = generate(model, toy_tokenizer, make_prompts() * 10, max_new_tokens=10)
    assert {r.finished for r in rows} == {True, False}
    for row in rows:
        assert row.finished == (row.ids[-1] in ends) and not ends & set(row.ids[:-1])
        assert row.finished or len(row.ids) == 10  # truncated rows are flagged, and only those
    assert len({r.ids[-1] for r in rows if r.finished}) > 3


def test_end_token_in_the_last_step_counts(tiny_model, toy_tokenizer):
    model, prompts = tiny_model(), make_prompts()
    rows = generate(model, toy_tokenizer, prompts, max_new_tokens=6)
    model.generation_config.eos_token_id = [rows[0].ids[5]]
    again = generate(model, toy_tokenizer, prompts, max_new_tokens=6)[0]
    assert rows[0].ids.index(rows[0].ids[5]) == 5, "choose another seed"
    assert again.finished and again.ids == rows[0].ids and not rows[0].finished


def test_padding_with_the_end_token(tiny_model, toy_tokenizer, byte_tokenizer):  # Pitfall: masks inferred from token values
    tokenizer = byte_tokenizer("mistral")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = make_tiny_model("llama", len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    prompts = [[1, 2, 2, 70, 2], [1, 80], [1, 2, 90, 91, 92, 93, 94, 95]]  # the end token inside prompts is an ordinary token
    alone = [generate(model, tokenizer, [p], seeds=[f"0/row {i}/0"])[0] for i, p in enumerate(prompts)]
    same(generate(model, tokenizer, prompts), alone)


def test_tokenizer_without_a_pad_token(byte_tokenizer):
    tokenizer = byte_tokenizer("base")
    assert tokenizer.pad_token_id is None
    model = make_tiny_model("llama", len(tokenizer), tokenizer.eos_token_id)
    assert len(generate(model, tokenizer, [[1, 70, 71], [1, 80]])) == 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_prompt_longer_than_the_model_is_a_user_error(tiny_model, toy_tokenizer, architecture):
    size = {"n_positions": 32} if architecture == "gpt2" else {"max_position_embeddings": 32}
    model = tiny_model(architecture, **size)
    assert len(generate(model, toy_tokenizer, make_prompts(lengths=[0]), max_new_tokens=12)) == 1  # 20 + 12 fit
    with pytest.raises(UserError, match="32"):
        generate(model, toy_tokenizer, make_prompts(lengths=[0, 1]), max_new_tokens=12)


def test_prompts_that_do_not_fit_are_skipped_and_counted_when_asked(tiny_model, toy_tokenizer, capsys):
    model, prompts = tiny_model(max_position_embeddings=32), make_prompts(lengths=[0, 5, 0, 1])  # 20 + 12 fit
    rows = generate(model, toy_tokenizer, prompts, max_new_tokens=12, skip_long=True)
    assert [row.why for row in rows] == ["truncated", "too_long", "truncated", "too_long"]
    assert all(row.ids == [] and not row.finished for row in (rows[1], rows[3])) and "2 of 4 prompts" in capsys.readouterr().out
    same([rows[0], rows[2]], generate(model, toy_tokenizer, [prompts[0], prompts[2]], seeds=["0/row 0/0", "0/row 2/0"], max_new_tokens=12))
    with pytest.raises(UserError, match="25 tokens .0/row 1/0: seed/item/sample.*--skip_bad"):
        generate(model, toy_tokenizer, prompts, max_new_tokens=12)


# ----- sampling is from the tempered distribution -----

def assert_drawn_from(p, tokens):
    """Chi-square of the tokens against the distribution p, within 4 standard deviations; rare tokens are counted as one."""
    seen, expected = np.bincount(tokens, minlength=len(p)), len(tokens) * p
    big = expected >= 5
    observed, expected = (np.append(x[big], x[~big].sum()) for x in (seen, expected))
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    assert freedom >= 10, "the test model is too sure of itself"
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_frequencies_match_the_softmax(tiny_model, toy_tokenizer, temperature):
    model, count = tiny_model("qwen2", initializer_range=0.15), 6000
    model.generation_config.eos_token_id = None
    [prompt] = make_prompts(lengths=[3])
    rows = generate(model, toy_tokenizer, [prompt] * count, temperature, max_new_tokens=2,
                    seeds=[f"0/item/{j}" for j in range(count)])
    with torch.no_grad():
        first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)                                   # (V,)
        then = (model(torch.tensor([[*prompt, v] for v in range(len(first))])).logits[:, -1] / temperature).softmax(-1)  # (V, V)
    first[toy_tokenizer.eos_token_id] = 0  # rows that end at once have no second token
    assert_drawn_from((first / first.sum()).numpy(), [r.ids[0] for r in rows if len(r.ids) == 2])
    assert_drawn_from((first / first.sum() @ then).numpy(), [r.ids[1] for r in rows if len(r.ids) == 2])


def test_uniform_numbers_are_uniform_and_independent():
    table = np.stack([generation.uniforms(f"0/item/{j}", 16) for j in range(2000)])
    assert (table >= 0).all() and (table < 1).all()
    assert abs(table.mean() - 0.5) < 0.01 and abs(table.var() - 1 / 12) < 0.005
    assert np.abs(np.corrcoef(table.T) - np.eye(16)).max() < 0.1                      # steps of one row
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03       # neighbouring samples
    assert (generation.uniforms("a", 4) == generation.uniforms("a", 9)[:4]).all()
    assert np.allclose(generation.uniforms("0/item/0", 3), [0.59656892, 0.41055117, 0.19402463]), "earlier runs cannot be made again"


# ----- the state of the model -----

def test_dropout_is_off_while_sampling_and_the_mode_is_restored(tiny_model, toy_tokenizer):
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    quiet = generate(model, toy_tokenizer, make_prompts())
    assert not model.training
    model.train()
    same(generate(model, toy_tokenizer, make_prompts()), quiet)
    assert model.training and all(m.training for m in model.modules())


def spy(model, monkeypatch):
    """What every forward pass of the backbone gets: shape of the ids, use_cache, whether checkpointing is in force."""
    calls, backbone, real = [], generation.backbone(model), generation.backbone(model).forward

    def forward(*args, **kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        calls.append((tuple(ids.shape), kwargs.get("use_cache"), backbone.training and model.is_activation_checkpointing))
        return real(*args, **kwargs)
    monkeypatch.setattr(backbone, "forward", forward)
    return calls


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_gradient_checkpointing_does_not_cost_the_cache(tiny_model, toy_tokenizer, monkeypatch, architecture):
    model = tiny_model(architecture)
    quiet = generate(model, toy_tokenizer, make_prompts())
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.train()
    settings = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    calls = spy(model, monkeypatch)
    same(generate(model, toy_tokenizer, make_prompts()), quiet)
    assert calls and all(use_cache and not checkpointing for _, use_cache, checkpointing in calls)
    assert [shape[1] for shape, _, _ in calls][2:] == [1] * 11  # shared prefix, prompts, then one token at a time
    assert model.is_activation_checkpointing and model.training
    assert [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()] == settings, "other settings came back"


def test_mode_is_restored_when_sampling_is_stopped(tiny_model, toy_tokenizer, monkeypatch):
    model = tiny_model().train()

    def stop(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(generation, "generate_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(model, toy_tokenizer, make_prompts())
    assert model.training


def test_no_gradients_and_no_changed_weights(tiny_model, toy_tokenizer):
    model = tiny_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    generate(model, toy_tokenizer, make_prompts())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_every_distinct_prefix_is_computed_once(tiny_model, toy_tokenizer, monkeypatch):
    model = tiny_model()
    prompts = make_prompts(shared=30, lengths=[4, 6, 6])
    calls = spy(model, monkeypatch)
    generate(model, toy_tokenizer, [p for p in prompts for _ in range(8)], max_new_tokens=3)
    assert [shape for shape, _, _ in calls] == [(1, 30), (3, 6), (24, 1), (24, 1)]
    logp = generation.TokenLogp(model, toy_tokenizer.pad_token_id)
    calls.clear()
    logp(prompts, [[70, 71, 72]] * 6)  # and so in the update: the preamble, each prompt's rest, all completions
    assert [shape for shape, _, _ in calls] == [(1, 30), (3, 6), (6, 2)]


# ----- log-probabilities with gradient -----

def make_completions(widths=(5, 1, 7, 2, 6, 4), seed=1):
    rng = random.Random(seed)
    return [[rng.randrange(65, 297) for _ in range(n)] for n in widths]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_token_logp_is_what_the_sampler_drew_from(model, toy_tokenizer, checkpointing):
    # Pitfall (C28): a ratio that is 1 by construction tests nothing; these log-probabilities come from two programs.
    prompts = make_prompts(lengths=[3, 25])
    model.generation_config.eos_token_id = [toy_tokenizer.eos_token_id, *ends_often]
    rows = generate(model, toy_tokenizer, [p for p in prompts for _ in range(4)], 0.7, seeds=[f"0/x/{i}" for i in range(8)])
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    logp, entropy, mask = generation.TokenLogp(model, toy_tokenizer.pad_token_id, chunk=5)(prompts, [r.ids for r in rows], 0.7)
    assert mask.sum(1).tolist() == [len(r.ids) for r in rows]
    for r, row in enumerate(rows):
        assert np.allclose(logp[r, :len(row.ids)].detach(), row.logp, atol=1e-4)
    assert not logp[~mask].any() and not entropy[~mask].any() and (entropy[mask] > 0).all() and not entropy.requires_grad


def test_token_logp_and_its_gradient_are_those_of_plain_forward_passes(model, toy_tokenizer):
    prompts, completions = make_prompts(lengths=[3, 25]), make_completions()
    generation.TokenLogp(model, toy_tokenizer.pad_token_id, chunk=4)(prompts, completions, 0.7)[0].sum().backward()
    shared = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, completion in enumerate(completions):
        prompt = prompts[i // 3]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1]
        (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(shared[name], p.grad, rtol=1e-3, atol=1e-4 * p.grad.abs().max().item() + 1e-6), name


# ----- loading -----

def test_loading_mistakes_are_user_errors(tmp_path, tiny_model, toy_tokenizer):
    (tmp_path / "empty").mkdir()
    tiny_model().save_pretrained(tmp_path / "no tokenizer")
    toy_tokenizer.save_pretrained(tmp_path / "no weights")
    tiny_model().config.save_pretrained(tmp_path / "no weights")
    for name in ("nothing here", "empty", "no tokenizer", "no weights", "missing.gguf"):
        with pytest.raises(UserError) as error:
            generation.load_model(str(tmp_path / name), device="cpu")
        assert name in str(error.value) and "\n" not in str(error.value)


def test_saved_model_loads_ready_to_sample(tmp_path, tiny_model, toy_tokenizer):
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path)
    toy_tokenizer.save_pretrained(tmp_path)
    loaded, tokenizer = generation.load_model(str(tmp_path), device="cpu")
    assert tokenizer.padding_side == "left" and not loaded.training and next(loaded.parameters()).dtype == torch.float32
    same(generate(loaded, tokenizer, make_prompts()), generate(model, toy_tokenizer, make_prompts()))


# ----- judgments on top: orders, scores, seeds -----

POINTS = {"alpha": 2, "beta": 9, "gamma": 5, "delta": 7}


class Script:
    """A judge that reads the prompt it is shown and gives every word of POINTS its points, in displayed order."""

    def __init__(self, tokenizer, finished=lambda prompt: True, write=None):
        self.tokenizer, self.finished, self.write, self.calls = tokenizer, finished, write, []

    def __call__(self, model, tokenizer, prompts, temperature, max_new_tokens, seeds, **options):
        self.calls.append((prompts, temperature, max_new_tokens, seeds))
        rows = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            shown = re.findall(r"\[The Begin of Response[ \d]*\]\n(.*)\n\[The End", text)
            scores = self.write(shown) if self.write else ", ".join(str(POINTS[w]) for w in shown)
            ids = self.tokenizer(f"Analysis: fine.\nScores: \\boxed{{{scores}}}", add_special_tokens=False)["input_ids"]
            done = self.finished(text)
            rows.append(generation.Row(ids + [self.tokenizer.eos_token_id] * done, [-0.5] * (len(ids) + done), done))
        return rows


@pytest.fixture
def scripted(byte_tokenizer, monkeypatch):
    def install(**options):
        tokenizer = byte_tokenizer("chatml")
        script = Script(tokenizer, **options)
        monkeypatch.setattr(generation, "generate", script)
        return tokenizer, script
    return install


def example(id="x", words=("alpha", "beta", "gamma"), **fields):
    return PreferenceExample(id, [{"role": "user", "content": "Which ?"}], list(words), **fields)


def test_every_sample_has_its_own_order_and_scores_come_back_in_the_original_one(scripted):
    tokenizer, script = scripted()
    examples = [example("x"), example("y", ["delta", "alpha"]), example("z", ["beta"])]
    results = sample_judgments(None, tokenizer, examples, 24, temperature=0.7, seed=3, max_new_tokens=99)
    assert [len(r) for r in results] == [24] * 3
    for ex, judgments in zip(examples, results, strict=True):
        n = len(ex.responses)
        assert [j.sample for j in judgments] == list(range(24))
        assert all(sorted(j.permutation) == list(range(n)) for j in judgments)
        assert all(j.scores == [POINTS[w] for w in ex.responses] and j.reason == "ok" for j in judgments)
        for j in judgments:
            prompt = tokenizer.decode(j.prompt_ids)
            assert [prompt.index(ex.responses[i]) for i in j.permutation] == sorted(prompt.index(w) for w in ex.responses)
            assert j.text.endswith("}") and j.completion_ids[-1] == tokenizer.eos_token_id
            assert len(j.logp) == len(j.completion_ids)
    orders = Counter(tuple(j.permutation) for j in results[0])
    assert len(orders) >= 5 and max(orders.values()) <= 12
    assert {tuple(j.permutation) for j in results[1]} == {(0, 1), (1, 0)}
    [(_, temperature, max_new_tokens, seeds)] = script.calls
    assert (temperature, max_new_tokens) == (0.7, 99)
    assert len(set(seeds)) == 72 and seeds[:2] == ["3/x/0", "3/x/1"] and seeds[24] == "3/y/0"


def test_orders_and_seeds_depend_on_seed_id_and_sample_only(scripted):
    tokenizer, script = scripted()
    examples = [example(str(i)) for i in range(5)]
    whole = sample_judgments(None, tokenizer, examples, 8, seed=1)
    alone = [sample_judgments(None, tokenizer, [ex], 8, seed=1)[0] for ex in examples[::-1]][::-1]
    parts = [a + b for a, b in zip(sample_judgments(None, tokenizer, examples, 3, seed=1),
                                   sample_judgments(None, tokenizer, examples, 5, seed=1, first_sample=3), strict=True)]
    assert whole == alone == parts
    seeds = [seed for call in script.calls for seed in call[3]]
    assert Counter(Counter(seeds).values()) == {3: 40}
    other = sample_judgments(None, tokenizer, examples, 8, seed=2)
    assert [[j.permutation for j in js] for js in other] != [[j.permutation for j in js] for js in whole]
    assert len({tuple(tuple(j.permutation) for j in js) for js in whole}) == 5  # items do not share their orders


def test_opposite_shared_and_original_orders(scripted):
    tokenizer, _ = scripted()
    [pairs] = sample_judgments(None, tokenizer, [example()], 24, orders="opposite")
    assert all(pairs[i].permutation == pairs[i + 1].permutation[::-1] for i in range(0, 24, 2))
    assert len({tuple(j.permutation) for j in pairs}) > 2 and all(j.scores == [2, 9, 5] for j in pairs)
    [fixed] = sample_judgments(None, tokenizer, [example()], 4, orders="original")
    assert all(j.permutation == [0, 1, 2] and j.scores == [2, 9, 5] for j in fixed)
    groups = sample_judgments(None, tokenizer, [example(str(i)) for i in range(12)], 4, orders="shared")
    assert all(len({tuple(j.prompt_ids) for j in group}) == 1 for group in groups)  # a GRPO group answers one prompt
    assert len({tuple(group[0].permutation) for group in groups}) > 2
    assert all(j.scores == [2, 9, 5] for group in groups for j in group)


def test_hint_names_the_best_response_where_it_is_shown(scripted):
    tokenizer, _ = scripted()
    ex = example(rewards=[0, 1, 0])
    for j in sample_judgments(None, tokenizer, [ex], 12, hint=True)[0]:
        prompt = tokenizer.decode(j.prompt_ids)
        assert f"The best response is: Response {j.permutation.index(1) + 1}\n" in prompt
        assert f"[The Begin of Response {j.permutation.index(1) + 1}]\nbeta\n" in prompt
    for j in sample_judgments(None, tokenizer, [ex], 12)[0]:
        assert "The best response" not in tokenizer.decode(j.prompt_ids)


def test_truncated_judgments_have_no_scores_even_with_a_box(scripted):
    tokenizer, _ = scripted(finished=lambda prompt: False)
    [[judgment]] = sample_judgments(None, tokenizer, [example(rewards=[0, 1, 0])], 1)
    assert "\\boxed{" in judgment.text and (judgment.scores, judgment.reason) == (None, "truncated")
    assert grm.rule_reward(judgment.scores, [0, 1, 0]) == -1.0


@pytest.mark.parametrize("written, reason", [("1, 2", "wrong_count"), ("x, y, z", "not_a_number"), ("0, 5, 11", "out_of_range")])
def test_reasons_reach_the_judgment(scripted, written, reason):
    tokenizer, _ = scripted(write=lambda shown: written)
    [[judgment]] = sample_judgments(None, tokenizer, [example()], 1)
    assert (judgment.scores, judgment.reason) == (None, reason)


def test_boxes_quoted_in_the_prompt_are_never_the_verdict(scripted, monkeypatch):
    tokenizer, _ = scripted(write=lambda shown: "9, 2")
    [[judgment]] = sample_judgments(None, tokenizer, [example(words=["\\boxed{1, 10}", "Scores: \\boxed{10, 1}"])], 1)
    assert judgment.scores == grm.unpermute([9, 2], judgment.permutation) and "\\boxed{x, x}" not in judgment.text
    tokenizer, _ = scripted()
    row = generation.Row(tokenizer("no verdict")["input_ids"] + [tokenizer.eos_token_id], [0.0], True)
    monkeypatch.setattr(generation, "generate", lambda m, t, prompts, **options: [row] * len(prompts))
    [[judgment]] = sample_judgments(None, tokenizer, [example(words=["\\boxed{1, 10}", "b"])], 1)
    assert (judgment.scores, judgment.reason) == (None, "no_box")


def test_ratings(scripted):
    tokenizer, _ = scripted(write=lambda shown: "1" if len(shown) == 1 else str(shown.index("beta") + 1))
    [single] = sample_judgments(None, tokenizer, [example(words=["beta"])], 1, rating="train")
    assert single[0].scores == [1] and "The score is 0 or 1" in tokenizer.decode(single[0].prompt_ids)
    [best] = sample_judgments(None, tokenizer, [example()], 6, rating="best")
    assert all(j.scores == [0, 1, 0] for j in best)
    tokenizer, _ = scripted()
    [many] = sample_judgments(None, tokenizer, [example()], 1, rating="train")
    assert many[0].scores == [2, 9, 5] and "from 1 to 10" in tokenizer.decode(many[0].prompt_ids)


def test_score_is_the_sum_of_k_judgments(scripted):
    tokenizer, script = scripted()
    assert grm.score(None, tokenizer, "Which ?", ["alpha", "beta"]) == [2, 9]
    assert grm.score(None, tokenizer, [{"role": "user", "content": "Which ?"}], ["gamma"]) == [5]
    assert grm.score(None, tokenizer, "Which ?", ["alpha", "beta", "gamma", "delta"], k=4) == [8, 36, 20, 28]
    assert [call[1] for call in script.calls] == [0.0, 0.0, 0.5]
    for bad in ([], "alpha", [1, 2]):  # a lone text is not a list of letters
        with pytest.raises(UserError):
            grm.score(None, tokenizer, "Which ?", bad)
    tokenizer, _ = scripted(write=lambda shown: "99, -5")
    assert sorted(grm.score(None, tokenizer, "Which ?", ["a", "b"])) == [1, 10]
    tokenizer, _ = scripted(finished=lambda prompt: False)
    assert all(np.isnan(grm.score(None, tokenizer, "Which ?", ["alpha", "beta"], k=3)))


def test_real_judgments_end_to_end(tiny_model, toy_tokenizer):
    from toy_world import world as toy
    model, examples = tiny_model(), toy.items("test", 3, n=2)
    results = sample_judgments(model, toy_tokenizer, examples, 2, template="compact", max_new_tokens=8)
    for judgments in results:
        for j in judgments:
            assert 1 <= len(j.completion_ids) <= 8 and len(j.logp) == len(j.completion_ids) and all(p <= 0 for p in j.logp)
            assert j.scores is None and j.reason in ("truncated", "no_box", "wrong_count", "not_a_number", "out_of_range")
    again = sample_judgments(model, toy_tokenizer, examples[::-1], 2, template="compact", max_new_tokens=8)[::-1]
    assert [[j.completion_ids for j in js] for js in again] == [[j.completion_ids for j in js] for js in results]
