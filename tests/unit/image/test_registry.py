"""Registries: the protocol, credentials, mirrors, and servers that fail in every way."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

import oci
from fake_registry import Registry
from layers import file, layer


@pytest.fixture
def registry():
    reg = Registry()
    yield reg
    reg.close()


def image(size=60000, **kw):
    return oci.Image([layer(file("small", "x")), layer(file("data", os.urandom(size)))], **kw)


def logins(store, **auths):
    auths = {key: {"auth": base64.b64encode(v.encode()).decode()} if isinstance(v, str) else v
             for key, v in auths.items()}
    (store.root / "config.json").write_text(json.dumps({"auths": auths}))


@pytest.fixture
def root(store):
    store.root.mkdir(exist_ok=True)
    return store


def test_pull(root, registry, tmp_path):
    ref = registry.add("team/app", "v1", image())
    root.ok("pull", ref)
    assert (root.extract(ref, tmp_path / "out") / "small").read_text() == "x"
    count = len(registry.log)
    root.ok("prepare", ref)
    assert len(registry.log) == count, "an image in the store needs no registry"
    root.ok("pull", ref)
    assert not registry.log[count + 1:], "only the manifest is asked for again"
    assert root.ok("list").split()[:2] == [f"{registry.host}/team/app", "v1"]


def test_pull_by_digest_and_index(root, registry):
    one = image()
    registry.add("app", "amd", one)
    other = image(architecture="arm64")
    registry.add("app", "arm", other)
    entries = [{"mediaType": oci.MT_MANIFEST, "digest": oci.sha256_bytes(i.manifest()),
                "size": len(i.manifest()), "platform": i.platform} for i in (other, one)]
    index = oci.dump({"schemaVersion": 2, "mediaType": oci.MT_INDEX, "manifests": entries})
    registry.put("app", ["latest", oci.sha256_bytes(index)], index, oci.MT_INDEX)
    root.ok("pull", f"{registry.host}/app", PLATFORM="linux/amd64")
    assert root.ok("list").split()[3] == "linux/amd64"
    root.ok("pull", f"{registry.host}/app@{oci.sha256_bytes(index)}", PLATFORM="linux/arm64")
    err = root.fails("pull", f"{registry.host}/app", PLATFORM="linux/s390x")
    assert "no image for platform linux/s390x; there is linux/arm64, linux/amd64" in err


def test_layers_are_shared(root, registry):
    base = layer(file("base", os.urandom(50000)))
    root.ok("pull", registry.add("a", "1", oci.Image([base, layer(file("a"))])))
    root.ok("pull", registry.add("b", "1", oci.Image([base, layer(file("b"))])))
    assert len(registry.requests(base.digest)) == 1


def test_parallel_pulls_share(root, registry):
    registry.faults["slow"] = True
    one = image(200000)
    ref = registry.add("app", "1", one)
    procs = [root.start("prepare", ref) for _ in range(6)]
    for proc in procs:
        _, err = proc.communicate(timeout=60)
        assert proc.returncode == 0, err
    assert len(registry.requests(one.layers[1].digest)) == 1
    assert not root.leftovers()


def test_not_found(root, registry):
    registry.add("app", "1", image())
    err = root.fails("pull", f"{registry.host}/app:2")
    assert "ENOENT" in err and "not found in registry" in err and "app:2" in err
    err = root.fails("prepare", f"{registry.host}/none", POLICY="never")
    assert "no such image" in err


def test_missing_blob(root, registry):
    one = image()
    ref = registry.add("app", "1", one)
    del registry.blobs[one.layers[1].digest]
    err = root.fails("pull", ref)
    assert "layer 2" in err and one.layers[1].digest in err
    assert not root.blobs()


def test_unreachable(root):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    before = time.monotonic()
    err = root.fails("pull", f"127.0.0.1:{port}/app")
    assert "EHOSTUNREACH" in err and f"127.0.0.1:{port}" in err
    err = root.fails("pull", "registry.invalid/app")
    assert "EHOSTUNREACH" in err and "registry.invalid" in err
    assert time.monotonic() - before < 8


def test_basic_credentials(root, registry):
    registry.basic = "me:secret"
    ref = registry.add("app", "1", image())
    err = root.fails("pull", ref)
    assert "EACCES" in err and "config.json" in err
    logins(root, **{registry.host: "me:wrong"})
    assert "refuses the credentials" in root.fails("pull", ref)
    logins(root, **{f"https://{registry.host}/v2/": "me:secret"})
    root.ok("pull", ref)
    logins(root, **{registry.host: {"auth": "%%%"}})
    root.ok("rm", ref)
    assert "is not base64" in root.fails("pull", ref)


def test_tokens(root, registry):
    registry.bearer = "me:secret"
    ref = registry.add("app", "1", image())
    assert "EACCES" in root.fails("pull", ref)
    logins(root, **{registry.host: "me:wrong"})
    assert "refuses the credentials" in root.fails("pull", ref)
    logins(root, **{registry.host: {"username": "me", "password": "secret"}})
    root.ok("pull", ref)
    assert "service=fake%2c%20really" in registry.requests("/token?")[-1].lower()
    assert registry.log[-1].endswith("Bearer")


def test_anonymous_and_identity_tokens(root, registry):
    registry.bearer = "anonymous:"
    ref = registry.add("app", "1", image())
    root.ok("pull", ref)
    root.ok("rm", ref)
    registry.bearer = "nobody:knows"
    logins(root, **{registry.host: {"identitytoken": "idtoken"}})
    root.ok("pull", ref)
    assert registry.requests("POST /token")


def test_credential_helper(root, registry, tmp_path):
    registry.basic = "helped:out"
    ref = registry.add("app", "1", image())
    helper = tmp_path / "docker-credential-test"
    helper.write_text('#!/bin/sh\n[ "$1" = get ] && [ "$(cat)" = ' + registry.host + ' ] && '
                      'echo \'{"Username":"helped","Secret":"out"}\'\n')
    helper.chmod(0o755)
    (root.root / "config.json").write_text(json.dumps({"credsStore": "test"}))
    root.ok("pull", ref, PATH=f"{tmp_path}:{os.environ['PATH']}")


def test_credentials_stay_with_their_host(root, registry):
    """A redirect to another host gets the blob, not the password."""
    other = Registry()
    one = image()
    registry.basic = "me:secret"
    ref = registry.add("app", "1", one)
    other.add("app", "1", one)
    registry.redirect = other
    logins(root, **{registry.host: "me:secret"})
    root.ok("pull", ref)
    assert other.log and all(line.endswith(" -") for line in other.log)
    other.close()


def test_bad_docker_config(root, registry):
    registry.basic = "a:b"
    ref = registry.add("app", "1", image())
    (root.root / "config.json").write_text("{ nonsense")
    assert "config.json is not a JSON object: line 1" in root.fails("pull", ref)


@pytest.mark.parametrize("fault,times", [("503", 3), ("429", 2), ("truncate", 3), ("stall", 1)])
def test_passing_faults(root, registry, tmp_path, fault, times):
    registry.faults[fault] = times
    ref = registry.add("app", "1", image())
    out = root.extract(ref, tmp_path / "out")
    assert (out / "data").stat().st_size == 60000
    assert not registry.faults[fault]


def test_transfers_are_resumed(root, registry):
    registry.faults["truncate"] = 2
    one = image(100000)
    root.ok("pull", registry.add("app", "1", one))
    asked = registry.requests(one.layers[1].digest)
    assert len(asked) == 3 and "bytes=" in asked[1] and "bytes=" in asked[2]


def test_server_without_ranges(root, registry):
    registry.faults.update({"truncate": 1, "no-range": True})
    root.ok("pull", registry.add("app", "1", image()))


def test_resume_after_kill(root, registry):
    registry.faults["slow"] = True
    one = image(400000)
    ref = registry.add("app", "1", one)
    proc = root.start("pull", ref)
    part = root.images / "tmp" / f"blob-{one.layers[1].digest[7:]}.part"
    for _ in range(200):
        if part.exists() and part.stat().st_size > 50000:
            break
        time.sleep(0.02)
    proc.send_signal(signal.SIGKILL)
    proc.communicate()
    registry.faults.clear()
    root.ok("pull", ref)
    assert "bytes=" in registry.requests(one.layers[1].digest)[-1]


def test_wrong_piece_is_fetched_anew(root, registry):
    one = image()
    ref = registry.add("app", "1", one)
    root.ok("list")
    part = root.images / "tmp" / f"blob-{one.layers[1].digest[7:]}.part"
    part.write_bytes(b"junk" * 1000)
    root.ok("pull", ref)


@pytest.mark.parametrize("fault,says", [
    ("corrupt", "is corrupt"), ("longer", "longer"), ("503", "503"), ("429", "limits the rate"),
    ("html", "unknown media type|not JSON"), ("huge-manifest", "larger than"),
    ("manifest-corrupt", "digest")])
def test_lasting_faults(root, registry, fault, says):
    ref = registry.add("app", "1", image(6000))
    registry.faults[fault] = True
    err = root.fails("pull", ref)
    assert any(word in err for word in says.split("|")), err
    assert "image '" in err and "app:1" in err
    assert not root.blobs() and not root.ok("list")


def test_cancel(root, registry):
    registry.faults["slow"] = True
    proc = root.start("pull", registry.add("app", "1", image(2000000)))
    time.sleep(0.7)
    proc.send_signal(signal.SIGINT)
    _, err = proc.communicate(timeout=3)
    assert "ECANCELED" in err and not root.leftovers() and not root.blobs()


def test_mirrors(root, registry):
    mirror = Registry()
    one = image()
    ref = registry.add("app", "1", one)
    mirror.add("app", "1", one)

    def use(*urls):
        (root.root / "registries.json").write_text(
            json.dumps({registry.host: {"mirrors": list(urls)}}))
        root.run("rm", ref)
        registry.log.clear()
        mirror.log.clear()

    use(mirror.url)
    root.ok("pull", ref)
    assert mirror.log and not registry.log
    use("http://127.0.0.1:1", mirror.url)
    root.ok("pull", ref)
    assert mirror.log and not registry.log
    mirror.manifests.clear()
    use(mirror.url)
    root.ok("pull", ref)
    assert registry.log
    # A mirror with the manifest but broken blobs.
    mirror.add("app", "1", one)
    mirror.blobs.clear()
    use(mirror.url)
    root.ok("pull", ref)
    assert registry.requests("/blobs/") and mirror.requests("/blobs/")
    use("ftp://x")
    assert "registries.json" in root.fails("pull", ref)
    mirror.close()


def test_tls(root, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                    "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-keyout", key, "-out", cert], check=True, stderr=subprocess.DEVNULL)
    reg = Registry(tls=(cert, key))
    ref = reg.add("app", "1", image())
    settings = root.root / "registries.json"
    settings.write_text(json.dumps({reg.host: {"ca": "/etc/ssl/certs/ca-certificates.crt"}}))
    err = root.fails("pull", ref)
    assert "EPROTO" in err and "no TLS connection to" in err and "can be trusted" in err
    settings.write_text(json.dumps({reg.host: {"ca": str(cert)}}))
    root.ok("pull", ref)
    reg.close()


def test_no_https_at_all(root, registry, tmp_path):
    """https asked of a server that speaks only http."""
    (root.root / "registries.json").write_text(
        json.dumps({registry.host: {"ca": "/etc/ssl/certs/ca-certificates.crt"}}))
    assert "EPROTO" in root.fails("pull", registry.add("app", "1", image()))


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="no docker-registry")
def test_docker_registry(root, tmp_path):
    """Debian's docker-registry, filled by skopeo where there is one."""
    config = tmp_path / "config.yml"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config.write_text(f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/data\n"
                      f"http:\n  addr: 127.0.0.1:{port}\n")
    proc = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        if not shutil.which("skopeo"):
            pytest.skip("no skopeo to fill the registry")
        oci.write_layout(str(tmp_path / "img"), {"v1": image(300000)})
        subprocess.run(["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false",
                        f"oci:{tmp_path}/img:v1", f"docker://127.0.0.1:{port}/team/app:v1"],
                       check=True, stdout=subprocess.DEVNULL)
        ref = f"127.0.0.1:{port}/team/app:v1"
        out = root.extract(ref, tmp_path / "out")
        assert (out / "data").stat().st_size == 300000
        assert "not found in registry" in root.fails("pull", f"127.0.0.1:{port}/team/app:v2")
    finally:
        proc.terminate()
        proc.wait()
