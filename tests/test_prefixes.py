"""`reasonrl prefixes`: what it samples and keeps, how it is stopped and continued, and which runs take its store."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import problem
from data_builders import byte_tokenizer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import reasonrl.engine.verl.launch as launching
from reasonrl import cli, models, prefixes
from reasonrl.cli import composed
from reasonrl.config import ConfigError, package_path, typed
from reasonrl.core import Method, Plain
from reasonrl.data.prefixes import FILE, Stored, beside, question_sha256, read, read_facts, write
from reasonrl.engine import sampling
from reasonrl.engine.sampling import Answer
from reasonrl.engine.verl.dataset import ProblemDataset
from reasonrl.prefixes import Sample, chosen, make_store, noise_key, parse, stored
from reasonrl.runs import journal, provenance
from reasonrl.runs.files import DiskFull
from reasonrl.runs.folder import RunFolder
from reasonrl.train import Plan, prepare
from reasonrl.verify.pool import Verdict, Verifier, VerifyConfig

TINY = Path(package_path("pkg://reasonrl.assets.tiny/model"))
SMALL = [
    "model=tiny",
    "data.size=12",
    "data.val_size=4",
    "verify=exact",
    "max_new_tokens=64",
    "engine.max_sequences=16",
]


@functools.cache
def small() -> DictConfig:
    return composed(SMALL)


def run(*args: str) -> DictConfig:
    return composed([*SMALL, *args]) if args else copy.deepcopy(small())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 12 problems, 2 answers each. Not to be changed."""
    return make_store(run(), n=2, store=tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture
def store(whole: Path, here: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, here / "store"))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def cut(store: Path, problems: int, half: bytes = b"") -> Path:
    """The store as a kill leaves it: so many problems, then half a line."""
    (store / FILE).unlink()
    path = store / "shard-0-of-1.jsonl"
    path.write_bytes(b"".join(lines(path)[: 1 + problems]) + half)
    return path


def no_sampling(*_: Any) -> Any:
    raise AssertionError("sampled")


# what is kept


def test_a_store_has_a_row_for_every_training_problem(whole: Path) -> None:
    found = read(whole / FILE)
    assert len(found.rows) == 12
    for row in found.rows.values():
        assert row.id == f"arithmetic/{row.id.removeprefix('arithmetic/')}"
        assert row.question_sha256 == question_sha256(row.id.removeprefix("arithmetic/"))
        assert 0 <= row.prefix_tokens < row.sample_tokens <= 64
        assert row.correct == (row.right > 0)
        assert "####" not in "".join(row.paragraphs)
    assert {row.correct for row in found.rows.values()} == {True, False}
    counts = found.facts.counts
    assert (counts["problems"], counts["answers"]) == (12, 24)
    assert counts["right"] == sum(row.right for row in found.rows.values())
    assert counts["wrong_problems"] == sum(not row.correct for row in found.rows.values())
    assert found.facts.settings["n"] == 2
    assert found.facts.settings["model"] == models.model_fingerprint(str(TINY))


def test_the_model_is_given_the_prompts_of_training_and_noise_of_its_own(monkeypatch) -> None:
    given = []

    class Scribe:
        def answers(self, asks: Any) -> Iterator[Answer]:
            for ask in asks:
                given.append(ask)
                yield Answer(ask.key, [40], False)

    monkeypatch.setattr(sampling, "open_sampler", lambda *_: contextlib.nullcontext(Scribe()))
    make_store(run("temperature=0.7", "top_p=0.9", "top_k=7", "seed=5"), n=3)
    made = plan(method=Method("plain"))
    _, data, tokenizer = built(made)
    wanted = {p.id: p.prompt_ids.tolist() for p in dataset(made, data["train"], tokenizer).problems}
    assert [list(ask.prompt_ids) for ask in given] == [ids for ids in wanted.values() for _ in range(3)]
    assert [ask.sampling.seed for ask in given] == [noise_key(5, id, n) for id in wanted for n in range(3)]
    assert len({ask.sampling.seed for ask in given}) == 36
    assert {(a.sampling.temperature, a.sampling.top_p, a.sampling.top_k, a.sampling.max_tokens) for a in given} == {
        (0.7, 0.9, 7, 64)
    }


def samples(*answers: tuple[int, bool], text: str = "x" * 99) -> list[Sample]:
    """Answers of these lengths and verdicts; their tokens are the bytes of `text`."""
    made = []
    for number, (length, correct) in enumerate(answers):
        verdict: Future[Verdict] = Future()
        verdict.set_result(Verdict(correct, "4", "ok"))
        (ids,) = byte_tokenizer()([text], add_special_tokens=False)["input_ids"]
        made.append(Sample(number, ids[:length], False, verdict))
    return made


@pytest.mark.parametrize(
    ("answers", "number"),
    [
        ([(9, True), (5, False), (7, True)], 2),
        ([(9, False), (5, False), (7, False)], 1),
        ([(5, True), (5, True)], 0),
        ([(3, False), (50, True)], 1),
    ],
)
def test_the_shortest_right_answer_is_chosen_else_the_shortest(answers, number) -> None:
    assert chosen(samples(*answers)).number == number


def kept(text: str, correct: bool = True, finished: bool = True, tokenizer: Any = None) -> Stored:
    """The row of a problem with the answer 4 and this one sample, which ends with an end token when `finished`."""
    tokenizer = tokenizer or byte_tokenizer()
    (ids,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    (one,) = samples((1, correct))
    one = dataclasses.replace(one, token_ids=ids + [tokenizer.eos_token_id] * finished, finished=finished)
    with Verifier(VerifyConfig(checker="exact")) as guard:
        return stored(problem(answer="4"), "q?", [one], tokenizer, guard)


def test_a_row_says_what_it_came_from() -> None:
    row = kept("Two.\n\nAnd two", correct=False)
    assert row == Stored("p0", question_sha256("q?"), ("Two.\n\n", "And two"), 13, 14, False, 0, False)


def test_the_end_token_is_dropped_and_an_answer_that_was_cut_loses_its_last_token() -> None:
    assert kept("abc").paragraphs == ("abc",)
    assert kept("abc", finished=False).paragraphs == ("ab",)
    assert kept("").paragraphs == kept("a", finished=False).paragraphs == ()


@pytest.mark.parametrize(
    ("text", "left", "leak"),
    [
        ("2+2\n</think>\nso \\boxed{4}", "2+2\n", False),
        ("think of 2+2. \\boxed{4}", "think of 2+2. ", True),
        ("we add\n2+2=4\n\\boxed{4}", "we add\n", True),
        ("we add\n2+2=4", "we add\n", True),
        ("one line, 2+2=4 it is", "one line, 2+2=", True),
        ("2+2=4\nbut let us check", "2+2=4\nbut let us check", False),
        ("2+2=5", "2+2=5", False),
    ],
)
def test_what_is_kept_does_not_end_with_the_answer(text, left, leak) -> None:
    row = kept(text)
    assert ("".join(row.paragraphs), row.leak) == (left, leak)


def test_a_closing_tag_that_is_a_special_token_still_ends_the_thought() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    assert "</think>" not in tokenizer.decode(tokenizer("a</think>b")["input_ids"], skip_special_tokens=True)
    assert kept("thought</think>said", tokenizer=tokenizer).paragraphs == ("thought",)


def test_noise_follows_from_seed_problem_and_number_alone() -> None:
    keys = [noise_key(seed, id, number) for seed in (1, 2) for id in ("a", "b", "é") for number in range(3)]
    assert len(set(keys)) == len(keys)
    assert noise_key(1, "a", 0) == noise_key(1, "a", 0)
    assert all(0 <= part < 2**32 for key in keys for part in key)


# stopping and continuing


@pytest.mark.parametrize("half", [b"", b'{"correct": true, "id": "arith'])
def test_a_killed_command_continues_to_the_same_store(whole, store, half, capsys) -> None:
    journal = cut(store, 5, half)
    make_store(run(), n=2, store=store, console=Console(soft_wrap=True))
    assert (store / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert sorted(lines(journal)) == sorted(lines(whole / "shard-0-of-1.jsonl"))
    shown = capsys.readouterr().out
    assert "has 5 of the 12 problems of this shard already" in shown
    assert "problems 7/7" in shown


def test_two_shards_make_the_store_of_one_without_ray_and_verl(whole, monkeypatch, capsys) -> None:
    for name in ("ray", "verl"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    console = Console(soft_wrap=True)
    assert make_store(run(), n=2, store="s", shard="1/2", console=console) == Path("s")
    assert not Path("s", FILE).exists()
    assert (
        "shard 1/2 is complete, shard 0/2 has 0 problems: the one that finishes last writes" in capsys.readouterr().out
    )
    make_store(run(), n=2, store="s", shard="0/2", console=console)
    assert Path("s", FILE).read_bytes() == (whole / FILE).read_bytes()
    assert [len(lines(Path("s", f"shard-{i}-of-2.jsonl"))) for i in (0, 1)] == [7, 7]


def test_shards_of_two_machines_are_put_together_by_the_command_once_more(here, monkeypatch) -> None:
    for i in (0, 1):
        make_store(run(), n=1, store=f"machine{i}", shard=f"{i}/2")
    shutil.copy(Path("machine1", "shard-1-of-2.jsonl"), "machine0")
    monkeypatch.setattr(sampling, "open_sampler", no_sampling)
    make_store(run(), n=1, store="machine0", shard="0/2")
    assert len(read(Path("machine0", FILE)).rows) == 12


def test_a_finished_store_is_left_as_it_is(store, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sampling, "open_sampler", no_sampling)
    before = (store / FILE).stat().st_mtime_ns
    make_store(run(), n=2, store=store, shard="3/4", console=Console(soft_wrap=True))
    assert (store / FILE).stat().st_mtime_ns == before
    assert "is complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "n", "difference"),
    [
        (["seed=2", "data.seed=1"], 3, r"data \w{18}... \(now \w{18}...\), n 2 \(now 3\), seed 1 \(now 2\)"),
        (["temperature=0.5", "top_k=3"], 2, r"temperature 1.0 \(now 0.5\), top_k -1 \(now 3\)"),
        (
            ["prompt=r1_zero", "max_prompt_tokens=440"],
            2,
            r"chat_template .*None\), max_prompt_tokens 48 \(now 440\), prompt ",
        ),
        (["verify.answer_after=last_think"], 2, r"verify.answer_after none \(now last_think\)"),
    ],
)
def test_a_store_is_continued_with_its_own_settings_only(store, args, n, difference) -> None:
    with pytest.raises(ConfigError, match=f"{FILE} was made with other settings: {difference}"):
        make_store(run(*args), n=n, store=store)
    before = cut(store, 5).read_bytes()
    with pytest.raises(ConfigError, match=f"shard-0-of-1.jsonl was made with other settings: {difference}"):
        make_store(run(*args), n=n, store=store)
    assert (store / "shard-0-of-1.jsonl").read_bytes() == before


def test_settings_may_change_as_long_as_nothing_would_be_lost(store, monkeypatch) -> None:
    cut(store, 0)
    make_store(run("seed=2"), n=1, store=store)
    assert read_facts(store / FILE).settings["seed"] == 2


def test_a_store_keeps_its_number_of_shards(store) -> None:
    cut(store, 5)
    with pytest.raises(ConfigError, match="shard-0-of-1.jsonl is one of 1 shards, not of 2: keep to 1, or choose"):
        make_store(run(), n=2, store=store, shard="1/2")


def test_a_damaged_line_is_named_and_a_line_written_twice_counts_once(whole, store) -> None:
    path = cut(store, 5)
    path.write_bytes(path.read_bytes() + lines(path)[5])
    make_store(run(), n=2, store=store)
    assert (store / FILE).read_bytes() == (whole / FILE).read_bytes()
    path = cut(store, 5, b"oh no\n")
    with pytest.raises(ConfigError, match="shard-0-of-1.jsonl, line 7 is damaged: remove that line"):
        make_store(run(), n=2, store=store)


def test_two_processes_do_not_share_a_shard(store) -> None:
    cut(store, 5)
    settings = journal.read_journal(store / "shard-0-of-1.jsonl").settings  # type: ignore[union-attr]
    with (
        journal.Journal.opened(store, journal.Shard(0, 1), settings, {}),
        pytest.raises(ConfigError, match="another process is at work on shard 0/1 of .*store: wait for it"),
    ):
        make_store(run(), n=2, store=store)


def stopping_after(problems: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampling.open_sampler

    @contextlib.contextmanager
    def stopping(*args: Any) -> Iterator[Any]:
        with real(*args) as sampler:

            class Stopping:
                def answers(self, asks: Any) -> Iterator[Answer]:
                    for number, answer in enumerate(sampler.answers(asks)):
                        if number == 2 * problems:
                            raise error
                        yield answer

            yield Stopping()

    monkeypatch.setattr(sampling, "open_sampler", stopping)


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_continue(whole, here, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        stopping_after(8, KeyboardInterrupt(), patch)
        assert cli.main(["prefixes", *SMALL, "n=2", "store=s"]) == 130
    message = capsys.readouterr().err
    have = len(lines(Path("s", "shard-0-of-1.jsonl"))) - 1
    assert message == f"reasonrl: interrupted; {have} problems are kept in s. Continue with the same command\n"
    assert 1 <= have <= 8
    assert cli.main(["prefixes", *SMALL, "n=2", "store=s"]) == 0
    assert read(Path("s", FILE)).rows == read(whole / FILE).rows


def test_a_crash_keeps_what_is_finished(here, monkeypatch, capsys) -> None:
    stopping_after(8, ZeroDivisionError("a bug"), monkeypatch)
    assert cli.main(["prefixes", *SMALL, "n=2", "store=s"]) == 1
    assert "give the same command again to continue" in capsys.readouterr().err
    assert len(lines(Path("s", "shard-0-of-1.jsonl"))) > 1


def test_a_full_disk_keeps_what_was_written_and_says_so(whole, store, monkeypatch, capsys) -> None:
    path = cut(store, 5)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise DiskFull(errno.ENOSPC, "disk full: continue with resume=")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append_line", full)
        with pytest.raises(
            DiskFull, match=f"disk full while writing to {store}: what was finished before is kept. Free"
        ):
            make_store(run(), n=2, store=store)
    assert path.read_bytes() == before
    make_store(run(), n=2, store=store)
    assert (store / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_a_place_that_cannot_be_written_is_told(here) -> None:
    (here / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write the store file/s \(Not a directory\): choose another store="):
        make_store(run(), n=1, store="file/s")


# arguments


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stor=x"], "Unknown key 'stor'; did you mean store"),
        (["shards=0/2"], "Unknown key 'shards'; did you mean shard"),
        (["temperatur=1"], "Unknown key 'temperatur'; did you mean temperature"),
        (["model=tyni"], "Unknown model 'tyni', and no such folder; did you mean tiny"),
        (["data.siz=3"], "Unknown setting of data source 'arithmetic': 'siz'. Did you mean 'size'"),
        (["tiny"], "'tiny' is not key=value; reasonrl prefixes --help lists the keys"),
        (["-m", "seed=1,2"], "'-m' is not key=value"),
        (["seed=1,2"], "seed=1,2 names several values: this command makes one store"),
        (["n=0"], "n must be a whole number of at least 1, got '0'"),
        (["n=many"], "n must be a whole number of at least 1, got 'many'"),
        (["n="], "n= is empty: give a value, or leave n= out"),
        (["shard=2"], "shard must be i/k with i in 0..k-1, such as 0/2 and 1/2, got '2'"),
        (["shard=2/2"], "shard must be i/k with i in 0..k-1"),
        (["out=x"], "out= is for run folders; a store's folder is store="),
        (["prefixes=x"], "prefixes= is what a run is given; here the store's folder is store="),
        (["resume=x"], "a store is continued by the same command"),
        (["engine=cluster", "ray_address=auto"], "engine=cluster: prefixes are sampled without Ray"),
        (["engine=cluster"], "On each machine use engine=gpu and a shard of its own, shard=0/2 and shard=1/2"),
        (["engine=gpu"], "engine=gpu and no NVIDIA GPU found"),
        (["engine=gpu", "engine.rollout=sglang"], "engine.rollout=sglang: prefixes are sampled with vllm"),
        (["max_prompt_tokens=2"], "12 of 12 prompts are longer than max_prompt_tokens=2, so nothing is left"),
        (["data=gsm8k", "data.path=nowhere"], "no file or folder nowhere"),
        (["max_new_tokens=5000"], "model tiny reads at most 512 tokens"),
        (["verify=exact", "verify.extract=box"], "Unknown verify.extract 'box'"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(args, message, here, capsys, monkeypatch) -> None:
    monkeypatch.setattr(provenance, "gpus", list)
    monkeypatch.setattr(sampling, "open_sampler", no_sampling)
    data = [] if args[0] == "data=gsm8k" else [arg for arg in SMALL if arg.startswith("data.")]
    model = [] if args[0].startswith("model=") else ["model=tiny"]
    assert cli.main(["prefixes", *model, *data, *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("reasonrl: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_the_gpu_engine_needs_vllm_and_as_many_gpus_as_a_model_is_split_over(monkeypatch, capsys) -> None:
    monkeypatch.setattr(provenance, "gpus", lambda: ["NVIDIA H200"] * 4)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name))
    with pytest.raises(ConfigError, match="samples with vllm, which is not installed: pip install 'reasonrl"):
        prefixes.checked(run("engine=gpu"), 1)
    with pytest.raises(ConfigError, match="engine.tensor_parallel=8 but this machine has 4 GPUs"):
        prefixes.checked(run("engine=gpu", "engine.tensor_parallel=8"), 1)
    console = Console(soft_wrap=True)
    prefixes.tell_idle_gpus(typed(run("engine=gpu", "engine.tensor_parallel=2")), journal.Shard(0, 1), console)
    assert (
        "2 of 4 GPUs (engine.tensor_parallel): to use all, CUDA_VISIBLE_DEVICES=... and shard=i/2"
        in capsys.readouterr().out
    )
    prefixes.tell_idle_gpus(typed(run("engine=gpu")), journal.Shard(0, 4), console)
    assert capsys.readouterr().out == ""


def test_own_keys_stand_beside_those_of_a_run() -> None:
    own, rest = parse(["model=tiny", "n=4", "recipe=a/b", "store=x=y", "method.n=3", "shard=0/2"])
    assert own == {"n": "4", "store": "x=y", "shard": "0/2"}
    assert rest == ["model=tiny", "recipe=a/b", "method.n=3"]


def test_the_command_prints_what_it_made_and_how_to_use_it(here, capsys) -> None:
    assert cli.main(["prefixes", *SMALL, "n=2"]) == 0
    shown = capsys.readouterr().out
    assert "12 training problems, 2 answers each" in shown
    assert "problems 12/12  right answers" in shown
    assert "without a right answer  " in shown
    assert "store                   prefixes/tiny-arithmetic/prefixes.parquet" in shown
    assert f"use it with: reasonrl method=pace {' '.join(SMALL)} prefixes=prefixes/tiny-arithmetic" in shown
    facts = read_facts(Path("prefixes", "tiny-arithmetic", FILE))
    assert facts.about["command"] == ["reasonrl", "prefixes", *SMALL, "n=2"]


@pytest.mark.parametrize("args", [[], ["--help"], ["model=tiny", "-h"]])
def test_help_is_printed(args, capsys) -> None:
    assert cli.main(["prefixes", *args]) == 0
    assert "keeps the opening of its shortest right answer" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from reasonrl.cli import main; main(['prefixes', '--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for heavy in ("torch", "transformers", "ray", "verl", "vllm", "numpy", "pyarrow", "rich"):
        assert f"'{heavy}'" not in done.stdout, heavy


# models


@pytest.fixture
def copied(here: Path) -> Path:
    """The embedded model in ./m."""
    return Path(shutil.copytree(TINY, here / "m"))


def test_a_model_is_known_by_its_files_not_by_its_folder(copied) -> None:
    known = models.model_fingerprint(str(TINY))
    assert models.model_fingerprint(str(copied)) == known
    (copied / "README.md").write_text("other words")
    assert models.model_fingerprint(str(copied)) == known
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    changed = set()
    for content in (b"x" + whole[1:], whole[:-1] + b"x", whole + b"x"):
        weights.write_bytes(content)
        changed.add(models.model_fingerprint(str(copied)))
    weights.write_bytes(whole)
    (copied / "config.json").write_text((copied / "config.json").read_text() + "\n")
    changed.add(models.model_fingerprint(str(copied)))
    assert len(changed | {known}) == 5


def test_the_weights_of_a_model_are_those_its_index_names(copied) -> None:
    (copied / "extra.safetensors").touch()
    (copied / "pytorch_model.bin").touch()
    assert [f.name for f in models.weight_files(copied)] == ["extra.safetensors", "model.safetensors"]
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert [f.name for f in models.weight_files(copied)] == ["model.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "missing.safetensors"}}))
    assert models.weight_files(copied) == []


def test_a_hub_model_is_known_by_its_cached_files_else_by_its_name(copied, monkeypatch) -> None:
    cached: Any = None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: cached)
    assert models.model_fingerprint("owner/model") == "hub-owner/model@main"
    cached = str(copied / "config.json")
    assert models.model_fingerprint("owner/model") == models.model_fingerprint(str(TINY))
    (copied / "model.safetensors").unlink()
    assert models.model_fingerprint("owner/model") == "hub-owner/model@m"


def test_the_weights_of_a_hub_model_are_fetched_first(copied, monkeypatch) -> None:
    asked = []

    def download(name: str, allow_patterns: Sequence[str]) -> str:
        asked.append((name, allow_patterns[-1]))
        return str(copied)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    models.fetch("owner/model")
    assert asked == [("owner/model", "*.safetensors")]
    (copied / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="model owner/model has no weights on the hub"):
        models.fetch("owner/model")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match="cannot download model owner/model: .*model=<folder>.*ZeroDivisionError"):
        models.fetch("owner/model")


# a run that starts from a store


@dataclass(frozen=True)
class Opening(Plain):
    """A policy that reads stored prefixes."""

    needs = frozenset({"stored_prefix"})


OPENING = Method("opening", prefix=Opening(2))
RUN = ["batch=4", "name=r"]


def plan(*args: str, method: Method = OPENING) -> Plan:
    return prepare(run(*RUN, *args), method)


def built(made: Plan) -> tuple[RunFolder, dict[str, str], Any]:
    """The run's data, made as a run makes it before Ray is started."""
    folder = RunFolder.create(made.folder)
    tokenizer = launching.load_tokenizer(made.cfg)
    return folder, launching.build_data(made, folder, tokenizer, Console(soft_wrap=True)), tokenizer


def dataset(made: Plan, parquet: str, tokenizer: Any) -> ProblemDataset:
    own = {"prompt": made.cfg.prompt, "overlong": "drop", "prompts": {}}
    config = OmegaConf.create({"max_prompt_length": made.cfg.max_prompt_tokens, "reasonrl": own})
    return ProblemDataset([parquet], tokenizer, config)


def test_a_method_without_anything_to_start_from_is_told_the_command(here) -> None:
    with pytest.raises(
        ConfigError, match="opening starts .* `reasonrl prefixes model=tiny data=arithmetic` .*=<store>"
    ):
        plan()
    assert list(here.iterdir()) == []


def test_a_store_for_a_method_that_reads_none_is_refused(store) -> None:
    with pytest.raises(ConfigError, match="grpo with these settings reads no stored prefixes: leave prefixes= out"):
        prepare(run("method=grpo", f"prefixes={store}"))


def test_a_run_takes_a_store_into_its_folder_and_gives_it_to_its_problems(store, capsys) -> None:
    made = plan(f"prefixes={store}")
    folder, data, tokenizer = built(made)
    assert "prefixes: 12 of 12 problems have one; " in capsys.readouterr().out.replace("\n", "")
    own = folder.path / "data" / FILE
    assert own.read_bytes() == (store / FILE).read_bytes()
    rows = read(own).rows
    shutil.rmtree(store)
    for item in dataset(made, data["train"], tokenizer).problems:
        assert tokenizer.decode([i for ids in item.stored_prefix for i in ids]) == "".join(rows[item.id].paragraphs)
        assert sum(len(ids) for ids in item.stored_prefix) == rows[item.id].prefix_tokens
    assert {item.stored_prefix for item in dataset(made, data["val"], tokenizer).problems} == {()}
    launching.start_records(made, folder, tokenizer, data, "seams")
    noted = folder.provenance()["prefixes"]
    assert noted["sha256"] == hashlib.sha256(own.read_bytes()).hexdigest()
    assert noted["settings"]["n"] == 2


def test_problems_that_the_store_lacks_start_plain_and_are_counted_once(store, capsys) -> None:
    made = plan(f"prefixes={store / FILE}", "data.size=15")
    _, data, tokenizer = built(made)
    shown = capsys.readouterr().out.replace("\n", "")
    assert "prefixes: 12 of 15 problems have one; 3 are not in the store, which start plain; " in shown
    assert sum(not item.stored_prefix for item in dataset(made, data["train"], tokenizer).problems) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prefixes=nowhere"], r"no store of prefixes at nowhere \(here: .*`reasonrl prefixes`"),
        (
            ["prefixes=store", "prompt=r1_zero", "max_prompt_tokens=400"],
            "after another prompt: plain, .*prompt=r1_zero",
        ),
        (["prefixes=store", "prompt.user='{question} ?'"], "written after another prompt: plain"),
        (
            ["prefixes=store", "model=./m", "engine=cpu", "prompt=plain", "max_prompt_tokens=48"],
            r"by another model: tiny \(files-.*trains m \(files-",
        ),
    ],
)
def test_a_store_of_something_else_is_refused_before_anything_is_made(args, message, store, copied) -> None:
    (copied / "config.json").write_text((copied / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match=message):
        plan(*args)
    assert not Path("runs").exists()


def test_a_hub_model_whose_weights_are_not_here_yet_is_known_by_its_name(store, monkeypatch) -> None:
    found = read(store / FILE)
    facts = dataclasses.replace(found.facts, about={**found.facts.about, "path": "owner/model"})
    write(store / FILE, list(found.rows.values()), facts)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    hub = ["model=owner/model", "engine=cpu", "prompt=plain", "max_prompt_tokens=48"]
    assert plan(f"prefixes={store}", *hub).cfg.model.path == "owner/model"
    with pytest.raises(ConfigError, match="by another model"):
        plan(f"prefixes={store}", "model=owner/other", *hub[1:])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "tokenizer.json",
            '"normalizer": null',
            '"normalizer": {"type": "Lowercase"}',
            "tokenizer",
        ),
        ("chat_template.jinja", "'<|user|>'", "'<|user|> '", "chat template"),
    ],
)
def test_a_store_of_other_tokens_is_refused_when_the_data_is_built(file, old, new, message, store, copied) -> None:
    text = (copied / file).read_text()
    assert old in text
    (copied / file).write_text(text.replace(old, new))
    made = plan("prefixes=store", "model=./m", "engine=cpu", "prompt=plain", "max_prompt_tokens=48")
    with pytest.raises(ConfigError, match=f"store was made with another {message} than that of model"):
        built(made)


def test_a_store_of_other_data_is_refused_when_the_data_is_built(store) -> None:
    with pytest.raises(ConfigError, match="store is of other data: none of the 12 training problems"):
        built(plan("prefixes=store", "data.digits=3"))


@pytest.fixture
def resumable(store: Path) -> RunFolder:
    """A run that has begun; the store it was made from is gone."""
    made = plan("prefixes=store")
    folder, data, tokenizer = built(made)
    launching.start_records(made, folder, tokenizer, data, "seams")
    shutil.rmtree(store)
    return folder


def test_a_resumed_run_reads_the_store_in_its_folder(resumable) -> None:
    made = prepare(composed([f"resume={resumable.path}"]), OPENING)
    data = launching.build_data(made, resumable, launching.load_tokenizer(made.cfg), Console(quiet=True))
    assert beside(Path(data["train"])) == resumable.path / "data" / FILE


def test_a_resumed_run_refuses_a_store_that_is_gone_or_changed(resumable) -> None:
    own = resumable.path / "data" / FILE
    own.write_bytes(own.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=f"{FILE} changed since the run started from it"):
        prepare(composed([f"resume={resumable.path}"]), OPENING)
    own.unlink()
    with pytest.raises(ConfigError, match=f"{FILE} is gone: the run started from it. Restore it, from store if"):
        prepare(composed([f"resume={resumable.path}"]), OPENING)
    args = [f"resume={resumable.path}", "prefixes=another"]
    with pytest.raises(ConfigError, match="prefixes cannot change"):
        prepare(composed(args), OPENING, args)


@pytest.fixture
def verl_files(here: Path) -> Callable[[Sequence[list[str] | None]], list[str]]:
    """Arguments for training data that brings these prefixes itself."""

    def made(prefixes: Sequence[list[str] | None]) -> list[str]:
        for split, texts in (("train", prefixes), ("validation", [None])):
            rows = [
                {
                    "prompt": [{"role": "user", "content": f"{split}{i}"}],
                    "reward_model": {"ground_truth": "1"},
                    "extra_info": {"id": f"{split}{i}", "stored_prefix": own},
                }
                for i, own in enumerate(texts)
            ]
            kind = pa.struct([("id", pa.string()), ("stored_prefix", pa.list_(pa.string()))])
            table = pa.Table.from_pylist(rows)
            extra = pa.array([row["extra_info"] for row in rows], kind)
            pq.write_table(table.set_column(2, "extra_info", extra), here / f"{split}.parquet")
        return ["data=verl", "data.path=train.parquet", "data.val_path=validation.parquet", "batch=2"]

    return made


def files_run(args: Sequence[str]) -> Plan:
    return prepare(composed(["model=tiny", "name=r", *args]), OPENING)


def test_data_that_brings_prefixes_needs_no_store(verl_files, capsys) -> None:
    made = files_run(verl_files([["1+1\n\n", "2"], None, []]))
    _, data, tokenizer = built(made)
    assert "prefixes: 1 of 3 problems bring one, the others start plain" in capsys.readouterr().out
    assert [len(item.stored_prefix) for item in dataset(made, data["train"], tokenizer).problems] == [2, 0, 0]


def test_data_without_prefixes_is_refused_when_it_is_read(verl_files) -> None:
    with pytest.raises(ConfigError, match="opening starts its rollouts with stored prefixes, and there are none"):
        built(files_run(verl_files([None, None])))
