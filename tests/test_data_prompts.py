"""Prompts: what a model is given, for every template and kind of tokenizer."""

from pathlib import Path

import pytest
import yaml
from data_builders import byte_tokenizer

from reasonrl import conf
from reasonrl.data.prompts import Prompt, chat_template_hash, prompt_from_config

FILES = sorted((Path(next(iter(conf.__path__))) / "prompt").glob("*.yaml"))
BRACES = r"Solve \boxed{x} for {question} and {0}"


def prompt(**changes: object) -> Prompt:
    return Prompt(**{"name": "t", "kind": "chat", "user": "Q: {question}", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("file", FILES, ids=[f.stem for f in FILES])
def test_every_template_loads_and_holds_the_question_literally(file: Path) -> None:
    loaded = prompt_from_config(yaml.safe_load(file.read_text()))
    assert loaded.name == file.stem
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(loaded.encode(BRACES, tokenizer))
    assert text.count(BRACES) == 1
    assert text.replace(BRACES, "").count("question}") == 0
    assert loaded.encode_many([BRACES, "2"], tokenizer)[0] == loaded.encode(BRACES, tokenizer)


def test_the_documented_templates_are_all_there() -> None:
    assert {file.stem for file in FILES} >= {"boxed", "orz", "r1_zero", "simplerl", "answer_tag", "plain"}


def test_what_the_templates_promise() -> None:
    made = {file.stem: prompt_from_config(yaml.safe_load(file.read_text())) for file in FILES}
    assert made["boxed"].user.endswith(r"put your final answer within \boxed{}.")
    assert made["orz"].user.endswith("{question}\nAssistant: <think>")
    assert r"\boxed{} tag" in made["orz"].user
    assert made["r1_zero"].user.endswith("User: {question}. Assistant:")
    assert made["plain"].user == "{question}"
    for text in ("orz", "r1_zero"):
        assert made[text].kind == "text"
        assert "  " not in made[text].user
    for tagged in ("orz", "r1_zero", "answer_tag"):
        assert all(tag in made[tagged].user for tag in ("<think>", "</think>", "<answer>", "</answer>"))


def test_chat_prompts_follow_the_tokenizers_own_template() -> None:
    tokenizer = byte_tokenizer()
    with_system = prompt(system="Be brief.")
    ids = with_system.encode("2+2", tokenizer)
    assert tokenizer.decode(ids) == "<|system|>Be brief.<|end|><|user|>Q: 2+2<|end|><|assistant|>"
    own = tokenizer.apply_chat_template(with_system.messages("2+2"), add_generation_prompt=True, tokenize=True)
    assert ids == list(own["input_ids"] if hasattr(own, "keys") else own)
    assert prompt().messages("2+2") == [{"role": "user", "content": "Q: 2+2"}]


def test_a_chat_prompt_adds_no_special_tokens_of_its_own() -> None:
    plain, adding = byte_tokenizer(), byte_tokenizer(bos=True, eos=True)
    assert prompt().encode("2+2", plain) == prompt().encode("2+2", adding)


def test_a_text_prompt_begins_once_and_never_ends_itself() -> None:
    text = prompt(kind="text", user="User: {question}. Assistant:")
    assert byte_tokenizer().decode(text.encode("2", byte_tokenizer())) == "User: 2. Assistant:"
    adding = byte_tokenizer(bos=True, eos=True)
    assert adding.decode(text.encode("2", adding)) == "<s>User: 2. Assistant:"
    written = prompt(kind="text", user="<s>User: {question}. Assistant:")
    assert adding.decode(written.encode("2", adding)) == "<s>User: 2. Assistant:"


def test_text_prompts_need_no_chat_template_and_chat_prompts_say_so() -> None:
    bare = byte_tokenizer(chat=False)
    assert prompt(kind="text").encode("2", bare)
    with pytest.raises(ValueError, match=r"no chat template\. Use a text prompt"):
        prompt().encode("2", bare)


def test_nothing_is_asked_of_the_tokenizer_for_no_questions() -> None:
    assert prompt().encode_many([], None) == []


def test_the_hash_is_that_of_what_the_model_reads() -> None:
    assert prompt().hash == prompt(name="other").hash
    changed = [prompt(user="q: {question}"), prompt(system=""), prompt(kind="text")]
    assert len({p.hash for p in (prompt(), *changed)}) == 4
    # A recorded value: changing it breaks the provenance of every earlier run.
    assert prompt().hash == "2384f9591bd82af699fa12910b6e4367443fb8dcf254f8ec6c489b46bb69b662"


def test_the_chat_template_has_a_hash_of_its_own() -> None:
    assert chat_template_hash(byte_tokenizer(chat=False)) is None
    known = chat_template_hash(byte_tokenizer())
    other = byte_tokenizer()
    other.chat_template += " "
    assert known is not None
    assert known != chat_template_hash(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "chatt"}, r"Unknown prompt\.kind 'chatt'\. Did you mean 'chat'"),
        ({"user": "no slot"}, "must hold {question} exactly once"),
        ({"user": "{question} {question}"}, "must hold {question} exactly once"),
        ({"kind": "text", "system": "x"}, "has no system turn"),
    ],
)
def test_impossible_prompts_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt(**changes)


def test_unknown_keys_name_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown setting in prompt 'usr'\. Did you mean 'user'"):
        prompt_from_config({"name": "t", "kind": "chat", "usr": "{question}"})
    with pytest.raises(ValueError, match=r"prompt lacks user: give prompt\.user="):
        prompt_from_config({"name": "t", "kind": "chat"})
    with pytest.raises(ValueError, match=r"prompt\.system must be str or null, got 3"):
        prompt_from_config({"name": "t", "kind": "chat", "user": "{question}", "system": 3})
