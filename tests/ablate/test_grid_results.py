"""What is counted of finished runs, against scipy; the ranking, its page, and a law over sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.page_tree import parse_page
from helpers.paths import REPOSITORY
from scipy import stats

from nvlm.ablate.cells import Cell, Run, make_cells
from nvlm.ablate.grid_file import read_grid
from nvlm.ablate.grid_results import as_json, find_results, write_results
from nvlm.ablate.measure import trained_parameters
from nvlm.ablate.page import write_grid_page
from nvlm.ablate.run_tasks import Failure
from nvlm.ablate.show import print_results
from nvlm.ablate.tasks import answers_file, make_tasks
from nvlm.errors import DataError

SEEDS = [1, 2, 3, 4]
STEPS = 5
AXES = {"tags": {"none": {"stage.tile_tags": "none"}, "2d_box": {"stage.tile_tags": "2d_box"}}}
HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J"


def grid_of(folder: Path, **values):
    path = folder / "g.yaml"
    set_ = {"train.steps": STEPS, "validation.every": 1}
    own = {"base": str(REPOSITORY / "configs/run/tiny/sft.yaml"), "set": set_, "seeds": SEEDS}
    own |= {"dir": str(folder / "cells"), "axes": AXES, "evaluate": {"data_root": "d"}}
    path.write_text(yaml.safe_dump(own | values, sort_keys=False))
    grid = read_grid(path)
    return grid, make_cells(grid, folder / "cells")


def finish(run: Run, asked, loss: float, scores: list[float], steps: int = STEPS) -> None:
    """The files that a run leaves, and those that asking it does."""
    run.folder.mkdir(parents=True)
    lines = [
        {"step": s, "loss": 9.0 - s, "tokens": 10, "all_tokens": 30, "seconds": 36.0}
        for s in range(1, steps + 1)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    between = {"step": steps, "validation/loss": loss, "validation/loss/a": loss / 2}
    between["validation/seconds"] = 180.0
    (run.folder / "between_steps.jsonl").write_text(json.dumps(between) + "\n")
    rows = [
        {"source": "s", "sample_id": str(at), "question": "?", "task": "ab"[at % 2], "score": score}
        for at, score in enumerate(scores)
    ]
    answers_file(run, asked).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def found(tmp_path: Path):
    """Three cells of known numbers, whose last has a run that is not finished."""
    grid, cells = grid_of(tmp_path)
    generator = np.random.default_rng(0)
    of_seed = generator.normal(0, 0.3, len(SEEDS))
    easy = generator.random(40)
    losses, scores = {}, {}
    for cell, better in zip(cells, (0.0, 0.4, 0.02)):
        losses[cell.name] = (5 + of_seed - better + generator.normal(0, 0.02, 4)).tolist()
        draws = generator.random((len(SEEDS), 40))
        scores[cell.name] = [(draw < np.clip(easy + better, 0, 1)).astype(float) for draw in draws]
        for at, seed in enumerate(SEEDS):
            is_cut = cell.name.endswith("2d_box") and seed == 4
            steps = STEPS - 1 if is_cut else STEPS
            finish(cell.runs[seed], grid.evaluate, losses[cell.name][at],
                   scores[cell.name][at].tolist(), steps)  # fmt: skip
    return grid, cells, losses, scores


def result_of(found, cell: str) -> dict:
    grid, cells, *_ = found
    values = as_json(find_results(grid, "g", cells))
    return next(one for one in values["cells"] if one["name"] == cell)


def test_numbers_against_scipy(found):
    _, _, losses, scores = found
    p_values = []
    for name, num in (("tags=none", 4), ("tags=2d_box", 3)):  # a run that is not done counts not
        metric = result_of(found, name)["metrics"]["validation/loss"]
        own, base = losses[name][:num], losses["base"][:num]
        assert metric["mean"] == pytest.approx(np.mean(own))
        interval = stats.t.interval(0.95, num - 1, np.mean(own), stats.sem(own))
        assert metric["interval"] == pytest.approx(interval)
        theirs, to_base = stats.ttest_rel(own, base), metric["to_base"]
        assert to_base["num_seeds"] == num
        assert to_base["p_seeds"] == pytest.approx(theirs.pvalue)
        assert to_base["interval"] == pytest.approx([*theirs.confidence_interval(0.95)])
        p_values.append(theirs.pvalue)
    least, most = sorted(p_values)
    holm = {least: min(1, 2 * least), most: max(min(1, 2 * least), most)}
    for name, p_value in zip(("tags=none", "tags=2d_box"), p_values):
        to_base = result_of(found, name)["metrics"]["validation/loss"]["to_base"]
        assert to_base["p_seeds_holm"] == pytest.approx(holm[p_value])
        assert to_base["p_questions"] is None
    answers = result_of(found, "tags=none")["metrics"]["answers"]
    assert answers["mean"] == pytest.approx(np.mean(scores["tags=none"]))
    assert answers["to_base"]["num_questions"] == 40
    assert answers["to_base"]["p_questions"] < 0.01
    of_task = result_of(found, "tags=none")["metrics"]["answers/a"]
    assert of_task["mean"] == pytest.approx(np.mean(np.array(scores["tags=none"])[:, ::2]))


def test_ranking_and_what_is_not_told_apart(found, capsys):
    grid, cells, *_ = found
    results = find_results(grid, "g", cells)
    assert results.metric == "answers"
    assert results.cells[0].cell.name == "tags=none"
    by_name = {r.cell.name: r for r in results.cells}
    assert by_name["tags=none"].compared["answers"].is_told_apart
    assert not by_name["tags=2d_box"].compared["answers"].is_told_apart
    assert by_name["base"].to_first.is_told_apart
    print_results(results)
    printed = capsys.readouterr().out
    assert "corrected" in printed and "not told" in printed


def test_costs_are_counted_once(found):
    _, cells, *_ = found
    cost = result_of(found, "tags=2d_box")["cost"]
    assert cost["tokens"] == 3 * STEPS * 30 and cost["trained_tokens"] == 3 * STEPS * 10
    assert cost["hours"] == pytest.approx(3 * (STEPS * 36 + 180) / 3600)
    # As `nvlm model summary` counts them, which compares with a model that is built.
    assert (cost["parameters"], cost["trained_parameters"]) == (4_033_568, 2_445_760)
    # A step that was taken again stands in the file once more after a kill of the older version.
    path = cells[0].runs[1].folder / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert result_of(found, "base")["cost"]["tokens"] == 4 * STEPS * 30


def test_the_page_shows_text_as_text(found, tmp_path):
    grid, cells, *_ = found
    task = make_tasks(cells, grid.evaluate)[0]
    results = find_results(grid, "g", cells, [Failure(task, HOSTILE)])
    page = parse_page(write_grid_page(results, tmp_path).read_text(encoding="utf-8"))
    assert not page.with_tag("img") and "onerror=alert(1)" in page.text
    bars = page.with_class("track")
    assert [bar.attributes["aria-label"].split(":")[0] for bar in bars] == [
        "tags=none", *[r.cell.name for r in results.cells[1:]],
    ]  # fmt: skip
    assert [len(bar.with_class("seed")) for bar in bars].count(4) == 2
    assert len(page.with_class("chart")) == 2
    assert "stage.tile_tags" in page.text and "not told apart from" in page.text
    written = write_results(results, tmp_path).read_bytes()
    results = find_results(grid, "g", cells, results.failures)
    assert write_results(results, tmp_path).read_bytes() == written


def test_damaged_answers_are_named(found):
    grid, cells, *_ = found
    path = answers_file(cells[0].runs[1], grid.evaluate)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=f"{path}: is damaged: remove it"):
        find_results(grid, "g", cells)


def test_a_law_over_sizes_says_what_the_next_size_gives(tmp_path):
    layers = {f"l{n}": {"model.language.num_layers": n} for n in (2, 6, 12, 24)}
    scaling = {"axis": "size", "metric": "validation/loss"}
    grid, cells = grid_of(
        tmp_path, axes={"size": layers}, scaling=scaling, evaluate={}, seeds=[1, 2]
    )

    def law(cell: Cell) -> float:
        total, _ = trained_parameters(cell.runs[1].config)
        return 500 * total**-0.4 + 1.5

    for cell in cells:
        for seed in (1, 2):
            finish(cell.runs[seed], grid.evaluate, law(cell) + 1e-4 * (-1) ** seed, [])
    scaled = find_results(grid, "g", cells).scaling
    assert scaled is not None and scaled.law is not None and scaled.next is not None
    assert scaled.law.b == pytest.approx(0.4, abs=0.02)
    sizes = sorted({size for _, size, _ in scaled.points})
    assert len(scaled.points) == 10 and scaled.next.size == sizes[-1] ** 2 / sizes[-2]
    low, high = scaled.next.interval
    assert low < 500 * scaled.next.size**-0.4 + 1.5 < high
    # Three sizes fit any such law.
    grid, cells = grid_of(tmp_path, axes={"size": {"l2": layers["l2"]}}, scaling=scaling,
                          evaluate={}, seeds=[1, 2])  # fmt: skip
    scaled = find_results(grid, "g", cells).scaling
    assert scaled.law is None and "at least 4 sizes, found 2" in scaled.problem
