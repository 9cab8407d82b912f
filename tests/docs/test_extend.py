"""The connector of docs/extend.md, added to a copy of the package as the page says."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, run

PAGE = REPOSITORY / "docs" / "extend.md"
KIND = "row_pooling"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the extended package."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "nvlm", folder / "nvlm", ignore=ignored)
    files, line = [], None
    for language, text in blocks_of(PAGE):
        if language == "python":
            name, _, code = text.removeprefix("# ").partition("\n")
            (folder / name).write_text(code)
            files.append(name)
        elif language == "text":
            line = text
    assert [Path(name).stem for name in files] == [KIND, KIND]
    assert line is not None
    table = folder / "nvlm/config/connectors/__init__.py"
    before, head, after = table.read_text().partition("KINDS = {\n")
    assert head
    last, brace, rest = after.partition("}\n")
    table.write_text(f"{before}{head}{last}{line}{brace}{rest}")
    return folder


def python(folder: Path, *arguments: str | Path) -> str:
    paths = os.pathsep.join([str(folder), str(REPOSITORY / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return run([sys.executable, *map(str, arguments)], cwd=folder, env=environment)


def test_the_configuration_knows_it(copy: Path):
    """Without torch: tokens, parameters and operations of the tiny model with it."""
    printed = python(
        copy,
        "-c",
        "import json, sys; from nvlm.config import load_config\n"
        "from nvlm.sizes.flops import forward_flops\n"
        "from nvlm.sizes.parameters import PROJECTOR, component_parameters\n"
        f"model = load_config('{REPOSITORY}/configs/run/tiny/sft.yaml', "
        f"['model.connector.kind={KIND}']).model\n"
        "rows = component_parameters(model, PROJECTOR)\n"
        "print(json.dumps([model.num_tokens_per_tile, [row.shape for row in rows], "
        "forward_flops(model).projector_per_tile, 'torch' in sys.modules]))",
    )
    assert json.loads(printed) == [8, [[192, 160]], 2 * 8 * 160 * 192, False]


@pytest.mark.slow
def test_it_trains_and_exports(copy: Path, tmp_path: Path, measure):
    python(copy, REPOSITORY / "tests/helpers/extended_package.py", KIND, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert Path(results["package"]).is_relative_to(copy)
    assert all(math.isfinite(loss) for loss in results["losses"])
    assert results["moved"]["vision_projection.linear.weight"] > 0
    assert (tmp_path / "export" / f"connector_{KIND}.py").is_file()
    assert results["largest"] > 0.5  # measured: 0.92, and a difference of 1e-6
    measure(
        "logits of the export of docs/extend.md's connector, largest difference",
        "our Megatron model",
        results["difference"],
        1e-4,
    )
