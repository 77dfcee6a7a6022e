"""Root file systems and volumes of pods and containers, as containerd and the kubelet give them."""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse

import pytest

import shimclient as sc
from shimclient import RpcError, Task, default_spec

pytestmark = pytest.mark.skipif(not sc.STAGE or not os.path.exists(sc.SHIM),
                                reason="CAISSON_STAGE names no staged build")

HERE = pathlib.Path(__file__).parent
MIB = 1 << 20


def tree(folder):
    """The test's root file system, as a directory."""
    root = sc.make_root(str(folder))
    for applet in ("mkfifo", "stat", "rm", "readlink", "fstrim", "find", "cp", "mkdir", "grep", "tail"):
        os.symlink("busybox", f"{root}/bin/{applet}")
    subprocess.run([os.environ.get("CC", "cc"), "-O1", "-static", "-o", f"{root}/bin/storage",
                    HERE / "storage-guest.c"], check=True)
    return root


@pytest.fixture(scope="module")
def where():
    # O_DIRECT, holes and names of any length: not a tmpfs.
    d = pathlib.Path(subprocess.check_output(["mktemp", "-d", "/var/tmp/caisson-storage-XXXXXX"],
                                             text=True).strip())
    yield d
    shutil.rmtree(d)


@pytest.fixture(scope="module")
def root(where):
    return tree(where / "root")


@pytest.fixture(scope="module")
def image(where, root):
    subprocess.run(["mkfs.erofs", "-T0", where / "image.erofs", root], check=True,
                   capture_output=True)
    return str(where / "image.erofs")


@pytest.fixture
def host(where, image, request):
    h = sc.Host(where / f"h{len(os.listdir(where))}", image)
    yield h
    for t in h.tasks:
        log = h.log(t.id)
        if log and request.session.testsfailed:
            print(f"--- log of {t.id}\n{log[-4000:]}")
        h.shim(t.id, t.dir, "delete", ns=t.ns, check=False)
    left = h.leftovers()
    assert not left, left


def ext4(path, size, *more):
    with open(path, "wb") as f:
        f.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", *more, path], check=True)
    return str(path)


def bind(source, destination, *options):
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["rbind", *options]}


class Pod:
    """A sandbox container and others beside it."""

    def __init__(self, host, name):
        self.host, self.name, self.n = host, name, 0
        self.task = self.make(name, "sandbox", ["sleep", "1000"])

    def make(self, cid, kind, args, mounts=(), rootfs=None, linux=None):
        spec = default_spec(args, annotations={"io.kubernetes.cri.container-type": kind,
                                               "io.kubernetes.cri.sandbox-id": self.name})
        spec["mounts"] += mounts
        spec["linux"].update(linux or {})
        t = Task(self.host, cid, spec=spec, ns="k8s.io")
        t.create(stdout=t.fifo("out"), stderr=t.fifo("err"), rootfs=rootfs)
        t.start()
        return t

    def start(self, script, **kw):
        self.n += 1
        return self.make(f"{self.name}-{self.n}", "container", ["sh", "-c", script], **kw)

    def run(self, script, code=0, **kw):
        t = self.start(script, **kw)
        return self.end(t, code)

    def end(self, t, code=0):
        status = t.wait()
        out, err = (t.fifos[k].finish().decode() for k in ("out", "err"))
        t.delete()
        assert status == code, (status, out, err)
        return out

    def finish(self):
        self.task.kill(signal.SIGKILL)
        self.task.wait()
        self.task.finish()


@pytest.fixture
def pod(host):
    p = Pod(host, "pod")
    yield p
    p.finish()


def kubelet(host):
    d = pathlib.Path(host.folder) / "pods/uid/volumes"
    d.mkdir(parents=True)
    return d


def project(volume, files, generation):
    """What the kubelet's atomic writer does."""
    volume.mkdir(parents=True, exist_ok=True)
    new = volume / f"..{generation}"
    new.mkdir()
    for name, text in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(text)
    old = os.readlink(volume / "..data") if (volume / "..data").is_symlink() else None
    os.symlink(new.name, volume / "..data_tmp")
    os.rename(volume / "..data_tmp", volume / "..data")
    for name in {n.split("/")[0] for n in files}:
        if not (volume / name).is_symlink():
            os.symlink(f"..data/{name}", volume / name)
    if old:
        shutil.rmtree(volume / old)


# ---- root file systems ----

def test_root_file_systems(host, pod, where, root):
    image = ext4(where / "root.ext4", 64 * MIB, "-d", root)
    out = pod.run("grep ' / ' /proc/mounts; echo kept > /kept; sync", rootfs=[("ext4", image, "loop")])
    assert " ext4 rw" in out
    assert pod.run("cat /kept", rootfs=[("ext4", image, "loop", "rw")]) == "kept\n"
    assert "Read-only" in pod.run("touch /new 2>&1; true", rootfs=[("ext4", image, "ro")])

    layers = []
    for i in range(3):
        d = where / f"layer{i}"
        d.mkdir()
        (d / "which").write_text(f"{i}\n")
        (d / f"only{i}").write_text(f"only {i}\n")
        subprocess.run(["mkfs.erofs", "-T0", where / f"layer{i}.erofs", d], check=True,
                       capture_output=True)
        layers.insert(0, ("erofs", str(where / f"layer{i}.erofs"), "ro", "loop"))
    layers.append(("erofs", host.image, "ro", "loop"))
    out = pod.run("cat /which /only0 /only1 /only2; echo mine > /which; cat /which", rootfs=layers)
    assert out == "2\nonly 0\nonly 1\nonly 2\nmine\n"
    # As containerd's mount manager is told, with a writable layer that came along.
    overlay = ("format/mkdir/overlay", "overlay", "upperdir=/no/such", "lowerdir={{ overlay 0 3 }}")
    upper = ext4(where / "upper.ext4", 32 * MIB)
    out = pod.run("echo up > /up; cat /which; sync", rootfs=[*layers, ("ext4", upper), overlay])
    assert out == "2\n"
    assert pod.run("cat /up", rootfs=[*layers, ("ext4", upper), overlay]) == "up\n"

    d = where / "host-root"
    shutil.copytree(root, d, symlinks=True)
    pod.run("echo shared > /shared", rootfs=[("bind", str(d), "rbind", "rw")])
    assert (d / "shared").read_text() == "shared\n"

    for mount, word in [(("btrfs", image), "btrfs"), (("ext4", "/no/such"), "/no/such"),
                        (("ext4", str(d)), "neither a file nor"), (("ext4", "rel"), "absolute")]:
        with pytest.raises(RpcError) as e:
            pod.start("true", rootfs=[mount])
        assert word in e.value.message


def test_many_containers_in_a_pod(pod):
    tasks = [pod.start(f"echo {i} > /mine; cat /mine; read -t 100 x < /dev/zero; sleep 1000")
             for i in range(22)]
    for i, t in enumerate(tasks):
        t.fifos["out"].wait_for(f"{i}\n".encode())
    for t in tasks:
        t.kill(signal.SIGKILL)
    for t in tasks:
        assert t.wait() == 137
        t.delete()
    # Places are used again, and what was written is gone.
    for _ in range(3):
        assert pod.run("ls /mine 2>/dev/null || echo fresh") == "fresh\n"


def test_scratch_has_a_limit_and_gives_space_back(host):
    host.env["CAISSON_CONFIG"] = host.config
    with open(host.config, "a", encoding="ascii") as f:
        f.write("storage:\n  scratch_size: 256MiB\n")
    t = Task(host, "one", ["sh", "-c", "df -m / | tail -1; dd if=/dev/zero of=/big bs=1M count=150 2>&1;"
                           "sync; echo full; while [ ! -e /go ]; do sleep 0.1; done; rm /big; sync;"
                           "echo empty; dd if=/dev/zero of=/more bs=1M count=400; sleep 1000"])
    t.create(stdout=t.fifo("out"), stderr=t.fifo("err"))
    t.start()
    t.fifos["out"].wait_for(b"full")
    disk, = pathlib.Path(host.root, "scratch").rglob("*.ext4")
    used = os.stat(disk).st_blocks * 512
    assert used > 150 * MIB
    t.exec("go", ["touch", "/go"])
    t.start("go")
    assert t.wait("go") == 0
    t.fifos["out"].wait_for(b"empty")
    end = time.monotonic() + 20
    while os.stat(disk).st_blocks * 512 > 30 * MIB:
        assert time.monotonic() < end, "the space is not given back"
        time.sleep(0.1)
    t.fifos["err"].wait_for(b"No space left")
    t.kill(signal.SIGKILL)
    t.wait()
    t.finish()


# ---- the kubelet's volumes ----

def test_empty_dirs(host):
    volumes = kubelet(host)
    disk, memory, huge = (volumes / "kubernetes.io~empty-dir" / n for n in ("data", "mem", "huge"))
    for d in (disk, memory, huge):
        d.mkdir(parents=True)
        os.chown(d, 0, 4242)
        d.chmod(0o2777)
    sub = volumes.parent / "volume-subpaths/data/app/0"
    (disk / "a/b").mkdir(parents=True)
    sub.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", memory], check=True)
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M,size=4M", "none", huge], check=True)
    subprocess.run(["mount", "--bind", disk / "a/b", sub], check=True)
    pod = None
    try:
        # The kubelet's mounts reach a shim that runs already by propagation, if the host has that.
        pod = Pod(host, "pod")
        mounts = [bind(disk, "/data"), bind(memory, "/mem", "ro"), bind(sub, "/sub")]
        server = pod.start("storage listen /data/socket", mounts=mounts)
        out = pod.run("until storage talk /data/socket 2>/dev/null; do sleep 0.1; done;"
                      "stat -c '%g %a' /data; grep -E ' /(data|mem|sub) ' /proc/mounts;"
                      "touch /mem/x 2>&1; echo below > /sub/file; cat /data/a/b/file;"
                      "echo keep > /data/keep", mounts=mounts)
        pod.end(server)
        lines = out.splitlines()
        assert lines[0] == "hello"
        assert lines[1].startswith("4242 2777")
        assert " /data ext4 rw" in out and " /mem tmpfs ro" in out and " /sub ext4 rw" in out
        assert "Read-only" in out and lines[-1] == "below"
        # A writer in another container, its size limit, and what outlives a container.
        out = pod.run("cat /data/keep; dd if=/dev/zero of=/mem/big bs=1M count=20 2>&1; ls -l /mem/big",
                      mounts=[bind(disk, "/data"), bind(memory, "/mem")])
        assert out.startswith("keep\n") and "No space left" in out and str(8 * MIB) in out
        assert not os.listdir(memory) and os.listdir(disk) == ["a"]
        out = pod.run("grep ' /huge ' /proc/mounts; grep HugePages_Total /proc/meminfo",
                      mounts=[bind(huge, "/huge")])
        assert "hugetlbfs rw" in out and "pagesize=2M" in out and out.split()[-1] == "2"
        # A container that makes a link of the path leads nobody out of the volume.
        pod.run("rm -rf /data/a; cd /data; busybox ln -s / a", mounts=[bind(disk, "/data")])
        with pytest.raises(RpcError) as e:
            pod.start("true", mounts=[bind(sub, "/sub")])
        assert "subpath" in e.value.message
    finally:
        if pod:
            pod.finish()
        subprocess.run(["umount", sub], check=True)
        subprocess.run(["umount", huge], check=True)
        subprocess.run(["umount", memory], check=True)


def test_limits_of_an_empty_dir_and_of_disks(host):
    with open(host.config, "a", encoding="ascii") as f:
        f.write("storage:\n  disk_rate: 4MiB\n")
    volumes = kubelet(host)
    small = volumes / "kubernetes.io~empty-dir/small"
    small.mkdir(parents=True)
    small.chmod(0o777)
    spec = default_spec(["sh", "-c", "df -m /small | tail -1; dd if=/dev/zero of=/small/x bs=1M count=40 2>&1;"
                         "stat -c %a /small; sleep 1000"],
                        annotations={"io.caisson.empty-dir-size.small": "24MiB"})
    spec["mounts"].append(bind(small, "/small"))
    t = Task(host, "one", spec=spec)
    t.create(stdout=t.fifo("out"), stderr=t.fifo("err"))
    t.start()
    out = t.fifos["out"].wait_for(b"777\n").decode()
    assert 15 <= int(out.split()[1]) <= 24 and "No space left" in out
    # 4 MiB at once, then 4 MiB a second: 12 MiB take two seconds at least.
    t.exec("slow", ["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=12 oflag=direct 2>&1"],
           stdout=t.fifo("slow.out"), stderr=t.fifo("slow.err"))
    start = time.monotonic()
    t.start("slow")
    assert t.wait("slow") == 0
    assert time.monotonic() - start > 1.8
    t.kill(signal.SIGKILL)
    t.wait()
    t.finish()


def test_changes_of_a_config_map_reach_the_guest(host, pod):
    volumes = kubelet(host)
    config = volumes / "kubernetes.io~configmap/settings"
    project(config, {"one": "1\n", "deep/two": "2\n"}, "first")
    mounts = [bind(config, "/etc/settings", "ro")]
    t = pod.start("cat /etc/settings/one /etc/settings/deep/two; touch /etc/settings/x 2>&1;"
                  "storage watch /etc/settings ..data && cat /etc/settings/one; echo seen;"
                  "ls /etc/settings; readlink /etc/settings/..data; "
                  "until [ -e /etc/settings/last ]; do sleep 0.05; done; cat /etc/settings/last;"
                  "until [ ! -e /etc/settings/..second ]; do sleep 0.05; done", mounts=mounts)
    t.fifos["out"].wait_for(b"ready")
    start = time.monotonic()
    project(config, {"one": "uno\n", "three": "3\n"}, "second")
    t.fifos["out"].wait_for(b"moved")
    quick = time.monotonic() - start
    t.fifos["out"].wait_for(b"seen")
    for i in range(20):
        project(config, {"one": f"{i}\n", "last": f"{i}\n"} if i < 19 else
                {"one": "end\n", "last": "end\n"}, f"gen{i}")
    out = pod.end(t)
    assert out.startswith("1\n2\n") and "Read-only" in out and "moved\nuno\n" in out
    assert quick < 5, f"{quick:.2f} s until the guest knew"
    assert pod.run("cat /etc/settings/last /etc/settings/one", mounts=mounts) == "end\nend\n"


# ---- disks ----

def test_file_systems_and_devices_as_volumes(host, pod, where):
    data = ext4(where / "data.ext4", 64 * MIB)
    mount = {"destination": "/data", "type": "ext4", "source": data, "options": ["noatime", "discard"]}
    out = pod.run("grep ' /data ' /proc/mounts; echo persistent > /data/file; sync", mounts=[mount])
    assert "ext4 rw,noatime,discard" in out
    # The same volume for a second container, and read-only.
    mount["options"] = ["ro"]
    assert "persistent\n" in pod.run("cat /data/file; touch /data/x 2>&1 || true", mounts=[mount])
    files = {"destination": "/files", "type": "erofs", "source": host.image}
    assert "busybox" in pod.run("ls /files/bin", mounts=[files])

    out = pod.run("ls -l /dev/zzero; head -c 2 /dev/zzero | wc -c", mounts=[bind("/dev/zero", "/dev/zzero")])
    assert "1,   5" in out and out.endswith("2\n")
    with pytest.raises(RpcError) as e:
        pod.start("true", mounts=[bind("/dev/no-such-thing", "/dev/x")])
    assert "no-such-thing" in e.value.message


def test_direct_volume(host, pod, where):
    data = ext4(where / "direct.ext4", 64 * MIB)
    source = pathlib.Path(host.folder) / "pods/uid/volumes/kubernetes.io~csi/pvc/mount"
    source.mkdir(parents=True)
    import base64  # pylint: disable=import-outside-toplevel
    import json  # pylint: disable=import-outside-toplevel
    name = base64.urlsafe_b64encode(str(source).encode()).decode()
    info = pathlib.Path("/run/kata-containers/shared/direct-volumes") / name
    info.mkdir(parents=True)
    try:
        (info / "mountInfo.json").write_text(json.dumps({
            "volume-type": "block", "device": data, "fstype": "ext4",
            "metadata": {"fsGroup": "77"}, "options": ["noatime"]}))
        out = pod.run("grep ' /pvc ' /proc/mounts; stat -c %g /pvc; echo direct > /pvc/file; sync",
                      mounts=[bind(source, "/pvc")])
        assert "ext4 rw,noatime" in out and "\n77\n" in out
        assert not os.listdir(source)
    finally:
        shutil.rmtree(info)


def test_volumes_grow_while_in_use(host, pod, where):
    """ext4, and xfs where the guest's kernel has it, through the shim's socket."""
    disks = {"ext4": ext4(where / "grow.ext4", 64 * MIB)}
    if shutil.which("mkfs.xfs") and "xfs" in pod.run("cat /proc/filesystems").split():
        disks["xfs"] = str(where / "grow.xfs")
        with open(disks["xfs"], "wb") as f:
            f.truncate(320 * MIB)
        subprocess.run(["mkfs.xfs", "-q", disks["xfs"]], check=True)
    mounts = [{"destination": f"/{t}", "type": t, "source": d, "options": []} for t, d in disks.items()]
    places = " ".join(f"/{fs}" for fs in disks)
    t = pod.start(f"for d in {places}; do echo before > $d/file; done; echo up; sleep 1000", mounts=mounts)
    t.fifos["out"].wait_for(b"up")
    directory, = pathlib.Path(host.run, "sandboxes").iterdir()

    def get(method, path, body=None):
        c = http.client.HTTPConnection("localhost")
        at = os.open(directory, os.O_PATH)
        c.sock = socket.socket(socket.AF_UNIX)
        c.sock.settimeout(60)
        c.sock.connect(f"/proc/self/fd/{at}/monitor.sock")
        os.close(at)
        c.request(method, path, body)
        r = c.getresponse()
        text = r.read().decode()
        c.close()
        return r.status, text

    def total(disk):
        status, text = get("GET", "/direct-volume/stats?path=" + urllib.parse.quote(disk))
        assert status == 200, text
        return next(u["total"] for u in json.loads(text)["usage"] if u["unit"] == 1)

    def resize(disk, size):
        return get("POST", "/direct-volume/resize", json.dumps({"VolumePath": disk, "Size": size}))

    for disk in disks.values():
        old, now = os.path.getsize(disk), total(disk)
        assert old * 3 // 4 < now <= old
        status, text = resize(disk, 3 * old)
        assert status == 400 and "enlarge it first" in text
        os.truncate(disk, 3 * old)
        assert resize(disk, 2 * old)[0] == 200
        assert old < total(disk) <= 2 * old
        assert resize(disk, 0)[0] == 200
        assert 2 * old < total(disk) <= 3 * old
        status, text = resize(disk, old)
        assert status == 400 and "cannot become smaller" in text
    t.exec("fill", ["sh", "-c", f"for d in {places}; do dd if=/dev/zero of=$d/big bs=1M count=120 conv=fsync && "
                    "cat $d/file; done"], stdout=t.fifo("f.out"), stderr=t.fifo("f.err"))
    t.start("fill")
    assert t.wait("fill") == 0
    t.kill(signal.SIGKILL)
    pod.end(t, 137)


@pytest.fixture
def loop(where):
    f = where / "loop"
    with open(f, "wb") as out:
        out.write(b"on the host\n".ljust(4096, b"\0"))
        out.truncate(16 * MIB)
    p = subprocess.run(["losetup", "--find", "--show", f], capture_output=True, text=True, check=False)
    if p.returncode:
        pytest.skip(f"no loop devices here: {p.stderr.strip()}")
    yield p.stdout.strip()
    subprocess.run(["losetup", "-d", p.stdout.strip()], check=True)


def test_block_device(pod, where, loop):
    st = os.stat(loop)
    major, minor = os.major(st.st_rdev), os.minor(st.st_rdev)
    device = {"path": "/dev/xvd", "type": "b", "major": major, "minor": minor}

    def linux(access):
        return {"devices": [device], "resources": {"devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "b", "major": major, "minor": minor, "access": access}]}}

    out = pod.run("head -c 11 /dev/xvd; echo; echo from the guest | dd of=/dev/xvd conv=fsync 2>/dev/null;"
                  "head -c 14 /dev/xvd", linux=linux("rwm"))
    assert out == "on the host\nfrom the guest"
    assert (where / "loop").read_bytes().startswith(b"from the guest\n")
    out = pod.run("head -c 8 /dev/xvd; echo no | dd of=/dev/xvd conv=fsync 2>&1; true", linux=linux("r"))
    assert out.startswith("from the") and "not permitted" in out.lower()
    char = {"devices": [{"path": "/dev/nothing", "type": "c", "major": 240, "minor": 77}]}
    with pytest.raises(RpcError) as e:
        pod.start("true", linux=char)
    assert "/dev/nothing" in e.value.message
