"""A milvus-lite server in a process of its own: `python milvus_server.py FOLDER` prints its port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def start_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on 127.0.0.1 and a free port: its address, and its process."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"milvus://127.0.0.1:{int(process.stdout.readline())}", process
        finally:
            process.kill()


def main() -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, _, port = start_server_in_thread(sys.argv[1], host="127.0.0.1", port=0)
    print(port, flush=True)
    sys.stdin.read()  # ends with the parent
    server.stop(grace=0)


if __name__ == "__main__":
    main()
