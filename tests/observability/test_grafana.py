"""The dashboard of Grafana: its queries are PromQL, and ask for what the collector shows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest

from papyra.observability.prometheus import PapyraCollector
from tests.observability.test_prometheus import Still, numbered

PATH = Path(__file__).parents[2] / "examples" / "grafana.json"
BOARD: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [each for each in BOARD["panels"] if each["type"] != "row"]
TARGETS: list[dict[str, Any]] = [target for panel in PANELS for target in panel["targets"]]
#: Metrics on which nobody looks here.
NOT_SHOWN = re.compile(
    r"papyra_persistence_.*|papyra_projection_(position|pauses)|papyra_timers_(skipped|longest_late_seconds)"
)
#: What Grafana puts in place of its variables.
VARIABLES = {"$__rate_interval": "5m", "$system": ".*", "$class": ".*"}
LABELS = {
    sample.name: set(sample.labels)
    for metric in PapyraCollector(Still(numbered())).collect()
    for sample in metric.samples
}


class Selector(NamedTuple):
    """What a query asks for."""

    metric: str
    matchers: set[str]


class Query(NamedTuple):
    """A query that was parsed."""

    selectors: list[Selector]
    #: what is left of the labels
    labels: set[str]


def parsed(text: str) -> Query:
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text
    tree = promql_parser.parse(text)
    selectors = [
        Selector(str(each.name), {matcher.name for matcher in each.matchers.matchers})
        for each in walk(tree)
        if isinstance(each, promql_parser.VectorSelector)
    ]
    labels = set.intersection(*(LABELS[each.metric] for each in selectors)) - {"le"}
    for each in walk(tree):
        if isinstance(each, promql_parser.AggregateExpr):
            assert each.modifier is not None
            by = set(each.modifier.labels)
            assert all(by <= LABELS[one.metric] for one in selectors), "it groups by what is there"
            labels = by - {"le"}
    return Query(selectors, labels)


def walk(tree: Any) -> Iterator[Any]:
    yield tree
    match tree:
        case promql_parser.Call():
            parts = tree.args
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr():
            parts = [tree.expr]
        case promql_parser.BinaryExpr():
            parts = [tree.lhs, tree.rhs]
        case promql_parser.MatrixSelector():
            parts = [tree.vector_selector]
        case promql_parser.VectorSelector() | promql_parser.NumberLiteral():
            parts = []
        case _:
            raise AssertionError(f"the test knows no {type(tree).__name__}")
    for part in parts:
        yield from walk(part)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target["expr"][:60])
def test_a_query_asks_for_metrics_and_labels_that_the_collector_shows(
    target: dict[str, Any],
) -> None:
    query = parsed(target["expr"])
    assert query.selectors
    for each in query.selectors:
        assert each.matchers <= LABELS[each.metric]
        assert "system_id" in each.matchers, "one of several systems can be chosen"
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == query.labels - (
        {"system_id"} if query.labels - {"system_id"} else set()
    ), "each series has a name of its own"


def test_every_metric_of_the_collector_is_shown_but_for_some() -> None:
    asked = {each.metric for target in TARGETS for each in parsed(target["expr"]).selectors}
    families = {
        metric.name
        for metric in PapyraCollector(Still(numbered())).collect()
        if not any(name.startswith(metric.name) for name in asked)
    }
    assert [name for name in families if not NOT_SHOWN.fullmatch(name)] == []


def test_counters_are_shown_by_their_rate_and_histograms_by_their_quantiles() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for counter in re.findall(r"\w+_(?:total|bucket|sum|count)\b", target["expr"]):
                assert re.search(
                    rf"rate\({counter}{{[^}}]*}}\[\$__rate_interval\]\)", target["expr"]
                )
            if "_bucket" in target["expr"]:
                assert target["expr"].startswith("histogram_quantile(")
                assert panel["fieldConfig"]["defaults"]["unit"] == "s"


def test_the_choices_are_of_labels_that_there_are() -> None:
    queries = [each for each in BOARD["templating"]["list"] if each["type"] == "query"]
    for each in queries:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", each["query"]["query"])
        assert found is not None
        ((metric, _),) = parsed(found[1]).selectors
        assert found[2] in LABELS[metric]
    assert [f"${each['name']}" for each in queries] == ["$system", "$class"]


def test_panels_have_ids_of_their_own_fit_in_and_cover_nothing() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        columns, lines = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        cells = set(itertools.product(columns, lines))
        assert not cells & taken
        taken |= cells


def test_whoever_imports_it_chooses_the_data_source() -> None:
    sources = {json.dumps(each) for each in found(BOARD, "datasource")}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    assert "__inputs" not in BOARD
    assert BOARD["uid"] == "papyra"


def found(node: Any, key: str) -> Iterator[Any]:
    """Yield what is under a key, wherever that is."""
    if isinstance(node, dict):
        yield from (node[name] for name in node if name == key)
    if isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            yield from found(each, key)
