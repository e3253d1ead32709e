"""What Prometheus reads from the predictor."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The predictor's figures, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "prefrestore_requests", "inference requests by HTTP status", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "prefrestore_request_seconds",
            "time of answered requests, waiting included",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge("prefrestore_waiting", "requests accepted and not answered", registry=self.registry)
        self.served = Gauge("prefrestore_model", "1 for the version in service", ["version"], registry=self.registry)
        self.exchanges = Counter(
            "prefrestore_exchanges", "attempts to load a model", ["outcome"], registry=self.registry
        )

    def exchanged(self, version: str, well: bool) -> None:
        """Note that a model was loaded, or could not be; ``version`` serves."""
        self.exchanges.labels("loaded" if well else "failed").inc()
        self.served.clear()
        self.served.labels(version).set(1)
