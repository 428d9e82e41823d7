#!/usr/bin/env python3
"""Measures what many containers of images that share layers cost a node, side by side: containerd on larder's snapshots,
and containerd on its own overlayfs ones.

    pods.py --larder target/release/larder --bin BED/bin --images BED/images [--pods 100] [--rebuilt] [-o json]

Ten images: all stand on one base, three have a layer of Python packages on it, three more another one, and each has a layer
of its own. With --rebuilt, every second image stands on layers with the same contents and other times, as after a rebuild.
The sides come one after the other, each with an empty page cache. Pods start one by one; each reads all of its files and
then sleeps. LARDER_BENCH_DIR is where the stores are. Needs root, docker-registry, skopeo, and a static busybox.
"""
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from sides import FILES, Node, Registry, arguments, disk, drop_caches, layout, versions

IMAGES = 10
# What the layers of the reference image are.
BASE, SCIENCE, WEB = 0, 1, 2
READ = f"echo up; {FILES} | xargs -0 cat >/dev/null; echo done; sleep 2147483647"


def app(number):
    """A layer of an image's own: 200 files of 10 KB."""
    layer = layout.Layer()
    for n in range(200):
        lines = (hashlib.sha256(f"{number}.{n}.{line}".encode()).hexdigest() for line in range(150))
        layer.file(f"srv/app/module_{n}.py", "\n".join(lines).encode(), 0o644)
    return layer.bytes()


def document(source):
    """The manifest and the config of a layout with one image."""
    read = lambda digest: json.loads((source / "blobs/sha256" / digest.split(":")[1]).read_text())
    manifest = read(json.loads((source / "index.json").read_text())["manifests"][0]["digest"])
    return manifest, read(manifest["config"]["digest"])


def derive(target, source, layers, number):
    """A layout of some layers of another, with one more on top."""
    manifest, config = document(source)
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"{layout.KIND}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    top = put(app(number), "layer.v1.tar")
    kept = [manifest["layers"][at] for at in layers]
    for layer in kept:
        os.link(source / "blobs/sha256" / layer["digest"].split(":")[1], blobs / layer["digest"].split(":")[1])
    config["rootfs"]["diff_ids"] = [config["rootfs"]["diff_ids"][at] for at in layers] + [top["digest"]]
    config["history"] = [{"created_by": "bench"} for _ in [*kept, top]]
    manifest["layers"] = [*kept, top]
    manifest["config"] = put(json.dumps(config).encode(), "config.v1+json")
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def memory():
    """Bytes of the machine's memory, by use."""
    lines = (line.split() for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) > 2}


def group_memory(node):
    """Bytes that are counted for the node's pods, page cache included."""
    for group in node.groups():
        for name in ["memory.usage_in_bytes", "memory.current"]:
            if (group / name).exists():
                return int((group / name).read_text())
    return 0


def run(node, names, pods):
    begin = time.monotonic()
    node.pull(node.pause, *names)
    seen = {"pull_s": time.monotonic() - begin, "disk": disk(node.store())}
    node.remove(node.start(node.pause, "echo up")["Pod"])
    drop_caches()
    before, mounts = memory(), len(pathlib.Path("/proc/self/mountinfo").read_text().splitlines())
    starts = []
    for number in range(pods):
        starts.append(node.start(names[number % len(names)], READ, "done"))
        print(f"{node.name}: pod {number + 1}: {starts[-1]['First']:.3f} s, read in {starts[-1]['Last'] - starts[-1]['First']:.2f} s", file=sys.stderr)
    after = memory()
    used = lambda *keys: sum(after[key] - before[key] for key in keys)
    first, rest = starts[: len(names)], starts[len(names) :]
    seen |= {
        "cache": used("Cached", "Buffers"),
        "slab": used("Slab"),
        "available": before["MemAvailable"] - after["MemAvailable"],
        "free": before["MemFree"] - after["MemFree"],
        "group": group_memory(node),
        "mounts": len(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()) - mounts,
        "servers": {pathlib.Path(server.process.args[0]).name: server.status("VmRSS") for server in node.servers},
        "first_start": statistics.median(start["First"] for start in first),
        "first_read": sum(start["Last"] - start["First"] for start in first),
        "later_start": statistics.median(start["First"] for start in rest) if rest else 0,
        "later_read": statistics.median(start["Last"] - start["First"] for start in rest) if rest else 0,
    }
    return seen


def main():
    args = arguments(__doc__)
    args.add_argument("--pods", type=int, default=100)
    args.add_argument("--rebuilt", action="store_true")
    args = args.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="larder-bench-", dir=os.environ.get("LARDER_BENCH_DIR", "/var/tmp")))
    results = {}
    registry = Registry(work)
    try:
        # Hard links to the layers need the same file system.
        for name in ["py", "py-again"]:
            shutil.copytree(args.images / name, work / name)
        names = []
        for number in range(IMAGES):
            source = "py-again" if args.rebuilt and number % 2 else "py"
            layers = [BASE] + ([] if number < 4 else [WEB] if number < 7 else [SCIENCE])
            derive(work / f"image-{number}", work / source, layers, number)
            registry.push(work / f"image-{number}", f"image-{number}:1")
            names.append(registry.name(f"image-{number}:1"))
        pause = registry.push_pause(work)
        for kind in ["containerd", "larder"]:
            node = Node(kind, work, args.bin, pause, args.larder.resolve() if kind == "larder" else None)
            try:
                results[kind] = run(node, names, args.pods)
            finally:
                node.end()
    finally:
        registry.server.stop()
        shutil.rmtree(work, ignore_errors=True)

    seen = versions(args.larder, args.bin)
    if args.output == "json":
        print(json.dumps({"versions": seen, "pods": args.pods, "rebuilt": args.rebuilt, "results": results}, indent=1))
        return
    about = "every second one on rebuilt layers" if args.rebuilt else "sharing layers"
    print(f"\n{seen['larder']}, containerd {seen['containerd']}, runc {seen['runc']}, Linux {seen['kernel']}, {os.cpu_count()} cpus; {args.pods} pods of {IMAGES} images {about}")
    left, right = results["larder"], results["containerd"]
    print(f"{'':<52} {'larder':>10} {'containerd':>11}")
    megabytes = lambda key, text: print(f"{text:<52} {left[key] / 1e6:>7.0f} MB {right[key] / 1e6:>8.0f} MB")
    millis = lambda key, text: print(f"{text:<52} {left[key] * 1e3:>7.0f} ms {right[key] * 1e3:>8.0f} ms")
    print(f"{'pull of all images':<52} {left['pull_s']:>8.1f} s {right['pull_s']:>9.1f} s")
    megabytes("disk", "disk of the images")
    megabytes("cache", "page cache (Cached and Buffers)")
    megabytes("slab", "kernel objects (Slab)")
    megabytes("free", "memory in all, less of MemFree")
    megabytes("available", "memory that is not to be had any more (MemAvailable)")
    megabytes("group", "of all that counted for the pods' control group")
    print(f"{'mounts':<52} {left['mounts']:>10} {right['mounts']:>11}")
    millis("first_start", "first pod of an image: request to first output")
    millis("first_read", "first pods of all images: read of all files, sum")
    millis("later_start", "every other pod: request to first output")
    millis("later_read", "every other pod: read of all files")
    for kind, found in results.items():
        for name, size in found["servers"].items():
            print(f"{name + ' of ' + kind + ', resident':<52} {size / 1e6:>7.0f} MB")


main()
