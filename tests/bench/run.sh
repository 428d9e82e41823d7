#!/usr/bin/env bash
# make bench: builds what is compared (once, into a cache folder), then prints the table.
set -euo pipefail
cd "$(dirname "$0")/../.."
bed=${LARDER_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/larder-bed}
[ "$(id -u)" = 0 ] || { echo "bench: needs root: containerd mounts overlayfs" >&2; exit 1; }
for program in docker-registry skopeo debootstrap zstd; do
    command -v "$program" >/dev/null || apt-get install -y -qq docker-registry skopeo debootstrap zstd >/dev/null
done
cargo build --release --locked
tests/bed/tools.sh containerd crictl >/dev/null
tests/bed/images.py "$bed/images"
exec tests/bench/pull.py --larder "${CARGO_TARGET_DIR:-target}/release/larder" --bin "$bed/bin" --images "$bed/images" "$@"
