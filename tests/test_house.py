"""How the code is kept: imports without circles, short files and functions, tests beside them."""

from __future__ import annotations

import ast
import re
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "nvlm"
CODE = ("nvlm", "demo")
MAX_LINES_OF_FILE = 400
MAX_LINES_OF_FUNCTION = 60
MAX_LINES_OF_FIRST_READING = 1500


def files_of(*folders: str) -> list[Path]:
    return [path for name in folders for path in sorted((REPOSITORY / name).rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def module_file(name: str) -> Path | None:
    """The file of this repository that `import NAME` reads."""
    path = REPOSITORY.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported_files(path: Path) -> set[Path]:
    """The files that `path` imports, in functions and for type checkers too.

    Importing a file runs the `__init__.py` of its folders before; those of `path`'s own folders are
    running already.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folders = relative(path).split("/")[: -node.level] if node.level else []
            module = ".".join([*folders, *filter(None, [node.module])])
            for alias in node.names:
                part = f"{module}.{alias.name}"
                names.add(part if module_file(part) else module)
    files = set()
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            file = module_file(".".join(parts[:length]))
            is_own_folder = file and file.name == "__init__.py" and file.parent in path.parents
            if file and (length == len(parts) or not is_own_folder):
                files.add(file)
    return files


def test_imports_have_no_circle():
    graph = {path: imported_files(path) for path in files_of(*CODE)}
    assert sum(map(len, graph.values())) > len(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(map(relative, error.args[1])))


def test_what_is_imported_from_a_file_is_there():
    """Also inside functions, which no test may reach."""
    names_of: dict[Path, set[str]] = {}
    for path in files_of(*CODE, "tests", "benchmarks"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            file = module_file(node.module)
            if file is None:
                continue
            if file not in names_of:
                names_of[file] = names_in(file)
            for alias in node.names:
                part = module_file(f"{node.module}.{alias.name}")
                assert part or alias.name in names_of[file], (
                    f"{relative(path)}:{node.lineno}: {node.module} has no {alias.name}"
                )


def names_in(file: Path) -> set[str]:
    """All that a file's statements outside of functions and classes bind."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(file.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return names


def test_files_are_short():
    num_lines = {relative(path): len(path.read_text().splitlines()) for path in files_of(*CODE)}
    long = {name: n for name, n in num_lines.items() if n > MAX_LINES_OF_FILE}
    assert not long


def test_functions_are_short():
    num_lines = {
        f"{relative(path)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in files_of(*CODE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    long = {name: n for name, n in num_lines.items() if n > MAX_LINES_OF_FUNCTION}
    assert not long


def test_first_reading_is_short():
    """The README's six files, in the order to read them."""
    readme = (REPOSITORY / "README.md").read_text()
    (section,) = re.findall(r"^## Read these six files.*?(?=^## |\Z)", readme, re.M | re.S)
    files = re.findall(r"^\d\. `([\w./]+)`", section, re.M)
    assert len(files) == 6
    num_lines = [len((REPOSITORY / file).read_text().splitlines()) for file in files]
    assert sum(num_lines) < MAX_LINES_OF_FIRST_READING, dict(zip(files, num_lines))


# Folders of tests that belong to no room: what pages say, and runs of several processes.
OTHER_FOLDERS = {"docs", "golden", "helpers", "parallel"}
# Tests of what several files of a room do together.
TOPICS = {
    "ablate": {"findings", "grid_kills"},
    "": {"gpu_check", "house", "repository", "text_kept", "wheel"},
    "cli": {"bad_input", "failing_verbs", "usage"},
    "config": {"documented", "fuzz"},
    "convert": {
        "connector_exports", "encoder_exports", "export_images", "fused_exports", "hostile_folders",
        "published_variants", "refusals", "released_layout", "round_trip", "serving", "streaming",
        "vllm_prompts",
    },
    "data": {"data_configs", "data_rules", "levels_of_samples"},
    "data/images": {"hostile_images"},
    "data/index": {"index_damage"},
    "data/order": {"planner_size"},
    "data/samples": {"hostile_text"},
    "data/text": {"golden_qwen_ids"},
    "evaluate": {"fused_evaluation", "question_prompts"},
    "generate": {"row_beside", "switches"},
    "importers": {"import", "import_fields", "import_files", "import_fuzz", "import_runs"},
    "model": {
        "adapter_layouts", "bf16", "context_layouts", "encoder_layouts", "fused_layouts", "fusions",
        "model_layouts", "packed_loss", "recompute", "switch_layouts", "transformer_engine",
        "variants", "visual_attention",
    },
    "megatron": {"own_parts"},
    "sizes": {"memory_of_layouts", "split_axes"},
    "train": {"adapted_runs", "blown_up_runs", "overlap", "synchronisations", "validation_skips"},
}  # fmt: skip


def test_tests_mirror_the_package():
    """tests/ROOM/test_NAME.py is about a file or folder NAME in nvlm/ROOM, or a topic of it."""
    strange = []
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        room = path.parent.relative_to(REPOSITORY / "tests")
        if room.parts and room.parts[0] in OTHER_FOLDERS:
            continue
        folder = next((top / room for top in (PACKAGE, REPOSITORY) if (top / room).is_dir()), None)
        name = path.stem.removeprefix("test_")
        if folder is None or not (
            name in TOPICS.get(str(room).removeprefix("."), ())
            or (folder / f"{name}.py").is_file()
            or (room.parts and any(folder.rglob(f"{name}.py")))
            or name == folder.name
            or (folder / name).is_dir()
        ):
            strange.append(relative(path))
    assert not strange


def test_tests_share_through_helpers_only():
    for path in files_of("tests"):
        text = path.read_text()
        assert not re.search(r"^\s*(from|import) (test_|conftest)", text, re.M), path
        assert path == Path(__file__) or not re.search(r"sys\.path\.(insert|append)", text), path
        defines = re.search(r"Path\(__file__\)\S*parents\[", text)
        assert bool(defines) == (relative(path) == "tests/helpers/paths.py") or (
            path == Path(__file__)
        ), f"{path}: helpers.paths has REPOSITORY"


def test_names_of_test_files_are_unique():
    """pytest imports them by their names alone."""
    names = [path.name for path in files_of("tests") if path.name.startswith("test_")]
    assert len(names) == len(set(names)), {name for name in names if names.count(name) > 1}


def test_programs_without_a_suffix_are_checked():
    """Ruff knows them by their names in pyproject.toml only."""
    programs = {
        relative(path)
        for path in (REPOSITORY / "scripts").iterdir()
        if path.is_file() and re.match(r"#!.*python", path.read_text().splitlines()[0])
    }
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["ruff"]
    assert programs == set(settings["extend-include"])
