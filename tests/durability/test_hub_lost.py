"""The hub goes away in the middle of the weights: one line, exit 1; later the command goes on."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.runs import Runs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one model folder as the hub does; while `is_breaking`, weights stop half-way."""

    is_breaking = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        file = self.server.folder / self.path.partition("?")[0].rpartition("/")[2]
        if "/resolve/" not in self.path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not with_body:
            return
        if self.server.is_breaking and file.suffix == ".safetensors":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(model_folder: Path) -> Iterator[Hub]:
    """A hub on this machine."""
    with Hub(model_folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_connection_lost_during_the_weights(
    hub: Hub, own: tuple[str, ...], tmp_path: Path
) -> None:
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    asked = ("model.path=owner/random", f"output_dir={tmp_path / 'outputs'}", "stage=clean")
    with Runs(tmp_path, *own, environment=environment) as runs:
        ended = runs.run(*asked)
        assert ended.code == 1
        assert ended.output.splitlines()[-1].startswith("ktrace: model.path=owner/random: ")
        assert "Traceback" not in ended.output
        assert "candidates" not in ended.output
        assert not list(tmp_path.glob("outputs/**/*.h5"))
        hub.is_breaking = False
        ended = runs.run(*asked)
        assert ended.code == 0, ended.output
        assert "candidates: 6" in ended.output
