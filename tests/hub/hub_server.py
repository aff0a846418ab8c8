"""A Hub on the loopback interface: the HTTP endpoints that `huggingface_hub` uses for models, with real behaviour.

Repositories, branches, commits, large files by LFS (the fallback of xet), pull requests and downloads with revisions
are kept in memory. Faults can be planted: a status code, or a connection that is cut.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "loopback" * 5
LFS_SUFFIXES = (".safetensors", ".png", ".bin")


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def tree(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path` matches `pattern`."""

    pattern: str
    what: int | str  # a status code, or "cut"
    times: int = 1_000


class Hub:
    """The state behind the server."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.endpoint = ""
        self.lock = threading.Lock()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo].tree(revision)
        assert found is not None, f"{repo} has no revision {revision}"
        return found[1]

    def fault_for(self, request: str) -> int | str | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.what
        return None

    def commit(self, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> str:
        files = dict(repo.tree(branch)[1] if repo.tree(branch) else repo.tree("main")[1] if repo.tree("main") else {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = hashlib.sha1(repr((len(repo.commits), branch, sorted(files))).encode()).hexdigest()
        repo.commits[sha] = files
        repo.branches[branch] = sha
        return sha


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.reply(status, {"error": message}, headers)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        fault = self.hub.fault_for(f"{self.command} {path}")
        if fault == "cut":
            self.rfile.read(min(1024, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        body = self.body()
        if fault is not None:
            self.error(int(fault), f"planted {fault}")
            return
        if self.command not in ("GET", "HEAD") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            if not path.startswith("/lfs/"):
                self.error(401, "Invalid username or password.")
                return
        routes = [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate),
            ("GET", r"/api/whoami-v2", lambda: self.reply(200, {"name": "org", "type": "user", "orgs": []})),
            ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>.+)", self.preupload),
            ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>.+)", self.commit),
            ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>.+)", self.branch),
            ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)/?", self.tree),
            ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<rev>.+)", self.info),
            ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", self.info),
            ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/lfs/(?P<oid>\w+)", self.put),
            ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<name>.+)", self.resolve),
        ]
        self.content, self.query = body, query
        for methods, pattern, action in routes:
            found = re.fullmatch(pattern, path)
            if found and re.fullmatch(methods, self.command):
                groups = found.groupdict()
                if "repo" in groups and groups["repo"] not in self.hub.repos:
                    self.error(404, "Repository not found", "RepoNotFound")
                else:
                    with self.hub.lock:
                        action(**groups)  # type: ignore[operator]
                return
        self.error(404, f"this Hub has no {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self) -> None:
        wanted = json.loads(self.content)
        name = f"{wanted.get('organization') or 'org'}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repos:
            self.reply(409, {"error": "You already created this model repo", "url": url})
            return
        repo = self.hub.repos[name] = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.hub.commit(repo, "main", [{"key": "file", "value": {"path": ".gitattributes", "content": ""}}])
        self.reply(200, {"url": url, "name": name})

    def validate(self) -> None:
        content = json.loads(self.content)["content"]
        header = re.match(r"---\n(.*?)\n?---\n", content, re.DOTALL)
        license_name = yaml.safe_load(header[1] if header else "{}").get("license", "mit")
        wrong = license_name not in ("mit", "apache-2.0", "other")
        errors = [{"message": '"license" must be one of [apache-2.0, mit, other]'}] if wrong else []
        self.reply(400 if wrong else 200, {"errors": errors, "warnings": []})

    def preupload(self, repo: str, rev: str) -> None:
        tree = self.hub.repos[repo].tree(rev)
        present = tree[1] if tree else {}
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_lfs(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": git_oid(present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(self.content)["files"]
        ]
        self.reply(200, {"files": files})

    def batch(self, repo: str) -> None:
        objects = []
        for item in json.loads(self.content)["objects"]:
            actions = {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}
            objects.append(dict(item) if item["oid"] in self.hub.blobs else {**item, "actions": actions})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            self.error(400, "the content does not have this hash")
            return
        self.hub.blobs[oid] = self.content
        self.reply(200)

    def commit(self, repo: str, rev: str) -> None:
        lines = [json.loads(line) for line in self.content.splitlines()]
        target = self.hub.repos[repo]
        missing = [line for line in lines if line["key"] == "lfsFile" and line["value"]["oid"] not in self.hub.blobs]
        if missing:
            self.error(400, f"{missing[0]['value']['path']} was not uploaded")
            return
        pull_request = "create_pr" in self.query
        branch = f"refs/pr/{sum(name.startswith('refs/pr/') for name in target.branches) + 1}" if pull_request else rev
        sha = self.hub.commit(target, branch, lines)
        url = f"{self.hub.endpoint}/{repo}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        self.reply(200, {**answer, "pullRequestUrl": f"{url}/discussions/1"} if pull_request else answer)

    def branch(self, repo: str, rev: str) -> None:
        branches = self.hub.repos[repo].branches
        if rev in branches:
            self.error(409, f"Reference {rev} exists already")
            return
        branches[rev] = branches["main"]
        self.reply(200)

    def info(self, repo: str, rev: str = "main") -> None:
        found = self.hub.repos[repo].tree(rev)
        if found is None:
            self.error(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in sorted(found[1])]
        private = self.hub.repos[repo].private
        self.reply(
            200, {"id": repo, "modelId": repo, "sha": found[0], "private": private, "tags": [], "siblings": siblings}
        )

    def tree(self, repo: str, rev: str) -> None:
        found = self.hub.repos[repo].tree(rev)
        if found is None:
            self.error(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            return
        entries = []
        for name, content in sorted(found[1].items()):
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            if is_lfs(name):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.reply(200, entries)

    def resolve(self, repo: str, rev: str, name: str) -> None:
        found = self.hub.repos[repo].tree(rev)
        if found is None:
            self.error(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            return
        sha, files = found
        if name not in files:
            self.reply(404, {}, {"X-Repo-Commit": sha, "X-Error-Code": "EntryNotFound"})
            return
        content = files[name]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_oid(content)}"', "Accept-Ranges": "bytes"}
        if is_lfs(name):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start and int(start[1]):
            self.reply(206, content[int(start[1]) :], headers)
        else:
            self.reply(200, content, headers)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that answers on a free port of 127.0.0.1 for as long as the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
