"""Which tokens end the steps of a store of `reasonrl prm data`: shares by class, among the cuts and among all tokens.

    python benchmarks/token_classes.py STORE MODEL

Classes by lists of words, in this order; the paper (arXiv 2502.13943, tables 7 to 10) has a tagger of parts of speech.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from functools import cache
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder with prm.parquet, or that file")
    parser.add_argument("model", help="whose tokenizer wrote it")
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
        every.update(named(token) for token in ids)
        cuts.update(named(ids[end]) for end in ends[:-1])  # the last end is the response's own
    tokens, ended = every.total(), cuts.total()
    print(f"{table.num_rows} responses, {tokens:,} tokens, {ended:,} cuts ({ended / tokens:.2%})\n")
    print("| tokens | share of cuts | share of all tokens |\n|---|---|---|")
    for name, count in sorted(every.items(), key=lambda entry: -cuts[entry[0]]):
        print(f"| {name} | {cuts[name] / max(ended, 1):.1%} | {count / tokens:.1%} |")


if __name__ == "__main__":
    main()
