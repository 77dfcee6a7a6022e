"""Bad input: each case gives one clear error line and the right exit code, and leaves nothing behind."""

import base64
import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile
import threading

import pytest

from conftest import TOP

sys.path.insert(0, str(TOP / "tests/images"))
import oci  # noqa: E402


def entry(name, data=b"", kind=tarfile.REGTYPE, link="", mode=0o755):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info, data if kind == tarfile.REGTYPE else None


def layout(path, *members, layers=None, **kw):
    """An OCI layout with one layer of these members; returns the reference."""
    layers = layers or [oci.Layer(oci.tar_of_members(members))]
    oci.write_layout(str(path), {"latest": oci.Image(layers, {"Cmd": ["/bin/sh"]}, **kw)})
    return f"oci:{path}:latest"


def blob(path, digest):
    return path / "blobs/sha256" / digest.split(":")[1]


def refuses(c, ref, *words, code=125, args=()):
    r = c("run", "--rm", *args, ref, "true", timeout=180).fails(code, *words)
    assert c.ps() == []
    c.assert_clean()
    return r


# ---- images ----

def test_corrupted_layer(own_store, tmp_path):
    layer = oci.Layer(oci.tar_of_members([entry("a", b"x" * 5000)]))
    ref = layout(tmp_path / "i", layers=[layer])
    f = blob(tmp_path / "i", layer.digest)
    data = bytearray(f.read_bytes())
    data[len(data) // 2] ^= 1
    f.write_bytes(data)
    refuses(own_store, ref, "digest")


def test_corrupted_config(own_store, tmp_path):
    image = oci.Image([oci.Layer(oci.tar_of_members([entry("a")]))])
    oci.write_layout(str(tmp_path / "i"), {"latest": image})
    f = blob(tmp_path / "i", oci.sha256_bytes(image.config))
    f.write_bytes(f.read_bytes().replace(b"linux", b"linus"))
    refuses(own_store, f"oci:{tmp_path}/i:latest", "digest")


def test_truncated_layer(own_store, tmp_path):
    layer = oci.Layer(oci.tar_of_members([entry("a", os.urandom(20000))]))
    ref = layout(tmp_path / "i", layers=[layer])
    f = blob(tmp_path / "i", layer.digest)
    f.write_bytes(f.read_bytes()[:9000])
    refuses(own_store, ref)


def test_truncated_inside(own_store, tmp_path):
    """Its digest is right, but the compressed stream ends early."""
    layer = oci.Layer(oci.tar_of_members([entry("a", os.urandom(20000))]))
    layer.data = layer.data[:9000]
    layer.digest = oci.sha256_bytes(layer.data)
    refuses(own_store, layout(tmp_path / "i", layers=[layer]))


def test_missing_blob(own_store, tmp_path):
    layer = oci.Layer(oci.tar_of_members([entry("a")]))
    ref = layout(tmp_path / "i", layers=[layer])
    blob(tmp_path / "i", layer.digest).unlink()
    refuses(own_store, ref)


def test_dotdot_name(own_store, tmp_path):
    ref = layout(tmp_path / "i", entry("../../../../../../escaped", b"x"))
    refuses(own_store, ref, "..")
    assert not pathlib.Path("/escaped").exists()


def test_absolute_name(own_store, tmp_path):
    target = tmp_path / "outside"
    refuses(own_store, layout(tmp_path / "i", entry(str(target), b"x")), "absolute")
    assert not target.exists()


def test_symlink_escape(own_store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    ref = layout(tmp_path / "i", entry("out", kind=tarfile.SYMTYPE, link=str(outside)),
                 entry("up", kind=tarfile.SYMTYPE, link="../" * 20 + str(outside)[1:]),
                 entry("out/one", b"x"), entry("up/two", b"x"))
    r = own_store("run", "--rm", ref, "true", timeout=60)
    assert r.code in (125, 127) and len(r.err.splitlines()) == 1, repr(r)
    assert list(outside.iterdir()) == []


def test_hard_link_to_outside(own_store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s", encoding="ascii")
    for link in (str(secret), "../" * 20 + str(secret)[1:]):
        refuses(own_store, layout(tmp_path / "i", entry("h", kind=tarfile.LNKTYPE, link=link)),
                "hard link")
    assert secret.stat().st_nlink == 1


def test_bomb(own_store, tmp_path):
    layer = oci.Layer(oci.tar_of_members([entry("zeros", bytes(64 << 20))]))
    assert len(layer.data) * 900 < 64 << 20
    refuses(own_store, layout(tmp_path / "i", layers=[layer]), "times its size")


def test_wrong_platform(own_store, tmp_path):
    refuses(own_store, layout(tmp_path / "i", entry("a"), architecture="s390x"), "s390x")


def test_unknown_media_type(own_store, tmp_path):
    layer = oci.Layer(oci.tar_of_members([entry("a")]))
    layer.media_type = "application/vnd.example.unknown"
    refuses(own_store, layout(tmp_path / "i", layers=[layer]), "media type")


def test_not_an_image(own_store, tmp_path):
    (tmp_path / "f").write_bytes(b"no archive")
    refuses(own_store, f"docker-archive:{tmp_path}/f")
    own_store("load", "-i", tmp_path / "f").fails(125)
    own_store("load", "-i", tmp_path / "missing").fails(125, "missing")


def test_missing_image(own_store, tmp_path):
    refuses(own_store, f"oci:{tmp_path}/nothing:latest", "nothing")
    ref = layout(tmp_path / "i", entry("a"))
    refuses(own_store, ref.replace(":latest", ":other"), "other")
    refuses(own_store, "nosuch", args=("--pull", "never"))
    refuses(own_store, "Bad//Name")


def test_image_without_a_command(own_store, tmp_path):
    oci.write_layout(str(tmp_path / "i"),
                     {"latest": oci.Image([oci.Layer(oci.tar_of_members([entry("a")]))], {})})
    own_store("run", "--rm", f"oci:{tmp_path}/i:latest", timeout=60).fails(125, "no command")
    own_store.assert_clean()


# ---- registries ----

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_unreachable_registry(own_store):
    port = free_port()
    refuses(own_store, f"127.0.0.1:{port}/a:latest", f"127.0.0.1:{port}")


def test_unknown_host(own_store):
    refuses(own_store, "registry.invalid/a:latest", "registry.invalid")


class Registry(http.server.BaseHTTPRequestHandler):
    """Wants user "good" with password "good"; has no image."""

    def do_GET(self):
        want = "Basic " + base64.b64encode(b"good:good").decode()
        known = self.headers.get("Authorization") == want
        self.send_response(404 if known else 401)
        if not known:
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
        body = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN" if known else "UNAUTHORIZED"}]})
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def registry():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("password", ["wrong", None])
def test_wrong_credentials(own_store, registry, tmp_path, password):
    env = {"DOCKER_CONFIG": str(tmp_path)}
    if password:
        auth = base64.b64encode(f"good:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}),
                                              encoding="ascii")
    own_store("pull", "-q", f"{registry}/a:latest", env=env).fails(125, registry)


def test_image_the_registry_lacks(own_store, registry, tmp_path):
    auth = base64.b64encode(b"good:good").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}),
                                          encoding="ascii")
    own_store("pull", "-q", f"{registry}/a:latest",
              env={"DOCKER_CONFIG": str(tmp_path)}).fails(125, f"{registry}/a:latest")


# ---- the host ----

def test_no_space_left(own_store, busybox, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], check=True)
    try:
        own_store("run", "--rm", busybox, "true", env={"CAISSON_ROOT": str(small)},
                  timeout=60).fails(125, "space")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_missing_kernel(caisson, tmp_path):
    refuses(caisson, caisson.image, "kernel", args=("--kernel", tmp_path / "none"))
    env = {"CAISSON_LIBDIR": str(tmp_path)}
    caisson("run", "--rm", caisson.image, "true", env=env).fails(125, "vmlinux")
    assert caisson.ps() == []


def test_kernel_that_is_none(caisson, tmp_path):
    (tmp_path / "k").write_bytes(b"this is no kernel" * 1000)
    refuses(caisson, caisson.image, args=("--kernel", tmp_path / "k", "--boot-timeout", "5s"))


def test_kernel_that_hangs(caisson, tmp_path):
    """A valid ELF with a PVH entry that only halts: the guest never comes up."""
    (tmp_path / "k.S").write_text("""
        .section .note.pvh, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long start
        .text
        .code32
        .globl start
        start: cli
        1: hlt
        jmp 1b
        """, encoding="ascii")
    subprocess.run(["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x1000000",
                    "-Wl,--build-id=none", "-Wl,-e,start", "-o", tmp_path / "k", tmp_path / "k.S"],
                   check=True)
    r = refuses(caisson, caisson.image, "did not come up",
                args=("--kernel", tmp_path / "k", "--boot-timeout", "3s"))
    assert 3 <= r.seconds < 60


def test_malformed_config(caisson, tmp_path):
    f = tmp_path / "config.yaml"
    for text, word in (("vm:\n  memroy: 1g\n", "memroy"), ("vm: [\n", "config.yaml"),
                       ("vm:\n  memory: lots\n", "lots")):
        f.write_text(text, encoding="ascii")
        caisson("run", "--rm", caisson.image, "true",
                env={"CAISSON_CONFIG": str(f)}).fails(125, "config.yaml", word)
        assert caisson("doctor", env={"CAISSON_CONFIG": str(f)}).code == 1
    caisson.assert_clean()


def test_missing_program(caisson, tmp_path):
    bin_dir = tmp_path / "bin"
    shutil.copytree(caisson.stage / "bin", bin_dir)
    (bin_dir / "containerd-shim-caisson-v2").unlink()
    caisson.bin = bin_dir / "caisson"
    env = {"CAISSON_LIBDIR": str(caisson.stage / "lib/caisson")}
    caisson("run", "--rm", caisson.image, "true", env=env).fails(125, "containerd-shim-caisson-v2")
    caisson.bin = caisson.stage / "bin/caisson"
    caisson.assert_clean()


# ---- words ----

def test_name_in_use(caisson):
    caisson("create", "--name", "taken", caisson.image, "true", timeout=60).ok()
    caisson("run", "--rm", "--name", "taken", caisson.image, "true").fails(125, "taken", "in use")
    caisson("run", "--rm", "--name", "a/b", caisson.image, "true").fails(125, "a/b")
    assert [r["Names"] for r in caisson.ps()] == ["taken"]


def test_unknown_user(caisson):
    refuses(caisson, caisson.image, "stranger", args=("-u", "stranger"))
    refuses(caisson, caisson.image, "strangers", args=("-u", "root:strangers"))


@pytest.mark.parametrize("args, word", [
    (["--bogus"], "--bogus"), (["-p", "80:x"], "-p"),
    (["--device", "/dev/no-such"], "not a device"), (["-v", "na/med:/x"], "neither"),
    (["-v", "/no/such:/x"], "/no/such"), (["--mount", "type=what,dst=/x"], "unknown type"),
    (["--mount", "type=bind,dst=/x"], "src=/PATH"), (["--storage-opt", "size=1"], "--storage-opt"),
    (["--mount", "type=block,src=/dev/null,dst=/x"], "no file system"),
    (["--network", "host"], "not possible"), (["-m", "lots"], "--memory"),
    (["--cpus", "many"], "--cpus"), (["-v", "/no/such/dir:/x"], "/no/such/dir"),
    (["--cap-add", "flying"], "flying"), (["-w", "relative"], "absolute"),
    (["--env-file", "/no/such/file"], "/no/such/file"), (["--ulimit", "x"], "--ulimit"),
])
def test_wrong_words(caisson, args, word):
    caisson("run", "--rm", *args, caisson.image, "true", timeout=60).fails(125, word)
    assert caisson.ps() == []


def test_command_not_found(caisson):
    caisson("run", "--rm", caisson.image, "no-such").fails(127, "no-such")
    caisson("bogus").fails(125, "bogus")
    assert caisson("run").code == 125


def test_workdir_and_mountpoint_that_are_files(caisson):
    caisson("run", "--rm", "-w", "/etc/passwd", caisson.image, "true").fails(125, "/etc/passwd")
    caisson("run", "--rm", "--tmpfs", "/etc/passwd", caisson.image, "true").fails(125, "/etc/passwd")


# ---- guests ----

def test_guest_that_floods_its_console(caisson):
    """Host memory, disk and the command stay responsive; the log is capped."""
    name = "flood"
    caisson("run", "-d", "--privileged", "--name", name, caisson.image, "sh", "-c",
            "while :; do echo flooding the console of the guest; done > /dev/kmsg").ok()
    assert caisson("exec", name, "echo", "alive").ok().out == "alive\n"
    size = sum(p.stat().st_size for p in caisson.run_dir.rglob("*") if p.is_file())
    assert size < 64 << 20
    caisson("rm", "-f", name).ok()
    caisson.assert_clean()


def test_guest_that_panics(caisson):
    p = caisson("run", "--rm", "--privileged", caisson.image, "sh", "-c",
                "echo c > /proc/sysrq-trigger; sleep 100")
    assert p.code not in (0, 127), repr(p)
    assert len(p.err.splitlines()) <= 1
    caisson.assert_clean()
