#!/bin/sh
# Includes never point up: a folder of src/ may include itself and the folders listed for it.
set -eu
cd "$(dirname "$0")/../src"

allowed() {
    case $1 in
        base) echo "base" ;;
        net) echo "base" ;;
        ttrpc) echo "base" ;;
        oci) echo "base" ;;
        cni) echo "base" ;;
        image) echo "base" ;;
        fs) echo "base" ;;
        config) echo "base" ;;
        virtio) echo "base fs" ;;
        vmm) echo "base ttrpc virtio fs" ;;
        agentclient) echo "base ttrpc" ;;
        sandbox) echo "base net ttrpc oci image vmm agentclient config" ;;
        shim) echo "base ttrpc oci agentclient config sandbox" ;;
        cli) echo "base ttrpc oci cni image config sandbox vmm" ;;
        runtime) echo "base ttrpc oci config cli" ;;
        agent) echo "base ttrpc" ;;
        *) return 1 ;;
    esac
}

bad=0
for dir in */; do
    dir=${dir%/}
    may=$(allowed "$dir") || { echo "src/$dir: no layer is given in tools/check-includes.sh"; bad=1; continue; }
    out=$(grep -rnoE '#include "[a-z_]+/' --include='*.[ch]' "$dir" | sed 's/#include "//; s,/$,,' |
        while IFS=: read -r file line target; do
            case " $dir $may " in
                *" $target "*) ;;
                *) [ -d "$target" ] && echo "src/$file:$line: $dir may not include $target" ;;
            esac
        done) || true
    [ -z "$out" ] || { echo "$out"; bad=1; }
done
[ "$bad" = 0 ] && echo "includes: every arrow points down"
exit "$bad"
