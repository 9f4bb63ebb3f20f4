r"""Plumbing: a judge behind a URL, in a local model's place. Any OpenAI-compatible server will do.

The server (vLLM, SGLang, transformers serve) has the tokenizer, the chat template and the batching.
We send messages and get text, one request per judgment, because every judgment has its own response
order. There are no token ids and no log-probabilities, only token counts.

    vllm serve <model> --generation-config vllm  # no top_k or repetition penalty of the model's own
    OPENAI_API_KEY=... python eval.py --endpoint http://127.0.0.1:8000 --served_model <model>
"""
import base64
import hashlib
import html
import os
import queue
import re
import threading
from random import SystemRandom
from urllib.parse import quote, urlsplit

from huggingface_hub import get_session
from tqdm import tqdm

from plumbing import generation
from plumbing.generation import Completion
from plumbing.runs import UserError, first_line

# Texts of others: the server's special tokens are not known here, so whatever looks like one of the
# usual kinds is broken by a space, as generation.encode_chat does with those of a local tokenizer:
# <|im_end|>, <｜User｜>, <turn|>, </s>, <end_of_turn>, [INST].
SPECIAL = re.compile(
    r"<(?=[|｜][^<>\s]{1,40}>|[^<>\s]{1,40}[|｜]>|<SYS>>|</SYS>>"
    r"|/?(?:s|bos|eos|pad|unk|mask|cls|sep|think|tool_call|tool_response)>"
    r"|/?(?:start_of_turn|end_of_turn)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])")
# A server's own words for a prompt that does not fit, and for one that its content filter refuses.
TOO_LONG = re.compile(
    r"context.{0,20}(?:length|window|size|limit)|\bis too long|too (?:long|large) for"
    r"|too many tokens|maximum.{0,20}(?:length|tokens)|tokens.{0,25}must be <=|input length"
    r"|must have less than \d+ tokens|tokens? (?:count )?(?:\(\d+\) )?exceeds?|reduce the length",
    re.IGNORECASE)
FILTERED = re.compile(
    r"content.{0,3}filter|content (?:management )?policy|content exists risk|responsible.?ai"
    r"|data_inspection|inappropriate|moderation|flagged", re.IGNORECASE)
BUSY = (408, 409, 425, 429)  # of the 4xx, the ones that may pass; the others are refusals
# What some servers refuse, what is sent for it, and what that means. Never temperature: without it
# the judgments are others.
INSTEAD = {
    "max_tokens": ("max_completion_tokens", "max_completion_tokens is sent for it"),
    "seed": (None, "it is left out, so another run gives other judgments"),
    "top_p": (None, "it is left out, so the server's own top_p holds, which may not be 1")}
# Why an answer ended, as servers name it.
ENDED = ("stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed")
CUT = ("length", "max_tokens", "max_length", "tool_calls", "function_call")
BROKEN = ("abort", "aborted", "cancelled", "error")


# ----- flags -----

def add_endpoint_flags(parser):
    parser.add_argument("--endpoint", help="sample from a served model: URL of an OpenAI-compatible"
                        " server; its key is OPENAI_API_KEY (on hosts of Hugging Face: HF_TOKEN)")
    parser.add_argument("--served_model", help="name of the model on --endpoint")
    parser.add_argument("--concurrency", type=int, default=32,
                        help="requests to --endpoint at once, per process (at most 100)")


def check_endpoint(args, role="model"):
    """The arguments, with the served model's name as --model (or --sampler). Raises UserError."""
    if bool(args.endpoint) != bool(args.served_model):
        raise UserError("give --endpoint (the server's URL) and --served_model (a name that "
                        "URL/v1/models lists) together")
    if not args.endpoint:
        return args
    try:
        url = urlsplit(args.endpoint)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"--endpoint {args.endpoint}: not a URL such as http://127.0.0.1:8000")
    if url.username or url.password or url.query:
        raise UserError("--endpoint: leave the key out of the URL, which config.json records; set "
                        "OPENAI_API_KEY instead")
    if not 1 <= args.concurrency <= 100:
        raise UserError("--concurrency must be between 1 and 100")
    key_of(url.hostname)  # one that cannot be sent is refused before anything is written
    if getattr(args, role):
        raise UserError(f"give --{role} or --endpoint, not both: --served_model names the judge, "
                        "and flags such as --template say how it is asked")
    setattr(args, role, args.served_model)
    return args


def load_judge(args, name, device=None):
    """(judge, tokenizer): with --endpoint a served model and None, else a local model's."""
    if args.endpoint:
        return Served(args.endpoint, args.served_model, args.concurrency), None
    return generation.load_model(name, device)


def key_of(host):
    """The key from the environment, or None. A Hugging Face token goes to its own hosts only.

    Raises UserError, which does not show it, if it holds what no key holds.
    """
    of_hub = f".{host}".endswith((".huggingface.co", ".huggingface.cloud"))
    name = "HF_TOKEN" if of_hub and os.environ.get("HF_TOKEN") else "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip()  # `$(cat file)` on Windows leaves a CR, other ways an LF
    # Pitfall: an HTTP library shows a header that it cannot send, and escapes it in its own way.
    if not re.fullmatch(r"[!-~]*", key) or set(key) & set("'\"\\"):
        raise UserError(f"{name} holds a space, a line break, a quote or a letter that no key has; "
                        "set it again")
    return key or None


def forms_of(key):
    """A regular expression for the key as a message may hold it."""
    forms = {key, quote(key), quote(key, safe=""), html.escape(key)}
    for before in range(3):  # base64, whatever stands before and behind the key
        coded = base64.b64encode(b"-" * before + key.encode()).decode().rstrip("=")
        forms.add(coded[-(-4 * before // 3):-1] or key)
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))),
                      re.IGNORECASE)


# ----- what servers answer -----

def chat_url(endpoint):
    """Where chats are sent.

    >>> chat_url("http://127.0.0.1:8000"), chat_url("https://host/api/v3/")
    ('http://127.0.0.1:8000/v1/chat/completions', 'https://host/api/v3/chat/completions')
    """
    base = endpoint.rstrip("/")
    if base.endswith("/chat/completions"):
        return base
    versioned = re.search(r"/v\d+(?:alpha|beta)?\d*(?:/|$)", urlsplit(base).path)
    return f"{base}/{'' if versioned else 'v1/'}chat/completions"


def text_of(content):
    """The text of a `content`: a text, null, or a list of parts (those that are thoughts left out).

    Half a surrogate pair, which no file can hold, becomes U+FFFD.
    """
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict)
             and part.get("type", "text") in ("text", "output_text") else part for part in parts]
    text = "".join(t for t in texts if isinstance(t, str))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_in(body):
    """The status that an answer with HTTP status 200 names if it is an error, else None.

    >>> error_in({"error": {"message": "busy", "code": 429}}), error_in({"error": "no"})
    (429, 200)
    """
    error = body.get("error") if isinstance(body, dict) and not body.get("choices") else None
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch("[45][0-9][0-9]", code) else 200 if error else None


# ----- the judge -----

class Served:
    """A served model. Its key is never printed or written."""
    tries = 10
    pause, longest_pause, timeout = 1.0, 60.0, 600.0  # seconds; pauses double

    def __init__(self, endpoint, name, concurrency=32):
        self.url, self.name, self.concurrency = chat_url(endpoint), name, concurrency
        self.answered = self.warned = False
        self.instead, self.told, self.lock = {}, set(), threading.Lock()
        key = key_of(urlsplit(endpoint).hostname)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.secret = forms_of(key) if key else re.compile(r"(?!)")
        # The hub's HTTP library, but a client of our own. Pitfall: the hub's own client sends the
        # user's saved token to any host, and with HF_HUB_OFFLINE=1 refuses this machine too.
        self.client = type(get_session())(timeout=self.timeout, follow_redirects=True)

    def complete(self, chats, temperature, max_new_tokens, seeds, skip_long=False, thinking=None):
        """One Completion per chat (messages), same order; `concurrency` requests at once.

        Raises UserError if the server stays away, refuses, or gets a prompt that is too long for it
        (with skip_long that one is a Completion whose `why` is "too_long").
        """
        chats = [[{**m, "content": SPECIAL.sub(r"\g<0> ", m["content"])} for m in chat]
                 for chat in chats]
        todo, answers, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        for r in range(len(chats)):
            todo.put(r)

        def work():
            while not stop.is_set():
                try:
                    r = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    found = self.ask(chats[r], temperature, max_new_tokens, seeds[r], skip_long,
                                     stop, thinking)
                except Exception as error:  # raised again below, in the main thread
                    found = error
                answers.put((r, found))
        for _ in range(min(self.concurrency, len(chats))):
            # daemon: Ctrl-C does not wait for open requests
            threading.Thread(target=work, daemon=True).start()
        completions = [None] * len(chats)
        try:
            for _ in chats:
                r, found = answers.get()
                if isinstance(found, Exception):
                    raise found
                completions[r] = found
                found.prompt = "\n".join(m["content"] for m in chats[r])
        finally:
            stop.set()
        return completions

    def ask(self, messages, temperature, max_new_tokens, seed, skip_long, stop, thinking=None):
        """One request, again after pauses while the server is away, busy or failing."""
        words = sum(len(m["content"].split()) for m in messages)
        digest = hashlib.sha256(seed.encode()).digest()  # of this seed/item/judgment
        wanted = dict(
            model=self.name, temperature=temperature, max_tokens=max_new_tokens,
            top_p=1.0,  # said, because vLLM would take it from the model's generation_config.json
            seed=int.from_bytes(digest[:4], "little") >> 1)
        if switch := generation.thinking_switch(thinking):
            wanted["chat_template_kwargs"] = switch
        attempt = 0
        while True:
            options = {self.instead.get(name, name): value for name, value in wanted.items()}
            options.pop(None, None)
            found, status, said, after = self.send(messages, options, max_new_tokens)
            too_long = False
            if found is not None:
                # Choice: a server that counts less than a quarter of a token per word has cut the
                # prompt, silently: it is too long. (The toy tokenizer has tokens of many words.)
                too_long = 0 < 4 * found.prompt_tokens < words
                if not too_long:
                    return found
                said = (f"it counts {found.prompt_tokens} tokens for {words} words: it cut the "
                        "prompt")
            why = f"{status}: {said}" if status else said
            if status in (200, 400, 403, 413, 422, 451, 500):
                # Choice: what a content filter refuses is an unparsed judgment, always.
                if FILTERED.search(said):
                    return Completion([], [], False, "filtered")
                too_long = status == 413 or status != 403 and TOO_LONG.search(said)
                refused = [n for n in INSTEAD if n in options and re.search(rf"\b{n}\b", said)]
                if refused and not too_long:
                    self.instead[refused[0]], meaning = INSTEAD[refused[0]]
                    self.tell(refused[0], f"refuses {refused[0]} ({why}); {meaning}")
                    continue
            if too_long:
                if skip_long:
                    return Completion([], [], False, "too_long")
                raise UserError(f"{seed} (seed/item/judgment) is too long for {self.name} ({why}); "
                                "shorten or drop that item, lower --max_new_tokens, give the "
                                "server a longer context, or pass --skip_bad")
            if status and 400 <= status < 500 and status not in BUSY:
                check = {401: "the key (OPENAI_API_KEY)", 403: "the key (OPENAI_API_KEY)",
                         404: "--endpoint and --served_model"}.get(status, "what it names")
                raise UserError(f"{self.url} refuses the request ({why}); check {check}; finished "
                                "chunks are kept")
            attempt += 1
            # a server that was never there is most likely a typo
            there = self.answered or status not in (None, 200)
            if attempt == (self.tries if there else min(3, self.tries)):
                raise UserError(f"{self.url} gave no answer in {attempt} tries ({why}); when "
                                "it is back, the same command continues and finished chunks are "
                                "kept")
            if attempt > 1 and not self.warned:
                self.warned = True
                tqdm.write(f"{self.url}: {why}; trying again")
            pause = min(self.longest_pause, self.pause * 2 ** (attempt - 1))
            pause *= SystemRandom().uniform(0.5, 1)  # not all workers at the same moment
            if after.isdigit():
                pause = max(pause, min(self.longest_pause, int(after)))
            if stop.wait(pause):
                raise UserError("stopped")

    def send(self, messages, options, max_new_tokens):
        """One request: (Completion or None, status, the server's words, its Retry-After).

        The status is None if there was none, or an answer that is none.
        """
        found = status = None
        said = after = ""
        try:
            response = self.client.post(self.url, headers=self.headers,
                                        json={"messages": messages, **options})
            said, after = response.text, response.headers.get("retry-after", "")
            status = error_in(response.json()) if response.is_success else response.status_code
            if status is None:
                found = self.read(response.json(), max_new_tokens)
        except Exception as error:  # of the HTTP library, or of reading what is no answer
            said = said or first_line(error)
        return found, status, self.secret.sub("***", " ".join(said.split()))[:300], after

    def tell(self, what, text):
        """Say something once."""
        with self.lock:
            if what not in self.told:
                self.told.add(what)
                tqdm.write(f"{self.url} {text}")

    def read(self, body, max_new_tokens):
        """The Completion of an answer (JSON). Raises if it is only half of one."""
        choice, usage = body["choices"][0], body.get("usage")
        counts = [(usage if isinstance(usage, dict) else {}).get(name)
                  for name in ("prompt_tokens", "completion_tokens")]
        counts = [n if isinstance(n, int) and n > 0 else 0 for n in counts]  # 0: not known
        message = choice["message"]
        text = text_of(message.get("content"))
        thoughts = text_of(message.get("reasoning_content") or message.get("reasoning"))
        end = str(choice.get("finish_reason") or "").lower()
        if end in BROKEN or not (end or text or thoughts):
            raise ValueError("half an answer")
        self.answered, self.warned = True, False
        # Anything but an end token is a judgment that was cut off. (transformers serve says
        # "length" also where the end token is the last one allowed.)
        # Choice: with no word about it, an answer below the tokens allowed has ended.
        finished = end in ENDED or not end and counts[1] < max_new_tokens
        why = "filtered" if end == "content_filter" else "truncated"
        if end and end not in (*ENDED, *CUT, "content_filter"):
            self.tell(end, f"ends answers with finish_reason {end!r}, which is not known here: "
                           "they count as truncated")
        # Choice: an answer that is nothing but thoughts is the judgment. Servers that look for the
        # end of a thought where the model writes none put whole answers there.
        if finished and not text.strip() and thoughts.strip():
            text, why = thoughts, "thoughts"
        refusal = text_of(message.get("refusal"))
        if finished and not text.strip() and refusal.strip():  # its words are no verdict
            text, finished, why = refusal, False, "no_box"
        return Completion([], [], finished, why, text, prompt_tokens=counts[0], tokens=counts[1])
