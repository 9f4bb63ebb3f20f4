"""From chats to token ids: special tokens only where the template puts them, BOS once.

test_hostile.py attacks the tokenizers of all families.
"""
import shutil

import pytest
from conftest import ROOT, make_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import grm
import spct_rft
from grm import PreferenceExample, build_prompt
from meta_rm import meta_ids
from plumbing import generation
from plumbing.generation import encode_chat, load_tokenizer
from plumbing.runs import UserError, save_model


def item(responses=("first answer", "second answer"), query="How ?", **fields):
    return PreferenceExample("x", [{"role": "user", "content": query}], list(responses), **fields)


def user(text):
    return [{"role": "user", "content": text}]


def count_special(tokenizer, ids):
    special = {i for i, t in tokenizer.added_tokens_decoder.items()
               if t.content != tokenizer.unk_token}
    return {i: ids.count(i) for i in sorted(special) if i in ids}


def test_special_tokens_inside_one_another(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    tokenizer.add_tokens(["<<x>>", "<x>>", "x>>"], special_tokens=True)
    harmless = count_special(tokenizer, encode_chat(tokenizer, user("h")))
    for text in ("<<x>>", "<<<x>>>", "<<<<x>>x>>"):
        assert count_special(tokenizer, encode_chat(tokenizer, user(text))) == harmless


@pytest.mark.parametrize("name", ["chatml", "gemma", "mistral"])
def test_no_text_at_all_becomes_a_special_token(name, byte_tokenizer):
    tokenizer = byte_tokenizer(name)
    harmless = count_special(tokenizer, encode_chat(tokenizer, user("h")))
    tokens = [t.content for t in tokenizer.added_tokens_decoder.values()]
    pieces = tokens + [part for t in tokens for i in (1, 2, len(t) - 1) for part in (t[:i], t[i:])]

    @given(st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=8).map("".join))
    def check(text):
        assert count_special(tokenizer, encode_chat(tokenizer, user(text))) == harmless
    check()


def test_another_chat_template_on_the_same_tokenizer_is_noticed(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    tokenizer.add_tokens(["<turn>"])
    encode_chat(tokenizer, user("h"))
    tokenizer.chat_template = "<turn>{{ messages[0]['content'] }}"
    ids = encode_chat(tokenizer, user("<turn>"))
    assert ids.count(tokenizer.convert_tokens_to_ids("<turn>")) == 1


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_c18_bos_exactly_once(name, byte_tokenizer):
    """C18: the template writes BOS, and the tokenizer would add it again."""
    tokenizer = byte_tokenizer(name)
    bos = tokenizer.bos_token
    ids = encode_chat(tokenizer, build_prompt(item([bos, "b"], bos)))
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_c19_a_template_without_a_system_role(byte_tokenizer):
    """C19: Gemma's raises on a system turn, so the judge's prompt is one user turn."""
    tokenizer = byte_tokenizer("gemma")
    turns = [{"role": "system", "content": "Be kind."}, *user("Hi")]
    with pytest.raises(Exception, match="System role"):
        tokenizer.apply_chat_template(turns)
    ids = encode_chat(tokenizer, build_prompt(PreferenceExample("x", turns, ["a", "b"])))
    assert "System: Be kind." in tokenizer.decode(ids)


@pytest.mark.parametrize("roles, folded", [
    ("su", ["0\n1"]), ("s", ["0"]), ("au", ["", "0", "1"]), ("sau", ["0", "1", "2"]),
    ("uu", ["0\n1"]), ("uasu", ["0", "1", "2\n3"])])
@pytest.mark.parametrize("name", ["chatml", "gemma", "mistral"])
def test_c19_every_chat_has_a_form_that_the_template_takes(name, roles, folded, byte_tokenizer):
    """C19: Gemma raises on a system turn, on an answer that opens the chat, on two user turns; some
    templates write a system turn as if it were an answer."""
    tokenizer = byte_tokenizer(name)
    if name == "gemma":  # as it is published
        tokenizer.chat_template = tokenizer.chat_template.replace("{% for m in messages %}", (
            "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('roles must alternate') }}{% endif %}"))
    names = {"s": "system", "u": "user", "a": "assistant"}
    chat = [{"role": names[r], "content": str(i)} for i, r in enumerate(roles)]
    turns = [{"role": ["user", "assistant"][i % 2], "content": text}
             for i, text in enumerate(folded)]
    as_it_is = name == "chatml" or name == "mistral" and "s" not in roles
    expected = tokenizer.apply_chat_template(chat if as_it_is else turns, tokenize=False,
                                             add_generation_prompt=True)
    prompt, answer = encode_chat(tokenizer, chat, "yes")
    assert tokenizer.decode(prompt) == expected
    assert tokenizer.decode(answer) == "yes" + tokenizer.eos_token
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="chat template .*never"):
        encode_chat(tokenizer, chat)


@pytest.mark.parametrize("pad", [None, "<pad>"])
def test_a_tokenizer_without_an_end_token_is_refused_in_one_line(pad, tmp_path, tiny,
                                                                 byte_tokenizer):
    shutil.copy(f"{tiny}/config.json", tmp_path)
    tokenizer = byte_tokenizer((["<pad>"], [], None, {"pad_token": pad} if pad else {}, False))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token.*eos_token"):
        load_tokenizer(tmp_path)


def test_words_that_the_tokenizer_does_not_know_are_told_once(capsys, byte_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "toy_world" / "medium")
    encode_chat(tokenizer, user("How many steps does chess take ?"), "precise , thorough")
    assert not capsys.readouterr().out
    ids = encode_chat(tokenizer, user("How do we bake bread <unk> or chess ?"))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and ids.count(tokenizer.unk_token_id) >= 2
    assert "'we'" in said and "'bake'" in said and "'chess'" not in said
    encode_chat(tokenizer, user("And a cake ?"), "a pie")
    gpt2 = byte_tokenizer((["<|endoftext|>"], [], "{{ eos_token }}{{ messages[0]['content'] }}", {
        name: "<|endoftext|>" for name in ("eos_token", "bos_token", "unk_token")}, False))
    encode_chat(gpt2, user("bake"))  # its end token is its unknown one
    assert not capsys.readouterr().out


def test_the_tokenizer_still_saves_after_use(tmp_path, toy_tokenizer):
    ids = encode_chat(toy_tokenizer, user("Is it fair ?"))
    toy_tokenizer.save_pretrained(tmp_path)
    assert encode_chat(AutoTokenizer.from_pretrained(tmp_path), user("Is it fair ?")) == ids


def test_special_tokens_in_a_completion_stay_text(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")
    for token in tokenizer.all_special_tokens:
        prompt, completion = encode_chat(tokenizer, user("h"), f"a {token} b{token}")
        assert prompt == encode_chat(tokenizer, user("h"))
        assert count_special(tokenizer, completion) == {tokenizer.eos_token_id: 1}
        assert completion[-1] == tokenizer.eos_token_id


# ----- a judge that thinks aloud -----

THINKS = (["<|endoftext|>", "<|im_end|>"], ["<think>", "</think>"],
          "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
          "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}"
          "{% elif enable_thinking is defined %}{{ 'think: ' }}{% endif %}",
          dict(pad_token="<|endoftext|>", eos_token="<|im_end|>"), False)


def test_a_judges_own_thoughts_stay_and_those_of_others_are_text(byte_tokenizer):
    """Its tags were broken when its text was tokenised for RFT and for the meta RM; and what only
    looks like its own, a turn's end, stays text there too."""
    tokenizer = byte_tokenizer(THINKS)
    tags = tokenizer.convert_tokens_to_ids(THINKS[1])

    def found(ids):
        return [i for i in ids if i in tags]
    text = "<think>hm</think>Scores: \\boxed{1, 2}<|im_end|>"
    prompt, judgment = meta_ids(tokenizer, item([text, "b"], text), text)
    assert found(judgment) == tags and not found(prompt)
    assert judgment.count(tokenizer.eos_token_id) == 1 and judgment[-1] == tokenizer.eos_token_id
    chats = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    assert not found(sum(encode_chat(tokenizer, chats, text), []))  # of a data set


@pytest.mark.parametrize("special", [False, True])
def test_a_thought_stays_one_in_the_text_that_is_parsed(special, byte_tokenizer, monkeypatch):
    """Some tokenizers call its tags special, and decoding leaves special tokens out."""
    names = THINKS[0] + THINKS[1] * special
    tokenizer = byte_tokenizer((names, THINKS[1] * (not special), *THINKS[2:]))
    ids = tokenizer("<think>\\boxed{9, 2}</think> Hm.<|im_end|>")["input_ids"]
    monkeypatch.setattr(generation, "generate", lambda *args, **options: [
        generation.Completion(ids, [0.0] * len(ids), True)])
    [[judgment]] = grm.sample_judgments(None, tokenizer, [item()], 1)
    assert judgment.text == "<think>\\boxed{9, 2}</think> Hm." and judgment.reason == "no_box"


def test_the_templates_thinking_is_switched_only_when_asked(byte_tokenizer):
    tokenizer = byte_tokenizer(THINKS)
    ends = {thinking: tokenizer.decode(encode_chat(tokenizer, user("h"), thinking=thinking))
            for thinking in (None, "on", "off", True, False)}
    assert ends == {None: "user: h<|im_end|>", "on": "user: h<|im_end|>think: ",
                    "off": "user: h<|im_end|><think></think>", True: ends["on"],
                    False: ends["off"]}
    with pytest.raises(UserError, match="enable_thinking"):
        encode_chat(byte_tokenizer("chatml"), user("h"), thinking="off")


def test_thinking_reaches_every_prompt_of_a_judge(byte_tokenizer, cli, tmp_path, monkeypatch):
    tokenizer = byte_tokenizer(THINKS)
    model = make_tiny_model("llama", len(tokenizer), 1, 0, max_position_embeddings=2048)
    model.generation_config.eos_token_id = [1, *range(20, 200, 3)]
    save_model(tmp_path / "model", model, tokenizer)
    off, prompts = encode_chat(tokenizer, user(""), thinking="off")[-3:], []
    generate, loss = generation.generate, spct_rft.sft_loss

    def sampled(model, tokenizer, chats, *args, **options):
        prompts.extend(chats)
        return generate(model, tokenizer, chats, *args, **options)

    def trained(model, rows, *args):
        prompts.extend(p for p, _ in rows)
        return loss(model, rows, *args)
    monkeypatch.setattr(generation, "generate", sampled)
    monkeypatch.setattr(spct_rft, "sft_loss", trained)
    monkeypatch.setattr(grm, "parse_judgment", lambda text, n, *_: (
        [1 + (len(text) + i) % 2 for i in range(n)], "ok"))
    common = ["--model", tmp_path / "model", "--limit", 4, "--max_new_tokens", 12]
    for program, words in (("grm", ["--data", "toy"]), ("infer_scale", ["--k", 2]),
                           ("spct_rft", ["--general_fraction", 0, "--epochs", 0.5,
                                         "--batch_size", 2]),
                           ("spct_rl", ["--steps", 1, "--prompts_per_step", 2])):
        prompts.clear()
        code, _, err = cli(program, *common, *words, "--thinking", "off", "--output",
                           tmp_path / program)
        assert code == 0, err
        assert prompts and all(p[-3:] == off for p in prompts), program
