"""Task 2: find the last box first, then ask whether it is well formed; never the other way."""
import re


def parse(text, n):
    boxes = re.findall(r"\\boxed\s*\{([^{}]*)(\}?)", text)
    inside, closed = boxes[-1] if boxes else ("", "")
    parts = [part.strip() for part in inside.split(",")] if closed else []
    if len(parts) != n or not all(re.fullmatch(r"[+-]?[0-9]{1,9}", part) for part in parts):
        return None
    scores = [int(part) for part in parts]
    return scores if all(1 <= s <= 10 for s in scores) else None
