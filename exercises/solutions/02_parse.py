"""Task 2: find the last box first, then ask whether it is well formed; never the other way."""
import re


def parse(text, n):
    place = text.rfind("\\boxed")
    if place < 0:
        return None
    box = re.match(r"\\boxed\s*\{([^{}]*)\}", text[place:])
    parts = [part.strip() for part in box[1].split(",")] if box else []
    if len(parts) != n or not all(re.fullmatch(r"[+-]?[0-9]{1,9}", part) for part in parts):
        return None
    scores = [int(part) for part in parts]
    return scores if all(1 <= s <= 10 for s in scores) else None
