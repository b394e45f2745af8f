"""What a Hugging Face Hub answers: repositories with commits, and the requests that the client makes of them."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWNER, READER = "hf_owner", "hf_reader"  # one may read and write everything; one only what is public
LARGE = (".safetensors", ".bin", ".pth")

Files = dict[str, bytes]


class Repo:
    """Commits, each a snapshot of all files, and the branches and tags that name them."""

    def __init__(self, name: str, *, private: bool, gated: bool) -> None:
        self.name, self.private, self.gated = name, private, gated
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.messages: list[str] = []
        self.push({".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit")

    def push(
        self, files: Mapping[str, bytes], *, branch: str = "main", delete: tuple[str, ...] = (), message=""
    ) -> str:
        """Commit changed files to a branch; gives the commit's id."""
        parent = self.branches.get(branch, "")
        kept = {path: body for path, body in self.commits.get(parent, {}).items() if path not in delete}
        identity = f"{self.name} {parent} {len(self.commits)}".encode() + b"".join(files.values())
        commit = hashlib.sha1(identity).hexdigest()
        self.commits[commit] = {**kept, **files}
        self.branches[branch] = commit
        self.messages.append(message)
        return commit

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.find(revision)]

    def find(self, revision: str) -> str:
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


@dataclass(frozen=True)
class Request:
    """One line of the log. `text` is what patterns are searched in, such as `"GET /org/name/resolve/main/a.json"`."""

    method: str
    path: str
    range: str = ""
    token: str = ""
    agent: str = ""

    @property
    def text(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.response = Response(status, json.dumps({"error": message}).encode(), headers)


class Hub:
    """Answers requests about repositories.

    Large files answer as on the real Hub: a redirect to another host (`localhost` for `127.0.0.1`), to which the
    client sends no token.
    """

    def __init__(self, port: int) -> None:
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}/cdn"
        self.repos: dict[str, Repo] = {}

    def respond(self, request: Request, body: bytes) -> Response:
        path = urlsplit(request.path).path
        if found := re.fullmatch(r"/cdn/(\w{64})/.*", path):
            return self._cdn(found[1])
        if request.token and request.token not in (OWNER, READER):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return self._whoami(request)
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(request, json.loads(body))
        if found := re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            return self._resolve(request, found[1], unquote(found[2]), unquote(found[3]))
        what = "revision|tree|paths-info|preupload|commits|commit|branch|tag|refs"
        if found := re.fullmatch(rf"/api/models/([^/]+(?:/[^/]+)?)(?:/({what})(?:/(.+))?)?", path):
            repo, rest = self._find(request, found[1]), [unquote(part) for part in (found[3] or "main").split("/")]
            if found[2] in ("preupload", "commit", "branch", "tag"):
                _check_owner(request)
            answer = getattr(self, "_" + (found[2] or "revision").replace("-", "_"))
            return answer(repo, request, rest, body)
        raise Refusal(404, "", f"no such page: {request.text}")

    def _find(self, request: Request, name: str) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and request.token != OWNER):
            raise Refusal(404 if request.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _whoami(self, request: Request) -> Response:
        if not request.token:
            raise Refusal(401, "", "Invalid username or password.")
        return _json({"type": "user", "name": request.token.removeprefix("hf_"), "orgs": []})

    def _create(self, request: Request, asked: dict[str, Any]) -> Response:
        _check_owner(request)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        address = {"url": f"{self.url}/{name}"}
        if name in self.repos:
            return _json({**address, "error": "You already created this model repo"}, status=409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[name] = Repo(name, private=private, gated=False)
        return _json(address)

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> Response:
        repo = self._find(request, name)
        if repo.gated and request.token != OWNER:
            raise Refusal(403 if request.token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        commit = repo.find(revision)
        files, headers = repo.commits[commit], {"X-Repo-Commit": commit}
        if path not in files:
            refusal = Refusal(404, "EntryNotFound", "Entry not found")
            refusal.response.headers.update(headers)
            raise refusal
        body = files[path]
        if not path.endswith(LARGE):
            return Response(200, body, {**headers, "ETag": f'"{git_sha(body)}"', "Accept-Ranges": "bytes"})
        sha = hashlib.sha256(body).hexdigest()
        headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(body))}
        return Response(302, b"", {**headers, "Location": f"{self.cdn}/{sha}/{path}"})

    def _cdn(self, sha: str) -> Response:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for body in files.values():
                    if hashlib.sha256(body).hexdigest() == sha:
                        return Response(200, body, {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"})
        raise Refusal(404, "", "no such object")

    def _revision(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        commit = repo.find(rest[0])
        about = {"_id": "0", "id": repo.name, "modelId": repo.name, "sha": commit, "tags": [], "downloads": 0}
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        return _json({**about, "private": repo.private, "gated": "auto" if repo.gated else False, "siblings": siblings})

    def _tree(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        folder = "".join(part + "/" for part in rest[1:])
        names = [path for path in repo.files(rest[0]) if path.startswith(folder)]
        deep = parse_qs(urlsplit(request.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        files = [path for path in names if deep or "/" not in path[len(folder) :]]
        folders = {folder + path[len(folder) :].split("/")[0] for path in names if path not in files}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        return _json(entries + [_entry(path, repo.files(rest[0])[path]) for path in files])

    def _paths_info(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        paths = parse_qs(body.decode()).get("paths", [])
        files = repo.files(rest[0])
        return _json([_entry(path, files[path]) for path in paths if path in files])

    def _refs(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        def named(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": it, "ref": f"refs/{kind}/{it}", "targetCommit": refs[it]} for it in refs]

        return _json(
            {"branches": named("heads", repo.branches), "tags": named("tags", repo.tags), "converts": []},
        )

    def _preupload(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        files = repo.files(rest[0])
        asked = [entry["path"] for entry in json.loads(body)["files"]]
        known = {path: git_sha(files[path]) for path in asked if path in files}
        return _json(
            {
                "files": [
                    {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": known.get(path)}
                    for path in asked
                ]
            }
        )

    def _commit(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        if rest[0] not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {rest[0]}")
        files: Files = {}
        deleted: list[str] = []
        header: dict[str, str] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                header = value
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
            else:
                raise Refusal(400, "", f"this hub takes no {entry['key']}")
        if header.get("parentCommit", repo.branches[rest[0]]) != repo.branches[rest[0]]:
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        commit = repo.push(files, branch=rest[0], delete=tuple(deleted), message=header["summary"])
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo.name}/commit/{commit}"})

    def _branch(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        return _name(repo, repo.branches, rest[0], json.loads(body or b"{}").get("startingPoint", "main"))

    def _tag(self, repo: Repo, request: Request, rest: list[str], body: bytes) -> Response:
        return _name(repo, repo.tags, json.loads(body)["tag"], rest[0])


def git_sha(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def _check_owner(request: Request) -> None:
    if request.token != OWNER:
        status = 403 if request.token else 401
        raise Refusal(
            status, "", "You have no right to write here" if request.token else "Invalid username or password."
        )


def _name(repo: Repo, refs: dict[str, str], name: str, revision: str) -> Response:
    if name in refs:
        raise Refusal(409, "", f"Reference already exists: {name}")
    refs[name] = repo.find(revision)
    return _json({})


def _entry(path: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": git_sha(body), "size": len(body), "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
