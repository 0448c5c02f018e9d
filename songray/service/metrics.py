"""Metrics of this process, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from songray.search.version import Version

BUCKETS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "songray_request_seconds", "Duration of requests.", ["method", "route"],
            registry=self.registry, buckets=BUCKETS_SECONDS,
        )  # fmt: skip
        self.requests = Counter(
            "songray_requests", "Requests by status.", ["method", "route", "status"], registry=self.registry
        )
        self.underway = Gauge("songray_requests_underway", "Requests in progress.", registry=self.registry)
        labels = ("run", "version")
        self.tracks = Gauge(
            "songray_index_tracks", "Tracks of the served index.", labels, registry=self.registry
        )
        self.recall = Gauge(
            "songray_index_recall", "Its recall at 10, measured on a sample.", labels, registry=self.registry
        )

    def render(self, version: Version) -> bytes:
        """The metrics in Prometheus's text format, with those of the served version of the index."""
        for gauge, value in ((self.tracks, version.tracks), (self.recall, version.recall)):
            gauge.clear()
            gauge.labels(version.run, version.version).set(value)
        return generate_latest(self.registry)
