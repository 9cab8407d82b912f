"""The tables of docs/findings.md are those of the results that are committed beside it."""

from __future__ import annotations

import json
import runpy

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from scipy import stats

from nvlm.ablate.grid_file import find_grid, read_grid

WRITTEN = runpy.run_path(str(REPOSITORY / "scripts" / "findings_tables"))
RESULTS = {path.stem: json.loads(path.read_text()) for path in WRITTEN["RESULTS"].glob("*.json")}


def test_tables_are_those_of_the_results():
    """After another run of a grid, `scripts/findings_tables` writes them anew."""
    page = WRITTEN["PAGE"].read_text()
    assert WRITTEN["render_page"](page) == page
    for name in RESULTS:
        assert WRITTEN["BEGIN"].format(name) in page


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_of_the_grid_that_comes_with_nvlm(name: str):
    """All cells and seeds of the file finished, three at least."""
    grid, results = read_grid(find_grid(name)), RESULTS[name]
    cells = {f"{axis}={value}" for axis, values in grid.axes.items() for value in values}
    assert {cell["name"] for cell in results["cells"]} == {"base", *cells}
    assert results["seeds"] == grid.seeds and len(grid.seeds) >= 3
    assert all(cell["finished_seeds"] == grid.seeds for cell in results["cells"])
    assert not results["failures"]


@pytest.mark.parametrize("name", RESULTS)
def test_statistics_are_those_of_scipy(name: str):
    """Means, intervals and paired tests, again from the numbers of each seed, by scipy."""
    results = RESULTS[name]
    base = next(cell for cell in results["cells"] if cell["name"] == "base")
    for cell in results["cells"]:
        for metric, found in cell["metrics"].items():
            values = np.array(list(found["by_seed"].values()))
            assert found["mean"] == pytest.approx(values.mean())
            low, high = (
                stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
                if values.std()
                else (values[0], values[0])
            )
            assert found["interval"] == pytest.approx([low, high], abs=1e-9)
            compared = found["to_base"]
            if compared is None or compared["p_seeds"] is None:
                continue
            theirs = np.array(list(base["metrics"][metric]["by_seed"].values()))
            if (values != theirs).any():
                expected = stats.ttest_rel(values, theirs).pvalue
                assert compared["p_seeds"] == pytest.approx(expected, rel=1e-6)
