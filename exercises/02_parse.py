r"""Task 2: read the scores out of a judgment.

Paper §2.1, Eq. 7 ({S_i} = f_extract(C)), App. G. 4 points.

The judge ends its text with a box, for example `Scores: \boxed{8, 9}`; the words before it vary.
Return the n scores as a list of int, or None if the judgment cannot be read. The rules of this
repository, where the paper is silent:

- the LAST \boxed{ counts, even if an earlier one would parse (the judge may quote a response, or
  think aloud); \boxed without its brace is a word like others;
- it must hold n integers from 1 to 10, separated by commas, and be closed;
- nothing is repaired: no default score, no score filled in, none left out, none rounded or clamped.
  That is training; at inference grm.py clamps a score outside 1-10 to the range, and counts it.

grm.py also leaves out what stands between <think> and </think>; no text here has these tags.

Why so strict: a lenient parser rewards text that is not in the format, and RL finds that out.
"""


def parse(text, n):
    """text: all that the judge wrote.  n: number of responses.

    Returns n int, in displayed order, or None.
    """
    raise NotImplementedError
