from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from songray.catalogue.frontier import Frontier
from songray.catalogue.sources.base import Page
from songray.tables import TABLES

Graph = dict[str, list[tuple[str, int]]]  # page -> links, each with its step

graphs = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1)), max_size=4),
)


def stored(rows: list[dict[str, object]]) -> pa.Table:
    common = {"source": "s", "page_problems": []}
    return pa.Table.from_pylist([row | common for row in rows], pa.schema(TABLES["pages"].columns))


def walk(
    graph: Graph, rows: list[dict[str, object]], max_depth: int, stop_after: int = 1000, crawl: int = 1
) -> list[str]:
    """Crawl a graph from "a"; appends the pages that are read to `rows` and returns their names."""
    frontier = Frontier(stored(rows), 0, max_depth, refresh=False)
    frontier.add([Page("a")])
    read: list[str] = []
    while pages := frontier.unread():
        for page in pages:
            if len(read) == stop_after:
                return read
            links = frontier.follow(
                page.name, [Page(name, "", step) for name, step in graph.get(page.name, [])]
            )
            kept = [{"name": link.name, "fingerprint": link.fingerprint, "step": link.step} for link in links]
            rows.append({"page": page.name, "fingerprint": page.fingerprint, "crawl": crawl, "links": kept})
            read.append(page.name)
    return read


def within(graph: Graph, max_depth: int) -> set[str]:
    """The pages no more than so many steps away from "a", by brute force."""
    depth = {"a": 0}
    changed = True
    while changed:
        changed = False
        for page, links in graph.items():
            for name, step in links:
                if page in depth and depth[page] + step < depth.get(name, 99):
                    depth[name], changed = depth[page] + step, True
    return {name for name, steps in depth.items() if steps <= max_depth}


@settings(deadline=None)
@given(graphs, st.integers(0, 3))
def test_every_page_within_the_depth_is_read_once(graph: Graph, max_depth: int) -> None:
    read = walk(graph, [], max_depth)
    assert len(read) == len(set(read))
    assert set(read) == within(graph, max_depth)


@settings(deadline=None)
@given(graphs, st.integers(0, 3), st.integers(0, 8))
def test_a_crawl_after_one_that_was_killed_reads_the_rest(graph: Graph, max_depth: int, cut: int) -> None:
    rows: list[dict[str, object]] = []
    first = walk(graph, rows, max_depth, stop_after=cut)
    second = walk(graph, rows, max_depth)
    assert not set(first) & set(second)
    assert set(first) | set(second) == within(graph, max_depth)


@settings(deadline=None)
@given(graphs, st.integers(0, 2))
def test_a_crawl_of_greater_depth_continues_from_a_shallower_one(graph: Graph, depth: int) -> None:
    rows: list[dict[str, object]] = []
    near = walk(graph, rows, depth)
    far = walk(graph, rows, depth + 1)
    assert not set(near) & set(far)
    assert set(near) | set(far) == within(graph, depth + 1)


def fingerprints(finished_crawl: int, refresh: bool = False) -> list[str]:
    rows = [
        {"page": name, "fingerprint": fingerprint, "crawl": 3, "links": []}
        for name, fingerprint in (("head", None), ("same", "1"), ("changed", "1"), ("unknown", ""))
    ]
    frontier = Frontier(stored(rows), finished_crawl, 0, refresh)
    frontier.add([Page("head", None), Page("same", "1"), Page("changed", "2"), Page("unknown", "")])
    return [page.name for page in frontier.unread()]


def test_a_crawl_after_a_finished_one_reads_what_may_have_changed() -> None:
    assert fingerprints(finished_crawl=3) == ["head", "changed"]
    assert fingerprints(finished_crawl=3, refresh=True) == ["head", "changed", "unknown"]


def test_a_crawl_that_continues_does_not_read_pages_again() -> None:
    assert fingerprints(finished_crawl=2) == ["changed"]
    assert fingerprints(finished_crawl=2, refresh=True) == ["changed"]
