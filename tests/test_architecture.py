"""The structure of the code: imports go one way, chains of imports are short, and files are short."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Modules of a package may import from the same package and those before it in this list.
ROOMS = (
    "errors",
    "files",
    "config",
    "kernels",
    "model",
    "masks",
    "data",
    "training",
    "weights",
    "runs",
    "studies",
    "cli",
)
FLOORS = 8
"""Number of modules on the longest chain of imports."""
LINES = {"jaxcnn": 350, "experiments": 350, "tests": 450}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "jaxcnn").rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(names[: -1 if names[-1] == "__init__" else None])] = path
    return found


MODULES = modules()


def imports(tree: ast.AST) -> set[str]:
    """The project's modules that a module imports, also within functions; not those that only a type checker sees."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        found |= imports(node)
    return found & MODULES.keys()


IMPORTS = {name: imports(ast.parse(path.read_text())) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_go_one_way() -> None:
    for module, imported in IMPORTS.items():
        if module in ("jaxcnn", "jaxcnn.__main__"):
            continue
        for other in imported - {"jaxcnn"}:
            assert ROOMS.index(room(other)) <= ROOMS.index(room(module)), f"{module} imports {other}"
    assert {room(module) for module in MODULES if module.count(".")} == {*ROOMS, "__main__"}


def test_no_chain_of_imports_is_long() -> None:
    @cache
    def floor(module: str) -> int:
        return 1 + max(map(floor, IMPORTS[module]), default=0)

    floors = {module: floor(module) for module in MODULES}
    assert max(floors.values()) == FLOORS, {module for module, at in floors.items() if at == max(floors.values())}


def test_the_package_does_not_know_the_checkout() -> None:
    for name, path in MODULES.items():
        assert "experiments" not in {
            part
            for each in ast.walk(ast.parse(path.read_text()))
            if isinstance(each, ast.ImportFrom)
            for part in (each.module or "").split(".")
        }, name


def test_files_are_short() -> None:
    for folder, most in LINES.items():
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= most, path
