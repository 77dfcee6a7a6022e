#!/bin/sh
# All benchmarks, one after the other: bench/run.sh BUILDDIR PEERDIR. Prints Markdown; nothing is
# judged. BUILDDIR is staged; PEERDIR is a release build that has the peers of the ttRPC tests.
# Each figure stands beside a peer's that was measured in the same run.
set -u
cd "$(dirname "$0")/.."
build=$(cd "${1:?usage: bench/run.sh BUILDDIR PEERDIR}" && pwd)
peers=$(cd "${2:?usage: bench/run.sh BUILDDIR PEERDIR}" && pwd)
CAISSON_STAGE=$build/stage
export CAISSON_STAGE

own_network() { unshare --net -- sh -c 'ip link set lo up && exec "$@"' sh "$@"; }
section() {
    echo
    echo "## $1"
    echo
    shift
    own_network "$@" || echo "(this benchmark failed: $*)"
}

echo "# Benchmarks"
echo
echo "$(date -u +%Y-%m-%d), $(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1))," \
    "$(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r)."
section "Start to exit of a trivial container" /usr/bin/python3 bench/start.py
section "Memory of one idle container" /usr/bin/python3 bench/memory.py
section "Start and memory of a Kubernetes pod beside runc's" /usr/bin/python3 bench/pod.py
section "ttRPC beside Go's" bench/ttrpc/run.sh "$peers"
section "vsock" bench/vsock/run.sh "$build"
CAISSON_VHOST_DEVICE=$build/src/virtio/caisson-vhost-device
export CAISSON_VHOST_DEVICE
section "virtio-fs beside virtiofsd" /usr/bin/python3 bench/fs.py
section "Disks beside QEMU's own" /usr/bin/python3 bench/blk.py
section "A root file system beside runc's" /usr/bin/python3 bench/rootfs.py
section "Network of a pod" /usr/bin/python3 bench/network.py
section "The built-in monitor beside QEMU with KVM, in the testbed" bench/monitor.py
