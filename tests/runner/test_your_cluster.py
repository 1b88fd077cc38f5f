"""The commands of docs/your-cluster.md, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from steelyard.runner.cli import run

PAGE = Path(__file__).parents[2] / "docs" / "your-cluster.md"
FENCE = re.compile(r"^```(sh|csv)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_s_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = FENCE.findall(PAGE.read_text())
    assert [language for language, _ in blocks] == ["sh", "csv", "sh"]
    for language, text in blocks:
        if language == "csv":
            Path("steps.csv").write_text(text)
            continue
        for line in text.splitlines():
            words = shlex.split(line)
            assert words[0] == "steelyard"
            assert run(words[1:]) == 0, line
    assert Path("run-it/train.py").is_file()
    assert Path("export-megatron/arguments.txt").is_file()
