"""Which tokens end the steps of a store of `reasonrl prm data`: shares by class, among the cuts and among all tokens.

    python benchmarks/token_classes.py STORE MODEL [--python]

Classes by lists of words, in this order; the paper (arXiv 2502.13943, tables 7 to 10) has a tagger of parts of speech.
--python: for programs. Inside a block of Python the classes are those of Python's own `tokenize`, at the first character of
the token that is no space; what stands outside any block is prose. A line that `tokenize` cannot read is `broken`.
"""

from __future__ import annotations

import argparse
import io
import keyword
import re
import token as kinds
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

WORDS = {
    "connective": "so then and but or since because if when while as thus therefore hence after before first second third next "
    "finally now also however for once given let's let although until that which where",
    "determiner": "the a an this that these those each every all both its his her their our any some",
    "preposition": "to of in on at by from with into per over out up than",
    "common verb": "is are was were be been has have had do does did can will would need needs find found calculate determine "
    "know multiply add subtract divide gives give get gets makes make represents represent equals equal solve use start "
    "simplify substitute buys sells spent cost costs left works earned takes",
}
CLASS_OF = {word: name for name, words in reversed(WORDS.items()) for word in words.split()}  # the first list wins
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*$", re.MULTILINE)
OF_KIND = {
    kinds.NUMBER: "number",
    kinds.STRING: "string",
    kinds.COMMENT: "comment",
    kinds.OP: "operator",
    kinds.NAME: "name",
    **{
        getattr(kinds, name): "string"
        for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
        if hasattr(kinds, name)
    },
}


def class_of(text: str) -> str:
    """The class of one token's text."""
    word = text.strip().lower()
    if "\n" in text:
        return "line break"
    if not word:
        return "space"
    if re.fullmatch(r"[\d.,]*\d[\d.,]*", word):
        return "digit"
    if word == "-" or re.search(r"[=+*/^<>×÷\\${}\[\]]|frac|times", word):
        return "operator, LaTeX"
    if not re.search(r"[a-z0-9]", word):
        return "punctuation"
    return CLASS_OF.get(word, "other word")


def python_classes(text: str) -> list[str]:
    """The class of every character of a response that holds blocks of Python."""
    found = ["prose"] * len(text)
    fences = list(FENCE.finditer(text))
    for fence in fences:
        found[fence.start() : fence.end()] = ["fence"] * (fence.end() - fence.start())
    for start, end, tag in _blocks(fences, len(text)):
        if tag in ("", "python", "python3", "py"):
            found[start:end] = code_classes(text[start:end])
    return found


def _blocks(fences: Sequence[re.Match[str]], length: int) -> Iterator[tuple[int, int, str]]:
    """(start, end, tag) of what stands between fences; one that is never closed goes on to the end."""
    for opened in fences[::2]:
        closing = next((fence for fence in fences if fence.start() > opened.start()), None)
        yield min(opened.end() + 1, length), closing.start() if closing else length, opened[1].lower()


def code_classes(code: str) -> list[str]:
    """The class of every character of a program, also of one that is cut short."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", code)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))
    found = ["broken"] * len(code)
    for line, start in zip(lines, begins, strict=False):
        bare = line.lstrip(" \t")
        for i in range(start, start + len(line)):
            if code[i] == "\n":
                found[i] = "line break"
            elif code[i] in " \t":
                found[i] = "indentation" if i < start + len(line) - len(bare) else "space"
    at = [begins[0], *begins]  # rows count from 1
    try:
        for made in tokenize.generate_tokens(io.StringIO(code).readline):
            name = OF_KIND.get(made.type)
            if name == "name" and keyword.iskeyword(made.string):
                name = "keyword"
            if name is not None:
                start, end = (at[row] + column for row, column in (made.start, made.end))
                found[start:end] = [name] * (end - start)
    except (tokenize.TokenError, SyntaxError):  # the rest stays broken
        pass
    return found


def classes_in(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The class of every token of a response with programs."""
    text = tokenizer.decode(ids)
    pieces = tokenizer.batch_decode([[token] for token in ids])
    if "".join(pieces) == text:
        stops = [0, *accumulate(map(len, pieces))]
    else:  # a character of several tokens
        stops = [min(len(tokenizer.decode(ids[:stop])), len(text)) for stop in range(len(ids) + 1)]
    marked = python_classes(text)
    found = []
    for start, end in pairwise(stops):
        piece = text[start:end]
        place = start + len(piece) - len(piece.lstrip(" \t"))
        found.append(marked[min(place, max(end - 1, start))] if piece else "part of a character")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder with prm.parquet, or that file")
    parser.add_argument("model", help="whose tokenizer wrote it")
    parser.add_argument("--python", action="store_true", help="classes of Python inside its blocks")
    args = parser.parse_args()

    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    named = cache(lambda token: class_of(tokenizer.decode([token])))
    file = args.store / "prm.parquet" if args.store.is_dir() else args.store
    table = pq.read_table(file, columns=["response_ids", "step_ends"])
    every: Counter[str] = Counter()
    cuts: Counter[str] = Counter()
    for ids, ends in zip(*(table[name].to_pylist() for name in ("response_ids", "step_ends")), strict=True):
        names = classes_in(ids, tokenizer) if args.python else [named(token) for token in ids]
        every.update(names)
        cuts.update(names[end] for end in ends[:-1])  # the last end is the response's own
    tokens, ended = every.total(), cuts.total()
    print(f"{table.num_rows} responses, {tokens:,} tokens, {ended:,} cuts ({ended / tokens:.2%})\n")
    print("| tokens | share of cuts | share of all tokens |\n|---|---|---|")
    for name, count in sorted(every.items(), key=lambda entry: -cuts[entry[0]]):
        print(f"| {name} | {cuts[name] / max(ended, 1):.1%} | {count / tokens:.1%} |")


if __name__ == "__main__":
    main()
