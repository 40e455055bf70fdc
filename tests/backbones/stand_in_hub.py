"""A stand-in of the Hugging Face Hub's HTTP interface, as far as huggingface_hub uses it here."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stand_in"


class StandInHub:
    """Serves repositories from memory on an ephemeral port of 127.0.0.1.

    Attributes:
        repos: For each repository its branches (name to commit) and commits (name to files).
        requests: Method and path of every request.
        then: Functions to call once, after the answer to a method and path is made.
    """

    def __init__(self):
        self.repos, self.objects, self.requests, self.then = {}, {}, [], {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.requests.append((self.command, self.path))
                status, headers, content = hub.answer(self.command, self.path, self.headers, body)
                hub.then.pop((self.command, self.path), lambda: None)()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, repo_id, revision="main"):
        """The files of a revision; KeyError if there is none."""
        repo = self.repos[repo_id]
        return repo["commits"][repo["branches"].get(revision, revision)]

    def commit(self, repo_id, files, branch="main"):
        """Adds files to a branch and returns the commit."""
        repo = self.repos.setdefault(repo_id, {"branches": {}, "commits": {}, "is_private": False})
        sha = hashlib.sha1(f"{repo_id} {len(repo['commits'])}".encode()).hexdigest()
        before = repo["commits"].get(repo["branches"].get(branch), {})
        repo["commits"][sha] = {**before, **files}
        repo["branches"][branch] = sha
        return sha

    def answer(self, method, path, headers, body):
        """Returns status, headers and content of the answer to a request."""
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if method in ("GET", "HEAD") and resolved:
            return self.resolve(*resolved.groups())
        uploaded = re.fullmatch("/upload/([0-9a-f]{64})", path)
        if method == "PUT" and uploaded:  # as on the real one, the address is signed
            assert hashlib.sha256(body).hexdigest() == uploaded[1]
            self.objects[uploaded[1]] = body
            return 200, {}, b""
        if headers["Authorization"] != f"Bearer {TOKEN}":
            return 403, {}, as_json({"error": "You have no rights\nhere."})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted['organization']}/{wanted['name']}"
            url = {"url": f"{self.endpoint}/{repo_id}"}
            if repo_id in self.repos:
                return 409, {}, as_json(url)
            self.commit(repo_id, {})
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.repos[repo_id]["is_private"] = bool(private)
            return 200, {}, as_json(url)
        if path == "/api/validate-yaml":
            return 200, {}, as_json({"errors": [], "warnings": []})
        batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if batch:
            objects = [
                {**x, "actions": {"upload": {"href": f"{self.endpoint}/upload/{x['oid']}"}}}
                for x in json.loads(body)["objects"]
            ]
            return 200, {}, as_json({"transfer": "basic", "objects": objects})
        known = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch|commit)/([^/]+)", path)
        if known is None:
            return 404, {}, b""
        repo_id, action, branch = known.groups()
        branches = self.repos[repo_id]["branches"]
        if action == "branch":
            status = 409 if branch in branches else 200
            branches.setdefault(branch, branches["main"])
            return status, {}, b"{}"
        if branch not in branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if action == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {}, as_json({"files": modes})
        files = {}
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            elif part["key"] == "lfsFile":
                files[part["value"]["path"]] = self.objects[part["value"]["oid"]]
        sha = self.commit(repo_id, files, branch)
        url = f"{self.endpoint}/{repo_id}/commit/{sha}"
        return 200, {}, as_json({"commitUrl": url, "commitOid": sha})

    def resolve(self, repo_id, revision, name):
        if repo_id not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        repo = self.repos[repo_id]
        sha = repo["branches"].get(revision, revision)
        if sha not in repo["commits"]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if name not in repo["commits"][sha]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, b""
        content = repo["commits"][sha][name]
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": sha}, content


def as_json(content):
    return json.dumps(content).encode()
