"""caisson run and its neighbours, on a real busybox image in a real VM."""

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from in_testbed import on_kvm


def read_until(fd, words, seconds=60):
    """Reads a terminal until it has shown @words."""
    seen, end = b"", time.monotonic() + seconds
    while words not in seen:
        left = end - time.monotonic()
        assert left > 0 and select.select([fd], [], [], left)[0], f"never saw {words!r} in {seen!r}"
        try:
            data = os.read(fd, 4096)
        except OSError:
            data = b""
        assert data, f"terminal closed; never saw {words!r} in {seen!r}"
        seen += data
    return seen


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


# ---- run ----

@pytest.mark.both
def test_output_and_own_kernel(caisson):
    r = caisson.run(caisson.image, "sh", "-c", "echo hello; uname -r; echo oops >&2").ok()
    lines = r.out.splitlines()
    assert lines[0] == "hello"
    assert lines[1] != os.uname().release
    assert r.err == "oops\n"


@pytest.mark.both
@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(caisson, code):
    assert caisson.run(caisson.image, "sh", "-c", f"exit {code}").code == code


@pytest.mark.both
def test_signal_is_128_plus(caisson):
    assert caisson.run(caisson.image, "sh", "-c", "sh -c 'kill -9 $$'; exit $?").code == 137


def test_command_not_found_is_127(caisson):
    caisson.run(caisson.image, "no-such-program").fails(127, "no-such-program")


def test_not_executable_is_126(caisson):
    caisson.run(caisson.image, "/etc/passwd").fails(126, "/etc/passwd")


def test_directory_is_126(caisson):
    caisson.run(caisson.image, "/etc").fails(126, "/etc")


@pytest.mark.both
def test_stdin(caisson):
    data = "x" * 300000 + "\n"
    assert caisson.run("-i", caisson.image, "cat", input=data).ok().out == data


def test_stdin_is_empty_without_i(caisson):
    assert caisson.run(caisson.image, "cat", input="unread\n").ok().out == ""


@pytest.mark.both
def test_large_output_is_complete(caisson):
    r = caisson.run(caisson.image, "sh", "-c", "yes 0123456789 | head -c 5000000 | md5sum; "
                    "yes 0123456789 | head -c 5000000", timeout=120).ok()
    head, body = r.out.split("\n", 1)
    assert len(body) == 5000000
    assert hashlib.md5(body.encode()).hexdigest() == head.split()[0]


def test_environment(caisson):
    r = caisson.run("-e", "A=1", "-e", "FROM_HERE", "-e", "UNSET_HERE", caisson.image, "env",
                    env={"FROM_HERE": "yes"}).ok()
    env = dict(line.split("=", 1) for line in r.out.splitlines())
    assert env["A"] == "1" and env["FROM_HERE"] == "yes" and "UNSET_HERE" not in env
    assert "PATH" in env and env["HOME"] == "/root" and re.fullmatch("[0-9a-f]{12}", env["HOSTNAME"])


def test_env_file(caisson, tmp_path):
    f = tmp_path / "env"
    f.write_text("# remark\nA=from file\n\nB=2\n", encoding="utf-8")
    r = caisson.run("--env-file", f, "-e", "B=3", caisson.image, "sh", "-c", "echo $A/$B").ok()
    assert r.out == "from file/3\n"


def test_workdir_user_hostname(caisson):
    r = caisson.run("-w", "/tmp", "-u", "app:extra", "--hostname", "box", caisson.image, "sh", "-c",
                    "pwd; id -u; id -g; hostname; echo $HOME").ok()
    assert r.out.splitlines() == ["/tmp", "1000", "2000", "box", "/home/app"]


def test_numeric_user(caisson):
    r = caisson.run("-u", "1234:5678", caisson.image, "sh", "-c", "id -u; id -g").ok()
    assert r.out.split() == ["1234", "5678"]


def test_entrypoint(caisson):
    assert caisson.run("--entrypoint", "echo", caisson.image, "a", "b").ok().out == "a b\n"


def test_read_only(caisson):
    r = caisson.run("--read-only", "--tmpfs", "/scratch:size=1m", caisson.image, "sh", "-c",
                    "touch /x 2>/dev/null && echo bad; touch /scratch/y && echo good").ok()
    assert r.out == "good\n"


def test_root_is_writable_and_forgotten(caisson):
    caisson.run(caisson.image, "sh", "-c", "echo x > /marker && rm /etc/passwd").ok()
    assert caisson.run(caisson.image, "sh", "-c", "ls /marker; ls /etc/passwd").out == "/etc/passwd\n"


def test_root_directory_is_open_to_all(caisson):
    r = caisson.run("-u", "app", caisson.image, "sh", "-c", "stat -c %a / && ls /etc/passwd").ok()
    assert r.out.split() == ["755", "/etc/passwd"]


def test_memory_limit(caisson):
    r = caisson.run("-m", "64m", caisson.image, "cat", "/sys/fs/cgroup/memory.max").ok()
    assert int(r.out) == 64 << 20


def test_cpu_limit(caisson):
    r = caisson.run("--cpus", "0.5", caisson.image, "cat", "/sys/fs/cgroup/cpu.max").ok()
    assert r.out.split() == ["50000", "100000"]


@pytest.mark.both
def test_oom_is_137(caisson):
    r = caisson.run("-m", "32m", caisson.image, "sh", "-c",
                    "x=a; while :; do x=$x$x; done", timeout=120)
    assert r.code == 137, repr(r)


def test_ulimit_caps_privileges(caisson):
    r = caisson.run("--ulimit", "nofile=100:200", "--cap-drop", "ALL", "--cap-add", "net_admin",
                    "--security-opt", "no-new-privileges", caisson.image, "sh", "-c",
                    "ulimit -n; ulimit -Hn; grep -E 'CapEff|NoNewPrivs' /proc/self/status").ok()
    words = r.out.split()
    assert words[:2] == ["100", "200"]
    assert int(words[3], 16) == 1 << 12 and words[5] == "1"


def test_system_calls(caisson, tmp_path):
    """The default profile, by capabilities; profiles from files; none."""
    look = "grep Seccomp: /proc/self/status; hostname x; unshare -m true; mkdir /tmp/d; ls -d /tmp/d"
    r = caisson.run("--network", "none", caisson.image, "sh", "-c", look).ok()
    assert r.out == "Seccomp:\t2\n/tmp/d\n" and r.err.count("Operation not permitted") == 2, r
    r = caisson.run("--network", "none", "--cap-add", "SYS_ADMIN", caisson.image, "sh", "-c", look).ok()
    assert "Seccomp:\t2" in r.out and not r.err, r
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                     {"name": "unlink", "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_BPF"]}}],
    }), encoding="ascii")
    r = caisson.run("--network", "none", "--security-opt", f"seccomp={profile}", caisson.image, "sh",
                    "-c", "mkdir /x; touch /y && rm /y && echo removed").ok()
    assert r.out == "removed\n" and "No space left" in r.err, r
    r = caisson.run("--network", "none", "--security-opt", "seccomp=unconfined", caisson.image, "grep",
                    "Seccomp:", "/proc/self/status").ok()
    assert r.out == "Seccomp:\t0\n"
    r = caisson.run("--security-opt", "seccomp=/no/such", caisson.image, "true")
    assert r.code == 125 and "/no/such" in r.err
    profile.write_text('{"defaultAction": 7}', encoding="ascii")
    r = caisson.run("--security-opt", f"seccomp={profile}", caisson.image, "true")
    assert r.code == 125 and "defaultAction" in r.err, r


def test_init(caisson):
    """It starts the command, reaps what is left behind, and ends as the command does."""
    r = caisson.run("--init", "--network", "none", caisson.image, "sh", "-c",
                    "cat /proc/1/comm; echo $$; (sh -c 'sleep 0.1 &'); sleep 0.5; "
                    "grep -l Z.zombie /proc/[0-9]*/status; exit 5")
    assert (r.code, r.out.split()[:2]) == (5, ["init", "2"]) and "zombie" not in r.out, r
    caisson("run", "-d", "--init", "--network", "none", "--name", "told", caisson.image, "sh", "-c",
            "trap 'echo told; exit 4' TERM; echo up; while :; do sleep 0.1; done").ok()
    while "up" not in caisson("logs", "told").out:
        time.sleep(0.1)
    caisson("stop", "told").ok()
    assert "told" in caisson("logs", "told").out and caisson.ps()[0]["ExitCode"] == 4


def test_network_is_loopback_only(caisson):
    r = caisson.run("--network", "none", caisson.image, "sh", "-c", "for i in /sys/class/net/*; do "
                    "read f < $i/flags; [ $((f & 1)) = 1 ] && echo ${i##*/}; done; "
                    "wc -l < /proc/net/route; ping -c 1 127.0.0.1 >/dev/null && echo reached").ok()
    assert r.out.split() == ["lo", "1", "reached"]


def test_cidfile_name_label(caisson, tmp_path):
    caisson("run", "--cidfile", tmp_path / "cid", "--name", "labelled", "-l", "a=b", caisson.image,
            "true").ok()
    row = caisson.ps()[0]
    assert (tmp_path / "cid").read_text(encoding="ascii").startswith(row["ID"])
    assert row["Names"] == "labelled" and row["Labels"] == {"a": "b"} and row["State"] == "exited"


@pytest.mark.both
def test_terminal(caisson):
    master, slave = pty.openpty()
    p = caisson.popen("run", "--rm", "-it", caisson.image, "sh", stdin=slave, stdout=slave,
                      stderr=slave)
    os.close(slave)
    read_until(master, b"# ")
    os.write(master, b"tty; stty size; echo A$((40+2))B\n")
    seen = read_until(master, b"A42B")
    assert b"/dev/pts/" in seen
    os.write(master, b"exit 7\n")
    assert p.wait(30) == 7
    os.close(master)


def test_terminal_is_resized(caisson):
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    p = caisson.popen("run", "--rm", "-it", caisson.image, "sh", stdin=slave, stdout=slave,
                      stderr=slave, start_new_session=True)
    read_until(master, b"# ")
    os.write(master, b"stty size\n")
    read_until(master, b"33 101")
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 120, 0, 0))
    p.send_signal(signal.SIGWINCH)
    time.sleep(0.5)
    os.write(master, b"stty size\n")
    read_until(master, b"44 120")
    os.write(master, b"exit\n")
    assert p.wait(30) == 0
    os.close(slave)
    os.close(master)


def test_detach_keys(caisson):
    master, slave = pty.openpty()
    p = caisson.popen("run", "-it", "--name", "left", caisson.image, "sh", stdin=slave, stdout=slave,
                      stderr=slave)
    read_until(master, b"# ")
    os.write(master, b"\x10\x11")
    assert p.wait(30) == 0
    os.close(slave)
    os.close(master)
    assert caisson.ps()[0]["State"] == "running"
    assert caisson("exec", "left", "echo", "alive").ok().out == "alive\n"
    caisson("rm", "-f", "left").ok()


def test_signals_are_forwarded(caisson):
    p = caisson.popen("run", "--rm", caisson.image, "sh", "-c",
                      "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done",
                      text=True)
    assert p.stdout.readline() == "ready\n"
    p.send_signal(signal.SIGTERM)
    assert p.stdout.readline() == "got it\n"
    assert p.wait(30) == 9


def test_third_interrupt_kills(caisson):
    p = caisson.popen("run", "--rm", caisson.image, "sh", "-c", "trap '' INT; echo ready; sleep 1000",
                      text=True)
    assert p.stdout.readline() == "ready\n"
    for _ in range(3):
        p.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert p.wait(30) == 137


# ---- the life of a container ----

def test_detached_life(caisson, detached):
    name = detached()
    row = caisson.ps()[0]
    assert row["Names"] == name and row["State"] == "running" and row["Command"] == "sleep 1000"
    assert caisson("exec", name, "cat", "/proc/1/comm").ok().out == "sleep\n"
    caisson("kill", name).ok()
    assert caisson("wait", name).ok().out == "137\n"
    wait_for(lambda: caisson.ps()[0]["Status"].startswith("Exited (137)"))
    wait_for(lambda: not caisson.processes())
    caisson("rm", name).ok()
    assert caisson.ps() == []


def test_detached_rm_removes_itself(caisson):
    caisson("run", "-d", "--rm", caisson.image, "sleep", "1").ok()
    wait_for(lambda: caisson.ps() == [])
    caisson.assert_clean()


def test_stop_asks_then_kills(caisson, detached):
    polite = detached(command=("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"))
    rude = detached(command=("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))
    caisson("stop", "-t", "20", polite).ok()
    caisson("stop", "-t", "1", rude).ok()
    codes = {r["Names"]: r["ExitCode"] for r in caisson.ps()}
    assert codes == {polite: 5, rude: 137}


def test_stop_and_rm_of_a_foreground_container(caisson):
    for words in (["stop", "-t", "0"], ["rm", "-f"], ["kill"]):
        p = caisson.popen("run", "--name", "front", caisson.image, "sh", "-c", "echo up; sleep 1000",
                          text=True)
        assert p.stdout.readline() == "up\n"
        caisson(*words, "front").ok()
        assert p.wait(30) == 137, p.stderr.read()
        caisson("rm", "-f", "front").ok()
        caisson.assert_clean()


@pytest.mark.both
def test_exec(caisson, detached):
    name = detached()
    r = caisson("exec", "-e", "A=b", "-w", "/tmp", "-u", "app", name, "sh", "-c",
                "echo $A; pwd; id -u; echo e >&2; exit 3")
    assert (r.code, r.out, r.err) == (3, "b\n/tmp\n1000\n", "e\n")
    assert caisson("exec", "-i", name, "cat", input="in\n").ok().out == "in\n"
    caisson("exec", name, "no-such").fails(127, "no-such")
    caisson("exec", name, "/etc/passwd").fails(126, "/etc/passwd")
    caisson("exec", "-d", name, "sh", "-c", "echo > /tmp/flag").ok()
    wait_for(lambda: caisson("exec", name, "test", "-e", "/tmp/flag").code == 0)
    caisson("exec", "-u", "stranger", name, "true").fails(125, "stranger")


def test_exec_needs_a_running_container(caisson):
    caisson("run", "--name", "over", caisson.image, "true").ok()
    caisson("exec", "over", "true").fails(1, "not running")
    caisson("exec", "nobody", "true").fails(1, "no such container")


@pytest.mark.both
def test_logs(caisson):
    caisson("run", "--name", "talk", caisson.image, "sh", "-c",
            "for i in 1 2 3 4 5; do echo line $i; done; echo bad >&2").ok()
    assert caisson("logs", "talk").ok().out == "".join(f"line {i}\n" for i in range(1, 6))
    assert caisson("logs", "talk").err == "bad\n"
    tail = caisson("logs", "--tail", "2", "talk").ok()
    assert tail.out + tail.err in ("line 5\nbad\n", "line 4\nline 5\n")
    stamped = caisson("logs", "-t", "talk").ok().out.splitlines()[0]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z line 1", stamped)
    assert caisson("logs", "--since", "2199-01-01", "talk").ok().out == ""


def test_logs_follow(caisson, detached):
    name = detached(command=("sh", "-c", "for i in 1 2 3; do echo n$i; sleep 0.5; done"))
    assert caisson("logs", "-f", name).ok().out == "n1\nn2\nn3\n"


@pytest.mark.both
def test_pause(caisson, detached):
    name = detached(command=("sh", "-c", "while :; do echo x; sleep 0.1; done"))
    caisson("pause", name).ok()
    assert caisson.ps()[0]["State"] == "paused"
    size = len(caisson("logs", name).ok().out)
    time.sleep(1)
    assert len(caisson("logs", name).ok().out) <= size + 2
    caisson("unpause", name).ok()
    wait_for(lambda: len(caisson("logs", name).ok().out) > size + 4)


def test_stats(caisson, detached):
    name = detached("-m", "64m")
    row = json.loads(caisson("stats", "--json", name).ok().out)[0]
    assert row["Name"] == name and row["PIDs"] >= 1 and row["MemBytes"] > 0
    assert "CPU %" in caisson("stats", "--no-stream", name).ok().out


def test_inspect(caisson, detached):
    name = detached("-e", "X=y")
    c = json.loads(caisson("inspect", name).ok().out)[0]
    assert c["Name"] == name and c["State"] == "running" and "X=y" in c["Spec"]["process"]["env"]
    assert caisson("inspect", "-f", "{{.State}}", name).ok().out == "running\n"
    i = json.loads(caisson("inspect", "--type", "image", caisson.image).ok().out)[0]
    assert i["Os"] == "linux"


@pytest.mark.both
def test_cp(caisson, detached, tmp_path):
    name = detached()
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/a b").write_text("data", encoding="utf-8")
    (tmp_path / "dir/a b").chmod(0o640)
    caisson("cp", tmp_path / "dir", f"{name}:/tmp").ok()
    assert caisson("exec", name, "stat", "-c", "%a %s", "/tmp/dir/a b").ok().out == "640 4\n"
    caisson("cp", tmp_path / "dir", f"{name}:/renamed").ok()
    assert caisson("exec", name, "cat", "/renamed/a b").ok().out == "data"
    caisson("cp", f"{name}:/renamed", tmp_path / "back").ok()
    assert (tmp_path / "back/a b").read_text(encoding="utf-8") == "data"
    caisson("cp", f"{name}:/etc/passwd", tmp_path).ok()
    assert "root" in (tmp_path / "passwd").read_text(encoding="utf-8")
    assert caisson("cp", f"{name}:/no/such", tmp_path).code == 1
    assert not list(tmp_path.glob(".caisson-cp-*"))


@pytest.mark.both
def test_create_then_start(caisson):
    caisson("create", "--name", "later", caisson.image, "echo", "now").ok()
    assert caisson.ps()[0]["State"] == "created" and not caisson.processes()
    assert caisson("start", "-a", "later").ok().out == "now\n"


def test_rm_refuses_running(caisson, detached):
    name = detached()
    caisson("rm", name).fails(1, "running")
    caisson("rm", "-f", name).ok()
    caisson.assert_clean()


# ---- two at a time, many in a row ----

def test_eight_at_a_time(caisson):
    caisson.run(caisson.image, "true").ok()
    ps = [caisson.popen("run", "--rm", caisson.image, "sh", "-c", f"echo {i}; exit {i}", text=True)
          for i in range(8)]
    for i, p in enumerate(ps):
        out, err = p.communicate(timeout=240)
        assert (p.returncode, out) == (i, f"{i}\n"), err


def test_runs_in_a_row(caisson):
    for i in range(int(os.environ.get("CAISSON_RUNS", "10"))):
        assert caisson.run(caisson.image, "echo", i).ok().out == f"{i}\n"
    caisson.assert_clean()


# ---- the words ----

def test_listings_are_json(caisson):
    for words in (["ps", "--json"], ["images", "--json"], ["doctor", "--json"],
                  ["version", "--json"], ["stats", "--json"]):
        json.loads(caisson(*words).out)


def test_images(caisson):
    caisson("pull", caisson.image).ok()
    rows = json.loads(caisson("images", "--json").ok().out)
    assert any(r["Reference"] == caisson.image for r in rows)
    assert caisson("images", "-q").ok().out.split()


def test_help_man_completion(caisson, tmp_path):
    overview = caisson("--help").ok().out
    names = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  ", overview, re.M)
    assert {"run", "exec", "ps", "logs", "doctor"} <= set(names)
    for n in names:
        assert caisson(*n.split(), "--help").ok().out.startswith(f"Usage: caisson {n}")
        page = tmp_path / f"{n}.1"
        page.write_text(caisson("help", "--mdoc", *n.split()).ok().out, encoding="utf-8")
        lint = subprocess.run(["mandoc", "-T", "lint", "-W", "error", page], capture_output=True,
                              text=True, check=False)
        assert lint.returncode == 0, lint.stdout
    bash = tmp_path / "bash"
    bash.write_text(caisson("completion", "bash").ok().out, encoding="utf-8")
    r = subprocess.run(["bash", "-c", f"source {bash}; COMP_WORDS=(caisson run --na); COMP_CWORD=2; "
                        "_caisson; echo ${COMPREPLY[@]}"], capture_output=True, text=True, check=True)
    assert r.stdout.strip() == "--name"
    assert caisson("completion", "zsh").ok().out.startswith("#compdef caisson")


@pytest.mark.both
def test_doctor(caisson):
    r = caisson("doctor").ok()
    assert "kernel" in r.out
    rows = {x["Check"]: x for x in json.loads(caisson("doctor", "--json").ok().out)}
    if on_kvm():
        assert rows["kvm"]["Result"] == "ok" and rows["monitor"]["Detail"].startswith("the built-in one"), rows
    elif rows["kvm"]["Result"] != "ok":
        # Why it is not the built-in monitor.
        assert "built-in one cannot be used: it needs KVM: /dev/kvm" in rows["monitor"]["Detail"], rows
    broken = caisson("doctor", env={"CAISSON_LIBDIR": "/nonexistent"})
    assert broken.code == 1 and "vmlinux" in broken.out


def test_client_killed_leaves_the_container(caisson):
    p = caisson.popen("run", "--name", "orphan", caisson.image, "sh", "-c", "echo up; sleep 1000",
                      text=True)
    assert p.stdout.readline() == "up\n"
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert caisson.ps()[0]["State"] == "running"
    assert caisson("exec", "orphan", "echo", "alive").ok().out == "alive\n"
    caisson("stop", "-t", "0", "orphan").ok()
    assert caisson.ps()[0]["State"] == "exited"


def test_client_killed_with_rm(caisson):
    p = caisson.popen("run", "--rm", caisson.image, "sh", "-c", "echo up; sleep 2", text=True)
    assert p.stdout.readline() == "up\n"
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert caisson.ps()[0]["State"] == "running"
    wait_for(lambda: caisson.ps() == [])
    caisson.assert_clean()


def config_with(caisson, tmp_path, text):
    f = tmp_path / "config.yaml"
    f.write_text(f"vm:\n  boot_timeout: 120s\n{text}", encoding="ascii")
    return {"CAISSON_CONFIG": str(f)}


@pytest.mark.qemu
def test_root_image_on_pmem(caisson, stage, tmp_path):
    """The guest's root is the image on persistent memory, mapped and not copied; no initramfs."""
    env = config_with(caisson, tmp_path, f"  root_image: {stage}/lib/caisson/root.erofs\n")
    out = caisson.run("--privileged", caisson.image, "sh", "-c",
                      "cat /proc/cmdline /sys/block/pmem0/size /sys/block/pmem0/queue/dax; uname -r",
                      env=env).ok().out.splitlines()
    assert "root=/dev/pmem0" in out[0] and "dax=always" in out[0]
    assert int(out[1]) * 512 == (stage / "lib/caisson/root.erofs").stat().st_size
    assert out[2] == "1" and "caisson" in out[3]

    short = tmp_path / "short.erofs"
    short.write_bytes((stage / "lib/caisson/root.erofs").read_bytes()[:-4096])
    env = config_with(caisson, tmp_path, f"  root_image: {short}\n")
    caisson.run(caisson.image, "true", env=env).fails(125, str(short), "2 MiB")


@pytest.mark.both
def test_several_cpus(caisson):
    assert caisson.run("--cpus", "2", caisson.image, "nproc").ok().out == "2\n"
