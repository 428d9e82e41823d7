#!/usr/bin/env python3
"""Measures pulls side by side: larder and containerd at its defaults, same machine, same run, same registry.

    pull.py --larder target/release/larder --bin BED/bin --images BED/images [--rounds 5] [-o json]

Both sides are driven by an unmodified crictl over their own socket. Each round uses fresh, empty stores; the
registry's files are warm. The sides take turns, so that a drift of the machine's speed hits both. Reported are
medians, and the ratio of each round's pair. LARDER_BENCH_DIR is where the stores are. Needs root (overlayfs), docker-registry, skopeo.
"""
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from sides import Registry, Server, arguments, crictl, disk, free_port, wait_for


class Containerd:
    name = "containerd"

    def __init__(self, bin, root):
        self.root, self.bin = root, bin
        self.socket = root / "c.sock"
        config = root / "config.toml"
        config.write_text(
            f'version = 3\nroot = "{root}/root"\nstate = "{root}/state"\n[grpc]\naddress = "{self.socket}"\n'
            f'[plugins."io.containerd.nri.v1.nri"]\ndisable = true\n'
            f'[plugins."io.containerd.cri.v1.runtime"]\nrestrict_oom_score_adj = true\n[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dirs = ["{root}"]\nconf_dir = "{root}"\n'
        )
        self.server = Server([str(bin / "containerd"), "-c", str(config)], root / "log")

    def store(self):
        return self.root / "root"


class Larder:
    name = "larder"

    def __init__(self, binary, bin, root):
        self.root, self.bin = root, bin
        self.socket = root / "l.sock"
        self.server = Server([str(binary), "agent", "--root", str(root / "root"), "--socket", str(self.socket), "--http", f"127.0.0.1:{free_port()}"], root / "log")

    def store(self):
        return self.root / "root"


def timed(side, *argv):
    cpu, begin = side.server.cpu(), time.monotonic()
    done = crictl(side, *argv, check=False)
    took = time.monotonic() - begin
    if done.returncode:
        raise SystemExit(f"{side.name}: crictl {' '.join(argv)}: {done.stderr}\n{(side.root / 'log').read_text()[-3000:]}")
    return took, side.server.cpu() - cpu


def one(side, registry, image):
    """Cold pull of one image into an empty store; for larder, what follows from it too."""
    wait_for(lambda: crictl(side, "imagefsinfo", check=False).returncode == 0, side.name)
    ref = registry.name(image)
    result = {}
    result["pull_s"], result["cpu_s"] = timed(side, "pull", ref)
    begin = time.monotonic()
    os.sync()
    result["sync_s"] = time.monotonic() - begin
    result["peak_rss"] = side.server.status("VmHWM")
    result["disk"] = disk(side.store())
    result["repull_s"], _ = timed(side, "pull", ref)
    if isinstance(side, Larder) and image == "py:1":
        result["again_s"], _ = timed(side, "pull", f"127.0.0.1:{registry.port}/py-again:1")
        result["again_added"] = disk(side.store()) - result["disk"]
        timed(side, "rmi", f"127.0.0.1:{registry.port}/py-again:1")
    copy = side.root / "copy"
    if isinstance(side, Larder):
        # What the file system takes by itself to let go of as many bytes in files of the same sizes.
        shutil.copytree(side.store() / "packs", copy)
        os.sync()
    result["remove_s"], _ = timed(side, "rmi", ref)
    if copy.exists():
        begin = time.monotonic()
        for path in copy.iterdir():
            path.unlink()
        result["unlink_s"] = time.monotonic() - begin
    result["disk_after_remove"] = disk(side.store())
    return result


def main():
    args = arguments(__doc__)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--only", choices=["larder", "containerd"])
    args.add_argument("--image", action="append", help="py:1 (gzip) and py-zst:1 by default")
    args = args.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="larder-bench-", dir=os.environ.get("LARDER_BENCH_DIR", "/var/tmp")))
    images = args.image or ["py:1", "py-zst:1"]
    results = {image: {"larder": [], "containerd": []} for image in images}
    registry = Registry(work)
    try:
        for image in {*images, "py-again:1"}:
            registry.push(args.images / image.split(":")[0], image)
        layers = {}
        for image in images:
            layout = args.images / image.split(":")[0]
            manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"].split(":")[1]
            document = json.loads((layout / "blobs/sha256" / manifest).read_text())
            layers[image] = sum(layer["size"] for layer in document["layers"])
        for round in range(args.rounds):
            for image in images:
                sides = [kind for kind in ("containerd", "larder") if args.only in (None, kind)]
                for kind in sides if round % 2 == 0 else reversed(sides):
                    root = work / f"{kind}-{round}-{image.split(':')[0]}"
                    root.mkdir()
                    side = Larder(args.larder.resolve(), args.bin, root) if kind == "larder" else Containerd(args.bin, root)
                    try:
                        results[image][kind].append(one(side, registry, image))
                    finally:
                        side.server.stop()
                    print(f"round {round + 1} {image} {kind}: {results[image][kind][-1]['pull_s']:.2f} s", file=sys.stderr)
    finally:
        registry.server.stop()
        subprocess.run(["sh", "-c", f"grep ' {work}/' /proc/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount"], check=False)
        shutil.rmtree(work, ignore_errors=True)

    versions = {
        "larder": subprocess.run([str(args.larder), "--version"], capture_output=True, text=True).stdout.strip(),
        "containerd": subprocess.run([str(args.bin / "containerd"), "--version"], capture_output=True, text=True).stdout.split()[2:3],
    }
    if args.output == "json":
        print(json.dumps({"versions": versions, "compressed": layers, "results": results}, indent=1))
        return
    uncompressed = int((args.images / "tar-bytes").read_text()) if (args.images / "tar-bytes").exists() else 0
    print(f"\n{versions['larder']} and containerd {' '.join(versions['containerd'])}, {os.cpu_count()} cpus, medians of {args.rounds} rounds")
    print(f"{'image':<10} {'side':<11} {'pull':>8} {'+sync':>7} {'cpu':>7} {'peak rss':>9} {'disk':>9} {'of tar':>7} {'re-pull':>8} {'remove':>8}")
    for image, sides in results.items():
        for kind, rounds in sides.items():
            if not rounds:
                continue
            mid = lambda key: statistics.median(r[key] for r in rounds)
            share = f"{mid('disk') / uncompressed:.3f}" if uncompressed else "-"
            print(
                f"{image:<10} {kind:<11} {mid('pull_s'):>6.2f} s {mid('sync_s'):>5.2f} s {mid('cpu_s'):>5.1f} s {mid('peak_rss') / 2**20:>6.0f} MB"
                f" {mid('disk') / 1e6:>6.0f} MB {share:>7} {mid('repull_s') * 1e3:>5.0f} ms {mid('remove_s') * 1e3:>5.0f} ms"
            )
        if sides["larder"] and sides["containerd"]:
            ratios = [c["pull_s"] / l["pull_s"] for c, l in zip(sides["containerd"], sides["larder"])]
            print(f"{image:<10} containerd / larder, pair by pair: {min(ratios):.2f} .. {statistics.median(ratios):.2f} .. {max(ratios):.2f}")
        if sides["larder"]:
            unlink = statistics.median(r["unlink_s"] for r in sides["larder"])
            print(f"{image:<10} plain unlink of files of the same sizes: {unlink * 1e3:.0f} ms (a file system mounted with discard waits for its disk)")
        if sides["larder"] and "again_added" in sides["larder"][0]:
            added = statistics.median(r["again_added"] for r in sides["larder"])
            share = f" = {100 * added / uncompressed:.2f}% of its size" if uncompressed else ""
            print(f"{image:<10} rebuilt with identical contents: {statistics.median(r['again_s'] for r in sides['larder']):.2f} s, adds {added / 1e6:.1f} MB{share}")


main()
