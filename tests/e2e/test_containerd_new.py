"""The same pods with newer containerds, which tests/peers/get gets; else skipped."""

import json
import os
import pathlib
import signal

import pytest

import ctrd as c
import wsclient as ws
from conftest import build_image
from ctrd import wait_until
from in_testbed import vm_process
from monitorclient import Monitor

PEERS = pathlib.Path(os.environ.get("CAISSON_PEERS", "/var/cache/caisson/peers"))
LOOP = ("sh", "-c", "trap 'exit 0' TERM; touch /tmp/ready; while :; do sleep 0.1; done")

pytestmark = pytest.mark.skipif(c.missing() is not None, reason=str(c.missing()))


NEWEST = "2.1"
# Pods without a pause container, which only this one has.
HANDLERS = pytest.mark.parametrize("daemon, handler", [
    ("1.7", "caisson"), (NEWEST, "caisson"), (NEWEST, "caisson-sandbox")], indirect=["daemon"], scope="module")


@pytest.fixture(scope="module", params=["1.7", NEWEST])
def daemon(stage, request):
    program = PEERS / f"containerd-{request.param}/usr/bin/containerd"
    if not program.exists():
        pytest.skip(f"no containerd {request.param}: run tests/peers/get")
    config = c.OPTIONS_HANDLER
    config += c.SANDBOX_HANDLER + c.STREAMING_HANDLER if request.param == NEWEST else ""
    with c.cri_daemon(stage, "ctrn-", program=program, config=config) as d:
        d.import_layout(build_image("busybox"), "docker.io/test/busybox")
        yield d


@pytest.fixture(scope="module")
def cri(daemon):
    with c.cri_client(daemon) as client:
        yield client


@pytest.mark.parametrize("daemon", [NEWEST], indirect=True, scope="module")
def test_streams_over_the_shims_socket(cri, daemon):
    """io_type "streaming": output whole, input by exec, exit codes. Older ones know no such type."""
    pod = cri.pod("streaming", handler="caisson-streaming")
    k = pod.run("talker", "sh", "-c", "seq 1 50000; echo err >&2; exit 3")
    assert k.wait() == 3
    k.wait_log("err\n")
    k.wait_log("\n50000\n")
    text = k.log()
    assert [x for x in text.splitlines() if x != "err"] == [str(n) for n in range(1, 50001)]
    assert "err" in text.splitlines()
    main = pod.run("main", *LOOP)
    told = json.loads(Monitor(daemon.run_dir / f"sandboxes/k8s.io+{pod.id}")("GET", "/containers")[1])
    assert all(x["stdout"].startswith("ttrpc+unix://") for x in told), told
    assert main.exec("sh", "-c", "echo out; echo err >&2; exit 5") == (5, "out\n", "err\n")
    assert main.sh("head -c 300000 /dev/zero | tr '\\0' x") == "x" * 300000
    url = cri.call("Exec", container_id=main.id, cmd=["sh", "-c", "read x; echo got-$x"], stdin=True,
                   stdout=True, stderr=True).url
    s = daemon.enter(lambda: ws.Stream(url, "v4.channel.k8s.io"))
    s.send(ws.STDIN, b"hello\n")
    s.wait(ws.STDOUT, b"got-hello\n")
    assert json.loads(s.finish()[ws.RESULT])["status"] == "Success"
    pod.remove()


def test_run(daemon):
    r = daemon.run("hello", "sh", "-c", "echo out; exit 3", options=("--rm",))
    assert (r.returncode, r.stdout) == (3, "out\n"), r.stderr
    daemon.assert_clean()


def test_options_of_the_runtime(cri):
    pod = cri.pod("options", handler="caisson-options")
    assert pod.run("main", *LOOP).sh("nproc") == "2\n"
    pod.remove()


@HANDLERS
def test_life_of_a_pod(cri, daemon, handler):
    p = cri.pod(f"life-{handler}", handler=handler)
    assert p.ready()
    k = p.run("main", *LOOP)
    assert k.exec("sh", "-c", "hostname; exit 4") == (4, f"life-{handler}\n", "")
    address = p.status().network.ip
    assert address and address in k.sh("ip addr")
    once = p.run("once", "sh", "-c", "echo gone; exit 2")
    assert once.wait() == 2 and once.log() == "gone\n"
    once.remove()
    wait_until(lambda: k.stats().memory.usage_bytes.value > 0)

    # containerd comes back to running pods.
    daemon.kill(signal.SIGKILL)
    daemon.start()
    cri.connect()
    wait_until(p.ready)
    assert k.status().state == c.RUNNING
    assert k.sh("echo alive") == "alive\n"

    # A pod without containers stays.
    k.stop(10)
    assert k.status().exit_code == 0
    k.remove()
    assert p.ready()
    again = p.run("again", "true")
    assert again.wait() == 0
    again.remove()
    p.remove()
    daemon.assert_clean()


@HANDLERS
def test_virtual_machine_dies(cri, daemon, handler):
    p = cri.pod(f"dies-{handler}", handler=handler)
    k = p.run("main", *LOOP)
    mine = [p.shim_pid(), *c.descendants(p.shim_pid())]
    os.kill([x for x in mine if c.comm(x).startswith(vm_process())][-1], signal.SIGKILL)
    wait_until(lambda: k.status().state == c.EXITED and not p.ready(), 40)
    p.remove()
    daemon.assert_clean()
