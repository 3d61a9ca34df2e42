"""What the READMEs say exists: files that they link to, commands, configurations, and the first example's output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from packmamba.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "kernels/README.md", "benchmarks/README.md")
SHIPPED = {path.stem for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_of_the_repository_leads_there(document: str) -> None:
    text = (ROOT / document).read_text()
    prose = re.sub(r"`[^`\n]*`", "", text)  # code such as `kernel[grid](...)` is no link
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", prose) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing, f"{document} links to {missing}"


def commands(text: str) -> list[list[str]]:
    """The words of every line of a fenced block that begins with `packmamba` or `python -m benchmarks`."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = "\n".join(block for language, block in fenced if not language)
    lines = re.findall(r"^(?:packmamba|python -m benchmarks) .*$", blocks, flags=re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_shipped_configuration_that_is_named_exists(document: str) -> None:
    for words in commands((ROOT / document).read_text()):
        known = COMMANDS if words[0] == "packmamba" else BENCHMARKS
        name = words[1] if words[0] == "packmamba" else words[3] if len(words) > 3 else None
        assert name is None or name.isupper() or name in known, " ".join(words)
        if "--config" in words:
            assert words[words.index("--config") + 1] in SHIPPED, " ".join(words)


def test_the_landing_page_names_commands() -> None:
    assert len(commands((ROOT / "README.md").read_text())) > 10


def test_the_first_example_of_the_landing_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert float(re.sub(r"tensor\((.*?)[,)].*", r"\1", capsys.readouterr().out)) < 1e-5
