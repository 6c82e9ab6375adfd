// The list of samples. Everything a model wrote reaches the page as textContent, never as HTML.

(async () => {
  const AT_ONCE = 100; // samples a page; a problem is never split
  const SHOWN = 120; // characters of an extracted answer beside its sample
  const PAUSE = 150; // milliseconds between the last key and the search

  const get = (id) => document.getElementById(id);
  const whole = new Intl.NumberFormat("en-US");
  const plural = (n, one) => `${whole.format(n)} ${one}${n === 1 ? "" : "s"}`;
  const STATES = {
    finished: "finished", truncated: "truncated", no_answer: "no answer", timeout: "not graded: time limit",
    error: "not graded: error", no_judge: "not graded: no judge", prompt_too_long: "prompt too long",
  };

  /** A new element with attributes, and children that are elements or text. */
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  async function unpacked() {
    const holder = get("packed");
    const letters = atob(holder.textContent.trim());
    holder.remove();
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  if (!("DecompressionStream" in window)) {
    get("count").textContent = "This browser cannot unpack the list (it needs Chrome 80, Firefox 113, Safari 16.4 or later). " +
      "The same samples are in samples.parquet.";
    return;
  }
  get("count").textContent = "Unpacking the samples ...";
  const symbols = JSON.parse(get("symbols").textContent);
  const data = await unpacked();
  const total = data.id.length;

  // problems: which samples, how many of them right
  const problemOf = new Int32Array(total);
  const problems = [];
  const places = new Map();
  for (let i = 0; i < total; i++) {
    const key = `${data.task[i]} ${data.id[i]}`;
    if (!places.has(key)) {
      places.set(key, problems.length);
      problems.push({n: 0, right: 0});
    }
    problemOf[i] = places.get(key);
    problems[problemOf[i]].n++;
    problems[problemOf[i]].right += data.correct[i];
  }

  /** Every state a sample is in: it can be truncated and without an answer. */
  function states(i) {
    const asked = data.status[i] !== "prompt_too_long";
    const found = asked ? [data.finished[i] ? "finished" : "truncated"] : [];
    if (data.status[i] !== "ok") found.push(data.status[i]);
    return found;
  }

  function options(select, all, choices) {
    select.append(make("option", {value: ""}, all));
    for (const [value, label, n] of choices) select.append(make("option", {value}, `${label} (${whole.format(n)})`));
  }

  const countOf = (chosen) => data.id.reduce((n, _, i) => n + chosen(i), 0);
  options(get("task"), "all", data.tasks.map((name, t) => [t, name, countOf((i) => data.task[i] === t)]));
  options(get("verdict"), "all", [["right", "right", countOf((i) => data.correct[i])], ["wrong", "wrong", countOf((i) => !data.correct[i])]]);
  const inState = new Map();
  for (let i = 0; i < total; i++) for (const state of states(i)) inState.set(state, (inState.get(state) ?? 0) + 1);
  const order = [...Object.keys(STATES), ...[...inState.keys()].filter((state) => !Object.hasOwn(STATES, state))];
  options(get("state"), "all", order.filter((s) => inState.has(s)).map((s) => [s, nameOf(s), inState.get(s)]));

  function nameOf(state) {
    return Object.hasOwn(STATES, state) ? STATES[state] : state;
  }

  let pages = []; // each a list of {problem, samples}
  let page = 0;
  let raw = false;

  function matching() {
    const task = get("task").value;
    const verdict = get("verdict").value;
    const state = get("state").value;
    const query = get("query").value.trim();
    const pattern = query ? new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu") : null;
    const found = [];
    for (let i = 0; i < total; i++) {
      if (task !== "" && data.task[i] !== Number(task)) continue;
      if (verdict && data.correct[i] !== (verdict === "right")) continue;
      if (state && !states(i).includes(state)) continue;
      if (pattern && ![data.text[i], data.id[i], data.gold[i], data.extracted[i] ?? ""].some((t) => pattern.test(t))) continue;
      found.push(i);
    }
    return found;
  }

  /** Samples by problem, in the chosen order, each with the key it was ordered by. */
  function arranged(found) {
    const by = get("order").value;
    const share = (i) => problems[problemOf[i]].right / problems[problemOf[i]].n;
    const key = {longest: (i) => -data.tokens[i], shortest: (i) => data.tokens[i], hardest: share}[by];
    const ordered = key ? [...found].sort((a, b) => key(a) - key(b) || a - b) : found;
    const blocks = new Map(); // a problem stands where its first sample does
    for (const i of ordered) {
      const block = get("grouped").checked ? problemOf[i] : `sample ${i}`;
      if (!blocks.has(block)) blocks.set(block, []);
      blocks.get(block).push(i);
    }
    return [...blocks.values()];
  }

  function search() {
    const found = matching();
    const blocks = arranged(found);
    pages = [[]];
    let held = 0;
    for (const block of blocks) {
      if (held && held + block.length > AT_ONCE) {
        pages.push([]);
        held = 0;
      }
      pages.at(-1).push(block);
      held += block.length;
    }
    const of = new Set(found.map((i) => problemOf[i])).size;
    const right = found.reduce((n, i) => n + data.correct[i], 0);
    get("count").textContent = `${whole.format(found.length)} of ${plural(total, "sample")}, of ${plural(of, "problem")}; ` +
      `${whole.format(right)} right`;
    show(0);
  }

  function show(number) {
    page = number;
    get("list").replaceChildren(...pages[page].map(problem));
    get("pages").hidden = pages.length < 2;
    get("page").textContent = `page ${whole.format(page + 1)} of ${whole.format(pages.length)}`;
    get("previous").disabled = page === 0;
    get("next").disabled = page === pages.length - 1;
  }

  function problem(samples) {
    const first = samples[0];
    const {n, right} = problems[problemOf[first]];
    const alone = n === 1;
    const title = make("h3", {}, make("b", {dir: "auto"}, data.id[first]), data.tasks.length > 1 ? make("span", {}, data.tasks[data.task[first]]) : null);
    if (!alone) title.append(make("span", {}, `${right} of ${n} right (${((100 * right) / n).toFixed(0)} %)`));
    if (data.category[first]) title.append(make("span", {}, data.category[first]));
    if (data.gold[first]) title.append(make("span", {dir: "auto"}, `answer: ${clipped(data.gold[first])}`));
    return make("section", {class: "problem"}, title, ...samples.map((i) => sample(i, alone)));
  }

  function clipped(text) {
    return text.length > SHOWN ? `${text.slice(0, SHOWN)} ...` : text;
  }

  function sample(i, alone) {
    const verdict = data.correct[i] ? "right" : "wrong";
    const said = data.extracted[i] === null ? null : make("span", {class: "said", dir: "auto"}, `says ${clipped(data.extracted[i])}`);
    const marks = states(i).filter((state) => state !== "finished").map((state) => make("span", {class: "state"}, nameOf(state)));
    const summary = make("summary", {}, make("span", {class: `verdict ${verdict}`}, `${data.correct[i] ? "✓" : "✗"} ${verdict}`),
      alone ? null : make("span", {}, `#${data.number[i]}`), make("span", {class: "tokens"}, plural(data.tokens[i], "token")), ...marks, said);
    const element = make("details", {class: "sample", "data-verdict": verdict}, summary);
    element.addEventListener("toggle", () => {
      if (element.open && element.children.length === 1) element.append(body(i));
    });
    return element;
  }

  function body(i) {
    const facts = {
      problem: data.id[i], benchmark: data.tasks[data.task[i]], category: data.category[i], "right answer": data.gold[i],
      "extracted answer": data.extracted[i] ?? "none found", verdict: `${data.correct[i] ? "right" : "wrong"}, ${states(i).map(nameOf).join(", ")}`,
      message: data.message[i], "tokens of prompt and answer": `${whole.format(data.prompt_tokens[i])} + ${whole.format(data.tokens[i])}`,
      ...data.parts[i],
    };
    const list = make("dl", {class: "pairs"});
    for (const [key, value] of Object.entries(facts))
      if (value !== "" && value !== null) list.append(make("div", {}, make("dt", {}, key), make("dd", {dir: "auto"}, String(value))));
    const text = make("pre", {class: "text", dir: "auto", tabindex: "0", "aria-label": "the model's answer"});
    text.dataset.sample = i;
    const button = make("button", {type: "button", class: "raw-switch"}, "");
    button.addEventListener("click", () => {
      raw = !raw;
      document.querySelectorAll(".text").forEach(fill);
      document.querySelectorAll(".raw-switch").forEach(press);
    });
    fill(text);
    press(button);
    return make("div", {class: "body"}, list, button, text);
  }

  function press(button) {
    button.textContent = raw ? "show mathematics as symbols" : "show as generated";
  }

  function fill(element) {
    const source = data.text[Number(element.dataset.sample)];
    let text = source;
    let failed = "";
    if (!raw) {
      try {
        text = Latex.readable(source, symbols);
      } catch (error) {
        failed = `[shown as generated: ${error.message}]\n`;
      }
    }
    element.classList.toggle("raw", raw || failed !== "");
    element.textContent = failed + (text || "(no text)");
  }

  let waiting = 0;
  get("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, PAUSE);
  });
  get("filters").addEventListener("change", (event) => event.target === get("query") || search());
  get("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const [id, step] of [["previous", -1], ["next", 1]])
    get(id).addEventListener("click", () => {
      show(page + step);
      get("list").focus();
      get("samples").scrollIntoView();
    });
  get("filters").querySelector("fieldset").disabled = false;
  search();
})().catch((error) => {
  document.getElementById("count").textContent = `The list of samples cannot be shown (${error}). The same samples are in samples.parquet.`;
  throw error;
});
