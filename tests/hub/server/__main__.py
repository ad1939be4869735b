"""`python -m server FOLDER`: serves until it is terminated; the first line it prints is its endpoint."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from .app import App
from .hub import Hub, User
from .xet import Cas

HOST = "127.0.0.1"


def main() -> None:
    args = arguments()
    # asyncio turns Nagle's algorithm off, which costs 40 ms an answer, only where the protocol is told
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, args.port))
    listener.listen()
    port = listener.getsockname()[1]
    folder = args.folder.resolve()
    # 127.0.0.1 and localhost are two origins to a client, as the Hub and its CDN are
    hub = Hub(f"http://{HOST}:{port}", f"http://localhost:{port}", folder / "blobs", dict(args.token), args.ttl)
    hub.cas = Cas(folder / "cas", hub.blobs) if args.xet else None
    print(hub.endpoint, flush=True)
    if args.attached:
        threading.Thread(target=end_with_stdin, daemon=True).start()
    # critical: a dropped answer is an error to uvicorn, and errors of the handlers are printed by the App
    config = uvicorn.Config(App(hub), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files lie that are uploaded")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--token", type=token, action="append", default=[], metavar="TOKEN:USER:read|write")
    parser.add_argument("--ttl", type=int, default=3600, help="seconds a signed URL holds")
    parser.add_argument("--xet", action="store_true", help="let clients with hf_xet upload through it")
    parser.add_argument("--attached", action="store_true", help="end when the standard input does")
    return parser.parse_args()


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def token(text: str) -> tuple[str, User]:
    secret, name, role = text.split(":")
    return secret, User(name, role)


if __name__ == "__main__":
    main()
