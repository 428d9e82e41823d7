#!/usr/bin/env bash
# A Kubernetes cluster for tests and for people; cluster.py tells how. Builds what is missing first.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command -v python3 >/dev/null || { echo "bed: python3 is not installed" >&2; exit 3; }
exec python3 "$here/cluster.py" "$@"
