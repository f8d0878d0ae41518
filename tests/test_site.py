"""The site: every notebook, card and module is on it, its links lead somewhere, and nothing on it needs the network."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from pkgutil import walk_packages
from urllib.parse import unquote, urlsplit

import pytest

import rrg_utils

ROOT = Path(__file__).parents[1]
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def config():
    """docs/conf.py as a module."""
    spec = importlib.util.spec_from_file_location("site_conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- without a build --------------------------------------------------------------------------------------------------


def test_navigation_leads_to_every_notebook_and_card(config):
    listed = set(re.findall(r"^(?:.*<)?([\w/]+)>?$", config.contents(), re.M))
    for folder, pattern in (("notebooks", "*.ipynb"), ("data_cards", "*.md"), ("weights", "*.md")):
        paths = sorted((ROOT / folder).glob(pattern))
        assert paths
        assert {f"{folder}/{path.stem}" for path in paths} <= listed
    assert {"CONTRIBUTING", "CHANGELOG", "docs/scorecard", "docs/api"} <= listed


def test_every_public_module_is_in_the_reference(config):
    pages = {name: make for name, make in config.GENERATED.items() if name.startswith("docs/api/")}
    for name in pages:
        assert (ROOT / f"{name}.md").is_file()
        assert name.removeprefix("docs/") in (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"automodule:: ([\w.]+)", "\n".join(make() for make in pages.values())))
    public = {m.name for m in walk_packages(rrg_utils.__path__, "rrg_utils.") if not m.ispkg and "._" not in m.name}
    assert documented == public


def test_scorecard_shows_every_claim_with_its_verdict_and_links_from_docs(config):
    from rrg_utils.claims import CLAIMS, verdict

    rows = [line for line in config.verdicts().splitlines() if line.startswith("| ")]
    for claim in CLAIMS.values():
        (row,) = [row for row in rows if claim.statement in row and claim.rests_on in row]
        found = verdict(claim.id)
        assert (found.reason if found.verdict == "not tested" else found.verdict) in row
        assert "](notebooks/" not in row


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("`Blob`s of *x*, `rrg_utils.data`", r"``Blob``\ s of *x*, :py:obj:`rrg_utils.data`"),
        ("(N, g * g), |a|, h_t, v_S", r"(N, g \* g), \|a\|, h\_t, v\_S"),
        ("What.\nsize: pixels.\nseed: any.\nnote: all", "What.\n\n``size``: pixels.\n\n``seed``: any.\nnote: all"),
        ("Flow:\n\n    film -> *text*\n\nEnd", "Flow:\n\n::\n\n    film -> *text*\n\nEnd"),
        ("Two:\n- one\n- other", "Two:\n\n- one\n\n- other"),
        ("Args:\n    size: pixels", "Args:\n    size: pixels"),
    ],
)
def test_docstrings_keep_their_meaning(config, docstring, wanted):
    assert "\n".join(config.restructured(docstring.split("\n"), {"size", "seed"})) == wanted


# --- built ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if target := attrs.get("href") or attrs.get("src"):
            (self.links if tag == "a" else self.loads).append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, built as `make site` does, from the working tree; half a minute."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)} (pip install -e '.[site]')")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", str(folder / "doctrees")]
    done = subprocess.run(
        [*command, ".", str(folder / "html")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3000,  # far more than it takes, on a machine that does other work besides
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def test_every_link_leads_somewhere(site, pages):
    assert site / "index.html" in pages
    broken = []
    for path, page in pages.items():
        for target in page.links + page.loads:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            if there.is_dir():
                there = there / "index.html"
            if not there.is_file():
                broken.append(f"{path.relative_to(site)}: {target}")
            elif there in pages and url.fragment and unquote(url.fragment) not in pages[there].anchors:
                broken.append(f"{path.relative_to(site)}: {target} (no such place)")
    assert broken == []


def test_nothing_is_loaded_from_the_network(site, pages):
    loads = {target for page in pages.values() for target in page.loads if urlsplit(target).netloc}
    assert loads == set()
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import\s+|url\()[\"'(]*(?:https?:)?//[^)\"']*", styles) == []


def test_notebooks_show_outputs_and_hide_solutions(site):
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        html = (site / "notebooks" / f"{notebook.stem}.html").read_text()
        assert "_images/" in html
        assert html.count("Show the solution") >= 3
        assert html.count('<details class="hide above-input') + html.count("tag_hide-cell") >= 3
        assert "\x1b[" not in html
        assert "Traceback (most recent call last)" not in html


def test_the_search_knows_notebooks_and_code(site):
    index = (site / "searchindex.js").read_text()
    assert "notebooks/03_narrative_bias" in index
    assert "selective_scan" in index
