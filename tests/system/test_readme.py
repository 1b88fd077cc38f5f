"""The README's blocks run as they stand: commands in order in one folder, files loaded, Python executed.

What a block's language says: ``sh`` holds commands of ours, each of which must end with 0 (``# slow`` at the end of a
line leaves it out); ``toml`` is a scenario, a lane file or a policy file; ``python`` is executed. A first line like
``# my_policy.py`` names the file that the block is. ``console`` and plain blocks are for reading.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from steelyard.policies import policy_from_text
from steelyard.results.errors import InputError
from steelyard.runner.cli import run
from steelyard.runner.declared import LaneFile
from steelyard.sim.checking import validate
from steelyard.sim.spec import load_scenario

README = Path(__file__).parents[2] / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w-]+\.\w+)\n")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line that it begins on."""

    language: str
    text: str
    line: int

    @property
    def name(self) -> str:
        """The file name in the first line, else one from the place in the README."""
        named = FILE_NAME.match(self.text)
        return named[1] if named else f"readme_line_{self.line}.{ {'python': 'py'}.get(self.language, self.language) }"


def blocks(text: str) -> list[Block]:
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in FENCE.finditer(text)]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of an ``sh`` block, but for slow ones; a line that is none of ours is a mistake."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#") or line.rstrip().endswith("# slow"):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] == "steelyard", f"line {block.line}: {line!r} is not run by this test; make the block `console`"
        yield words[1:]


def do(block: Block, folder: Path) -> None:
    """Run, load or execute a block in a folder."""
    if block.language == "sh":
        for words in commands(block):
            assert run(words) == 0, f"README line {block.line}: steelyard {shlex.join(words)}"
    elif block.language == "toml":
        (folder / block.name).write_text(block.text)
        load(folder / block.name)
    elif block.language == "python":
        (folder / block.name).write_text(block.text)
        done = subprocess.run(
            [sys.executable, block.name], cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"README line {block.line}: {done.stderr}"


def load(file: Path) -> None:
    """Load a TOML file as what it is."""
    document = tomllib.loads(file.read_text())
    if "policy" in document:
        policy_from_text(str(file))
    elif "cluster" not in document and "workload" not in document:
        validate(LaneFile, document, file.name)
    elif "lanes" in document.get("cluster", {}):  # valid as far as this host can tell without measuring
        with pytest.raises(InputError, match="steelyard calibrate"):
            load_scenario(file)
    else:
        load_scenario(file)


def test_blocks_of_the_readme_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = blocks(README.read_text(encoding="utf-8"))
    assert {"sh", "toml", "python"} <= {block.language for block in found}
    for block in found:
        do(block, tmp_path)


def test_commands_in_the_text_are_verbs_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Also what is too slow to run here, and what stands within a sentence."""
    text = README.read_text(encoding="utf-8")
    verbs = set(re.findall(r"(?:^|`)steelyard ([a-z]+)", text, re.MULTILINE))
    assert len(verbs) > 5
    for verb in sorted(verbs):
        assert run([verb, "--help"]) == 0, verb
    capsys.readouterr()


def test_every_fence_is_closed() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(blocks(text))


# ---- the test of the test ----


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nsteelyard check no-such-scenario\n```\n",
        "```sh\nrm -rf elsewhere\n```\n",
        "```toml\nname = 'x'\nworkload = {}\n```\n",
        "```toml\nlanes = [{ name = 'a', speed = 3 }]\n```\n",
        "```python\nassert False\n```\n",
    ],
)
def test_a_wrong_block_is_noticed(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(text)
    with pytest.raises((AssertionError, InputError)):
        do(block, tmp_path)
    capsys.readouterr()


def test_slow_commands_and_blocks_for_reading_are_left_alone(tmp_path: Path) -> None:
    for text in ("```sh\nsteelyard fly  # slow\n# a remark\n```\n", "```console\nmake demo\n```\n", "```\nfree\n```\n"):
        (block,) = blocks(text)
        do(block, tmp_path)
    assert not list(tmp_path.iterdir())
