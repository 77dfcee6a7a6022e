#!/bin/sh
# Throughput and latency of the vsock device: bench/vsock/run.sh BUILDDIR. Prints Markdown.
set -eu
build=$(cd "${1:?usage: bench/vsock/run.sh BUILDDIR}" && pwd)
CAISSON_VHOST_DEVICE=$build/src/virtio/caisson-vhost-device
export CAISSON_VHOST_DEVICE
exec python3 "$(dirname "$0")/run.py"
