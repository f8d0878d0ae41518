"""A course of two tiny notebooks, for tests of the runner and the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FIRST = [
    'import sys\n\nprint("python", sys.executable)',
    'print("words", [word] * steps, rate, flag)',
]
SECOND = [
    'import matplotlib.pyplot as plt\n\nplt.plot([1, 2], [3, 4], label="rise")\nplt.title("two points")\nplt.show()',
    'import pandas as pd\n\ntable = pd.DataFrame({"score": [0.25, 0.5]}, index=["ours", "theirs"])\nprint(table)',
    'print("second done")',
]
PROFILES = """
minutes: {01_first: 1, 02_second: 2.5}
profiles:
  smoke:
    01_first: {steps: 1}
  cpu:
"""


def write_notebook(path: Path, parameters: str, cells: list[str]) -> None:
    notebook = new_notebook(metadata={"kernelspec": {"name": "elsewhere", "display_name": "x", "language": "python"}})
    notebook.cells = [
        new_markdown_cell("# Tiny"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *(new_code_cell(source) for source in cells),
    ]
    for cell in notebook.cells[2:]:
        if "plt.show()" in cell.source:
            cell.metadata["tags"] = ["figure:tiny.fig1"]
        elif "table = " in cell.source:
            cell.metadata["tags"] = ["table:tiny.table1"]
    nbformat.write(notebook, path)


def write_course(root: Path, second: list[str] = SECOND) -> Path:
    (root / "notebooks").mkdir(parents=True)
    (root / "notebooks" / "profiles.yml").write_text(PROFILES)
    first = 'steps = 3  # how often\nword = "hi"  # which\nrate = 0.5  # how fast\nflag = False  # or not\n'
    write_notebook(root / "notebooks" / "01_first.ipynb", first, FIRST)
    write_notebook(root / "notebooks" / "02_second.ipynb", "pause = 0  # seconds", second)
    # A kernel that other tools would find first and that cannot start: the runner must not depend on kernel specs.
    broken = root / "jupyter" / "kernels" / "python3"
    broken.mkdir(parents=True)
    (broken / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "broken", "language": "python"}')
    return root


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"JUPYTER_PATH": str(root / "jupyter"), "RRG_CACHE": str(root / "cache"), "RRG_DEBUG": ""}


def rrg(root: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    """The command as a user starts it, in a process of its own."""
    command = [sys.executable, "-m", "rrg_utils.cli", *arguments]
    env = environment(root) | options.pop("env", {})
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120, **options)


def start_rrg(root: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rrg_utils.cli", *arguments]
    return subprocess.Popen(
        command,
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts with & ignores Ctrl-C, and so would its children: a test run in the background too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
