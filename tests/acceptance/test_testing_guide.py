"""The guide on testing is true: its tests pass as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "testing.md").read_text()
DIFF = """

def test_what_differs_is_told_as_the_guide_says() -> None:
    with pytest.raises(AssertionError) as failure:
        charged = with_gateway().given(OrderPlaced("o-1", 7))
        charged.when(OrderCancelled("o-1")).then(PaymentRefunded("o-1", "charge of o-2"))
    assert str(failure.value).partition(": ")[2] == TOLD
"""


def test_its_tests_pass_as_they_stand(tmp_path: Path) -> None:
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
    [told] = re.findall(r"```\n\S*: (the scenario .*?)\n```", GUIDE, re.DOTALL)
    (tmp_path / "test_guide.py").write_text(f"{code}\nTOLD = {told!r}\n{DIFF}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_guide.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b12 passed\b", done.stdout), done.stdout
