"""The README is true: its example runs as it stands, and the files and commands that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 40
    (tmp_path / "shop.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "order-1 is paid\n", "")


def test_every_file_it_names_exists() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"script/\w+", README):
        assert (ROOT / name).exists(), name
