"""The benchmark of the packing strategies and that of the loader: they run, and count what they say they count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.data import loader, packers
from benchmarks.readme_tables import TABLES
from packmamba.data.packers import STRATEGIES


def test_every_strategy_is_measured_beside_the_published_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packers.main(["--scale", "0.01", "--repeats", "1", "--output", str(tmp_path / "packers.json")])
    report = json.loads((tmp_path / "packers.json").read_text())
    results = report["results"]
    assert [result["strategy"] for result in results[:-2]] == list(STRATEGIES)
    assert [result["documents"] for result in results[-2:]] == [10_000, 100_000]
    by_name = {result["strategy"]: result for result in results[:-2]}
    assert by_name["sequential"]["published_padding"] == 0.191
    assert by_name["local_greedy"]["published_padding"] == 0.0041
    assert by_name["best_fit_decreasing"]["published_padding"] is None
    padding = [by_name[name]["padding"] for name in ("best_fit_decreasing", "local_greedy", "sequential")]
    assert padding[0] <= padding[1] < padding[2]
    assert all(result["seconds"] > 0 and result["peak_bytes"] > 8 * result["documents"] for result in results)
    assert "19.10%" in capsys.readouterr().out
    assert ["`local_greedy`", "1,000", "4,096"] in [row[:3] for row in TABLES["packers"](report)]


def test_nothing_is_timed_without_repeats() -> None:
    result = packers.measure("wrapped", 10, 4096, repeats=0)
    assert result["seconds"] is None
    table = TABLES["packers"]({"results": [result]})
    assert table[1][-1] == "not timed"


def test_the_loader_is_measured_over_whole_epochs(tmp_path: Path) -> None:
    loader._data_module(0, 5000, 40, str(tmp_path)).prepare_data()
    result = loader.measure(0, 5000, 40, epochs=2, cache_dir=str(tmp_path))
    assert 40 < result["tokens"] <= 40 * 2050  # a token a byte, and an EOS each
    assert result["batches"] >= result["tokens"] / 5000
    assert 0 < result["slowest"] <= result["tokens_per_second"] <= result["fastest"]
    assert TABLES["loader"]({"results": [result]})[1][:2] == ["5,000", "0"]
    assert loader.speed(loader.measure(0, 5000, 40, epochs=0, cache_dir=str(tmp_path))) == "not timed"


@pytest.mark.slow
def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    arguments = ["--documents", "5", "--cache_dir", str(tmp_path), "--capacities", "64", "--workers", "-1"]
    with pytest.raises(RuntimeError, match=r"with -1 workers failed:(.|\n)*num_workers must be at least 0, got -1"):
        loader.main(arguments)
