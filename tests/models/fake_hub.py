"""A local server that plays the Hugging Face hub: downloads, repositories, commits, LFS."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "someone/gated"
TOKEN = "hf_right"
READ_ONLY = "hf_reads"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that dafast's calls use; a folder holds the repositories.

    The main branch of owner/name is the folder of this name, branch b is ``owner/name@b``. The
    number of commits is in a file ``.commits``, which makes the commit's id.
    """

    folder: Path
    requests: list[str]
    headers_seen: list[str]
    lfs = False
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.resolve(body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) > 4 and parts[4] == "tree":
            self.requests.append(f"{self.command} {self.path}")
            return self.tree("/".join(parts[2:4]), parts[5])
        if parts[:2] == ["api", "models"] and "revision" in parts[4:]:  # older clients ask
            return self.answer(200, {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": []})
        return self.resolve(body=True)

    def resolve(self, body: bool) -> None:
        parts = self.path.strip("/").split("/")
        self.requests.append(f"{self.command} {self.path}")
        self.headers_seen.append(self.headers.get("Authorization", ""))
        if len(parts) < 5 or parts[2] != "resolve":
            return self.refuse(404, "RepoNotFound", body)
        repository, file = "/".join(parts[:2]), "/".join(parts[4:])
        if repository == GATED and not self.token_is(TOKEN):
            return self.refuse(403, "GatedRepo", body)
        if not (self.folder / repository).is_dir():
            return self.refuse(404, "RepoNotFound", body)
        place = self.place(repository, parts[3])
        if place is None:
            return self.refuse(404, "RevisionNotFound", body)
        commit = self.commit_of(place)
        path = place / file
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", body, commit)
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def place(self, repository: str, revision: str) -> Path | None:
        """The folder of a revision; None if there is none."""
        main = self.folder / repository
        if revision in ("main", self.commit_of(main)):
            return main
        branch = self.folder / f"{repository}@{revision}"
        return branch if branch.is_dir() else None

    def commit_of(self, place: Path) -> str:
        counter = place / ".commits"
        return hashlib.sha1(counter.read_bytes()).hexdigest() if counter.is_file() else COMMIT

    def token_is(self, *tokens: str) -> bool:
        return self.headers.get("Authorization", "") in [f"Bearer {token}" for token in tokens]

    def refuse(self, status: int, code: str, body: bool, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    # ------------------------------------------------------------------------------- uploads

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if url.path == "/api/validate-yaml":
            text = json.loads(content)["content"]
            front = text.split("---\n")[1] if text.startswith("---\n") else "{}"
            ok = isinstance(yaml.safe_load(front), dict)
            errors = [] if ok else [{"message": "no mapping"}]
            return self.answer(200 if ok else 400, {"errors": errors, "warnings": []})
        if not self.token_is(TOKEN, READ_ONLY):
            return self.answer(401, {"error": "Invalid username or password."})
        if self.token_is(READ_ONLY):
            return self.answer(403, {"error": "You need a token with the right to write."})
        if url.path == "/api/repos/create":
            return self.create(json.loads(content))
        if url.path.endswith("/info/lfs/objects/batch"):
            return self.lfs_batch(json.loads(content))
        if url.path.endswith("/verify"):
            return self.answer(200, {})
        repository, action = "/".join(parts[2:4]), parts[4]
        if action == "branch":
            return self.branch(repository, parts[5])
        if action == "preupload":
            mode = "lfs" if self.lfs else "regular"
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": mode if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(content)["files"]
            ]
            return self.answer(200, {"files": modes})
        assert action == "commit", self.path
        lines = [json.loads(line) for line in content.splitlines()]
        return self.commit(repository, parts[5], lines, "create_pr" in parse_qs(url.query))

    def create(self, wish: dict) -> None:
        name = f"{wish.get('organization') or 'me'}/{wish['name']}"
        place = self.folder / name
        there = place.is_dir()
        place.mkdir(parents=True, exist_ok=True)
        if not there:
            private = wish.get("private") or wish.get("visibility") == "private"
            (place / ".gitattributes").write_text("private" if private else "")
        self.answer(409 if there else 200, {"url": f"{self.endpoint()}/{name}", "error": "exists"})

    def branch(self, repository: str, name: str) -> None:
        place = self.folder / f"{repository}@{name}"
        there = place.is_dir()
        place.mkdir(exist_ok=True)
        self.answer(409 if there else 200, {"error": "exists"})

    def tree(self, repository: str, revision: str) -> None:
        place = self.place(repository, revision)
        assert place is not None
        files = [p for p in place.iterdir() if p.is_file() and p.name != ".commits"]
        entries = [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
            for p in files
        ]
        self.answer(200, entries)

    def commit(self, repository: str, revision: str, lines: list[dict], pull: bool) -> None:
        place = self.place(repository, "refs-pr-1" if pull else revision)
        if pull:
            place = self.folder / f"{repository}@refs-pr-1"
            place.mkdir()
        assert place is not None
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (place / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (place / value["path"]).write_bytes((self.folder / value["oid"]).read_bytes())
            elif line["key"] == "deletedFile":
                (place / value["path"]).unlink()
        counter = place / ".commits"
        counter.write_text((counter.read_text() if counter.exists() else place.name) + "+")
        answer = {
            "success": True,
            "commitOid": self.commit_of(place),
            "commitUrl": f"{self.endpoint()}/{repository}/commit/{self.commit_of(place)}",
        }
        if pull:
            answer["pullRequestUrl"] = f"{self.endpoint()}/{repository}/discussions/1"
        self.answer(200, answer)

    def lfs_batch(self, wish: dict) -> None:
        objects = []
        for each in wish["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint()}/lfs/{each['oid']}"},
                "verify": {"href": f"{self.endpoint()}/lfs/{each['oid']}/verify"},
            }
            objects.append({"oid": each["oid"], "size": each["size"], "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        (self.folder / oid).write_bytes(content)
        self.answer(200, {})

    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, status: int, data: object) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path, lfs: bool = False) -> Iterator[ThreadingHTTPServer]:
    """The running hub; `server.RequestHandlerClass.requests` has what it was asked for."""
    state = {"folder": folder, "requests": [], "headers_seen": [], "lfs": lfs}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), state))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def url(server: ThreadingHTTPServer) -> str:
    """The address of a running hub."""
    return f"http://127.0.0.1:{server.server_address[1]}"
