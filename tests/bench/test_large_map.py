"""The measurement of large maps works, on a small one; its figures are for benchmarks.md, not for a verdict here."""

from pathlib import Path

from tests.bench.large_map import measure


def test_it_measures_and_checks_what_it_followed(tmp_path: Path) -> None:
    figures = measure(2_000, tmp_path)
    assert all(value > 0 for what, value, _ in figures.rows if "memory" not in what)
    assert {unit for _, _, unit in figures.rows} == {"s", "us", "ms", "bytes per range"}
