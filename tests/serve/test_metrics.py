"""/metrics: the text format, and what comes of what workers tell."""

import re
from types import SimpleNamespace

import pytest

from serve.metrics import CONTENT_TYPE, Histogram, Metric, Metrics, Summary
from tests.serve.serving import serving, wait_for

# of docs/serve.md, which follow what others of this kind are called
NAMES = {
    "talkhead_live_sessions": "gauge", "talkhead_live_sessions_limit": "gauge", "talkhead_live_rejected_total": "counter",
    "talkhead_live_worker_restarts_total": "counter", "talkhead_frames_total": "counter",
    "talkhead_frames_dropped_total": "counter", "talkhead_live_first_frame_seconds": "histogram",
    "talkhead_live_row_latency_seconds": "histogram",
    "talkhead_live_av_offset_seconds": "histogram", "talkhead_render_seconds": "summary", "talkhead_render_batch_size": "summary",
    "talkhead_jobs": "gauge", "talkhead_job_queue_seconds": "summary", "talkhead_job_seconds": "summary"}


def parse(text):
    """{name with labels: value}; refuses a line that is not of the format."""
    found = {}
    for line in text.splitlines():
        if not line.startswith(("# HELP ", "# TYPE ")):
            name, labels, value = re.fullmatch(r'([a-z_]+)((?:\{[a-z]+="(?:[^"\\\n]|\\.)*"\})?) ([0-9.eE+-]+)', line).groups()
            found[name + labels] = float(value)
    return found


def test_names_and_kinds():
    assert dict(re.findall(r"# TYPE (\S+) (\S+)", Metrics().text())) == NAMES
    parse(Metrics().text())


def test_counters_with_labels():
    metric = Metric("m", "counter", "Meaning.", "reason")
    metric.add(label='a "b"\n\\')
    metric.add(2.5, "late")
    assert list(metric.lines()) == ["# HELP m Meaning.", "# TYPE m counter", r'm{reason="a \"b\"\n\\"} 1', 'm{reason="late"} 2.5']


def test_a_histogram_counts_up_to_each_bound():
    metric = Histogram("h", (0.1, 1.0), "Meaning.")
    for value in (0.05, 0.1, 0.5, 3.0):
        metric.observe(value)
    assert list(metric.lines())[2:] == ['h_bucket{le="0.1"} 2', 'h_bucket{le="1.0"} 3', 'h_bucket{le="+Inf"} 4', "h_sum 3.65",
                                        "h_count 4"]


def test_a_summary():
    metric = Summary("s", "Meaning.", "stage")
    metric.observe(0.5, 2, "head")
    metric.observe(0.25, 1, "head")
    assert list(metric.lines())[2:] == ['s_sum{stage="head"} 0.75', 's_count{stage="head"} 3']


def test_what_a_worker_tells_is_added():
    metrics = Metrics()
    told = {"tell": "metrics", "rows": 25, "pictures": {"vp8": 20, "jpeg": 1}, "dropped": {"late": 1, "window": 3},
            "render_seconds": {"head": [0.5, 21], "encode": [0.1, 21]}, "batch": [21, 7], "first_picture_seconds": [0.15],
            "row_latency_seconds": [0.03, 0.07], "conversations": 2}
    metrics.take_live(told)
    metrics.take_live(told)
    found = parse(metrics.text())
    assert found['talkhead_frames_total{kind="row"}'] == 50 and found['talkhead_frames_total{kind="vp8"}'] == 40
    assert found['talkhead_frames_dropped_total{reason="window"}'] == 6
    assert found['talkhead_render_seconds_sum{stage="head"}'] == 1.0 and found["talkhead_render_batch_size_count"] == 14
    assert found['talkhead_live_first_frame_seconds_bucket{le="0.16"}'] == 2
    assert found["talkhead_live_row_latency_seconds_sum"] == pytest.approx(0.2)


def test_over_http(tmp_path):
    with serving(tmp_path, conversations=3) as service:
        service.wait_ready()
        one, _ = service.talk()
        one.send(bytes(1280 * 5))
        wait_for(lambda: parse(service.ask("GET", "/metrics").body.decode()).get('talkhead_frames_total{kind="vp8"}') == 5)
        answer = service.ask("GET", "/metrics")
        assert answer.headers["content-type"] == CONTENT_TYPE
        found = parse(answer.body.decode())
        assert found["talkhead_live_sessions"] == 1 and found["talkhead_live_sessions_limit"] == 3
        one.close()
        wait_for(lambda: parse(service.ask("GET", "/metrics").body.decode())["talkhead_live_sessions"] == 0)


def test_jobs_are_asked_when_somebody_looks(tmp_path):
    async def counts():
        return {"queued": 3, "in_progress": 1}

    with serving(tmp_path) as service:
        service.app.state.jobs = SimpleNamespace(counts=counts, queue_seconds=[5.0, 2], job_seconds=[60.0, 1])
        for _ in range(2):
            found = parse(service.ask("GET", "/metrics").body.decode())
        assert found['talkhead_jobs{state="queued"}'] == 3 and found['talkhead_jobs{state="in_progress"}'] == 1
        assert (found["talkhead_job_queue_seconds_sum"], found["talkhead_job_queue_seconds_count"]) == (5, 2)
        assert found["talkhead_job_seconds_sum"] == 60
