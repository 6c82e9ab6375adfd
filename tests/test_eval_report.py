"""The page of an evaluation: its numbers are those of results.json, nothing a model wrote runs, and it works in Chromium.

The tests of the second half open the page in a headless Chromium, driven by chromedriver; both are packages of Debian. They
are skipped where one is missing, and fail with CI=true and REASONRL_NEED_CHROMIUM=1. REASONRL_CHROMIUM names a browser that
is not on the PATH; REASONRL_SCREENSHOT=docs/images/eval_report.png keeps the picture that one of them takes.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_builders import arithmetic_rows, results_of, row, write_folder

from reasonrl.config import ConfigError
from reasonrl.eval.report import run, write_report
from reasonrl.eval.report.charts import LEFT, RIGHT, accuracy_chart, bin_edges, length_chart, token_axis
from reasonrl.eval.report.latex import symbols
from reasonrl.eval.report.samples import fitting_limit, without_middle

SCRIPT = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
LEFT_OUT = re.compile(r"(.*)\n\[\.\.\. ([\d,]+) characters left out here \.\.\.\]\n(.*)", re.DOTALL)
VOID = ("meta", "input", "br", "img")


class Page(HTMLParser):
    """Elements of a page in their order, each with its attributes, text and ancestors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        element = {"tag": tag, "text": "", "above": list(self._open), **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append({"tag": tag, "text": "", "above": list(self._open), **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data

    def all(self, tag: str, inside: dict[str, Any] | None = None, **attributes: str) -> list[dict[str, Any]]:
        return [
            e
            for e in self.elements
            if e["tag"] == tag
            and attributes.items() <= e.items()
            and (inside is None or any(above is inside for above in e["above"]))
        ]

    def one(self, tag: str, **attributes: str) -> dict[str, Any]:
        (element,) = self.all(tag, **attributes)
        return element

    def values(self, inside: dict[str, Any]) -> list[float]:
        """The numbers shown inside an element."""
        return [float(e["value"]) for e in self.all("data", inside)]

    def samples(self) -> dict[str, Any]:
        """What the page carries for its list."""
        return json.loads(gzip.decompress(base64.b64decode(self.one("script", id="packed")["text"])))


def page_of(folder: Path, **options: Any) -> Page:
    return Page(write_report(folder, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    rows = arithmetic_rows(40, 4, seed=1) + arithmetic_rows(30, 4, task="hard", skill=0.4, seed=2)
    rows[5] |= {"correct": False, "status": "timeout", "message": "2 s"}
    return write_folder(tmp_path_factory.mktemp("evals") / "first", rows)


# What stands on it


def test_the_table_shows_the_numbers_of_the_results(made) -> None:
    results = json.loads((made / "results.json").read_text())
    page = page_of(made)
    table = page.one("table", id="results-table")
    rows = page.all("tr", table)
    for name, task in results["tasks"].items():
        (shown,) = [r for r in rows if r.get("data-task") == name]
        assert page.values(shown) == [
            *(task["accuracy"][key] for key in ("estimate", "low", "high")),
            *(task["tokens"][key] for key in ("mean", "correct", "wrong")),
            task["rates"]["truncated"]["share"],
            task["rates"]["no_answer"]["share"],
            task["ungraded"],
            task["minimum_detectable_difference"]["value"],
            task["problems"],
            task["samples"],
        ]
        accuracy = task["accuracy"]
        told = f"{100 * accuracy['estimate']:.1f} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
        assert told in " ".join(shown["text"].split())
    assert page.values(page.one("tfoot")) == [results["mean"]["accuracy"]]


def test_pass_at_k_and_majority_votes_have_a_column_for_every_k(made) -> None:
    results = json.loads((made / "results.json").read_text())
    page = page_of(made)
    for name, task in results["tasks"].items():
        for measure, found in (("pass@k", task["pass_at_k"]), ("maj@k", task["maj_at_k"])):
            shown = page.one("tr", **{"data-task": name, "data-measure": measure})
            assert page.values(shown) == [found[k][key] for k in found for key in ("estimate", "low", "high")]


def test_one_sample_a_problem_needs_no_table_of_votes(tmp_path) -> None:
    page = page_of(write_folder(tmp_path / "e", arithmetic_rows(20, 1)))
    assert page.all("table", id="several-table") == []


def test_the_page_carries_every_sample_as_it_is(made) -> None:
    carried = page_of(made).samples()
    for i, sample in enumerate(pq.read_table(made / "samples.parquet").to_pylist()):
        assert carried["tasks"][carried["task"][i]] == sample.pop("task")
        assert {name: carried[name][i] for name in sample} == sample


def test_hashes_are_shortened_and_versions_shown(made) -> None:
    text = write_report(made).read_text()
    assert "3f3f3f3f3f3f…" in text
    assert "3f" * 10 not in text
    assert "transformers <b>5.9.0</b>" in text


def test_the_same_folder_gives_the_same_page_at_any_time(made, monkeypatch) -> None:
    first = write_report(made).read_bytes()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert write_report(made).read_bytes() == first


def test_parts_of_a_score_reach_the_page(tmp_path) -> None:
    rows = [row(id=f"i/{i}", parts={"prompt_strict": 1.0, "prompt_loose": 0.5}) for i in range(3)]
    results = results_of(rows)
    results["tasks"]["sums"]["parts"] = {"prompt_strict": {"estimate": 0.25, "low": 0.125, "high": 0.5}}
    page = page_of(write_folder(tmp_path / "e", rows, results))
    assert page.samples()["parts"][0] == {"prompt_strict": 1.0, "prompt_loose": 0.5}
    (table,) = [t for t in page.all("table") if "Parts of the score" in t["text"]]
    assert page.values(table) == [0.25, 0.125, 0.5]


def test_numbers_that_there_are_none_of_are_a_dash(tmp_path) -> None:
    rows = arithmetic_rows(10, 1, skill=-9.0)
    page = page_of(write_folder(tmp_path / "e", rows))  # none is right, so there is no mean length of the right ones
    shown = page.one("table", id="results-table")["text"]
    assert "–" in shown
    assert "None" not in shown


SILENT = {"correct": False, "extracted": None}


@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row(status="prompt_too_long", text="", tokens=0, **SILENT)],
        [row(id=f"s/{i}", status=s, **SILENT) for i, s in enumerate(("no_answer", "timeout", "error", "no_judge"))],
        [row(id=f"s/{i}", text="", tokens=0) for i in range(3)],
        [row(id=f"s/{i}", tokens=4**i) for i in range(8)],
        [row(id="s/0"), row(id="s/0", number=1), row(id="s/1")],
    ],
    ids=["one", "never asked", "not graded", "empty", "all lengths", "uneven"],
)
def test_a_page_of_few_or_odd_samples(tmp_path, rows) -> None:
    page = page_of(write_folder(tmp_path / "e", rows))
    assert page.values(page.one("table", id="results-table"))[-1] == len(rows)
    assert "None" not in page.one("main")["text"]
    assert "nan" not in page.one("main")["text"].split()


def test_every_control_has_a_label_and_every_table_its_headers(made) -> None:
    page = page_of(made)
    for control in (*page.all("input"), *page.all("select")):
        assert any(above["tag"] == "label" and above["text"].strip() for above in control["above"]), control["id"]
    for table in page.all("table"):
        assert page.all("caption", table)[0]["text"].strip()
        assert all(e.get("scope") in ("col", "row", "colgroup") for e in page.all("th", table))
    for chart in page.all("svg"):
        assert chart["role"] == "img"
        assert len(chart["aria-label"]) > 20


# What a model or a file may hold


def test_nothing_that_a_model_or_a_name_says_becomes_html(tmp_path) -> None:
    rows = [
        row(task=SCRIPT, id=f"{SCRIPT}{i}", text=SCRIPT, gold=SCRIPT, extracted=SCRIPT, category=SCRIPT)
        for i in range(3)
    ]
    results = results_of(rows, name=SCRIPT, notes=[SCRIPT], protocol=SCRIPT, versions={SCRIPT: SCRIPT})
    results["model"]["name"] = SCRIPT
    results["tasks"][SCRIPT] |= {"title": SCRIPT, "citation": SCRIPT, "origin": SCRIPT}
    page = page_of(write_folder(tmp_path / "e", rows, results))
    assert [e.get("id") for e in page.all("script")] == ["symbols", "packed", None]
    assert page.all("img") == []
    assert [e for e in page.elements if any(key.startswith("on") for key in e)] == []
    assert page.one("h1")["text"] == SCRIPT
    assert page.samples()["text"] == [SCRIPT] * 3


def test_the_page_allows_its_own_script_only_and_no_network(made) -> None:
    page = page_of(made)
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
    for tag in ("style", "script"):
        own = next(e for e in page.all(tag) if "id" not in e)["text"]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    links = [e[key] for e in page.elements for key in ("src", "href", "action", "data") if key in e]
    assert [link for link in links if not link.startswith("#")] == []


def test_an_answer_of_any_length_is_shown_short(tmp_path) -> None:
    rows = [row(id=f"a/{i}", extracted="7" * 100_000, message="m" * 100_000) for i in range(2)]
    carried = page_of(write_folder(tmp_path / "e", rows)).samples()
    for name in ("extracted", "message"):
        assert len(carried[name][0]) < 2_100
        assert "98,000 characters left out here" in carried[name][0]


# The size


def test_long_texts_lose_their_middle_and_the_page_says_so(tmp_path) -> None:
    texts = ["short"] * 8 + ["a" * 4_000 + "z" * 4_000, "ü" * 5_000]
    folder = write_folder(tmp_path / "e", [row(id=f"s/{i}", text=text) for i, text in enumerate(texts)])
    page = page_of(folder, text_bytes=6_040)
    carried = page.samples()["text"]
    # 40 bytes are short texts, so 6,000 remain for the two long ones
    assert carried[:8] == texts[:8]
    assert carried[8] == "a" * 1_500 + "\n[... 5,000 characters left out here ...]\n" + "z" * 1_500
    assert carried[9] == "ü" * 750 + "\n[... 3,500 characters left out here ...]\n" + "ü" * 750
    told = page.one("p", id="elided")["text"]
    assert "2 of 10 texts are longer than 3,000 bytes" in told
    assert page_of(folder).all("p", id="elided") == []


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 300))
def test_the_limit_is_the_largest_that_fits(sizes, budget) -> None:
    limit = fitting_limit(sizes, budget)
    if limit is None:
        assert sum(sizes) <= budget
    else:
        assert sum(min(size, limit) for size in sizes) <= budget < sum(min(size, limit + 1) for size in sizes)


@given(st.text(max_size=60), st.integers(1, 40))
def test_both_ends_of_a_text_are_kept(text, limit) -> None:
    short = without_middle(text, limit)
    if len(text.encode()) <= limit:
        assert short == text
        return
    head, told, tail = LEFT_OUT.fullmatch(short).groups()
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len((head + tail).encode()) <= limit
    assert len(head) + int(told.replace(",", "")) + len(tail) == len(text)


# The charts


def test_every_sample_is_in_one_bar(made) -> None:
    page = page_of(made)
    results = json.loads((made / "results.json").read_text())
    for article in page.all("article"):
        task = results["tasks"][article["data-task"]]
        counts = dict.fromkeys(("right", "wrong", "truncated"), 0)
        for title in page.all("title", article):
            if found := re.fullmatch(r".* tokens: ([\d,]+) (right|wrong|truncated)", title["text"]):
                counts[found[2]] += int(found[1].replace(",", ""))
        assert sum(counts.values()) == task["samples"]
        assert counts["truncated"] == task["rates"]["truncated"]["count"] > 0
        # made-up answers that are cut are never right
        assert counts["right"] == round(task["accuracy"]["estimate"] * task["samples"])


def test_a_point_stands_at_its_accuracy_over_its_lengths() -> None:
    axis = token_axis(np.array([50, 100]))
    found = {"low": 25, "high": 75, "samples": 4, "accuracy": 0.5, "low_ci": 0.25, "high_ci": 1.0}
    empty = {"low": 75, "high": 100, "samples": 0, "accuracy": None, "low_ci": None, "high_ci": None}
    (point,) = accuracy_chart([found, empty], axis).points
    # 404 units for 100 tokens, from 48 on; 174 units for all accuracies, from 200 up to 26
    assert (point.left, point.right) == (149.0, 351.0)
    assert (point.bottom, point.y, point.top) == (156.5, 113.0, 26.0)
    assert point.text == "25 to 75 tokens: accuracy 50.0 % [25.0, 100.0], 4 samples"


def test_lengths_of_several_magnitudes_get_a_logarithmic_axis() -> None:
    assert not token_axis(np.array([10, 100, 256])).log
    axis = token_axis(np.array([16, 40, 16384]))
    assert axis.log
    assert [tick.label for tick in axis.ticks()] == ["16", "64", "256", "1,024", "4,096", "16,384"]
    steps = np.diff([tick.at for tick in axis.ticks()])
    assert np.allclose(steps, steps[0], atol=0.02)  # positions are rounded to a hundredth


@given(st.lists(st.tuples(st.integers(0, 40_000), st.booleans(), st.booleans()), max_size=30))
def test_any_lengths_can_be_drawn(samples) -> None:
    tokens = np.array([t for t, _, _ in samples], dtype=np.int64)
    correct, finished = (np.array([s[i] for s in samples], dtype=bool) for i in (1, 2))
    axis = token_axis(tokens)
    chart = length_chart(tokens, correct, finished, axis)
    assert sum(panel.count for panel in chart.panels) == len(samples)
    assert 2 <= len(chart.x) <= 6
    for panel in chart.panels:
        # the bars hold all answers with a length; an empty answer has no place on a logarithmic axis
        held = sum(int(bar.text.split(": ")[1].split()[0]) for bar in panel.bars)
        chosen = {"right": correct & finished, "wrong": ~correct & finished, "truncated": ~finished}[panel.kind]
        assert held == (chosen & ((tokens > 0) | (not axis.log))).sum()
        for bar in panel.bars:
            assert LEFT <= bar.x <= bar.x + bar.width <= RIGHT + 1
            assert panel.top <= bar.y <= bar.y + bar.height <= panel.bottom + 0.01
    edges = bin_edges(axis)
    assert (np.diff(edges) >= 1).all()
    assert edges.size <= 34


def test_a_prompt_that_was_never_asked_is_in_no_histogram(tmp_path) -> None:
    asked = [row(id=f"a/{i}", tokens=20 + i) for i in range(4)]
    skipped = [
        row(id="a/9", status="prompt_too_long", correct=False, finished=False, tokens=0, text="", extracted=None)
    ]
    page = page_of(write_folder(tmp_path / "e", [*asked, *skipped]))
    (chart,) = [s for s in page.all("svg") if "histograms" in s["aria-label"]]
    assert chart["aria-label"].endswith("4 right, 0 wrong, 0 truncated")


# What cannot be shown


def broken(folder: Path, change: Callable[[Path], object]) -> Path:
    change(write_folder(folder, arithmetic_rows(4, 2)))
    return folder


def changed_results(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text())
        change(results)
        (folder / "results.json").write_text(json.dumps(results))

    return write


def without_column(folder: Path) -> None:
    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(table.drop_columns(["gold"]), folder / "samples.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "results.json").unlink(),
            r"results.json does not exist: name the folder of an evaluation that ended",
        ),
        (
            lambda f: (f / "results.json").write_text("{"),
            r"results.json cannot be read .*give the `reasonrl eval` command",
        ),
        (lambda f: (f / "results.json").write_text("[]"), r"results.json holds no JSON object"),
        (
            lambda f: (f / "samples.parquet").unlink(),
            r"samples.parquet does not exist: give the `reasonrl eval` command",
        ),
        (lambda f: (f / "samples.parquet").write_bytes(b"PAR1"), r"samples.parquet cannot be read"),
        (without_column, r"samples.parquet has no column gold"),
        (changed_results(lambda r: r.update(schema=2)), r"has schema 2 and this version of reasonrl reads schema 1"),
        (
            changed_results(lambda r: r["tasks"]["arithmetic"].update(samples=9)),
            r"counts 9 samples of arithmetic.* holds 8",
        ),
        (changed_results(lambda r: r["tasks"].clear()), r"counts 0 samples of arithmetic, samples.parquet holds 8"),
        (
            changed_results(lambda r: r["tasks"]["arithmetic"].pop("tokens")),
            r"results.json lacks what the report shows .*tokens",
        ),
        (changed_results(lambda r: r.pop("model")), r"results.json lacks what the report shows .*model"),
    ],
)
def test_a_folder_that_cannot_be_shown_says_why(tmp_path, change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        write_report(broken(tmp_path / "e", change))
    assert not (tmp_path / "e" / "report.html").exists()


def test_the_command_writes_the_page_and_says_where(made, capsys) -> None:
    assert run([str(made)]) == 0
    assert str(made / "report.html") in capsys.readouterr().out
    assert run([str(made), "text_mb=1"]) == 0
    assert run(["--help"]) == 0
    assert "reasonrl eval report FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "b"], r"reasonrl eval report FOLDER \[text_mb=30\]: one folder at a time, got 2"),
        (["a", "--wide"], r"unknown option '--wide'"),
        (["a", "text_mb=0"], r"text_mb must be a whole number of at least 1, got '0'"),
        (["no/such"], r"no/such/results.json does not exist"),
    ],
)
def test_the_command_refuses(args, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run(args)


def test_the_table_of_symbols_has_mathematics_and_no_alphabets() -> None:
    found = symbols()
    assert {name: found[name] for name in ("alpha", "leq", "sum", "rightarrow")} == {
        "alpha": "α",
        "leq": "≤",
        "sum": "∑",
        "rightarrow": "→",
    }
    assert not {"o", "l", "CYRA", "textdegree", "today", "ref"} & set(found)


# In a browser

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,1400",
)


def no_browser(reason: str) -> None:
    """Skip; or fail, where the environment asks for the browser."""
    if os.environ.get("CI") == "true" and os.environ.get("REASONRL_NEED_CHROMIUM") == "1":
        pytest.fail(f"REASONRL_NEED_CHROMIUM=1 and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    named = os.environ.get("REASONRL_CHROMIUM")
    program = next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        lacking = named or "chromium" if program is None else "chromedriver"
        no_browser(f"{lacking} is not there (Debian: apt-get install chromium chromium-driver)")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        no_browser("selenium is not installed (pip install -e '.[dev]')")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def visit(browser) -> Iterator[Callable[[Path], Any]]:
    """Opens the page of a folder; at the end, the console is empty and the page has asked for nothing but itself."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    opened: list[str] = []

    def go(folder: Path) -> Any:
        opened.append(write_report(folder).as_uri())
        browser.get(opened[-1])
        until(lambda: " of " in text_of(browser, "#count"))
        return browser

    yield go
    assert browser.get_log("browser") == []
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in entries if e["method"] == "Network.requestWillBeSent"]
    # at its start the browser loads its own first page
    assert [r["request"]["url"] for r in requests if r["documentURL"] in opened] == opened


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the page did not come to it"
        time.sleep(0.02)


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)", selector
    )


def text_of(browser, selector: str) -> str:
    return texts(browser, selector)[0]


def choose(browser, select: str, value: str) -> None:
    browser.find_element("css selector", f"#{select} option[value='{value}']").click()


def test_the_page_opens_with_its_table_and_all_samples(visit, made) -> None:
    browser = visit(made)
    results = json.loads((made / "results.json").read_text())
    estimate = results["tasks"]["hard"]["accuracy"]["estimate"]
    assert f"{100 * estimate:.1f} [" in text_of(browser, "#results-table tr[data-task=hard]")
    right = sum(round(t["accuracy"]["estimate"] * t["samples"]) for t in results["tasks"].values())
    assert text_of(browser, "#count") == f"280 of 280 samples, of 70 problems; {right} right"
    assert text_of(browser, "#page") == "page 1 of 3"
    assert len(texts(browser, ".sample")) == 100


def test_typing_finds_and_filters_narrow(visit, made) -> None:
    browser = visit(made)
    rows = pq.read_table(made / "samples.parquet").to_pylist()
    browser.find_element("id", "query").send_keys("hard/7")  # an id; capitals do not matter
    until(lambda: text_of(browser, "#count").startswith("4 of 280 samples, of 1 problem;"))
    browser.find_element("id", "query").clear()
    browser.find_element("id", "query").send_keys("WAIT, i made")
    cut = [r for r in rows if "Wait, I made" in r["text"]]
    until(lambda: text_of(browser, "#count").startswith(f"{len(cut)} of 280"))
    choose(browser, "state", "truncated")
    cut = [r for r in cut if not r["finished"]]
    assert text_of(browser, "#count").startswith(f"{len(cut)} of 280")
    browser.find_element("id", "query").clear()
    choose(browser, "state", "")
    choose(browser, "verdict", "wrong")
    wrong = [r for r in rows if not r["correct"]]
    until(lambda: text_of(browser, "#count").startswith(f"{len(wrong)} of 280"))
    assert set(texts(browser, ".sample .verdict")) == {"✗ wrong"}
    choose(browser, "task", "1")
    assert text_of(browser, "#count").startswith(f"{sum(r['task'] == 'hard' for r in wrong)} of 280")
    choose(browser, "state", "timeout")
    assert text_of(browser, "#count").startswith("0 of 280")
    choose(browser, "task", "0")
    assert texts(browser, ".sample .state") == ["not graded: time limit"]


def test_an_opened_sample_shows_everything_of_it(visit, made) -> None:
    browser = visit(made)
    sample = pq.read_table(made / "samples.parquet").to_pylist()[5]  # the one that was not graded in time
    choose(browser, "state", "timeout")
    browser.find_element("css selector", ".sample summary").click()
    until(lambda: texts(browser, ".sample .text"))
    facts = dict(zip(texts(browser, ".sample dt"), texts(browser, ".sample dd"), strict=True))
    assert facts == {
        "problem": sample["id"],
        "benchmark": "arithmetic",
        "category": sample["category"],
        "right answer": sample["gold"],
        "extracted answer": sample["extracted"],
        "verdict": "wrong, finished, not graded: time limit",
        "message": "2 s",
        "tokens of prompt and answer": f"{sample['prompt_tokens']} + {sample['tokens']}",
    }
    readable = text_of(browser, ".sample .text")
    assert f"The answer is ⟦{sample['extracted']}⟧." in readable
    assert "s₁ = 0 + " in readable
    browser.find_element("css selector", ".raw-switch").click()
    assert browser.execute_script("return document.querySelector('.text').textContent") == sample["text"]
    browser.find_element("css selector", ".raw-switch").click()
    assert text_of(browser, ".sample .text") == readable


def test_problems_show_their_share_and_can_be_taken_apart(visit, tmp_path) -> None:
    def samples(problem: int, tokens: list[int], right: int) -> list[dict[str, Any]]:
        return [
            row(id=f"p/{problem}", number=k, tokens=t, correct=k < right, text=f"{problem}")
            for k, t in enumerate(tokens)
        ]

    rows = [*samples(1, [10, 90], 2), *samples(2, [50, 60], 0), *samples(3, [70, 20], 1)]
    browser = visit(write_folder(tmp_path / "e", rows))

    def heads() -> list[str]:
        return [head.replace("\n", " ") for head in texts(browser, ".problem h3")]

    assert heads() == [
        "p/1 2 of 2 right (100 %) answer: 42",
        "p/2 0 of 2 right (0 %) answer: 42",
        "p/3 1 of 2 right (50 %) answer: 42",
    ]
    choose(browser, "order", "hardest")
    assert [head.split()[0] for head in heads()] == ["p/2", "p/3", "p/1"]
    choose(browser, "order", "shortest")
    assert texts(browser, ".tokens") == [f"{n} tokens" for n in (10, 90, 20, 70, 50, 60)]
    browser.find_element("id", "grouped").click()
    assert texts(browser, ".tokens") == [f"{n} tokens" for n in (10, 20, 50, 60, 70, 90)]
    choose(browser, "order", "longest")
    choose(browser, "verdict", "right")
    assert texts(browser, ".tokens") == [f"{n} tokens" for n in (90, 70, 10)]


def test_pages_are_turned_with_the_keyboard(visit, made) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit(made)
    seen = set(texts(browser, ".problem h3 b"))
    for number in (2, 3):
        browser.find_element("id", "next").send_keys(Keys.ENTER)
        assert text_of(browser, "#page") == f"page {number} of 3"
        found = set(texts(browser, ".problem h3 b"))
        assert not seen & found
        seen |= found
    assert len(seen) == 70
    assert not browser.find_element("id", "next").is_enabled()
    browser.find_element("css selector", ".sample summary").send_keys(Keys.SPACE)
    until(lambda: texts(browser, ".sample .text"))


def test_what_a_model_writes_never_runs(visit, tmp_path) -> None:
    rows = [row(task=SCRIPT, id=f"{SCRIPT}{i}", text=f"$x$ {SCRIPT}", gold=SCRIPT, extracted=SCRIPT) for i in range(2)]
    browser = visit(write_folder(tmp_path / "e", rows))
    browser.find_element("css selector", ".sample summary").click()
    until(lambda: texts(browser, ".sample .text"))
    assert text_of(browser, ".sample .text") == f"x {SCRIPT}"
    assert text_of(browser, ".problem h3 b").startswith(SCRIPT)
    assert browser.execute_script("return [typeof window.hacked, document.images.length]") == ["undefined", 0]


def test_a_script_that_gets_in_all_the_same_is_stopped(browser, made) -> None:
    """Not through `visit`: the browser's console tells of it."""
    browser.get(write_report(made).as_uri())
    browser.execute_script(
        "const one = document.createElement('script'); one.textContent = 'window.hacked = 1'; document.body.append(one);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 2\">')"
    )
    until(lambda: len(stopped := browser.get_log("browser")) and "Content Security Policy" in str(stopped))
    assert browser.execute_script("return typeof window.hacked") == "undefined"


def test_a_browser_that_cannot_unpack_says_where_the_samples_are(browser, made) -> None:
    old = "delete window.DecompressionStream"
    made_old = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": old})
    try:
        browser.get(write_report(made).as_uri())
        until(lambda: "cannot unpack" in text_of(browser, "#count"))
        assert "samples.parquet" in text_of(browser, "#count")
        assert not browser.find_element("id", "query").is_enabled()
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", made_old)


@contextlib.contextmanager
def screen(browser, width: int, scheme: str) -> Iterator[None]:
    """A phone's width, light or dark."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_phone_shows_the_accuracy_without_scrolling_sideways(visit, made) -> None:
    browser = visit(made)
    with screen(browser, 360, "dark"):
        widest, right, paper = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.querySelector('td.main .interval').getBoundingClientRect()"
            ".right, getComputedStyle(document.body).backgroundColor]"
        )
    assert widest == 360
    assert right <= 360
    assert paper == "rgb(20, 24, 29)"


READABLE = [
    (r"So $\frac{1}{2}+\sqrt{x^2+1}=\boxed{\dfrac{3}{4}}$.", "So 1/2+√(x²+1)=⟦3/4⟧."),
    (r"\(\alpha \le \beta\) thus \[\sum_{i=1}^n i\]", "α ≤ β thus ∑ᵢ₌₁ⁿ i"),
    (r"$x_{i+1}^{10}$, $e^{-x^2}$, $90^\circ$, $f'(x)$", "xᵢ₊₁¹⁰, e^(-x²), 90°, f′(x)"),
    (r"$1\frac{1}{2}$, $\frac{1}{2}x$, $x\frac12$, $\frac{a+b}{2\pi}$", "1 1/2, (1/2)x, x(1/2), (a+b)/(2π)"),
    (r"$\sqrt{2}x$, $\sqrt[3]{8}$, $2\sqrt{3}$", "√(2)x, ∛8, 2√3"),
    (r"$\left(\frac{a}{b}\right)^2 \cdot \pi r^2 \ne A \cup B$", "(a/b)² · πr² ≠ A ∪ B"),
    (r"\boxed{\text{(A) my_variable}}", "⟦(A) my_variable⟧"),
    (r"\begin{align*} a&=b\\ c&=d\end{align*}", "a=b\nc=d"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "(1 2; 3 4)"),
    (r"$\binom{n}{k}$, $7 \equiv 1 \pmod{3}$, $\overline{AB}$, $\mathbb{R}$", "(n choose k), 7 ≡ 1 (mod 3), A̅B̅, ℝ"),
    # not LaTeX, or not understood: as it is
    ("50% of $5 is $2.5 & so _x_ # 1 ~ {2}", "50% of $5 is $2.5 & so _x_ # 1 ~ {2}"),
    ("```python\nx_1 = '$a^2$' % 2\n``` then $a^2$", "```python\nx_1 = '$a^2$' % 2\n``` then a²"),
    (r"$\foo{a}{b}_{xyz}$ \constructor C:\new", r"\foo{a}{b}_(xyz) \constructor C:\new"),
    (r"unclosed \frac{1}{", r"unclosed \frac{1}{"),
    (r"$\mathbb{toString} \sqrt[toString]{2}$", "toString (toString)√2"),
    (r"\$5, 3\%, \{a\}", "$5, 3%, {a}"),
    ("$$x^2", "$$x^2"),
    ("line\n\n  indented", "line\n\n  indented"),
]
HOSTILE = [
    r"\frac{" * 40_000,
    r"\frac{" * 45 + "x" + "}" * 45,
    "{" * 120_000 + "}" * 120_000,
    r"\(" * 120_000,
    "$a " * 90_000,
    r"\begin{align}" * 10_000 + r"\end{align}" * 10_000,
    r"\(" + "x_{" * 50_000 + "}" * 50_000 + r"\)",
    r"\sqrt" * 50_000 + "2",
    r"\(" + r"^\frac" * 40_000 + r"\)",
    "\\" + "a" * 250_000,
    "```" * 90_000 + "$",
    "$" + "\\text{" * 500 + "}" * 500 + "$",
]


def test_mathematics_becomes_text_and_the_rest_stays(visit, made) -> None:
    browser = visit(made)
    found = browser.execute_script(
        "const symbols = JSON.parse(document.getElementById('symbols').textContent);"
        "return arguments[0].map((text) => Latex.readable(text, symbols))",
        [source for source, _ in READABLE],
    )
    assert found == [wanted for _, wanted in READABLE]


def test_hostile_mathematics_takes_no_time(visit, made) -> None:
    """Under 2 seconds each for a quarter of a million characters; an exponential or quadratic reader takes hours."""
    browser = visit(made)
    milliseconds = browser.execute_script(
        "return arguments[0].map((text) => { const start = performance.now(); Latex.readable(text, {});"
        "return performance.now() - start })",
        HOSTILE,
    )
    assert max(milliseconds) < 2_000
    long = "$x$" * 100_001
    assert "longer than 300000 characters" in browser.execute_script(
        "try { Latex.readable(arguments[0], {}) } catch (error) { return error.message }", long
    )


def test_a_picture_of_the_page(visit, tmp_path) -> None:
    """1280 pixels wide, at most 300 kB, so that it can stand in the documents."""
    rows = arithmetic_rows(300, 4, seed=7, words=3)
    results = results_of(rows, name="tiny-arithmetic")
    results["tasks"]["arithmetic"] |= {"title": "Arithmetic", "citation": "made-up answers"}
    browser = visit(write_folder(tmp_path / "e", rows, results))
    choose(browser, "verdict", "wrong")
    choose(browser, "state", "finished")
    choose(browser, "order", "longest")
    browser.find_element("css selector", ".sample summary").click()
    until(lambda: texts(browser, ".sample .text"))
    browser.execute_script("scrollTo(0, 0)")
    size = {"width": 1280, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        picture = browser.get_screenshot_as_png()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert int.from_bytes(picture[16:20], "big") == 1280  # the width in a PNG's header
    assert len(picture) <= 300_000
    if wanted := os.environ.get("REASONRL_SCREENSHOT"):
        path = ROOT / wanted
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
