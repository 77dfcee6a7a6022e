#!/bin/sh
# The end of `make run`: an OCI image runs in a VM of its own. tools/demo.sh STAGE
# Prints the image, the command's output, the guest's kernel beside the host's, and how long the
# first output took: the first time, which prepares the image, and once more.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
caisson=${1:?usage: tools/demo.sh STAGE}/bin/caisson
scratch=$(mktemp -d /tmp/caisson-demo-XXXXXX)
# No network of the machine is touched, also where it has CNI networks.
CAISSON_ROOT=$scratch/root CAISSON_RUN=$scratch/run NETCONFPATH=$scratch/net
export CAISSON_ROOT CAISSON_RUN NETCONFPATH
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# first_output COMMAND...: milliseconds until its first line; the lines go to $scratch/output
first_output() {
    begun=$(now_ms)
    status=0
    {
        "$@" || echo $? >"$scratch/failed"
    } | {
        IFS= read -r line || line=
        echo $(($(now_ms) - begun)) >"$scratch/ms"
        printf '%s\n' "$line"
        cat
    } >"$scratch/output"
    if [ -e "$scratch/failed" ]; then
        status=$(cat "$scratch/failed")
        cat "$scratch/output"
        echo "demo: the container's exit code was $status" >&2
        "$caisson" doctor >&2 || true
        exit 1
    fi
}

echo "Building a busybox image from Debian's package..."
image=oci:$("$top/tests/images/build" busybox):latest
command='echo "hello from inside the VM"; uname -r; cat /proc/cpuinfo | grep -m1 "model name"'

first_output "$caisson" run --rm "$image" sh -c "$command"
cold=$(cat "$scratch/ms")
first_output "$caisson" run --rm "$image" sh -c "$command"
warm=$(cat "$scratch/ms")

echo
echo "image:                 $image"
echo "command:               caisson run --rm IMAGE sh -c '$command'"
echo "output:"
sed 's/^/    /' "$scratch/output"
echo "guest kernel:          $(sed -n 2p "$scratch/output")"
echo "host kernel:           $(uname -r)"
echo "time to first output:  $warm ms ($cold ms the first time, image and host probe included)"
