"""Imports inside the package point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from processes import ROOT

# A package imports from lower layers only, and packages of one layer do not import each other.
LAYERS = (
    ("cli",),
    ("doctor", "serve"),
    ("demo", "eval", "sample", "train", "launch"),
    ("cost_model",),
    ("registry",),
    ("pipelines",),
    ("metrics",),
    ("datasets", "models", "schedulers"),
    ("device",),
    ("parallel",),
    ("checkpoint", "ops"),
    ("config",),
    ("utils",),
    ("process",),
    ("errors",),
)
# Published paths, which only call or re-export what is elsewhere.
PUBLISHED = {
    "opensora/doctor/__main__.py",
    "opensora/eval/eval.py",
    "opensora/parallel/plan.py",
    "opensora/sample/caption_refiner.py",
    "opensora/sample/sample.py",
    "opensora/sample/sample_text_embed.py",
    "opensora/train/train_causalvae.py",
    "opensora/train/train_inpaint.py",
    "opensora/train/train_t2v_diffusers.py",
    "opensora/utils/config_utils.py",
    "opensora/utils/mask_utils.py",
}
LONGEST = 400  # lines


def imported_packages(tree: ast.AST) -> Iterator[str]:
    """The packages of this project that a module imports, except for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "opensora":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from (name.split(".")[1] for name in names if name.count("."))
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("opensora."))
        else:
            yield from imported_packages(node)


def modules() -> list[Path]:
    return [path for path in sorted((ROOT / "opensora").rglob("*.py")) if path.parent != ROOT / "opensora/cli"]


def test_imports_point_to_lower_layers():
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    packages = {path.name for path in (ROOT / "opensora").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages <= set(layer_of)
    upward = []
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        package = path.relative_to(ROOT / "opensora").parts[0].removesuffix(".py")
        if package == "__init__" or name in PUBLISHED:
            continue
        for other in imported_packages(ast.parse(path.read_text())):
            if other in layer_of and other != package and layer_of[other] <= layer_of[package]:
                upward.append(f"{name} imports {other}")
    assert not upward


def test_files_fit_on_a_few_screens():
    suffixes = (".py", ".cc", ".h")
    folders = ("opensora", "tests", "tools", "scripts", "examples", "benchmarks")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    long = {str(path): count for path in paths if (count := len(path.read_text().splitlines())) > LONGEST}
    assert len(paths) > 200 and not long
