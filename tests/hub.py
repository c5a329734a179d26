"""A loopback Hub: folders served as repositories, close enough to the real one for the unchanged huggingface_hub client.

Commits, branches and tags; large files behind a redirect, as on the real Hub; gated and unknown repositories. The client
reads its endpoint and its offline mode when it is imported, so whoever talks to this server is a child process.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

Kind = Literal["models", "datasets"]

TOKEN = "hf_token-of-a-member"
_LARGE = (".safetensors", ".bin", ".parquet", ".arrow")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LEGACY = re.compile(
    r"(/api/models/|/api/datasets/|/datasets/|/)([^/]+)((?:/(?:revision|tree|paths-info|resolve)/.*)?)"
)
_BLOB = re.compile(r"/blobs/([0-9a-f]{64})")


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by path, by commit hash."""
    refs: dict[str, str] = field(default_factory=dict)
    """Commit hashes by branch or tag."""
    gated: bool = False

    def commit(self, folder: Path, *refs: str) -> str:
        """Everything below the folder as a new commit, which the refs (`main` if none) then mean; returns its hash."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        content = [[path, hashlib.sha1(data).hexdigest()] for path, data in files.items()]
        sha = hashlib.sha1(json.dumps([len(self.commits), content]).encode()).hexdigest()
        self.commits[sha] = files
        self.refs |= dict.fromkeys(refs or ("main",), sha)
        return sha

    def sha(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    endpoint: str
    repositories: dict[tuple[Kind, str], Repository] = field(default_factory=dict)
    legacy_names: dict[str, str] = field(default_factory=dict)
    """Full names of repositories by their old ones without an organisation."""
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of each request so far, without the query."""

    def repository(self, name: str, kind: Kind = "models") -> Repository:
        """The one of that name; a new, empty one if there is none."""
        return self.repositories.setdefault((kind, name), Repository())

    @property
    def downloads(self) -> list[str]:
        return [request for request in self.requests if re.match(r"GET (/blobs/|.*/resolve/)", request)]

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """For a child process that takes this for the Hub and has its caches below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        caches = {"HF_HOME": str(home / "huggingface"), "XDG_CACHE_HOME": str(home / "cache")}
        ours = {"PYTHONPATH": str(Path(__file__).parents[1]), "NO_PROXY": "127.0.0.1,localhost"}
        return kept | ours | {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"} | caches | variables

    def run(self, code: str, home: Path, **variables: str) -> Any:
        """What the code's last `print` writes as JSON; AssertionError with its stderr if it fails."""
        return result(self.start(code, home, **variables))

    def start(self, code: str, home: Path, **variables: str) -> "subprocess.Popen[str]":
        environment = self.environment(home, **variables)
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> Any:
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves until it is left."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(endpoint=f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} | headers


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {url.path}")
        query = parse_qs(url.query) | parse_qs(body.decode())
        try:
            if match := _BLOB.fullmatch(url.path):
                self._send_file(self._blob(match[1]), {"ETag": f'"{match[1]}"'})
            elif (match := _LEGACY.fullmatch(url.path)) and match[2] in self.hub.legacy_names:
                query_string = f"?{url.query}" if url.query else ""
                there = f"{match[1]}{self.hub.legacy_names[match[2]]}{match[3]}{query_string}"
                self._send(307, b"", {"Location": there})
            elif match := _API.fullmatch(url.path):
                self._send_json(self._api(match, query))
            elif match := _RESOLVE.fullmatch(url.path):
                self._resolve(match)
            else:
                raise _Refused(404)
        except _Refused as refused:
            self._send(refused.status, b"", {name: value for name, value in refused.headers.items() if value})

    # --- answers

    def _api(self, match: re.Match[str], query: Mapping[str, list[str]]) -> Any:
        repository = self._repository(match[1], match[2])
        sha = self._sha(repository, unquote(match[4] or "main"))
        files = repository.commits[sha]
        if match[3] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            found = _tree(files, unquote(match[5] or ""), recursive)
            if not found:
                raise _Refused(404, "EntryNotFound", **{"X-Repo-Commit": sha})
            return found
        if match[3] == "paths-info":
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            return [entries[path] for path in query.get("paths", []) if path in entries]
        siblings = [{"rfilename": path} for path in files]
        gated = "manual" if repository.gated else False
        return {"id": match[2], "sha": sha, "siblings": siblings, "private": False, "gated": gated, "tags": []}

    def _resolve(self, match: re.Match[str]) -> None:
        repository = self._repository("datasets" if match[1] else "models", match[2])
        sha = self._sha(repository, unquote(match[3]))
        if repository.gated and self._token() != TOKEN:
            message = f"Access to {match[2]} is restricted."
            raise _Refused(403 if self._token() else 401, "GatedRepo", message)
        path = unquote(match[4])
        if path not in repository.commits[sha]:
            raise _Refused(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        data = repository.commits[sha][path]
        if path.endswith(_LARGE):
            name = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": sha}
            # Another host name: to one of its own the client would follow, and look for the commit there.
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
            self._send(302, b"", {"Location": f"{elsewhere}/blobs/{name}", **linked})
        else:
            self._send_file(data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": sha})

    # --- what there is

    def _repository(self, kind: str, name: str) -> Repository:
        for (known_kind, known_name), repository in self.hub.repositories.items():
            if (known_kind, known_name) == (kind, name):
                return repository
        raise _Refused(404, "RepoNotFound", "Repository not found")

    def _sha(self, repository: Repository, revision: str) -> str:
        sha = repository.sha(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {quote(revision)}")
        return sha

    def _blob(self, name: str) -> bytes:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == name:
                        return data
        raise _Refused(404)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    # --- HTTP

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, data: bytes, headers: Mapping[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._send(200, data, {"Accept-Ranges": "bytes", **headers})
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(data), len(data))
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        content_range = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._send(206, data[start:stop], content_range | dict(headers))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # a client that was ended in the middle
                self.wfile.write(body)


def _tree(files: Mapping[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
    """As the real Hub lists it: folders are entries too."""
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if not path.startswith(prefix):
            continue
        above = [str(parent) for parent in reversed(Path(path).parents) if str(parent) != "."]
        for folder in (folder for folder in above if folder.startswith(prefix)):
            entries[folder] = {"type": "directory", "path": folder, "oid": _oid(folder.encode()), "size": 0}
        entries[path] = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
        if path.endswith(_LARGE):
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries[path]["lfs"] = lfs
    return [entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)]


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
