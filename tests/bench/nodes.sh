#!/usr/bin/env bash
# make bench-start, make bench-pods: builds what is compared (once, into a cache folder), then prints the table of the
# script that is named first. LARDER is a release binary to take instead of building one.
set -euo pipefail
cd "$(dirname "$0")/../.."
bed=${LARDER_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/larder-bed}
what=$1
shift
[ "$(id -u)" = 0 ] || { echo "bench: needs root: containers are started" >&2; exit 1; }
for program in docker-registry skopeo debootstrap zstd busybox:busybox-static; do
    command -v "${program%%:*}" >/dev/null || apt-get install -y -qq "${program#*:}" >/dev/null
done
if [ -z "${LARDER:-}" ]; then
    cargo build --release --locked
    LARDER=${CARGO_TARGET_DIR:-target}/release/larder
fi
tests/bed/tools.sh containerd containerd-shim-runc-v2 runc crictl criclient >/dev/null
tests/bed/images.py "$bed/images"
exec "tests/bench/$what.py" --larder "$LARDER" --bin "$bed/bin" --images "$bed/images" "$@"
