"""What may import what: the dependency arrow, and what a bare torch + triton + numpy machine must be able to import."""

from __future__ import annotations

import ast
import importlib
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

ALONE = {"errors", "atomic", "visible_pairs", "environment", "shipped_configs"}
"""Parts of packmamba that every other part may import; they import at most `errors`."""

ARROW = ("packing", "layer_config", "config", "attention", "model")
"""Each may import those before it, and the kernels."""

USES = ("metrics", "training", "generation", "checkpoints", "compare", "experiments", "evaluation", "parallel")
"""What is done with a model."""

MODEL = {"packmamba_kernels", *ALONE, *ARROW}

ALLOWED = {
    "packmamba_kernels": set(),
    **{part: {"errors"} for part in ALONE},
    **{part: {"packmamba_kernels", *ALONE, *ARROW[:i]} for i, part in enumerate(ARROW)},
    **dict.fromkeys(USES, MODEL | {"metrics", "lightning_compat"}),
    "lightning_compat": {"errors"},
    "data": {"packmamba_kernels", *ALONE, "packing", "lightning_compat"},
    "plots": {*ALONE, "data"},
}
ALLOWED["compare"] = {*MODEL, "metrics", "data", "plots"}
ALLOWED["experiments"] = {*ALLOWED["compare"], "training"}
ALLOWED["cli"] = {*MODEL, *USES, "lightning_compat", "data", "plots", "__init__"}
ALLOWED["benchmarks"] = {*ALLOWED["cli"], "cli"}
ALLOWED["__init__"] = {*MODEL, "data"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["lit"] = ALLOWED["callbacks"] = {"training"}
"""Parts that each part may import, besides itself. cli finds the commands by name when they run."""

PUBLIC = """
packmamba: HybridLM ModelConfig PackedBatch Packing __version__
packmamba.attention: varlen_attention
packmamba.callbacks: EMA BestCheckpoint LastCheckpoint PackedProgressBar PredictionWriter default_callbacks
packmamba.config: AttentionConfig Mamba1Config ModelConfig PRESETS
packmamba.data: PackedDataModule
packmamba.data.collate: collate
packmamba.data.packers: Packs STRATEGIES ThresholdFiltering pack stream_packs
packmamba.data.sources: Copy DatasetFolder Files HubDataset Mixture PythonDocs RandomLengths Recall Source
packmamba.data.tokenizers: BPETokenizer ByteTokenizer HFTokenizer Tokenizer
packmamba.lit: LitHybridLM check_same_config learning_rate_factor
packmamba.model: AttentionMixer GatedMLP HybridLM Mamba1Mixer attention_cost check_token_ids forward_flops
packmamba.model: linear_cross_entropy no_decay_parameters parameter_groups training_flops
packmamba.packing: PackedBatch Packing
packmamba_kernels: causal_conv1d selective_scan
packmamba_kernels.causal_conv1d.naive: causal_conv1d_naive
packmamba_kernels.selective_scan.naive: selective_scan_naive
"""
"""Modules and their names that other people's code and YAML files import."""

HEAVY = ("lightning", "datasets", "jsonargparse", "matplotlib", "transformers", "tokenizers", "pandas")


def modules() -> Iterator[tuple[str, Path]]:
    """(part, file) of every module."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder)
            yield (_part(relative.with_suffix("").parts) if package == "packmamba" else package), path


def _part(names: tuple[str, ...]) -> str:
    """The part of packmamba that holds a module or a name in it."""
    if names[:2] == ("training", "lightning_compat"):
        return "lightning_compat"  # of training, and of data too, for it knows Lightning and nothing else
    is_module = names and any((PACKAGES["packmamba"] / f"{names[0]}{suffix}").exists() for suffix in ("", ".py"))
    return names[0] if is_module else "__init__"


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
            found.add(_part(tuple(pieces[1:])))
    return found


@pytest.mark.parametrize(("part", "path"), [pytest.param(p, f, id=str(f.relative_to(ROOT))) for p, f in modules()])
def test_imports_follow_the_dependency_arrow(part: str, path: Path) -> None:
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    wrong = parts_imported(path.read_text()) - ALLOWED[part] - {part}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; allowed: {sorted(ALLOWED[part])}"


@pytest.mark.parametrize(("module", "names"), [line.split(": ") for line in PUBLIC.strip().splitlines()])
def test_public_names_can_be_imported(module: str, names: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in names.split() if not hasattr(found, name)]
    assert not missing, f"{module} has lost {missing}"


def test_what_measures_the_project_is_not_in_the_project() -> None:
    assert not [part for part, names in ALLOWED.items() if "benchmarks" in names]
    assert "training" not in ALLOWED["compare"]
    assert not {"cli", "model"} & ALLOWED["data"]


@pytest.mark.parametrize("folder", ["packmamba", "kernels", "benchmarks", "tests", "examples"])
def test_no_file_is_too_long_to_read(folder: str) -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in (ROOT / folder).rglob("*.py")}
    assert not {path: number for path, number in lines.items() if number > 400}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_says_what_it_is_for(package: str) -> None:
    rooms = PACKAGES[package].rglob("__init__.py")
    assert not [str(path) for path in rooms if not ast.get_docstring(ast.parse(path.read_text()))]


def test_a_wrong_import_would_be_found() -> None:
    source = "def f():\n    from packmamba.model import HybridLM\n    import packmamba_kernels.schedule"
    assert parts_imported(source) == {"model", "packmamba_kernels"}
    assert parts_imported("from packmamba import HybridLM") == {"__init__"}
    assert parts_imported("import packmamba.training.lit, packmamba.training.lightning_compat") == {
        "training",
        "lightning_compat",
    }
    assert "model" not in ALLOWED["data"]


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
        "import packmamba.compare; import packmamba.compare.throughput; import packmamba.compare.sweep",
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


@pytest.mark.slow
def test_gpu_tests_are_collected_on_a_bare_machine() -> None:
    collect = "import pytest; sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-p', 'no:cacheprovider']))"
    run = run_on_a_bare_machine(collect, ROOT)
    assert run.returncode == 0, run.stdout[-2000:]
    for module in ("tests/model/test_loss.py", "tests/test_packing.py", "tests/kernels/selective_scan/"):
        assert module in run.stdout
    assert "error" not in run.stdout


def test_kernels_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package `kernels`"
