import json
import re

from benchmarks import chart


def test_chart_and_readmes_show_the_figures_of_the_results() -> None:
    results = json.loads(chart.RESULTS.read_text())
    for path, text in chart.documents(results).items():
        assert path.read_text() == text, f"run python -m benchmarks.chart: {path}"


def test_page_in_a_browser_is_shown_only_if_there_was_one() -> None:
    results = json.loads(chart.RESULTS.read_text())
    figures = {
        "awaited": {"ttfb_ms": 203.4, "lcp_ms": 260.0},
        "blocking": {"ttfb_ms": 10_012.3, "lcp_ms": 10_080.0},
    }
    complete = figures | {"synchronous": {"ttfb_ms": 205.6, "lcp_ms": 270.0}}
    for contenders in ({}, figures, complete):
        results["workloads"]["page"] = {"title": "A page", "contenders": contenders}
        documents = chart.documents(results)
        shown = documents[chart.HERE / "README.md"]
        assert ("10,012 ms" in shown) == ("largest contentful" in shown)
        assert ("10,012 ms" in shown) == bool(contenders)
        # What compares the cases needs all of them.
        drawn = documents.get(chart.HERE / "page-dark.svg", "")
        for text, word in (
            (drawn, ">10,012<"),
            (shown, 'src="page-light.svg"'),
            (documents[chart.HERE.parent / "README.md"], "10,012 and 10,080 ms"),
        ):
            assert (word in text) == (contenders is complete)


def test_each_decision_has_three_to_six_sentences() -> None:
    decisions = (chart.HERE.parent / "docs" / "decisions.md").read_text()
    for section in re.split("^### ", decisions, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        text = re.sub("`[^`]*`", "", text.partition("\n## ")[0])
        assert 3 <= len(re.findall(r"[.!?](?=\s)", text)) <= 6, heading
