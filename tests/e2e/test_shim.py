"""The shim as containerd sees it: a real VM behind each container.

Few VMs, many checks in each: under emulation a boot takes about a second.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time

import pytest

import shimclient as sc
from ctrd import wait_until
from shimclient import RpcError, Task, default_spec, encode

pytestmark = pytest.mark.skipif(not sc.STAGE or not os.path.exists(sc.SHIM),
                                reason="CAISSON_STAGE names no staged build")

CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    return sc.make_image(str(tmp_path_factory.mktemp("image")))


@pytest.fixture
def host(tmp_path, image, request):
    h = sc.Host(tmp_path / "h", image)
    yield h
    for t in h.tasks:
        log = h.log(t.id)
        if log and request.session.testsfailed:
            print(f"--- log of {t.id}\n{log[-4000:]}")
        h.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
    left = h.leftovers()
    assert not left, left


@pytest.fixture
def shell(host):
    """A container that waits to be told to go."""
    t = Task(host, "shell", ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"])
    t.create()
    t.start()
    return t


def fails(code, call, *args, **kwargs):
    with pytest.raises(RpcError) as e:
        call(*args, **kwargs)
    assert e.value.code == code, e.value
    return e.value.message


def output_of(t, exec_id, args, **more):
    out = t.fifo(f"{exec_id}.out")
    t.exec(exec_id, args, stdout=out, **more)
    t.start(exec_id)
    status = t.wait(exec_id)
    text = t.fifos[f"{exec_id}.out"].finish().decode()
    assert t.delete(exec_id) == status
    return status, text


# --- one container from start to end ---


@pytest.mark.both
def test_life_of_a_container(host):
    t = Task(host, "life", ["sh", "-c", "echo out; echo err >&2; hostname; exit 42"])
    assert t.address.startswith("unix://" + host.run)
    with open(os.path.join(t.dir, "address")) as f:
        assert f.read() == t.address
    with open(os.path.join(t.dir, "shim.pid")) as f:
        shim_pid = int(f.read())
    assert os.stat(t.address.removeprefix("unix://")).st_mode & 0o777 == 0o600
    assert os.stat(host.sandbox("life")).st_mode & 0o777 == 0o700

    t.create(stdout=t.fifo("out"), stderr=t.fifo("err"))
    assert t.state()["status"] == CREATED
    assert t.state()["bundle"] == t.dir
    waiting = t.wait_send()
    pid = t.start()
    assert pid > 0 and os.path.exists(f"/proc/{pid}")
    answer = t.conn.receive(waiting)
    assert answer[1] == [42]
    assert abs(sc.decode(answer[2][0])[1][0] - time.time()) < 60
    assert t.fifos["out"].finish() == b"out\nbox\n"
    assert t.fifos["err"].finish() == b"err\n"
    assert t.state()["status"] == STOPPED
    assert t.state()["exit"] == 42
    assert t.wait() == 42
    connect = t.simple("Connect")
    assert connect[1] == [shim_pid]
    assert t.finish() == 42
    assert not os.path.exists(host.sandbox("life"))


def test_version_3_and_both_services(host):
    t = Task(host, "v3", ["true"], service="containerd.task.v3.Task")
    t.create()
    assert t.conn.call("State", [(1, "v3")], service="containerd.task.v2.Task")[4] == [CREATED]
    fails(sc.UNIMPLEMENTED, t.conn.call, "Nonsense", [])
    fails(sc.UNIMPLEMENTED, t.conn.call, "State", [], service="containerd.task.v9.Task")
    assert "not running" in fails(sc.PRECONDITION, t.simple, "Checkpoint", (2, "/x"))
    t.start()
    assert t.wait() == 0
    t.finish()


def test_output_arrives_whole_before_the_exit(host):
    t = Task(host, "big", ["sh", "-c", "seq 1 200000; exit 3"])
    t.create(stdout=t.fifo("out"))
    t.start()
    assert t.wait() == 3
    want = "".join(f"{i}\n" for i in range(1, 200001)).encode()
    assert t.fifos["out"].finish() == want
    t.finish()


def test_stdin_to_its_end(host):
    t = Task(host, "cat", ["md5sum"])
    path = t.stdin()
    t.create(stdin=path, stdout=t.fifo("out"))
    t.start()
    data = os.urandom(1 << 19)
    with open(path, "wb") as f:
        f.write(data)
    t.simple("CloseIO", (3, True))
    assert t.wait() == 0
    out = t.fifos["out"].finish().decode()
    want = subprocess.run(["md5sum"], input=data, capture_output=True).stdout.decode()
    assert out.split()[0] == want.split()[0]
    t.finish()


def test_json_file_log(host):
    log = os.path.join(host.folder, "log.json")
    t = Task(host, "json", ["sh", "-c", "echo one; sleep 0.1; echo two >&2; printf three"])
    uri = f"json-file://{log}?tee={t.fifo('tee')}"
    t.create(stdout=uri, stderr=f"json-file://{log}")
    t.start()
    assert t.wait() == 0
    with open(log) as f:
        lines = [json.loads(line) for line in f]
    assert sorted((x["stream"], x["log"]) for x in lines) == [
        ("stderr", "two\n"), ("stdout", "one\n"), ("stdout", "three")]
    assert t.fifos["tee"].finish() == b"one\nthree"
    t.finish()


def test_terminal(host):
    spec = default_spec(["sh"], process={"terminal": True,
                                         "consoleSize": {"height": 30, "width": 100}})
    t = Task(host, "tty", spec=spec)
    path = t.stdin()
    t.create(terminal=True, stdin=path, stdout=t.fifo("out"))
    t.start()
    out = t.fifos["out"]
    with open(path, "wb", buffering=0) as f:
        f.write(b"tty=$(stty size); echo size:$tty:\n")
        out.wait_for(b"size:30 100:")
        t.simple("ResizePty", (3, 132), (4, 43))
        f.write(b"tty=$(stty size); echo size:$tty:\n")
        out.wait_for(b"size:43 132:")
        f.write(b"sleep 60\n")
        time.sleep(0.3)
        f.write(b"\x03")
        f.write(b"echo in$((1+1))terrupted; exit 5\n")
        out.wait_for(b"in2terrupted")
    assert t.wait() == 5
    t.finish()


# --- operations on a running container ---


def test_exec(shell):
    t = shell
    assert output_of(t, "e1", ["sh", "-c", "echo hi; exit 9"]) == (9, "hi\n")
    status, text = output_of(t, "e2", ["env"], env=["A=b"], cwd="/tmp")
    assert status == 0 and "A=b\n" in text

    path = t.stdin("e3.in")
    t.exec("e3", ["cat"], stdin=path, stdout=t.fifo("e3.out"))
    fails(sc.ALREADY_EXISTS, t.exec, "e3", ["cat"])
    assert t.state("e3")["status"] == CREATED
    t.start("e3")
    assert t.state("e3")["status"] == RUNNING
    with open(path, "wb") as f:
        f.write(b"through")
    t.conn.call("CloseIO", [(1, t.id), (2, "e3"), (3, True)])
    assert t.wait("e3") == 0
    assert t.fifos["e3.out"].finish() == b"through"

    t.exec("e4", ["sleep", "100"])
    t.start("e4")
    fails(sc.PRECONDITION, t.delete, "e4")
    t.kill(signal.SIGKILL, "e4")
    assert t.wait("e4") == 137
    assert "finished" in fails(sc.NOT_FOUND, t.kill, signal.SIGKILL, "e4")
    assert t.delete("e4") == 137
    fails(sc.NOT_FOUND, t.wait, "e4")

    t.exec("e5", ["/no/such/program"])
    message = fails_any(t.start, "e5")
    assert "/no/such/program" in message
    t.delete("e5")
    fails(sc.INVALID, t.exec, "a/b", ["true"])
    fails(sc.PRECONDITION, t.delete)

    t.kill(signal.SIGTERM)
    assert t.wait() == 7
    fails(sc.PRECONDITION, t.exec, "late", ["true"])
    assert t.finish() == 7


def fails_any(call, *args):
    with pytest.raises(RpcError) as e:
        call(*args)
    return e.value.message


def test_many_execs_at_once(shell):
    t = shell
    for i in range(12):
        t.exec(f"m{i}", ["sh", "-c", f"echo {i}; exit {i}"], stdout=t.fifo(f"m{i}.out"))
    streams = [t.conn.send("Start", [(1, t.id), (2, f"m{i}")]) for i in range(12)]
    waits = [t.wait_send(f"m{i}") for i in range(12)]
    for s in streams:
        t.conn.receive(s)
    for i, s in enumerate(waits):
        assert t.conn.receive(s).get(1, [0])[0] == i
        assert t.fifos[f"m{i}.out"].finish() == f"{i}\n".encode()
        t.delete(f"m{i}")
    t.kill(signal.SIGKILL)
    assert t.wait() == 137
    t.finish()


def test_pause_stats_update(shell):
    t = shell
    t.simple("Pause")
    assert t.state()["status"] == PAUSED
    fails(sc.PRECONDITION, t.simple, "Pause")
    t.simple("Resume")
    assert t.state()["status"] == RUNNING
    fails(sc.PRECONDITION, t.simple, "Resume")

    kind, m = t.stats()
    assert kind == "io.containerd.cgroups.v2.Metrics"
    assert sc.decode(m[1][0])[1][0] >= 1
    assert sc.decode(m[2][0])[1][0] > 0
    assert sc.decode(m[4][0])[32][0] > 0

    res = json.dumps({"memory": {"limit": 48 << 20}, "pids": {"limit": 77}})
    t.simple("Update", (2, encode([(1, sc.SPEC_URL + "LinuxResources"), (2, res)])))
    _, m = t.stats()
    assert sc.decode(m[4][0])[33] == [48 << 20]
    assert sc.decode(m[1][0])[2] == [77]
    bad = encode([(1, "x"), (2, '{"memory": {"limit": "lots"}}')])
    assert "memory.limit" in fails(sc.INVALID, t.simple, "Update", (2, bad))

    pids = t.simple("Pids")[1]
    assert os.path.exists(f"/proc/{sc.decode(pids[0])[1][0]}")
    assert fails(sc.NOT_FOUND, t.conn.call, "Stats", [(1, "other")])
    # Shutdown is not heeded while there is a container, unless it says "now"; the command line is told.
    with pytest.raises(RpcError, match="still has containers"):
        t.conn.call("Shutdown", [(1, t.id)])
    assert t.state()["status"] == RUNNING
    t.shutdown(now=True)


def test_out_of_memory(host):
    spec = default_spec(["sh", "-c", "dd if=/dev/zero of=/dev/null bs=67108864 count=1; sleep 1; exit 6"])
    spec["linux"]["resources"] = {"memory": {"limit": 32 << 20}}
    spec["annotations"]["io.caisson.memory"] = "256MiB"
    t = Task(host, "oom", spec=spec)
    t.create()
    t.start()
    assert t.wait() == 6
    assert os.path.exists(os.path.join(t.dir, "oom"))
    t.finish()


# --- what the host shares ---


def bind(source, destination, *options):
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["rbind", "rprivate", *options]}


def test_bind_mounts(host, tmp_path):
    rw, ro = tmp_path / "rw", tmp_path / "ro"
    for d in (rw, ro):
        d.mkdir()
        (d / "file").write_text(f"in {d.name}\n")
    single = tmp_path / "single"
    single.write_text("alone\n")
    (tmp_path / "secret").write_text("secret")
    script = ("cat /a/file /b/file /etc/one /c/file; echo new >/a/made; echo no >/b/made; "
              "echo no >/c/made; echo more >>/etc/one; ls /a/..; exit 3")
    spec = default_spec(["sh", "-c", script])
    spec["mounts"] += [bind(rw, "/a", "rw"), bind(ro, "/b", "ro"), bind(single, "/etc/one"),
                       bind(rw, "/c", "ro")]
    t = Task(host, "binds", spec=spec)
    t.create(stdout=t.fifo("out"), stderr=t.fifo("err"))
    t.start()
    assert t.wait() == 3
    out = t.fifos["out"].finish().decode()
    err = t.fifos["err"].finish().decode()
    assert out.startswith("in rw\nin ro\nalone\nin rw\n"), out + err
    assert "secret" not in out
    assert err.count("Read-only file system") == 2, err
    assert (rw / "made").read_text() == "new\n"
    assert not (ro / "made").exists()
    assert single.read_text() == "alone\nmore\n"
    t.finish()
    assert (rw / "file").exists() and (ro / "file").exists()


def test_shares_survive_a_kill(host, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "keep").write_text("x")
    spec = default_spec(["sleep", "1000"])
    spec["mounts"].append(bind(data, "/data"))
    t = Task(host, "shared", spec=spec)
    t.create()
    os.kill(shim_pid(t), signal.SIGKILL)
    host.shim(t.id, t.dir, "delete")
    assert not host.leftovers()
    assert (data / "keep").read_text() == "x"


def test_mounts_that_cannot_be(host, tmp_path):
    spec = default_spec(["true"])
    spec["mounts"].append(bind("/no/such/dir", "/x"))
    t = Task(host, "nomount", spec=spec)
    assert "/no/such/dir" in fails(sc.NOT_FOUND, t.create)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    spec["mounts"][-1] = bind(str(fifo), "/x")
    host.bundle("nomount", spec)
    assert str(fifo) in fails(sc.UNIMPLEMENTED, t.create)
    spec["mounts"][-1] = {"destination": "/x", "type": "9p", "source": "a:/b"}
    host.bundle("nomount", spec)
    assert "9p" in fails(sc.UNIMPLEMENTED, t.create)
    t.shutdown()


def test_overlay_root_of_containerd(host, tmp_path):
    lower = sc.make_root(str(tmp_path / "lower"))
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    t = Task(host, "ovl", ["sh", "-c", "echo x >/made; cat /made; id -u"], ns="default")
    t.create(stdout=t.fifo("out"), rootfs=[
        ("overlay", "overlay", f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")])
    t.start()
    assert t.wait() == 0
    assert t.fifos["out"].finish() == b"x\n0\n"
    assert (upper / "made").read_text() == "x\n"
    assert t.finish() == 0


# --- pods ---


def pod_spec(kind, pod, args, **more):
    spec = default_spec(args, annotations={
        "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": pod})
    spec.update(more)
    return spec


def test_pod_with_one_pid_namespace(host):
    pod = Task(host, "pidpod", spec=pod_spec("sandbox", "pidpod", ["sleep", "1000"]), ns="k8s.io")
    pod.create()
    pod.start()
    spec = pod_spec("container", "pidpod", ["sh", "-c", "ps; exit 2"])
    spec["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid"
    spec["linux"]["namespaces"][1]["path"] = "/proc/1/ns/ipc"
    t = Task(host, "peer", spec=spec, ns="k8s.io")
    t.create(stdout=t.fifo("out"), stderr=t.fifo("err"))
    t.start()
    assert t.wait() == 2
    assert b"ps" in t.fifos["out"].finish()
    t.delete()
    pod.kill(signal.SIGKILL)
    pod.wait()
    pod.finish()


@pytest.mark.both
def test_pod_of_two_containers(host):
    pod = Task(host, "pod", spec=pod_spec("sandbox", "pod", ["sleep", "1000"]), ns="k8s.io")
    pod.create()
    pod.start()
    tasks = []
    for name in ("a", "b"):
        t = Task(host, name, spec=pod_spec("container", "pod", ["sh", "-c",
                 f"echo {name} >/mine; cat /mine; hostname; sleep 0.2; exit 4"]), ns="k8s.io")
        assert t.address == pod.address
        t.create(stdout=t.fifo("out"))
        tasks.append(t)
    for t in tasks:
        t.start()
    for t in tasks:
        assert t.wait() == 4
        assert t.fifos["out"].finish() == f"{t.id}\nbox\n".encode()
    assert tasks[0].delete() == 4
    # The place of the first is free for another.
    t = Task(host, "c", spec=pod_spec("container", "pod", ["true"]), ns="k8s.io")
    t.create()
    t.start()
    assert t.wait() == 0
    t.delete()
    assert tasks[1].delete() == 4
    assert pod.state()["status"] == RUNNING
    pod.kill(signal.SIGKILL)
    assert pod.wait() == 137
    pod.finish()


# --- what goes wrong ---


def test_bad_requests(host):
    t = Task(host, "bad", ["true"])
    fails(sc.NOT_FOUND, t.state)
    assert "btrfs" in fails(sc.UNIMPLEMENTED, t.create, rootfs=[("btrfs", "/x")])
    fails(sc.NOT_FOUND, t.create, rootfs=[("erofs", "/no/such/image")])
    assert "no root file system" in fails(sc.INVALID, t.create, rootfs=[])
    fails(sc.NOT_FOUND, t.create, stdout="/no/such/fifo")
    fails(sc.INVALID, t.create, stdout="syslog:///x")
    with open(os.path.join(t.dir, "config.json"), "w") as f:
        f.write('{"ociVersion": "1.1.0", "process": {"args": "sh"}}')
    assert "process.args" in fails(sc.INVALID, t.create)
    host.bundle("bad", default_spec(["true"], process={"cwd": "relative"}))
    assert "process.cwd" in fails(sc.INVALID, t.create)
    # After all that the container can still be made, once.
    host.bundle("bad", default_spec(["true"]))
    t.create()
    fails(sc.ALREADY_EXISTS, t.create)
    p = host.shim("bad", t.dir, "start", check=False)
    assert p.returncode == 1 and b"running" in p.stderr
    t.start()
    fails(sc.PRECONDITION, t.start)
    assert t.wait() == 0
    t.finish()


def test_command_not_found(host):
    t = Task(host, "nocmd", ["/no/such/command"])
    message = fails(sc.NOT_FOUND, t.create)
    assert message == 'exec: "/no/such/command": stat /no/such/command: no such file or directory'
    t.shutdown()


@pytest.mark.parametrize("text, word", [
    ("vm:\n  colour: red\n", "config.yaml:2: unknown key 'colour'"),
    ("vm:\n  kernel: /no/such/kernel\n", "/no/such/kernel"),
])
def test_bad_configuration(host, text, word):
    with open(host.config, "w") as f:
        f.write(text)
    bundle = host.bundle("cfg", default_spec(["true"]))
    p = host.shim("cfg", bundle, "start", check=False)
    assert p.returncode == 1
    assert word in p.stderr.decode()
    assert p.stderr.count(b"\n") == 1
    assert p.stdout == b""


def test_guest_that_never_comes_up(host):
    with open(host.config, "w") as f:
        f.write("vm:\n  boot_timeout: 500ms\n")
    t = Task(host, "slow", spec=default_spec(["true"], annotations={
        "io.caisson.kernel-params": "rdinit=/nonexistent init=/nonexistent root=/dev/nonexistent"}))
    started = time.monotonic()
    message = fails_any(t.create)
    assert time.monotonic() - started < 20
    assert "did not" in message or "before its agent" in message, message
    t.shutdown()


def test_start_outside_a_bundle(host):
    p = host.shim("x", host.folder, "start", check=False)
    assert p.returncode == 1 and b"config.json" in p.stderr
    p = host.shim("../x", host.folder, "start", check=False)
    assert p.returncode == 1
    p = subprocess.run([sc.SHIM, "-v"], capture_output=True)
    assert p.returncode == 0 and b"Version" in p.stdout
    p = subprocess.run([sc.SHIM, "-info"], capture_output=True, stdin=subprocess.DEVNULL)
    assert sc.decode(p.stdout)[1] == [b"io.containerd.caisson.v2"]


# --- bootstrap of newer containerds, events ---


def test_traces_are_passed_on(host):
    """W3C's traceparent among a call's metadata: its id is in the lines of the shim and of the agent."""
    ids = {name: f"{n:032x}" for n, name in enumerate(("create", "start", "kill"), 1)}
    with open(host.config, "a", encoding="ascii") as f:
        f.write("log:\n  level: debug\n  agent_level: debug\n")
    t = Task(host, "traced", ["sleep", "1000"])
    calls = {"create": t.create, "start": t.start, "kill": lambda: t.kill(9)}
    for name, call in calls.items():
        t.conn.metadata = {"traceparent": f"00-{ids[name]}-00f067aa0ba902b7-01"}
        call()
    t.conn.metadata = {"traceparent": "of no such form"}
    assert t.wait() == 137

    def methods(source, name):
        lines = [x for x in host.log("traced").splitlines()
                 if f"trace_id={ids[name]}" in x and f"source={source}" in x]
        return [m for x in lines for m in re.findall(r"method=(\w+)", x)]
    for name, asked in (("create", "CreateContainer"), ("start", "StartContainer"), ("kill", "SignalProcess")):
        assert name.capitalize() in methods("shim", name)
        wait_until(lambda a=asked, n=name: a in methods("agent", n))
    t.finish()


def test_bootstrap_params_and_events(host):
    events = Events(os.path.join(host.folder, "ttrpc.sock"))
    bundle = host.bundle("boot", default_spec(["true"]))
    params = encode([(1, "boot"), (2, "k8s.io"), (4, "2.3.0"), (5, events.path)])
    p = host.shim("boot", bundle, "start", ns="k8s.io", stdin=params)
    result = sc.decode(p.stdout)
    assert result[1] == [3] and result[3] == [b"ttrpc"]
    t = Task(host, "boot", ns="k8s.io", address=result[2][0].decode())
    t.create()
    t.start()
    assert t.wait() == 0
    t.exec_after = fails_any(t.exec, "e", ["true"])
    t.delete()
    deadline = time.monotonic() + 10
    while len(events.seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    t.shutdown()
    assert [e[0] for e in events.seen] == ["/tasks/create", "/tasks/start", "/tasks/exit",
                                          "/tasks/delete"]
    assert {e[1] for e in events.seen} == {"k8s.io"}
    assert events.seen[2][2] == "containerd.events.TaskExit"
    events.close()


class Events:
    """containerd's side of Forward."""

    def __init__(self, path):
        import socket
        self.path, self.seen = path, []
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(4)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        import struct
        try:
            conn, _ = self.sock.accept()
            while True:
                head = conn.recv(10, 0x100)
                if len(head) < 10:
                    return
                length, stream, _, _ = struct.unpack(">IIBB", head)
                data = b""
                while len(data) < length:
                    data += conn.recv(length - len(data))
                req = sc.decode(data)
                env = sc.decode(sc.decode(req[3][0])[1][0])
                any_ = sc.decode(env[4][0])
                self.seen.append((env[3][0].decode(), env[2][0].decode(), any_[1][0].decode()))
                conn.sendall(struct.pack(">IIBB", 0, stream, 2, 0))
        except OSError:
            pass

    def close(self):
        self.sock.close()


# --- death at any moment ---


def pids_of(host, word):
    return [p for p, c in host.processes().items() if word in c]


@pytest.mark.parametrize("victim", [pytest.param("qemu-system", marks=pytest.mark.qemu), "caisson-vmm"])
def test_vm_killed(host, victim):
    t = Task(host, "victim", ["sleep", "1000"])
    t.create(stdout=t.fifo("out"))
    t.start()
    waiting = t.wait_send()
    killed = [p for p in descendants(shim_pid(t)) if victim in command_of(p)]
    assert killed
    os.kill(killed[0], signal.SIGKILL)
    assert t.conn.receive(waiting, 20)[1][0] == 137
    t.fifos["out"].finish()
    assert t.state()["status"] == STOPPED
    with open(os.path.join(t.dir, "crash")) as f:
        assert "virtual machine" in f.read()
    fails(sc.PRECONDITION, t.simple, "Pause")
    assert t.finish() == 137


def test_guest_panics(host):
    t = Task(host, "panic", ["sleep", "1000"])
    t.create()
    t.start()
    waiting = t.wait_send()
    output_of(t, "trigger", ["sh", "-c", "mount -t proc proc /tmp; echo c >/tmp/sysrq-trigger"],
              capabilities={k: ["CAP_SYS_ADMIN"] for k in ("bounding", "effective", "permitted")})
    assert t.conn.receive(waiting, 20)[1][0] == 255
    t.finish()


def shim_pid(t):
    with open(os.path.join(t.dir, "shim.pid")) as f:
        return int(f.read())


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def descendants(pid):
    found = []
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            for child in map(int, f.read().split()):
                found += [child, *descendants(child)]
    except OSError:
        pass
    return found


@pytest.mark.parametrize("moment", ["started", "creating", "created", "running", "exec", "exited"])
def test_shim_killed(host, moment):
    """Whatever the moment, `delete` frees it all."""
    t = Task(host, "gone", ["sleep", "0.2" if moment == "exited" else "1000"])
    pid = shim_pid(t)
    if moment == "creating":
        t.conn.send("Create", [(1, t.id), (2, t.dir),
                               (3, encode([(1, "erofs"), (2, host.image)]))])
        time.sleep(0.05)
    elif moment != "started":
        t.create()
    if moment in ("running", "exec", "exited"):
        t.start()
    if moment == "exec":
        t.exec("e", ["sleep", "1000"])
        t.start("e")
    if moment == "exited":
        t.wait()
    family = [pid, *descendants(pid)]
    os.kill(pid, signal.SIGKILL)
    p = host.shim(t.id, t.dir, "delete")
    assert sc.decode(p.stdout)[2] == [137]
    assert not [q for q in family if q != pid and command_of(q)]
    assert not host.leftovers()
    # And its place is free.
    again = Task(host, "gone2", ["true"])
    again.shutdown(now=True)


def test_start_killed_at_any_point(host):
    """The command, its daemon, or both, a little later each time."""
    bundle = host.bundle("early", default_spec(["true"]))
    env = host.env
    for i in range(24):
        p = subprocess.Popen([sc.SHIM, "-namespace", "caisson", "-id", "early", "start"],
                             cwd=bundle, env=env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True)
        time.sleep(i * 0.002)
        if i % 3 != 1:
            p.kill()
        if i % 3:
            for q in host.processes():
                if q != p.pid and "shim-caisson" in command_of(q):
                    os.kill(q, signal.SIGKILL)
        p.wait()
        host.shim("early", bundle, "delete")
        left = host.leftovers()
        assert not left, (i, left)


def test_start_reclaims_what_a_dead_one_left(host):
    t = Task(host, "twice", ["sleep", "1000"])
    t.create()
    pid = shim_pid(t)
    os.kill(pid, signal.SIGKILL)
    while command_of(pid):
        time.sleep(0.01)
    again = Task(host, "twice", ["true"])
    assert again.run() == 0


def test_delete_kills_a_living_one(host):
    t = Task(host, "living", ["sleep", "1000"])
    t.create()
    t.start()
    host.shim(t.id, t.dir, "delete")
    assert not host.leftovers()
    host.shim(t.id, t.dir, "delete")


def test_exit_command(host):
    mark = os.path.join(host.folder, "mark")
    t = Task(host, "exitcmd", ["true"],
             env={"CAISSON_EXIT_COMMAND": json.dumps(["/bin/sh", "-c", f"echo ran >{mark}"])})
    t.create()
    t.start()
    t.wait()
    deadline = time.monotonic() + 5
    while not os.path.exists(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert os.path.exists(mark)
    t.finish()
