"""The README is true: its example runs as it stands, and the files and commands that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


SAYS = [r"order-1 is paid\n", r"order-1: paid with \S{8}, delivered to Bag End\n"]


@pytest.mark.parametrize("number", [0, 1], ids=["shop", "workflow"])
def test_an_example_runs_as_it_stands(tmp_path: Path, number: int) -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == len(SAYS)
    code = [line for line in examples[number].splitlines() if line.strip()]
    assert len(code) <= 40
    (tmp_path / "shop.py").write_text(examples[number])
    done = subprocess.run(
        [sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SAYS[number], done.stdout), done.stdout


def test_its_first_example_is_an_application_for_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0])
    assert "skald run shop:app --service payments" in README
    command = [sys.executable, "-m", "skald", "graph", "shop:app"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'service_orders -->|"OrderPlaced"| service_payments' in done.stdout


def test_every_file_it_names_exists() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"script/\w+", README):
        assert (ROOT / name).exists(), name
