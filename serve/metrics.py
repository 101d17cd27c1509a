"""What the service counts, as text that Prometheus reads (its exposition format 0.0.4)."""

import threading
from bisect import bisect_left
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.25, 0.4, 0.6, 1.0, 2.0, 5.0)  # bounds of what should take parts of a second


class Metric:
    """A counter or a gauge, with one label or none."""

    def __init__(self, name: str, kind: str, meaning: str, label: str = "") -> None:
        self.name, self.kind, self.meaning, self.label = name, kind, meaning, label
        self.values: dict[str, float] = {} if label else {"": 0.0}
        self.lock = threading.Lock()

    def add(self, amount: float = 1.0, label: str = "") -> None:
        with self.lock:
            self.values[label] = self.values.get(label, 0.0) + amount

    def set(self, value: float, label: str = "") -> None:
        with self.lock:
            self.values[label] = value

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """(what follows the name, labels, value)."""
        with self.lock:
            found = sorted(self.values.items())
        for label, value in found:
            yield "", self.labels(label), value

    def labels(self, label: str) -> str:
        escaped = label.replace("\\", r"\\").replace('"', r'\"').replace("\n", r"\n")
        return f'{{{self.label}="{escaped}"}}' if self.label else ""

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.meaning}"
        yield f"# TYPE {self.name} {self.kind}"
        for suffix, labels, value in self.samples():
            yield f"{self.name}{suffix}{labels} {value:.15g}"


class Summary(Metric):
    """Sum and number of what was observed."""

    def __init__(self, name: str, meaning: str, label: str = "") -> None:
        super().__init__(name, "summary", meaning, label)
        self.counts = dict.fromkeys(self.values, 0.0)

    def observe(self, total: float, count: float = 1.0, label: str = "") -> None:
        with self.lock:
            self.values[label] = self.values.get(label, 0.0) + total
            self.counts[label] = self.counts.get(label, 0.0) + count

    def set_totals(self, total: float, count: float) -> None:
        with self.lock:
            self.values[""], self.counts[""] = total, count

    def samples(self) -> Iterator[tuple[str, str, float]]:
        with self.lock:
            found = [(label, total, self.counts[label]) for label, total in sorted(self.values.items())]
        for label, total, count in found:
            yield "_sum", self.labels(label), total
            yield "_count", self.labels(label), count


class Histogram(Metric):
    """How many observations stayed at or below each of the `bounds`."""

    def __init__(self, name: str, bounds: tuple[float, ...], meaning: str) -> None:
        super().__init__(name, "histogram", meaning)
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        with self.lock:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.total += value

    def samples(self) -> Iterator[tuple[str, str, float]]:
        with self.lock:
            counts, total = list(self.counts), self.total
        below = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), counts):
            below += count
            yield "_bucket", f'{{le="{bound}"}}', below
        yield "_sum", "", total
        yield "_count", "", below


class Metrics:
    """All of them, one attribute each."""

    def __init__(self) -> None:
        self.live_sessions = Metric("talkhead_live_sessions", "gauge", "Conversations that are open.")
        self.live_limit = Metric("talkhead_live_sessions_limit", "gauge", "Conversations that may be open at once.")
        self.live_rejected = Metric("talkhead_live_rejected_total", "counter", "Conversations that were refused.", "reason")
        self.worker_restarts = Metric("talkhead_live_worker_restarts_total", "counter", "Live workers that were replaced.")
        self.frames = Metric("talkhead_frames_total", "counter", "Rows and pictures sent.", "kind")
        self.dropped = Metric("talkhead_frames_dropped_total", "counter", "Pictures that were left out.", "reason")
        self.first_frame = Histogram("talkhead_live_first_frame_seconds", SECONDS,
                                     "From the first sound of a segment to its first picture.")
        self.row_latency = Histogram("talkhead_live_row_latency_seconds", SECONDS,
                                     "From the last sound that a row depends on to the row.")
        self.av_offset = Histogram("talkhead_live_av_offset_seconds", SECONDS,
                                   "Between picture and sound, as clients measure it; absolute.")
        self.render = Summary("talkhead_render_seconds", "Time that the steps of drawing took.", "stage")
        self.batch = Summary("talkhead_render_batch_size", "Pictures drawn at once.")
        self.jobs = Metric("talkhead_jobs", "gauge", "Jobs by state.", "state")
        self.job_queue = Summary("talkhead_job_queue_seconds", "From a job's creation to its start.")
        self.job = Summary("talkhead_job_seconds", "From a job's start to its end.")

    def text(self) -> str:
        """For GET /metrics."""
        return "".join(f"{line}\n" for metric in vars(self).values() for line in metric.lines())

    def take_live(self, told: dict) -> None:
        """Add what a live worker tells: increments since it last told (see `live_worker`)."""
        self.frames.add(float(told.get("rows", 0)), "row")
        for kind, count in told.get("pictures", {}).items():
            self.frames.add(float(count), kind)
        for reason, count in told.get("dropped", {}).items():
            self.dropped.add(float(count), reason)
        for stage, (seconds, count) in told.get("render_seconds", {}).items():
            self.render.observe(float(seconds), float(count), stage)
        pictures, batches = told.get("batch", (0, 0))
        self.batch.observe(float(pictures), float(batches))
        for histogram, key in ((self.first_frame, "first_picture_seconds"), (self.row_latency, "row_latency_seconds")):
            for seconds in told.get(key, ()):
                histogram.observe(float(seconds))
