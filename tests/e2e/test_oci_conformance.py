"""The OCI runtime specification, in real VMs. docs/oci-conformance.md says which test covers what.

Twice: the container code itself, as pid 1 of a guest (tests/unit/container, all its cases), and the
way from config.json through shim, ttRPC and agent, a few VMs with many checks in each.
"""

import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

import shimclient as sc
from shimclient import Task, default_spec

TOP = pathlib.Path(__file__).resolve().parents[2]
KERNEL = pathlib.Path(os.environ.get("CAISSON_KERNEL",
                                     "/var/cache/caisson/guest/current/vmlinux"))
BASE = ["error", "fd", "beneath", "str", "buf", "fsutil"]

staged = pytest.mark.skipif(not sc.STAGE or not os.path.exists(sc.SHIM),
                            reason="CAISSON_STAGE names no staged build")


# --- the container code as pid 1 of a guest ---


def build_guest_test(where):
    """An initial RAM disk: the native test as /init, its libraries, busybox."""
    root = where / "root"
    (root / "bin").mkdir(parents=True)
    subprocess.run(["protoc-c", f"-I{TOP / 'proto'}", f"--c_out={where}", TOP / "proto/oci.proto"],
                   check=True)
    subprocess.run(
        [os.environ.get("CC", "cc"), "-std=gnu17", "-D_GNU_SOURCE", "-Ulinux", "-O1",
         f"-I{TOP / 'src'}", f"-I{where}", where / "oci.pb-c.c",
         TOP / "tests/unit/container/container_native_test.c",
         TOP / "tests/unit/container/harness.c",
         *sorted((TOP / "src/agent/container").glob("*.c")), *sorted((TOP / "src/oci").glob("*.c")),
         *[TOP / f"src/base/{name}.c" for name in BASE],
         "-lcmocka", "-ljansson", "-lseccomp", "-lprotobuf-c", "-o", root / "init"], check=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "cp"):
        (root / "bin" / name).symlink_to("busybox")
    ldd = subprocess.run(["ldd", root / "init"], check=True, stdout=subprocess.PIPE, text=True)
    for word in ldd.stdout.split():
        if word.startswith("/"):
            target = root / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*"))) + "\n"
    with open(where / "initrd.cpio", "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), stdout=f,
                       cwd=root, check=True)
    return where / "initrd.cpio"


def test_container_code_in_a_guest(tmp_path):
    if not KERNEL.exists():
        pytest.skip("no guest kernel")
    initrd = build_guest_test(tmp_path)
    disk, console = tmp_path / "disk", tmp_path / "console"
    with open(disk, "wb") as f:
        f.truncate(8 << 20)
    subprocess.run(
        ["qemu-system-x86_64", "-M", "microvm,acpi=off,rtc=off,isa-serial=off", "-accel", "tcg",
         "-cpu", "max", "-m", "256", "-global", "virtio-mmio.force-legacy=false", "-nodefaults",
         "-no-user-config", "-display", "none", "-no-reboot", "-kernel", KERNEL, "-initrd", initrd,
         "-append", "console=hvc0 reboot=t panic=-1 quiet tsc=reliable rcupdate.rcu_expedited=1",
         "-chardev", f"file,id=con,path={console}", "-device", "virtio-serial-device",
         "-device", "virtconsole,chardev=con",
         "-drive", f"id=d,file={disk},format=raw,if=none", "-device", "virtio-blk-device,drive=d"],
        stdin=subprocess.DEVNULL, check=True, timeout=300)
    text = console.read_text(errors="replace").replace("\r", "")
    assert "RESULT 0\n" in text, text
    assert "SKIPPED" not in text, text


# --- from config.json to the container ---


@pytest.fixture(scope="session")
def oci_image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oci-image")
    root = folder / "root"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "home", "hidden", "fixed"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for applet in ("sh", "true", "cat", "echo", "sleep", "hostname", "id", "head", "grep", "ls",
                   "touch", "stat", "tr", "cut", "env", "pwd", "readlink", "uname", "awk", "wc",
                   "mknod", "rm", "mkdir", "test", "stty", "tty", "ip", "seq"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/home:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nwww:x:34:\naudio:x:29:www\n")
    (root / "hidden/secret").write_text("secret\n")
    image = folder / "image.erofs"
    subprocess.run(["mkfs.erofs", "-T0", image, root], check=True, capture_output=True)
    return str(image)


@pytest.fixture
def host(tmp_path, oci_image, request):
    h = sc.Host(tmp_path / "h", oci_image)
    yield h
    for t in h.tasks:
        log = h.log(t.id)
        if log and request.session.testsfailed:
            print(f"--- log of {t.id}\n{log[-4000:]}")
        h.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
    assert not h.leftovers()


def output(host, spec, status=0, cid="oci"):
    """Runs the spec in a VM of its own; what it wrote, as {name: text after "name="}."""
    t = Task(host, cid, spec=spec)
    t.create(stdout=t.fifo("out"), stderr=t.fifo("err"))
    t.start()
    code = t.wait()
    out, err = t.fifos["out"].finish().decode(), t.fifos["err"].finish().decode()
    t.finish()
    assert code == status, (code, out, err)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def show(**commands):
    return "; ".join(f'echo "{name}=$({command} 2>&1 | tr "\\n\\t" ",_")"'
                     for name, command in commands.items())


@staged
def test_process_and_linux_fields(host):
    script = show(
        hostname="hostname", domain="cat /proc/sys/kernel/domainname", pid="echo $$",
        uid="id -u", gid="id -g", groups="id -G", umask="umask", cwd="pwd", env="echo $MARK",
        caps="grep ^Cap /proc/self/status | cut -f2", nnp="grep NoNewPrivs /proc/self/status",
        seccomp="grep ^Seccomp: /proc/self/status", denied="mkdir /tmp/denied",
        nofile="ulimit -n", hard="ulimit -Hn", oom="cat /proc/self/oom_score_adj",
        sched="awk '{print $41, $19}' /proc/self/stat",
        machine="uname -m", shm="cat /proc/sys/kernel/shmmax", hidden="ls /hidden",
        masked="wc -c </etc/group", fixed="touch /fixed/x", root="touch /x",
        device="stat -c %a:%u:%g:%t:%T /dev/mine", mount="grep ' /data ' /proc/mounts",
        rro="grep ' /etc/ro ' /proc/mounts | cut -d, -f1", boot="cut -d. -f1 /proc/uptime",
        devdenied="head -c 1 /dev/vdx", cgroup="grep ^0: /proc/self/cgroup",
        memory="cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.low",
        cpu="cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/cpuset.cpus",
        pids="cat /sys/fs/cgroup/pids.max", high="cat /sys/fs/cgroup/memory.high",
        huge="cat /sys/fs/cgroup/hugetlb.2MB.max", started="cat /tmp/started")
    spec = default_spec(["sh", "-c", script])
    caps = ["CAP_NET_BIND_SERVICE", "CAP_DAC_OVERRIDE", "CAP_MKNOD"]
    spec["process"].update(
        user={"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o27},
        cwd="/srv/made", env=["PATH=/bin", "MARK=a b"], oomScoreAdj=77, noNewPrivileges=True,
        capabilities={k: caps for k in ("bounding", "effective", "permitted", "inheritable",
                                        "ambient")},
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}],
        scheduler={"policy": "SCHED_BATCH", "nice": 3})
    spec.update(hostname="named", domainname="dom")
    spec["mounts"] += [
        {"destination": "/tmp", "type": "tmpfs", "source": "t", "options": ["mode=1777"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
        {"destination": "/data", "type": "tmpfs", "source": "t",
         "options": ["ro", "nosuid", "nodev", "noexec", "noatime", "size=128k", "mode=750"]},
        {"destination": "/etc/ro", "type": "tmpfs", "source": "t", "options": ["rro"]}]
    spec["hooks"] = {"startContainer": [
        {"path": "/bin/sh", "args": ["sh", "-c", "read -r x; echo ${#x} >/tmp/started"],
         "env": ["PATH=/bin"]}]}
    spec["linux"].update(
        namespaces=spec["linux"]["namespaces"] + [{"type": "time"}],
        timeOffsets={"boottime": {"secs": 50000000, "nanosecs": 0}},
        sysctl={"kernel.shmmax": "4242"}, personality={"domain": "LINUX32"},
        maskedPaths=["/hidden", "/etc/group", "/none"], readonlyPaths=["/fixed", "/none"],
        devices=[{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640,
                  "uid": 3, "gid": 4},
                 {"path": "/dev/vdx", "type": "b", "major": 254, "minor": 0}],
        seccomp={"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                 "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO",
                               "errnoRet": 38}]},
        resources={"devices": [{"allow": False, "access": "rwm"}],
                   "memory": {"limit": 96 << 20, "reservation": 16 << 20},
                   "cpu": {"shares": 2048, "quota": 90000, "period": 100000, "cpus": "0"},
                   "pids": {"limit": 44}, "unified": {"memory.high": str(80 << 20)},
                   "hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]})
    spec["root"]["readonly"] = True
    got = output(host, spec)

    assert got["hostname"] == "named," and got["domain"] == "dom,"
    assert got["pid"] == "1," and got["cgroup"] == "0::/,"
    assert (got["uid"], got["gid"], got["groups"]) == ("1000,", "1001,", "1001 7 8,")
    assert got["umask"] == "0027," and got["cwd"] == "/srv/made," and got["env"] == "a b,"
    assert got["caps"] == "0000000008000402," * 5
    assert got["nnp"].endswith("_1,") and got["seccomp"].endswith("_2,")
    assert "Function not implemented" in got["denied"]
    assert (got["nofile"], got["hard"], got["oom"]) == ("111,", "222,", "77,")
    assert got["sched"] == "3 3,"
    assert got["machine"] == "i686," and got["shm"] == "4242,"
    assert got["hidden"] == "" and got["masked"] == "0,"
    assert "Read-only file system" in got["fixed"] and "Read-only file system" in got["root"]
    assert got["device"] == "640:3:4:1:5,"
    for word in ("ro,", "nosuid", "nodev", "noexec", "noatime", "size=128k", "mode=750"):
        assert word in got["mount"], got["mount"]
    assert got["rro"].endswith(" ro,")
    assert int(got["boot"].rstrip(",")) >= 50000000
    assert "Operation not permitted" in got["devdenied"]
    assert got["memory"] == f"{96 << 20},{16 << 20}," and got["high"] == f"{80 << 20},"
    assert got["cpu"] == "90000 100000,79,0," and got["pids"] == "44,"
    assert got["huge"] == f"{2 << 20},"
    assert int(got["started"].rstrip(",")) > 20


@staged
def test_user_namespace(host):
    spec = default_spec(["sh", "-c", show(
        uid="id -u", map="cat /proc/self/uid_map /proc/self/gid_map", hostname="hostname",
        null="echo x >/dev/null && echo ok", sys="ls -d /sys/kernel")])
    spec["process"]["noNewPrivileges"] = False
    spec["mounts"].append({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                           "options": ["nosuid", "noexec", "nodev", "ro"]})
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    got = output(host, spec)
    assert got["uid"] == "0," and got["hostname"] == "box,"
    assert "100000" in got["map"] and "200000" in got["map"]
    assert got["null"] == "ok," and got["sys"] == "/sys/kernel,"


@staged
def test_exec_terminal_and_errors(host):
    spec = default_spec(["sleep", "100"])
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}
    t = Task(host, "exec", spec=spec)
    t.create()
    t.start()

    def run(name, args, **more):
        out = t.fifo(f"{name}.out")
        t.exec(name, args, stdout=out, **more)
        t.start(name)
        status = t.wait(name)
        text = t.fifos[f"{name}.out"].finish().decode()
        t.delete(name)
        return status, text

    # The container's filter, user, groups, umask, limits hold for what is exec'ed too.
    script = "id -u; id -G; umask; ulimit -n; pwd; mkdir /tmp/x 2>&1; grep -c . /proc/1/comm"
    status, text = run("a", ["sh", "-c", script], cwd="/tmp", noNewPrivileges=False,
                       user={"uid": 33, "gid": 34, "additionalGids": [29], "umask": 0o77},
                       rlimits=[{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}])
    lines = text.splitlines()
    assert lines[:5] == ["33", "34 29", "0077", "55", "/tmp"], text
    assert "Operation not permitted" in lines[5] and lines[6] == "1" and status == 0
    status, text = run("t", ["sh", "-c", "tty; stty size"], terminal=True,
                       consoleSize={"height": 33, "width": 99})
    assert status == 0 and text.split() == ["/dev/pts/0", "33", "99"]
    for name, args, words in (
            ("b1", ["nope"], 'exec: "nope": executable file not found in $PATH'),
            ("b2", ["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
            ("b3", ["/etc"], 'exec: "/etc": is a directory')):
        with pytest.raises(sc.RpcError) as e:
            run(name, args)
        assert words in e.value.message
        t.delete(name)
    t.kill(9)
    assert t.wait() == 137
    t.finish()


@staged
def test_bad_specs(host):
    """Each is refused with a text that names the member; nothing is left."""
    bad = [
        ({"process": {"args": ["true"], "cwd": "rel"}}, "process.cwd"),
        ({"process": {"args": [7], "cwd": "/"}}, "process.args[0]: expected a string"),
        ({"linux": {"namespaces": [{"type": "moon"}]}}, "linux.namespaces[0].type"),
        ({"hooks": {"startContainer": [{"path": "relative"}]}}, "hooks.startContainer[0].path"),
        ({"ociVersion": "3.0.0"}, "ociVersion"),
    ]
    for i, (change, words) in enumerate(bad):
        spec = default_spec(["true"])
        spec.update(json.loads(json.dumps(change)))
        with pytest.raises((sc.RpcError, RuntimeError)) as e:
            t = Task(host, f"bad{i}", spec=spec)
            t.create()
        assert words in str(e.value), e.value


@staged
def test_guest_refuses_what_it_cannot_do(host):
    spec = default_spec(["true"])
    spec["linux"]["resources"] = {"unified": {"memory.nope": "1"}}
    t = Task(host, "nope", spec=spec)
    start = time.monotonic()
    with pytest.raises(sc.RpcError) as e:
        t.create()
    assert "unified[memory.nope]: the guest kernel has no memory.nope" in e.value.message
    assert time.monotonic() - start < 60
