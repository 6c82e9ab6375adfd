"""Unicode characters of LaTeX commands, for the page's script that shows mathematics as readable text.

The table is that of pylatexenc. Its converter is not used: it reads `%` as the start of a comment and drops the rest of the
line, shows `\\dfrac{3}{4}` as `34` and `x_{i+1}^{10}` as `x_i+1^10`, and takes 5 seconds a megabyte of model text.
"""

from __future__ import annotations


def symbols() -> dict[str, str]:
    r"""Command name -> its one character: `alpha` -> `α`. Letters of languages are left out."""
    from pylatexenc.latex2text import get_default_latex_context_db

    found: dict[str, str] = {}
    for spec in get_default_latex_context_db().iter_macro_specs():
        name, shown = spec.macroname, spec.simplify_repl
        character = isinstance(shown, str) and len(shown) == 1 and not shown.isascii()
        if character and len(name) > 1 and name.isalpha() and not name.lower().startswith(("cyr", "text")):
            found.setdefault(name, shown)
    return found
