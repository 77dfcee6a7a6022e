#!/usr/bin/env python3
"""Interop of ttRPC with another implementation, each as server and as client, and with itself.

run.py go|rust PATH-OF-ttrpc_peer [BUILD-FOLDER]
run.py go-stream PATH-OF-ttrpc_stream_peer [BUILD-FOLDER]

Talks over Unix sockets in a temporary folder only. Exit code 77: the other side can't be built here.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
GOCODE = "/usr/share/gocode"
CRATES = "/usr/share/cargo/registry"


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def find_go():
    for go in ("/usr/lib/go-1.19/bin/go", shutil.which("go")):
        if go and os.path.exists(go):
            return go
    return None


def build_go(folder):
    """The Go peer, or None and the reason."""
    go = find_go()
    if not go:
        return None, "no Go compiler (golang-go)"
    if not os.path.isdir(f"{GOCODE}/src/github.com/containerd/ttrpc"):
        return None, "golang-github-containerd-ttrpc-dev is not installed"
    env = dict(os.environ, GO111MODULE="off", GOPATH=GOCODE, GOFLAGS="", GOTOOLCHAIN="local",
               GOCACHE=f"{folder}/go-cache")
    env.pop("GOROOT", None)
    out = f"{folder}/peer-go"
    run = subprocess.run([go, "build", "-o", out, f"{HERE}/peer.go"], env=env,
                         capture_output=True, text=True)
    if run.returncode:
        return None, "the Go peer doesn't build:\n" + run.stderr
    return out, ""


def build_go_stream(folder):
    """Debian's package knows no streams: a newer one must be in Go's module cache already."""
    go = shutil.which("go") or find_go()
    if not go:
        return None, "no Go compiler (golang-go)"
    work = f"{folder}/go-stream"
    shutil.copytree(f"{HERE}/stream", work, dirs_exist_ok=True)
    env = dict(os.environ, GOPROXY="off", GOFLAGS="-mod=mod", GONOSUMDB="*",
               GOTOOLCHAIN="local", GO111MODULE="on", GOCACHE=f"{folder}/go-cache")
    run = subprocess.run([go, "build", "-o", "peer", "."], cwd=work, env=env,
                         capture_output=True, text=True)
    if run.returncode:
        return None, "ttrpc 1.2 for Go is not in the module cache (go mod download in " \
            "tests/interop/ttrpc/stream gets it)"
    return f"{work}/peer", ""


def build_rust(folder):
    cargo = shutil.which("cargo")
    if not cargo:
        return None, "no cargo"
    if not os.path.isdir(CRATES) or not any(d.startswith("ttrpc-") for d in os.listdir(CRATES)):
        return None, "librust-ttrpc-dev is not installed"
    work = f"{folder}/rust"
    shutil.copytree(f"{HERE}/rust", work, dirs_exist_ok=True)
    os.makedirs(f"{work}/.cargo", exist_ok=True)
    with open(f"{work}/.cargo/config.toml", "w", encoding="utf-8") as f:
        f.write('[source.crates-io]\nreplace-with = "debian"\n'
                f'[source.debian]\ndirectory = "{CRATES}"\n')
    env = dict(os.environ, CARGO_TARGET_DIR=f"{work}/target", CARGO_HOME=f"{work}/home")
    if "CARGO_HOME" not in os.environ and "RUSTUP_HOME" not in os.environ:
        env["RUSTUP_HOME"] = os.path.expanduser("~/.rustup")
    try:
        run = subprocess.run([cargo, "build", "--offline", "--quiet"], cwd=work, env=env,
                             capture_output=True, text=True, timeout=480)
    except subprocess.TimeoutExpired:
        return None, "the Rust peer takes too long to build"
    if run.returncode:
        return None, "the Rust peer doesn't build:\n" + run.stderr
    return f"{work}/target/debug/peer", ""


def wait_for(path, server):
    for _ in range(1000):
        if os.path.exists(path):
            return
        if server.poll() is not None:
            break
        time.sleep(0.01)
    sys.exit(f"no server at {path}")


def pair(name, server, client, folder, extra=None):
    path = f"{folder}/{name}.sock"
    srv = subprocess.Popen([server, "server", path])
    try:
        wait_for(path, srv)
        run = subprocess.run([client, "client", path], stdout=subprocess.PIPE, text=True,
                             timeout=120, env=dict(os.environ, **(extra or {})))
        ok = run.returncode == 0 and run.stdout.strip() == "ok"
        if srv.poll() is not None:
            ok = False
            print(f"{name}: the server ended with {srv.returncode}")
    finally:
        if srv.poll() is None:
            srv.send_signal(signal.SIGTERM)
        srv.wait(30)
    print(f"{name}: {'ok' if ok else 'FAILED'}")
    return ok


BUILD = {"go": build_go, "rust": build_rust, "go-stream": build_go_stream}


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in BUILD:
        sys.exit(__doc__)
    lang, ours = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory(prefix="ttrpc-interop-") as tmp:
        folder = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else tmp
        os.makedirs(folder, exist_ok=True)
        peer, why = BUILD[lang](folder)
        if not peer:
            skip(why)
        # The Rust server of 0.5 ends the connection on a frame over the limit.
        extra = {"PEER_NO_OVERSIZE": "1"} if lang == "rust" else {}
        good = [
            pair("ours-with-ours", ours, ours, tmp),
            pair(f"{lang}-client-of-ours", ours, peer, tmp),
            pair(f"{lang}-server-of-ours", peer, ours, tmp, extra),
        ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
