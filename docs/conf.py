"""The site: `make site` renders the repository as it is, executed notebooks included, into build/site.

The source folder is the repository itself, so that a link from one file to another means the same here as anywhere
else. Nothing is run, and nothing on a page comes from the network: formulas are MathML, fonts come with the theme.
"""

import inspect
import json
import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

import rrg_utils  # noqa: E402 - of this checkout, whatever is installed
from rrg_utils import scorecard  # noqa: E402

project = "Radiology report generation, taught and reproduced"
version = release = rrg_utils.__version__
author = "rrg-utils contributors"
project_copyright = "rrg-utils contributors, MIT licence"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "notebooks/*.ipynb", "data_cards/*.md", "weights/*.md", "docs/**.md"]
exclude_patterns = [".venv", "build", "runs", "figures", "results", "rrg_utils", "tests", "benchmarks", "**/.*"]

nb_execution_mode = "off"
highlight_language = "text"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's are not ours to print
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = "Report generation, taught and reproduced"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False, "navbar_persistent": []}
html_math_renderer = "mathml"


# --- pages and parts of pages that are made from the repository -------------------------------------------------------

LAYERS = ("data", "vision", "language", "labels", "systems", "metrics")  # in the order of the flow


def modules(package: str) -> list[str]:
    """Names of the public modules in a package, without its sub-packages."""
    found = iter_modules(import_module(package).__path__)
    return [f"{package}.{m.name}" for m in found if not m.ispkg and not m.name.startswith("_")]


def api(package: str) -> str:
    """Every public module of a package with all that it documents."""
    exported = [f"`{name}`" for name in getattr(import_module(package), "__all__", ())]
    parts = [f"From `{package}`: {', '.join(exported)}."] if exported else []
    parts += [f"## {name.split('.')[-1]}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```" for name in modules(package)]
    return "\n\n".join(parts)


def verdicts() -> str:
    """The scorecard, with links from this folder."""
    return re.sub(r"\]\((?=notebooks/)", "](../", scorecard.markdown())


def weight_cards() -> str:
    """What the cards beside the weights say, in two tables."""
    cards = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "weights").glob("*.json"))}
    keys = [key for key, value in next(iter(cards.values())).items() if not isinstance(value, dict)]
    classes = dict.fromkeys(name for card in cards.values() for name in card["validation"]["positives"])
    head = f"| | {' | '.join(cards)} |\n|---|{'---|' * len(cards)}\n"
    facts = [
        f"| {key} | {' | '.join(f'`{card[key]}`' if key in card else '' for card in cards.values())} |" for key in keys
    ]
    scores = [
        f"| {name} ({next(iter(cards.values()))['validation']['positives'].get(name, 0)}) | "
        f"{' | '.join(str(card['validation']['auroc'].get(name, '')) for card in cards.values())} |"
        for name in classes
    ]
    title = "## AUROC on validation films\n\nIn brackets: films of the validation split that show it."
    return f"## The cards\n\n{head}" + "\n".join(facts) + f"\n\n{title}\n\n{head}" + "\n".join(scores)


def growth() -> str:
    """How the cost of each stage grows, as it was measured, behind the page on several machines."""
    path = ROOT / "results" / "benchmarks" / "scaling.json"
    if not path.exists():
        return "It was not run yet."
    found = json.loads(path.read_text())
    parts = []
    for rows in (found["rows"], found["projection"]):
        head = f"| {' | '.join(rows[0])} |\n|---|{'--:|' * (len(rows[0]) - 1)}\n"
        parts.append(head + "\n".join(f"| {' | '.join(map(str, row.values()))} |" for row in rows))
    machine = found["machine"]
    parts.insert(0, f"Measured on {machine['processor']}, one thread, with the language model `{found['llm']}`:")
    parts.insert(
        2, "The exponent is that of the seconds in the number of studies: 1 is twice as much for twice as many."
    )
    parts.append("The projection assumes:\n\n" + "\n".join(f"- {line}" for line in found["assumptions"]))
    return "\n\n".join(parts)


def contents() -> str:
    """The navigation, behind the text of the landing page."""
    captions = {
        "Notebooks": [_numbered(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))],
        "Results": ["docs/scorecard"],
        "Data and models": [
            "data_cards/README",
            *(f"data_cards/{p.stem}" for p in sorted((ROOT / "data_cards").glob("[a-z]*.md"))),
            "weights/README",
        ],
        "Larger machines": ["docs/gpu", "docs/scale"],
        "Reference": ["docs/api", "CONTRIBUTING", "CHANGELOG"],
    }
    return "\n\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n" + "\n".join(pages) + "\n```"
        for caption, pages in captions.items()
    )


def _numbered(notebook: Path) -> str:
    title = "".join(json.loads(notebook.read_text())["cells"][0]["source"]).splitlines()[0].lstrip("# ")
    return f"{notebook.stem[:2]} {title} <notebooks/{notebook.stem}>"


GENERATED = {
    "README": contents,
    "docs/scorecard": verdicts,
    "docs/scale": growth,
    "weights/README": weight_cards,
    "docs/api/rrg_utils": lambda: api("rrg_utils"),
    **{f"docs/api/{layer}": lambda layer=layer: api(f"rrg_utils.{layer}") for layer in LAYERS},
}


def complete(app, docname: str, source: list[str]) -> None:
    """Append what is generated to a page; close the solutions of a notebook."""
    if docname in GENERATED:
        source[0] += f"\n\n{GENERATED[docname]()}\n"
    elif str(app.env.doc2path(docname)).endswith(".ipynb"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code" and "solution" in cell["metadata"].get("tags", []):
                cell["metadata"]["tags"].append("hide-cell")
                cell["metadata"]["mystnb"] = {
                    "code_prompt_show": "Show the solution",
                    "code_prompt_hide": "Hide the solution",
                }
        source[0] = json.dumps(notebook)


# --- docstrings: written as plain Markdown, read by Sphinx as reStructuredText ----------------------------------------

EMPHASIS = r"(`[^`]+`|\*\*[^*\s][^*]*\*\*|(?<!\*)\*[^*\s][^*]*\*(?!\*))"


def restructured(lines: list[str], parameters: set[str] = frozenset()) -> list[str]:
    """A docstring's Markdown (code in backticks, emphasis, lists, indented blocks) as reStructuredText.

    A line that opens with the name of a parameter becomes a paragraph of its own.
    """
    out: list[str] = []
    literal = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        after_blank = not out or not out[-1].strip()
        literal = literal and (indent >= 4 or not line.strip())
        if not literal and indent >= 4 and after_blank:
            literal = True
            out += ["::", ""]
        if literal:
            out.append(line)
            continue
        named = re.match(r"((?:\w+(?:, | and |: ))+)", line)
        is_parameter = named and set(re.findall(r"\w+", named[1])) - {"and"} <= parameters
        if (is_parameter or line.startswith("- ")) and not after_blank:
            out.append("")
        if is_parameter:
            names = named[1].rstrip(" :")
            line = re.sub(r"\w+(?<!\band)", r"`\g<0>`", names) + line[len(names) :]
        out.append(_line(line))
    return out


def _line(text: str) -> str:
    out = ""
    for piece in re.split(EMPHASIS, text):
        if out.endswith("`") and piece[:1].isalpha():
            out += "\\ "  # "`Blob`s": markup must end before a letter
        if re.fullmatch(r"`rrg_utils[\w.]*`", piece):
            out += f":py:obj:{piece}"
        elif re.fullmatch(r"`[^`]+`", piece):
            out += f"`{piece}`"
        else:
            out += piece if re.fullmatch(EMPHASIS, piece) else re.sub(r"([*|\\_`])", r"\\\1", piece)
    return out


def convert_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    try:
        parameters = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        parameters = set()
    lines[:] = restructured(lines, parameters)


def skip_member(app, what, name, obj, skip, options) -> bool | None:
    """Leave out the fields that a named tuple documents as "Alias for field number 0"."""
    return True if type(obj).__name__ == "_tuplegetter" else None


# --- formulas without a script ----------------------------------------------------------------------------------------


def visit_formula(translator, node) -> None:
    """Write a formula as MathML, which browsers draw themselves."""
    from docutils.nodes import SkipNode, math_block
    from docutils.utils.math.latex2mathml import tex2mathml

    block = isinstance(node, math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise SkipNode


def landing_page(app, error) -> None:
    """A folder is opened at index.html, and the README is the landing page."""
    if not error and app.builder.name == "html":
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app) -> None:
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", convert_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_member)
    app.connect("build-finished", landing_page)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula, None))
