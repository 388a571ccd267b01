import json

from benchmarks import chart


def test_chart_and_readmes_show_the_figures_of_the_results() -> None:
    results = json.loads(chart.RESULTS.read_text())
    for path, text in chart.documents(results).items():
        assert path.read_text() == text, f"run python -m benchmarks.chart: {path}"
