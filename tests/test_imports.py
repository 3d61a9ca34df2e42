"""What may import what: the dependency arrow, and what a bare torch + triton + numpy machine must be able to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bare_machine import run_on_a_bare_machine

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "packmamba": ROOT / "packmamba",
    "packmamba_kernels": ROOT / "kernels" / "packmamba_kernels",
    "benchmarks": ROOT / "benchmarks",
}

ARROW = [
    "errors",
    "visible_pairs",
    "packing",
    "config",
    "attention",
    "model",
    "metrics",
    "lightning_compat",
    "training",
]
"""Parts of packmamba; each may import those before it."""

ALLOWED = {
    "packmamba_kernels": set(),
    **{part: {"packmamba_kernels", *ARROW[:i]} for i, part in enumerate(ARROW)},
    "environment": set(),
    "plots": {"errors", "config", "data", "compare", "metrics"},
    # Resuming reads Lightning's counters, which is the business of lightning_compat alone.
    "data": {"errors", "visible_pairs", "packmamba_kernels", "packing", "lightning_compat"},
    "lightning_compat": set(),
    "compare": {
        "errors",
        "packmamba_kernels",
        "packing",
        "config",
        "attention",
        "model",
        "metrics",
        "data",
        "environment",
        "plots",
    },
}
ALLOWED["cli"] = {"packmamba_kernels", *ARROW, "data", "environment", "plots", "compare"}
ALLOWED["benchmarks"] = {*ALLOWED["cli"], "cli"}
ALLOWED["__init__"] = {*ARROW, "data"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["lit"] = ALLOWED["callbacks"] = {"training"}
"""What each part may import, besides itself. cli finds the commands by name when they run."""

HEAVY = ("lightning", "datasets", "jsonargparse", "matplotlib", "transformers", "tokenizers", "pandas")


def modules() -> Iterator[tuple[str, Path]]:
    """(part, file) of every module."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            dotted = ".".join(path.relative_to(folder).with_suffix("").parts)
            yield (part_of(dotted) if package == "packmamba" else package), path


def part_of(module: str) -> str:
    """The part that a module of packmamba, named without `packmamba.`, belongs to."""
    if module.startswith("training.lightning_compat"):
        return "lightning_compat"
    return module.partition(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, at module level or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(source: str) -> set[str]:
    """Parts of packmamba (or packmamba_kernels) that a source text imports."""
    found = set()
    for name in imports(ast.parse(source)):
        pieces = name.split(".")
        if pieces[0] in ("packmamba_kernels", "benchmarks"):
            found.add(pieces[0])
        elif pieces[0] == "packmamba":
            found.add(part_of(".".join(pieces[1:])) or "__init__")
    return found


@pytest.mark.parametrize(("part", "path"), [pytest.param(p, f, id=str(f.relative_to(ROOT))) for p, f in modules()])
def test_imports_follow_the_dependency_arrow(part: str, path: Path) -> None:
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    wrong = parts_imported(path.read_text()) - ALLOWED[part] - {part}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; allowed: {sorted(ALLOWED[part])}"


def test_a_wrong_import_would_be_found() -> None:
    source = "def f():\n    from packmamba.model import HybridLM\n    import packmamba_kernels.schedule"
    assert parts_imported(source) == {"model", "packmamba_kernels"}
    assert not {"model", "training"} & ALLOWED["data"]
    assert parts_imported("from packmamba.training import lightning_compat, lit") == {"lightning_compat", "training"}


def test_the_kernels_need_torch_and_triton_only() -> None:
    for part, path in modules():
        if part == "packmamba_kernels":
            roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
            foreign = roots - set(sys.stdlib_module_names) - {"torch", "triton", "numpy", "packmamba_kernels"}
            assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def loaded_by(statement: str) -> set[str]:
    """Names of the top-level packages that are loaded after a statement has run in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import packmamba; packmamba.HybridLM; packmamba.ModelConfig; packmamba.Packing; packmamba.PackedBatch",
        "import packmamba.compare; import packmamba.compare.throughput",
        "import benchmarks; import benchmarks.operators.kernels",
        "import packmamba_kernels",
    ],
)
def test_a_bare_machine_can_import(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_importing_the_command_line_does_not_load_torch() -> None:
    loaded = loaded_by("import packmamba.cli; packmamba.cli.main(['--help'])")
    assert not loaded & {"torch", *HEAVY}


def test_gpu_tests_are_collected_on_a_bare_machine() -> None:
    collect = "import pytest; sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-p', 'no:cacheprovider']))"
    run = run_on_a_bare_machine(collect, ROOT)
    assert run.returncode == 0, run.stdout[-2000:]
    for module in ("tests/model/test_loss.py", "tests/test_packing.py", "tests/kernels/selective_scan/"):
        assert module in run.stdout
    assert "error" not in run.stdout


def test_kernels_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package `kernels`"
