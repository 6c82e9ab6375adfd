r"""The prefix store: for each training problem the opening of a solution, written by the initial model before any run.

PACE, arXiv 2602.11639, section 3.1: one text a problem, the same in all its rollouts, never sampled again. A store is
one parquet file. Its metadata say what it was made with (`Facts`), so that a run can refuse a store of another model,
tokenizer, prompt or data.

What is kept of a sample should not give the answer away (`guarded`): it ends before the first `</think>`, before the
first `\boxed`, `<answer>` or `####`, before a last line that states the right answer in plain words, and at least one
token before the sample did.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from reasonrl.data.items import DataError
from reasonrl.data.prompts import Prompt, chat_template_hash
from reasonrl.data.steps import STATED

FILE = "prefixes.parquet"  # its name in a store, and beside train.parquet in a run folder
SCHEMA_VERSION = 1
METADATA = b"reasonrl.prefixes"
BREAK = "\n\n"  # between paragraphs
AT_ONCE = 4096  # texts tokenised together: a fast tokenizer keeps offsets of all of them in memory
THINK_CLOSE = "</think>"
EQUALS = re.compile(r"[=~≈]|\\approx(?![a-zA-Z])")
VALUE_ENDS = re.compile(
    r";|,(?!\d{3}\b)|\.(?!\d)|\\[)\]]|\s[A-Za-z(]|\*\*"
)  # what may follow the right side of an equation
NUMBER = re.compile(r"(?:(?<![\w)\]])-)?\d(?:\d|,(?=\d{3}\b))*(?:\.\d+)?(?:/\d+)?")
WAY_OUT = "make one with `reasonrl prefixes`"


@dataclass(frozen=True, slots=True)
class Stored:
    """One problem's row."""

    id: str
    question_sha256: str
    paragraphs: tuple[str, ...]  # joined: the kept text; () when nothing is left of it
    prefix_tokens: int  # of the paragraphs, each tokenised alone
    sample_tokens: int  # of the sample it comes from, the end token included
    correct: bool  # whether that sample was right; if not, none of them was
    right: int  # how many of the n samples were right
    leak: bool  # the text was shortened because it stated an answer


@dataclass(frozen=True)
class Facts:
    """What a store was made with."""

    settings: Mapping[str, Any]  # fingerprints and sampling settings: everything its content depends on
    about: Mapping[str, Any] = field(default_factory=dict)  # names and the command, for people
    counts: Mapping[str, int] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Store:
    """A store in memory."""

    path: Path
    facts: Facts
    rows: Mapping[str, Stored]


@dataclass(frozen=True)
class Joined:
    """How a store fits a data set, in problems."""

    problems: int
    missing: int  # of them, not in the store
    empty: int  # in it with an empty text
    wrong: int  # in it with the opening of a wrong answer

    def __str__(self) -> str:
        text = f"{self.problems - self.missing - self.empty} of {self.problems} problems have one"
        plain = [f"{self.missing} are not in the store"] * bool(self.missing)
        plain += [f"{self.empty} have an empty text"] * bool(self.empty)
        if plain:
            text += f"; {' and '.join(plain)}, which start plain"
        return (
            f"{text}; {self.wrong} ({self.wrong / self.problems:.1%}) come from a wrong answer, for want of a right one"
        )


# The file


def write(path: Path, rows: Sequence[Stored], facts: Facts) -> None:
    """Write a store; the same rows and facts give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {METADATA: facts_metadata(facts)}
    columns = {name: [getattr(row, name) for row in rows] for name in _columns()}
    table = pa.table(columns, schema=pa.schema(list(_columns().items()), metadata=metadata))
    pq.write_table(table, path, compression="zstd")


def read_facts(path: Path) -> Facts:
    """What the store at `path` was made with; reads no row. Raises DataError for a file that is no store."""
    return facts_in(path, METADATA, SCHEMA_VERSION, list(_columns()), what="a store of prefixes", way_out=WAY_OUT)


def facts_in(path: Path, metadata: bytes, version: int, columns: Sequence[str], *, what: str, way_out: str) -> Facts:
    """What a parquet file with `Facts` in its metadata was made with. Raises DataError for any other file.

    metadata: their key. version, columns: what this reasonrl reads. what: the kind of file, for messages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        values = json.loads((schema.metadata or {})[metadata])
        written = values["schema"]
        found = Facts(**values) if written == version else None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}; {way_out}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not {what}; {way_out}") from error
    if found is None:
        raise DataError(f"{path} has schema version {written}, this reasonrl reads {version}: make the store again")
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; {way_out}")
    return found


def facts_metadata(facts: Facts) -> bytes:
    """Facts as `facts_in` reads them; the same facts give the same bytes."""
    return json.dumps({f.name: getattr(facts, f.name) for f in fields(facts)}, sort_keys=True).encode()


def read(path: Path) -> Store:
    """The store at `path`. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = read_facts(path)
    try:
        columns = pq.read_table(path, columns=list(_columns())).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}. Copy it again") from error
    columns["paragraphs"] = [tuple(texts) for texts in columns["paragraphs"]]
    rows = [Stored(*values) for values in zip(*(columns[f.name] for f in fields(Stored)), strict=True)]
    return Store(path, facts, {row.id: row for row in rows})


def _columns() -> dict[str, Any]:
    import pyarrow as pa

    kinds = {"paragraphs": pa.list_(pa.string()), "correct": pa.bool_(), "leak": pa.bool_()}
    texts = ("id", "question_sha256")
    return {f.name: kinds.get(f.name, pa.string() if f.name in texts else pa.int32()) for f in fields(Stored)}


def store_file(given: str | Path) -> Path:
    """What `prefixes=` names: a store's folder, or the file itself. Raises DataError when it is not there or not done."""
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if any(path.glob("shard-*.jsonl")):
        raise DataError(
            f"the store {path} is not finished, it has no {FILE} yet: give the command again that started it, for every "
            "shard"
        )
    raise DataError(f"no store of prefixes at {path} (here: {Path.cwd()}); {WAY_OUT}")


def beside(parquet: Path) -> Path | None:
    """The store in a run folder that belongs to this data file: only the training problems have one."""
    file = parquet.with_name(FILE)
    return file if parquet.name == "train.parquet" and file.is_file() else None


def prompt_facts(prompt: Prompt, tokenizer: Any) -> dict[str, str | None]:
    """The settings that decide how a question is put; the chat template only where it is used."""
    return {"prompt": prompt.hash, "chat_template": chat_template_hash(tokenizer) if prompt.kind == "chat" else None}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Joining


def question_sha256(question: str) -> str:
    """What tells that a problem of the same id is the same problem."""
    return hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()


def join(store: Store, problems: Iterable[tuple[str, str]]) -> Joined:
    """Check (id, question) pairs against a store.

    Raises DataError for a problem whose question differs from the store's, and when the store has none of the problems.
    """
    asked = list(problems)
    found = []
    for id, question in asked:
        row = store.rows.get(id)
        if row is None:
            continue
        if row.question_sha256 != question_sha256(question):
            raise DataError(
                f"{store.path} is of other data: problem {id!r} has another question there; {WAY_OUT} from this data"
            )
        found.append(row)
    if not found:
        raise DataError(
            f"{store.path} is of other data: none of the {len(asked)} training problems is among its {len(store.rows)}; "
            f"{WAY_OUT} from this data"
        )
    return Joined(
        len(asked),
        len(asked) - len(found),
        sum(not row.paragraphs for row in found),
        sum(not row.correct for row in found),
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of the vocabulary, the special tokens, and how a sample text is cut (which follows the merges)."""
    special = sorted({int(i) for i in tokenizer.all_special_ids})
    (probe,) = tokenise(["If x = 3, then\n\n 12*x + 1 = 37. Überprüfen: \\frac{1}{2}"], tokenizer)
    content = [sorted(tokenizer.get_vocab().items()), special, probe]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def tokenise(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each text alone, without special tokens."""
    for start in range(0, len(texts), AT_ONCE):
        some = list(texts[start : start + AT_ONCE])
        yield from tokenizer(some, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def within(paragraphs: Sequence[Sequence[int]], most: int) -> list[Sequence[int]]:
    """The first `most` ids of the paragraphs; those that are empty after that are left out."""
    starts = accumulate(map(len, paragraphs), initial=0)
    cut = [ids[: max(most - start, 0)] for ids, start in zip(paragraphs, starts, strict=False)]
    return [ids for ids in cut if len(ids)]


# Cutting


@dataclass(frozen=True)
class Kept:
    """What is left of a sample."""

    paragraphs: tuple[str, ...]
    tokens: int
    leak: bool  # it was shortened because it stated an answer


def paragraphs(text: str) -> tuple[str, ...]:
    """The text cut after every blank line: `"".join(paragraphs(text)) == text`."""
    first, *rest = text.split(BREAK)
    pieces = [first]
    for piece in rest:
        pieces[-1] += BREAK
        pieces.append(piece)
    return tuple(piece for piece in pieces if piece)


def guarded(text: str, tokenizer: Any, *, most: int, gives_away: Callable[[str], bool]) -> Kept:
    """What may be stored of a solution: nothing from `</think>` or a stated answer on, at most `most` tokens.

    gives_away: whether the verifier finds the right answer at the end of a text; while it does, the last line is dropped,
    and of an only line its last token.
    """
    thought = text.partition(THINK_CLOSE)[0]
    stated = STATED.search(thought)
    kept = _first_tokens(thought[: stated.start()] if stated else thought, tokenizer, most)
    leak = stated is not None
    while kept and gives_away(kept):
        kept, leak = _shorter(kept, tokenizer), True
    pieces = paragraphs(kept)
    return Kept(pieces, _count(pieces, tokenizer), leak)


def statements(text: str) -> list[str]:
    """What the last line of a text states in plain words: the right sides of its equations, and its last number.

    For `guarded`: an answer that was not marked as one. Earlier lines are left alone, where the same number may stand for
    anything.
    """
    line = (text.strip().splitlines() or [""])[-1]
    sides = [VALUE_ENDS.split(side.strip())[0].strip(" $") for side in EQUALS.split(line)[1:]]
    numbers = NUMBER.findall(line)[-1:]
    return list(dict.fromkeys(value for value in (*sides, *numbers) if value))


def _count(pieces: Sequence[str], tokenizer: Any) -> int:
    return sum(map(len, tokenise(pieces, tokenizer)))


def _first_tokens(text: str, tokenizer: Any, most: int) -> str:
    """The start of a text that has at most `most` tokens, paragraph by paragraph."""
    pieces = paragraphs(text)
    ids = list(tokenise(pieces, tokenizer))
    ends = list(accumulate(map(len, ids)))
    whole = sum(end <= most for end in ends)
    if whole == len(pieces):
        return text
    room = most - (ends[whole - 1] if whole else 0)
    return "".join(pieces[:whole]) + _first_of_paragraph(ids[whole], tokenizer, room)


def _first_of_paragraph(ids: Sequence[int], tokenizer: Any, room: int) -> str:
    """Text of the first ids that, tokenised again, has at most `room` tokens."""
    for count in range(room, 0, -1):
        text = str(tokenizer.decode(ids[:count])).rstrip("\ufffd")  # the half of a character that is cut through
        if _count([text], tokenizer) <= room:
            return text
    return ""


def _shorter(text: str, tokenizer: Any) -> str:
    """Without the last line, or, of a single line, without its last token."""
    lines = text.splitlines(keepends=True)
    if len(lines) > 1:
        return "".join(lines[:-1])
    (ids,) = tokenise([text], tokenizer)
    shorter = _first_of_paragraph(ids, tokenizer, len(ids) - 1)
    return shorter if len(shorter) < len(text) else ""  # a last token without text would be dropped for ever
