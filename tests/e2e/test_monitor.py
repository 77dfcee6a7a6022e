"""What a sandbox tells about itself: the monitor socket, and `caisson metrics`."""

import json
import os
import pathlib
import re
import time

import pytest

from ctrd import wait_until
from in_testbed import on_kvm
from monitorclient import Monitor

parser = pytest.importorskip("prometheus_client.parser", reason="python3-prometheus-client is missing")

SUFFIXES = ("_bytes", "_seconds", "_total", "_info", "_ready", "_containers", "_connections", "_up",
            "_threads", "_fds", "_tasks")


def families(text):
    """As Prometheus reads it: no family twice, no sample twice, types and help for all of ours."""
    seen, found = set(), {}
    for f in parser.text_string_to_metric_families(text):
        for s in f.samples:
            key = (s.name, tuple(sorted(s.labels.items())))
            assert key not in seen, key
            seen.add(key)
            found.setdefault(s.name, []).append((s.labels, s.value))
            if s.name.startswith("caisson_") and not s.name.startswith("caisson_agent_smaps"):
                assert f.type in ("counter", "gauge") and f.documentation, f.name
                assert s.name.endswith(SUFFIXES), s.name
                assert (f.type == "counter") == s.name.endswith("_total"), s.name
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    return found


def value(found, name, **labels):
    return next(v for have, v in found[name] if labels.items() <= have.items())


def test_monitor(caisson, busybox):
    caisson("run", "-d", "--name", "one", "--network", "none", busybox, "sh", "-c",
            "dd if=/dev/zero of=/x bs=1M count=4 2>/dev/null; sync; echo up; exec sleep 1000").ok()
    cid = caisson.ids()[0]
    end = time.monotonic() + 30
    while "up" not in caisson("logs", "one").ok().out:
        assert time.monotonic() < end
        time.sleep(0.1)
    get = Monitor(caisson.run_dir / "sandboxes" / cid)
    assert get("GET", "/healthz") == (200, "ok\n")

    # Metrics.
    status, text = get("GET", "/metrics")
    assert status == 200
    first = families(text)
    assert {x["process"] for x, _ in first["caisson_process_cpu_seconds_total"]} == {
        "shim", "caisson-vmm", *(() if on_kvm() else ("qemu",))}
    shim = value(first, "caisson_process_proportional_memory_bytes", process="shim")
    assert shim == 0 or 1 << 19 < shim < 64 << 20
    assert value(first, "caisson_container_disk_written_bytes_total", container=cid) >= 4 << 20
    assert value(first, "caisson_container_memory_usage_bytes", container=cid) > 100000
    assert value(first, "caisson_agent_up") == value(first, "caisson_sandbox_ready") == 1
    assert value(first, "kata_guest_meminfo", item="memtotal") % 4096 == 0
    caisson("exec", "one", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").ok()

    # Counters never go back, and go on in another program.
    caisson("upgrade", "one").ok()
    second = families(get("GET", "/metrics")[1])
    for name, samples in first.items():
        if name.startswith("caisson_") and name.endswith("_total"):
            for labels, before in samples:
                assert value(second, name, **labels) >= before, (name, labels)
    assert value(second, "caisson_container_cpu_usage_seconds_total", container=cid) > value(
        first, "caisson_container_cpu_usage_seconds_total", container=cid)
    assert value(second, "caisson_shim_scrapes_total") == 2

    # The command line, with the sandbox's name on each when there may be several.
    assert value(families(caisson("metrics", "one").ok().out), "caisson_shim_scrapes_total") == 3
    merged = families(caisson("metrics").ok().out)
    assert value(merged, "caisson_shim_scrapes_total", sandbox=cid) == 4
    caisson("metrics", "nobody").fails(1, "nobody")

    # The rest of the paths.
    assert get("GET", "/agent-url")[1].endswith("/vm/vsock.sock:1024")
    listed = json.loads(get("GET", "/containers")[1])
    assert [(x["id"], x["status"]) for x in listed] == [(cid, "running")]
    assert get("GET", "/log-level") == (200, "info\n")
    assert get("PUT", "/log-level", "debug\n") == (200, "debug\n")
    assert get("GET", "/log-level") == (200, "debug\n")
    # The agent's, too: it logs each request then.
    log = caisson.run_dir / "sandboxes" / cid / "shim.log"
    caisson("exec", "one", "true").ok()
    wait_until(lambda: re.search(r"level=debug.*source=agent.*method=ExecProcess", log.read_text()))
    assert get("PUT", "/log-level", "loud")[0] == 400
    assert get("GET", "/direct-volume/stats?path=%2Fnone")[0] == 404
    assert get("GET", "/direct-volume/stats?path=none")[0] == 400
    assert get("POST", "/direct-volume/resize", "{}")[0] == 400
    assert get("POST", "/direct-volume/resize", '{"VolumePath":"/none","Size":1048576}')[0] == 404
    assert get("GET", "/iptables")[0] == get("PUT", "/ip6tables", "x")[0] == 501
    assert get("DELETE", "/metrics")[0] == 405
    assert get("GET", "/nothing")[0] == 404

    # What is no request.
    for data, want in ((b"GET  / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/2.0\r\n\r\n", 505),
                       (b"\0\0\0\0\r\n\r\n", 400), (b"GET /metrics HTTP/1.1\n\n", None),
                       (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
                       (b"PUT / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
                       (b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
                       (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
                       (b"GET /" + b"a" * 9000, 431)):
        assert get.raw(data) == want, data
    # Many that say nothing keep nobody else out for good.
    idle = [get.connect() for _ in range(40)]
    for s in idle:
        s.close()
    assert get("GET", "/healthz")[0] == 200
    os.close(get.dir)
    caisson("rm", "-f", "one").ok()
    assert not pathlib.Path(caisson.run_dir, "sandboxes", cid).exists()
