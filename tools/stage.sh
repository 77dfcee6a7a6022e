#!/bin/sh
# Lays a build out as it will be installed: tools/stage.sh BUILDDIR
#   BUILDDIR/stage/bin            the programs
#   BUILDDIR/stage/lib/caisson    the guest's kernel, images and agent
# The kernel is built first if this machine has none for the present guest/kernel.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "${1:?usage: tools/stage.sh BUILDDIR}" && pwd)
stage=$build/stage
kernel=$("$top/guest/kernel/build")

mkdir -p "$stage/bin" "$stage/lib/caisson"
put() { cp -f --remove-destination "$1" "$2"; }
for program in src/cli/caisson src/runtime/caisson-runtime src/shim/containerd-shim-caisson-v2 src/vmm/caisson-vmm; do
    put "$build/$program" "$stage/bin/"
done
put "$build/src/agent/caisson-agent" "$stage/lib/caisson/"
put "$kernel/vmlinux" "$stage/lib/caisson/"
"$top/guest/image/mkinitramfs" "$stage/lib/caisson/caisson-agent" "$stage/lib/caisson/initrd.cpio"
"$top/guest/image/mkrootfs" "$stage/lib/caisson/caisson-agent" "$stage/lib/caisson/root.erofs"
echo "$stage"
