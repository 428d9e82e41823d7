"""A registry for the node of a cluster: what pull and push need of the OCI distribution specification, and no more.

    registry.py HOST:PORT FOLDER

FOLDER/blobs/HEX             contents by their sha256
FOLDER/names/REPOSITORY/TAG  digest and media type of a manifest; by digest, too

Repositories below private/ ask for the user `bed` with the password `bed`. For trust among the processes of one machine:
nothing is deleted, and what is pushed is limited by the disk only.
"""
import base64
import hashlib
import http.server
import json
import pathlib
import re
import secrets
import shutil
import sys

PASSWORD = "Basic " + base64.b64encode(b"bed:bed").decode()
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
REPOSITORY = r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
PIECE = 1 << 20


class Store:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        for name in ["blobs", "names", "uploads"]:
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def blob(self, digest):
        found = DIGEST.fullmatch(digest)
        return self.folder / "blobs" / found[1] if found else self.folder / "blobs/none"

    def put(self, data):
        """Its digest."""
        name = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / name).write_bytes(data)
        return f"sha256:{name}"

    def name(self, repository, tag, digest, media_type):
        """Names a manifest that was put; its digest is a name of it, too."""
        folder = self.folder / "names" / repository
        folder.mkdir(parents=True, exist_ok=True)
        for name in {tag, digest}:
            new = folder / f".{secrets.token_hex(8)}"
            new.write_text(json.dumps([digest, media_type]))
            new.rename(folder / name)

    def find(self, repository, tag):
        """(digest, media type), or None."""
        file = self.folder / "names" / repository / tag
        return json.loads(file.read_text()) if file.is_file() else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.route("GET")

    do_HEAD = do_GET

    def do_POST(self):
        self.route("POST")

    def do_PATCH(self):
        self.route("PATCH")

    def do_PUT(self):
        self.route("PUT")

    def route(self, verb):
        path, _, query = self.path.partition("?")
        known = self.headers.get("Authorization") == PASSWORD
        if path.rstrip("/") == "/v2":
            # Here clients ask whether there are passwords at all.
            return self.answer(200, b"{}") if known else self.challenge()
        for pattern, call in self.ROUTES.get(verb, []):
            if found := re.fullmatch(f"/v2/(?P<repository>{REPOSITORY}){pattern}", path):
                if found["repository"].startswith("private/") and not known:
                    return self.challenge()
                return call(self, query=query, **found.groupdict())
        self.refuse(404, "UNSUPPORTED")

    def manifest(self, repository, tag, query):
        found = self.server.store.find(repository, tag)
        if not found:
            return self.refuse(404, "MANIFEST_UNKNOWN")
        digest, media_type = found
        self.file(self.server.store.blob(digest), digest, media_type)

    def blob(self, repository, digest, query):
        file = self.server.store.blob(digest)
        if not file.is_file():
            return self.refuse(404, "BLOB_UNKNOWN")
        self.file(file, digest, "application/octet-stream")

    def tags(self, repository, query):
        folder = self.server.store.folder / "names" / repository
        found = sorted(file.name for file in folder.glob("[!.]*") if file.is_file() and ":" not in file.name)
        self.answer(200, json.dumps({"name": repository, "tags": found}).encode())

    def begin(self, repository, query):
        key = secrets.token_hex(16)
        (self.server.store.folder / "uploads" / key).touch()
        self.answer(202, Location=f"/v2/{repository}/blobs/uploads/{key}")

    def go_on(self, repository, key, query):
        """Appends; with a digest it is the end."""
        upload = self.server.store.folder / "uploads" / key
        if not upload.is_file():
            return self.refuse(404, "BLOB_UPLOAD_UNKNOWN")
        with upload.open("ab") as out:
            self.receive(out.write)
        if self.command == "PATCH":
            place = f"/v2/{repository}/blobs/uploads/{key}"
            return self.answer(202, Location=place, Range=f"0-{max(0, upload.stat().st_size - 1)}")
        digest = query.partition("digest=")[2].partition("&")[0].replace("%3A", ":")
        with upload.open("rb") as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            upload.unlink()
            return self.refuse(400, "DIGEST_INVALID")
        upload.rename(self.server.store.blob(digest))
        self.answer(201, Location=f"/v2/{repository}/blobs/{digest}")

    def put_manifest(self, repository, tag, query):
        data = bytearray()
        self.receive(data.extend)
        digest = self.server.store.put(bytes(data))
        if tag != digest and DIGEST.fullmatch(tag):
            return self.refuse(400, "DIGEST_INVALID")
        self.server.store.name(repository, tag, digest, self.headers["Content-Type"])
        self.answer(201, Location=f"/v2/{repository}/manifests/{digest}", **{"Docker-Content-Digest": digest})

    ROUTES = {
        "GET": [
            (r"/manifests/(?P<tag>[\w.:-]+)", manifest),
            (r"/blobs/(?P<digest>sha256:\w+)", blob),
            (r"/tags/list", tags),
        ],
        "POST": [(r"/blobs/uploads/?", begin)],
        "PATCH": [(r"/blobs/uploads/(?P<key>\w+)", go_on)],
        "PUT": [(r"/blobs/uploads/(?P<key>\w+)", go_on), (r"/manifests/(?P<tag>[\w.:-]+)", put_manifest)],
    }

    def receive(self, write):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                write(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left and (piece := self.rfile.read(min(left, PIECE))):
            write(piece)
            left -= len(piece)

    def file(self, file, digest, media_type):
        size = file.stat().st_size
        begin, end = 0, size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            begin = int(wanted[1])
            end = min(size, int(wanted[2]) + 1) if wanted[2] else size
            if begin >= size:
                return self.refuse(416, "SIZE_INVALID")
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        for name, value in [("Content-Length", end - begin), ("Content-Type", media_type), ("Docker-Content-Digest", digest), ("Accept-Ranges", "bytes")]:
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        with file.open("rb") as data:
            data.seek(begin)
            if end == size:
                shutil.copyfileobj(data, self.wfile, PIECE)
            else:
                self.wfile.write(data.read(end - begin))

    def challenge(self):
        self.refuse(401, "UNAUTHORIZED", **{"WWW-Authenticate": 'Basic realm="bed"'})

    def refuse(self, status, code, **headers):
        # What was sent along is not read, so that nothing can follow it.
        self.close_connection = True
        body = json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}).encode()
        self.answer(status, body, Connection="close", **headers)

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, store):
        super().__init__(address, Handler)
        self.store = store


if __name__ == "__main__":
    host, port = sys.argv[1].split(":")
    Server((host, int(port)), Store(sys.argv[2])).serve_forever()
