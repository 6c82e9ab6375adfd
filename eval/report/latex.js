"use strict";
// LaTeX in an answer -> text that reads without knowing LaTeX. What is not known stays as it is: nothing is lost or guessed.
// Time is linear in the text, whatever stands there: pairs of braces and environments are found once, a delimiter is searched
// for once, nesting is bounded, and arguments are located before any of them is rendered, so that none is rendered twice.

const Latex = (() => {
  const LONGEST = 300_000;
  const DEEPEST = 40;
  const LONGEST_DOLLARS = 600; // from one $ to its partner

  const words = (text) => new Set(text.split(" "));
  const letters = (from, to) => {
    const shapes = [...to];
    return new Map([...from].map((letter, i) => [letter, shapes[i]]));
  };

  const FRACTIONS = words("frac dfrac tfrac cfrac nicefrac sfrac");
  const BINOMIALS = words("binom dbinom tbinom");
  const BOXES = words("boxed fbox");
  const PLAIN = words(
    "mathrm mathbf mathit mathsf mathtt mathnormal boldsymbol bm operatorname mathop underline mathcal mathscr mathfrak pmb " +
      "cancel underbrace overbrace",
  );
  const TEXT = words("text textrm textbf textit texttt textsf textnormal mbox hbox emph");
  const FUNCTIONS = words(
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan ln log lg exp max min sup inf lim limsup liminf gcd lcm " +
      "det dim ker deg arg Pr mod bmod hom sgn",
  );
  const DROPPED = words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm middle displaystyle textstyle scriptstyle " +
      "limits nolimits hfill noindent hline centering",
  );
  const ACCENTS = new Map(Object.entries({
    bar: "\u0304", overline: "\u0305", hat: "\u0302", widehat: "\u0302", vec: "\u20d7", overrightarrow: "\u20d7",
    tilde: "\u0303", widetilde: "\u0303", dot: "\u0307", ddot: "\u0308",
  }));
  // beside the table that the page brings
  const CHARACTERS = new Map(Object.entries({
    ne: "≠", implies: "⟹", impliedby: "⟸", iff: "⟺", land: "∧", lor: "∨", neg: "¬", lnot: "¬", triangle: "△", degree: "°",
    gets: "←", colon: ":", vert: "|", mid: "|", lvert: "|", rvert: "|", Box: "□", square: "□", blacksquare: "■",
    checkmark: "✓", quad: "  ", qquad: "    ", space: " ", enspace: " ", thinspace: " ", lbrace: "{", rbrace: "}",
    lbrack: "[", rbrack: "]", backslash: "\\", textbackslash: "\\", prime: "′", euro: "€", pounds: "£", lt: "<", gt: ">",
    epsilon: "ε", phi: "φ", newline: "\n", item: "•", bullet: "•",
  }));
  const DOUBLE = letters("RNZQCPFEH1", "ℝℕℤℚℂℙ𝔽𝔼ℍ𝟙");
  const ROOTS = new Map([["2", "√"], ["3", "∛"], ["4", "∜"]]);
  const RAISED = letters(
    "0123456789+-−=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVW",
    "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂ",
  );
  const LOWERED = letters("0123456789+-−=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ");
  const SIGNS = new Map([..."%$#_&{}"].map((sign) => [sign, sign])); // \% and the like, in any text
  const SPACES = new Map([[" ", " "], [",", " "], [";", " "], [":", " "], [">", " "], ["!", ""], ["/", ""], ["|", "‖"]]);
  const MATRICES = new Map(Object.entries({
    matrix: "()", pmatrix: "()", smallmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖",
  }));
  const TABLES = words("array tabular");
  const LINES = words(
    "align align* aligned alignat alignat* gather gather* gathered equation equation* eqnarray eqnarray* multline multline* " +
      "split cases dcases array tabular math displaymath",
  );
  const LISTS = words("itemize enumerate center document quote");

  const takes = (name) => {
    if (FRACTIONS.has(name) || BINOMIALS.has(name)) return 2;
    const one = BOXES.has(name) || PLAIN.has(name) || TEXT.has(name) || ACCENTS.has(name);
    return one || ["sqrt", "mathbb", "pmod", "tag", "not"].includes(name) ? 1 : 0;
  };

  /** `source` with its mathematics as Unicode. symbols: command -> character. Throws RangeError for a text too long. */
  function readable(source, symbols) {
    if (!/[\\$]/.test(source)) return source;
    if (source.length > LONGEST) throw new RangeError(`longer than ${LONGEST} characters`);
    const parts = source.split(/(```[^]*?(?:```|$))/); // every second one is code, which stays
    return parts.map((part, i) => (i % 2 ? part : new Reader(part, symbols).all())).join("");
  }

  class Reader {
    constructor(source, symbols) {
      this.s = source;
      this.symbols = symbols;
      this.found = new Map(); // delimiter -> its place that was found last
      this.pairs = new Map(); // place of { -> place of its }
      this.ends = new Map(); // place of \begin{x} -> place of its \end{x}
      const braces = [];
      const environments = [];
      for (const mark of source.matchAll(/\\(begin|end)\{([a-zA-Z]{1,20}\*?)\}|\\[^]|[{}]/g)) {
        if (mark[0] === "{") braces.push(mark.index);
        else if (mark[0] === "}" && braces.length) this.pairs.set(braces.pop(), mark.index);
        else if (mark[1] === "begin") environments.push(mark);
        else if (mark[1] === "end" && environments.at(-1)?.[2] === mark[2])
          this.ends.set(environments.pop().index, mark.index);
      }
    }

    all() {
      return this.text(0, this.s.length, {math: false, column: "&", row: "\\\\"}, 0);
    }

    /** From `start` to `end`. mode: whether ^ _ { } are LaTeX here, and what & and \\ become. */
    text(start, end, mode, depth) {
      if (depth > DEEPEST) return this.s.slice(start, end);
      let out = "";
      let last = ""; // kept here: out.slice(-1) would copy all of `out` each time
      for (let at = start; at < end; ) {
        this.last = last;
        const [piece, next] = this.piece(at, end, mode, depth);
        out += piece;
        last = piece.slice(-1) || last;
        at = next;
      }
      return out;
    }

    // Below, what begins at `at` comes back as [text, where the rest begins].

    piece(at, end, mode, depth) {
      const letter = this.s[at];
      if (letter === "\\") return this.command(at, end, mode, depth);
      if (letter === "$" && !mode.math) return this.dollars(at, end, mode, depth);
      if (mode.math) {
        if (letter === "{" && this.closes(at, end)) {
          const close = this.pairs.get(at);
          return [this.text(at + 1, close, mode, depth + 1), close + 1];
        }
        if (letter === "^" || letter === "_") return this.script(at, end, mode, depth);
        if (letter === "&") return [mode.column, at + 1];
        if (letter === "~") return [" ", at + 1];
        if (letter === "'") return ["′", at + 1];
      }
      const stops = mode.math ? "\\$^_{}&~'" : "\\$";
      let next = at + 1;
      while (next < end && !stops.includes(this.s[next])) next++;
      return [this.s.slice(at, next), next];
    }

    closes(at, end) {
      return (this.pairs.get(at) ?? Infinity) < end;
    }

    /** The place of `what` from `from` on, or Infinity. */
    find(what, from) {
      let place = this.found.get(what) ?? -1;
      if (place < from) {
        place = this.s.indexOf(what, from);
        if (place < 0) place = Infinity;
        this.found.set(what, place);
      }
      return place;
    }

    dollars(at, end, mode, depth) {
      const s = this.s;
      const math = {...mode, math: true};
      if (s[at + 1] === "$") {
        const close = this.find("$$", at + 2);
        return close < end ? [this.text(at + 2, close, math, depth + 1).trim(), close + 2] : ["$$", at + 2];
      }
      // Prices are no mathematics: an opening $ has no space behind it, a closing one none before and no digit behind it.
      if (!/\s/.test(s[at + 1] ?? " ")) {
        const last = Math.min(end, at + LONGEST_DOLLARS);
        for (let i = at + 1; i < last; i++) {
          if (s[i] === "\\") i++;
          else if (s[i] === "\n" && s[i + 1] === "\n") break;
          else if (s[i] === "$" && !/\s/.test(s[i - 1]) && !/\d/.test(s[i + 1] ?? ""))
            return [this.text(at + 1, i, math, depth + 1), i + 1];
        }
      }
      return ["$", at + 1];
    }

    command(at, end, mode, depth) {
      const s = this.s;
      const sign = at + 1 < end ? s[at + 1] : "";
      if (sign === "(" || sign === "[") {
        const close = this.find(sign === "(" ? "\\)" : "\\]", at + 2);
        if (close >= end) return ["\\" + sign, at + 2];
        return [this.text(at + 2, close, {...mode, math: true}, depth + 1).trim(), close + 2];
      }
      if (sign === "\\") {
        const space = mode.math ? /^(\[-?[\d.]{1,6} ?[a-z]{2}\])?\s{0,20}/.exec(s.slice(at + 2, Math.min(end, at + 40))) : [""];
        return [mode.row, at + 2 + space[0].length];
      }
      if (!/[a-zA-Z]/.test(sign)) return [SIGNS.get(sign) ?? (mode.math ? SPACES.get(sign) : null) ?? "\\" + sign, at + 1 + sign.length];
      const next = this.name(at, end);
      return this.named(at, next, end, {...mode, math: true}, depth) ?? this.unknown(at, next, end, mode, depth);
    }

    /** Where the name of the command at `at` ends. */
    name(at, end) {
      let next = at + 1;
      while (next < end && /[a-zA-Z]/.test(this.s[next])) next++;
      return next;
    }

    /** As it is, its groups with their braces. */
    unknown(at, next, end, mode, depth) {
      let out = this.s.slice(at, next);
      while (this.s[next] === "{" && this.closes(next, end)) {
        const close = this.pairs.get(next);
        out += `{${this.text(next + 1, close, mode, depth + 1)}}`;
        next = close + 1;
      }
      return [out, next];
    }

    /** A command with a name; null where it is not known or lacks an argument. */
    named(at, next, end, mode, depth) {
      const s = this.s;
      const name = s.slice(at + 1, next);
      const before = this.last;
      if (name === "begin") return this.environment(at, end, mode, depth);
      if (DROPPED.has(name)) return ["", s[next] === "." && /^(left|right)$/.test(name) ? next + 1 : next];
      if (FUNCTIONS.has(name)) return [(name === "bmod" ? "mod" : name) + (/[a-zA-Z0-9\\]/.test(s[next] ?? "") ? " " : ""), next];
      let root = "√";
      if (name === "sqrt") {
        const index = /^\[([^[\]{}\\]{1,8})\]/.exec(s.slice(next, Math.min(end, next + 10)));
        if (index) {
          next += index[0].length;
          root = ROOTS.get(index[1]) ?? (small(index[1], RAISED) ?? `(${index[1]})`) + "√";
        }
      }
      if (name === "operatorname" && s[next] === "*") next++;
      const spans = [];
      for (let i = takes(name); i > 0; i--) {
        const span = this.span(next, end, true);
        if (!span) return null;
        spans.push(span);
        next = span.next;
      }
      const [first, second] = spans.map((span) =>
        this.text(span.start, span.stop, TEXT.has(name) ? {...mode, math: false} : mode, depth + 1),
      );
      if (FRACTIONS.has(name)) {
        const fraction = `${grouped(first, true)}/${grouped(second)}`;
        if (/\d/.test(before) && /^[\d/]+$/.test(fraction)) return [` ${fraction}`, next]; // 1\frac{1}{2}
        return [/[\p{L}\p{N})\]]/u.test(before) || this.joins(next, end) ? `(${fraction})` : fraction, next];
      }
      if (BINOMIALS.has(name)) return [`(${first} choose ${second})`, next];
      if (BOXES.has(name)) return [`⟦${first}⟧`, next];
      if (PLAIN.has(name) || TEXT.has(name)) return [first, next];
      if (name === "sqrt") return [root + (this.joins(next, end) ? `(${first})` : grouped(first)), next];
      if (name === "mathbb") return [DOUBLE.get(first) ?? first, next];
      if (name === "pmod") return [`(mod ${first})`, next];
      if (name === "tag") return [`(${first})`, next];
      if (name === "not") return [first + "\u0338", next];
      if (ACCENTS.has(name)) {
        const accented = [...first];
        return [accented.length > 4 ? `${name}(${first})` : accented.map((letter) => letter + ACCENTS.get(name)).join(""), next];
      }
      const character = CHARACTERS.get(name) ?? (Object.hasOwn(this.symbols, name) ? this.symbols[name] : null);
      if (character === null) return null;
      // the space of `\pi r` only ends the command
      const ends = next + 1 < end && s[next] === " " && /[a-zA-Z]/.test(s[next + 1]) && /\p{L}/u.test(character);
      return [character, ends ? next + 1 : next];
    }

    /** Whether what begins at `at` would be read as a part of a fraction or root that ends there. */
    joins(at, end) {
      if (at >= end) return false;
      if (this.s[at] !== "\\") return /[a-zA-Z0-9(^_{]/.test(this.s[at]);
      const name = this.s.slice(at + 1, this.name(at, end));
      return takes(name) > 0 || FUNCTIONS.has(name) || (Object.hasOwn(this.symbols, name) && /\p{L}/u.test(this.symbols[name]));
    }

    /** {start, stop, next} of the argument at `at`: a group, a command (with its own groups), a character; null if none. */
    span(at, end, commands) {
      const s = this.s;
      for (let i = 0; i < 4 && at < end && /\s/.test(s[at]); i++) at++;
      if (at >= end || /[\s}&$^_]/.test(s[at])) return null;
      if (s[at] === "{") {
        if (!this.closes(at, end)) return null;
        const close = this.pairs.get(at);
        return {start: at + 1, stop: close, next: close + 1};
      }
      if (s[at] !== "\\") {
        const next = at + (s.codePointAt(at) > 0xffff ? 2 : 1);
        return {start: at, stop: next, next};
      }
      if (!commands) return null;
      let next = this.name(at, end);
      if (next === at + 1) next = Math.min(end, at + 2);
      for (let i = takes(s.slice(at + 1, next)); i > 0; i--) {
        const own = this.span(next, end, false);
        if (!own) break;
        next = own.next;
      }
      return {start: at, stop: next, next};
    }

    script(at, end, mode, depth) {
      const sign = this.s[at];
      const span = this.span(at + 1, end, true);
      if (!span) return [sign, at + 1];
      const inner = this.text(span.start, span.stop, mode, depth + 1).trim();
      if (sign === "^" && /^[∘°]$/.test(inner)) return ["°", span.next];
      if (sign === "^" && /^[′*]+$/.test(inner)) return [inner, span.next];
      const one = [...inner].length === 1;
      return [small(inner, sign === "^" ? RAISED : LOWERED) ?? sign + (one ? inner : `(${inner})`), span.next];
    }

    environment(at, end, mode, depth) {
      const s = this.s;
      const close = this.ends.get(at) ?? Infinity;
      if (close >= end) return null;
      const name = s.slice(at + "\\begin{".length, s.indexOf("}", at));
      const start = at + "\\begin{}".length + name.length;
      const next = close + "\\end{}".length + name.length;
      if (MATRICES.has(name)) {
        const [left, right] = MATRICES.get(name);
        const inner = this.text(start, close, {math: true, column: " ", row: "; "}, depth + 1);
        return [left + inner.replace(/\s+/g, " ").trim() + right, next];
      }
      if (LISTS.has(name)) return [this.text(start, close, {...mode, math: false}, depth + 1), next];
      if (!LINES.has(name)) return null;
      const columns = TABLES.has(name) ? /^\{[lcr|. ]*\}/.exec(s.slice(start, start + 40))?.[0].length ?? 0 : 0;
      const column = TABLES.has(name) ? " | " : name.endsWith("cases") ? " " : "";
      return [this.text(start + columns, close, {math: true, column, row: "\n"}, depth + 1).replace(/ +/g, " ").trim(), next];
    }
  }

  /** All of `inner` in small letters, or null. */
  function small(inner, shapes) {
    const found = [...inner].map((letter) => shapes.get(letter));
    return inner && found.every(Boolean) ? found.join("") : null;
  }

  /** `inner`, in parentheses where a fraction or root would be misread without. above: it stands before the slash. */
  function grouped(inner, above = false) {
    if (/^[\d.,]*\d$|^\p{L}[′⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ₀₁₂₃₄₅₆₇₈₉]*$|^[∞…?]$/u.test(inner)) return inner;
    if (above && !/[\s+\-−–±=<>≤≥*/·×÷,;|]/.test(inner)) return inner;
    return `(${inner})`;
  }

  return {readable};
})();
