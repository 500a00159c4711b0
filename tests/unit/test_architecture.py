from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from likeness_client import MissingExtraError
from likeness_client.cli import EXTRA_OF
from likeness_export.cli import demo

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "likeness_client": ROOT / "client" / "likeness_client",
    "likeness_export": ROOT / "export" / "likeness_export",
    "likeness_bench": ROOT / "benchmarks" / "likeness_bench",
}
FORBIDDEN = {
    "likeness_client": {"likeness_export", "likeness_bench", "torch", "onnxruntime", "PIL", "pydantic", "transformers"},
    "likeness_export": {"likeness_bench"},
    "likeness_bench": {"likeness_export", "torch"},
}
TUNER = PACKAGES["likeness_bench"] / "tune"
LIGHT_EXPORT = {
    f"likeness_export.{name}"
    for name in (
        "recipe",
        "serving_section",
        "repository.rendering",
        "repository.replacing",
        "repository.servable",
        "server.serve",
    )
}
"""What the tuner needs of the export: the settings, what renders them, serves what comes of it, and clears up.

It may, and no other part of the harness: it does not only load a server, it makes and serves repositories with other
settings. These modules only declare and render: networks, training and export stay out of its reach.
"""
MODULES = [(name, path) for name, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]
IDS = [f"{name}/{path.relative_to(PACKAGES[name])}" for name, path in MODULES]


def imports(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, wherever in it; a relative import is its own package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize(("name", "path"), MODULES, ids=IDS)
def test_imports_point_one_way(name: str, path: Path) -> None:
    allowed = {"likeness_export"} if TUNER in path.parents else set()
    assert not imports(path) & FORBIDDEN[name] - allowed


@pytest.mark.parametrize("name", ["likeness_export", "likeness_bench"])
def test_the_command_knows_the_extra_of_every_optional_package(name: str) -> None:
    """So that one that is not installed is a line that says what to install."""
    found = set[str]().union(*(imports(path) for package, path in MODULES if package == name))
    everywhere = {"google", "numpy", "tritonclient", "typer"}  # what the client itself brings
    in_a_server = {"answering", "counting", "lengths", "preprocessing", "session", "triton_python_backend_utils"}
    says_so_itself = {"tensorrt", "timm"}
    known = sys.stdlib_module_names | PACKAGES.keys() | everywhere | in_a_server | says_so_itself | EXTRA_OF.keys()
    assert found - known - {"_typeshed"} == set()


@pytest.mark.parametrize("path", sorted(TUNER.rglob("*.py")), ids=lambda path: path.name)
def test_the_tuner_takes_from_the_export_only_what_declares_renders_and_serves(path: Path) -> None:
    modules = {
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert {module for module in modules if module.split(".")[0] == "likeness_export"} <= LIGHT_EXPORT


@pytest.mark.parametrize("name", ["likeness_export.cli", "likeness_export.server.serve", "likeness_bench.cli"])
def test_commands_and_serving_start_without_any_extra(name: str) -> None:
    """So that the client alone shows every command, and each says what it lacks."""
    code = f"import {name}, sys; print(sorted({{*{(*EXTRA_OF,)}}} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_demo_names_the_extra_that_brings_all_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "transformers.utils", raising=False)
    with pytest.raises(MissingExtraError, match=r"transformers.* is missing: .*likeness\[demo\]"):
        demo(tmp_path)


@pytest.mark.parametrize(
    "path", sorted((PACKAGES["likeness_export"] / "preprocessing").glob("*.py")), ids=lambda p: p.name
)
def test_preprocessing_runs_where_this_package_is_not_installed(path: Path) -> None:
    """The export copies these files into a server that has nothing else."""
    assert imports(path) <= sys.stdlib_module_names | {"numpy", "joblib", "PIL", "av", "tokenizers"}
    others = {other.stem for other in path.parent.glob("*.py")} - {path.stem}
    assert not imports(path) & others


ADAPTERS = sorted((PACKAGES["likeness_export"] / "repository" / "adapters").glob("*_model.py"))


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.name)
def test_adapters_are_thin_and_import_nothing_of_this_package(path: Path) -> None:
    beside = {"answering", "counting", "lengths", "preprocessing", "session"}
    available = {"numpy", "onnxruntime", "triton_python_backend_utils", *beside}
    assert imports(path) <= sys.stdlib_module_names | available
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["TritonPythonModel"]
    for node in classes:
        assert node.end_lineno is not None
        assert node.end_lineno - node.lineno + 1 <= 40


@pytest.mark.parametrize("folder", ["client", "export", "benchmarks"])
def test_no_module_lies_beside_a_package(folder: str) -> None:
    """It would be importable in an editable install and missing from the wheel."""
    assert list((ROOT / folder).glob("*.py")) == []


LIBRARIES = importlib.metadata.packages_distributions().keys() | {"tensorrt", "triton", "pymilvus", "ray"}
"""What is installed, and what may be."""


@pytest.mark.parametrize("path", [path for _, path in MODULES], ids=IDS)
def test_no_module_has_the_name_of_a_library(path: Path) -> None:
    """It would hide the library as soon as its folder is on the path."""
    assert path.stem not in LIBRARIES


def test_the_client_needs_no_torch() -> None:
    required = importlib.metadata.requires("likeness") or []
    base = {
        requirement.split(">")[0].split("[")[0].strip() for requirement in required if "extra ==" not in requirement
    }
    assert base == {"numpy", "tritonclient", "typer"}


@pytest.mark.parametrize("extra", ["export", "serve", "gpu", "bench", "demo", "dev"])
def test_the_extras_are_declared(extra: str) -> None:
    assert extra in (importlib.metadata.metadata("likeness").get_all("Provides-Extra") or [])


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, the build backend, is not installed"
)
def test_the_wheel_holds_the_three_packages_and_what_they_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q", "-w"]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=60)
    (wheel,) = tmp_path.glob("likeness-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    for needed in ("recipes/demo.toml", "recipes/fashion.toml", "repository/adapters/network_model.py", "py.typed"):
        assert f"likeness_export/{needed}" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".onnx", ".onnx.data", ".pt"))]
