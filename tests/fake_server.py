"""A model server for tests of its life: starts in a moment, answers chats with the checkpoint's
name, dies or hangs when it is told to.

    python tests/fake_server.py CHECKPOINT PORT [--delay S] [--dies MESSAGE] [--stubborn] [--gates]
    [--lora vllm|sglang|llama.cpp] [--child]

--dies: it writes the message and ends with code 3. --stubborn: it ignores SIGTERM. --child: it
starts another process, which sleeps. --gates: it plays
the environment gates, and knows every rule. LORA_FILES: what llama.cpp was started with, separated
by colons. It writes the environment variable
FAKE_KEY to its output, as careless servers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("port", type=int)
parser.add_argument("--delay", type=float, default=0.0)
parser.add_argument("--dies")
parser.add_argument("--stubborn", action="store_true")
parser.add_argument("--child", action="store_true")
parser.add_argument("--silent", action="store_true", help="never answers")
parser.add_argument("--lora")
parser.add_argument("--gates", action="store_true")
parser.add_argument("--api-key", help="it is written to the output, with all other arguments")
given = parser.parse_args()
adapters: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def answer(self, value: Any, status: int = 200) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        files = os.environ.get("LORA_FILES", "").split(":")
        if self.path == "/health":
            self.answer({"status": "ok"})
        elif self.path == "/v1/models":
            self.answer({"data": [{"id": given.checkpoint}, *({"id": name} for name in adapters)]})
        elif self.path == "/lora-adapters" and given.lora == "llama.cpp":
            self.answer([{"id": i, "path": path, "scale": 0.0} for i, path in enumerate(files)])
        else:
            self.answer({"error": {"message": "not found"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == {"vllm": "/v1/load_lora_adapter", "sglang": "/load_lora_adapter"}.get(
            given.lora
        ):
            name, path = body["lora_name"], body["lora_path"]
            if name in adapters:
                self.answer({"message": f"The lora adapter '{name}' has already been loaded."}, 400)
            elif not Path(path).is_dir():
                self.answer({"message": f"No adapter found for {path}"}, 404)
            else:
                adapters[name] = path
                print(f"adapter {name} from {path}", flush=True)
                self.answer(
                    f"Success: LoRA adapter '{name}' added successfully."
                    if given.lora == "vllm"
                    else {"success": True}
                )
        elif self.path != "/v1/chat/completions":
            self.answer({"error": {"message": "not found"}}, 404)
        else:
            base, _, lora = body["model"].partition(":")
            name = lora or (base if base in adapters else "")
            if (lora and (given.lora != "sglang" or lora not in adapters)) or (
                not name and base != given.checkpoint
            ):
                self.answer(
                    {"error": {"message": f"The model `{body['model']}` does not exist."}}, 404
                )
                return
            chosen = next((str(a["id"]) for a in body.get("lora", ()) if a["scale"] > 0), "")
            text = (
                "I am "
                f"{adapters.get(name, given.checkpoint)}"
                f"{' with adapter ' + chosen if chosen else ''}; "
                ""
                ""
                f"{body.get('seed')}."
            )
            if given.gates:
                text = play(body) or text
            if body.get("response_format"):
                text = json.dumps({"step": 0, "experience": text[-20:]})
            choices = [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ]
            self.answer(
                {
                    "model": body["model"],
                    "choices": choices,
                    "usage": {"prompt_tokens": 9, "completion_tokens": 3},
                }
            )


def play(body: dict[str, Any]) -> str:
    from leafe.core import Message, PolicyError, Request
    from leafe.envs.gates.reference import GatesReference

    request = Request(
        tuple(Message(m["role"], m["content"]) for m in body["messages"]), seed=body.get("seed", 0)
    )
    try:
        return asyncio.run(GatesReference().complete(request))[0].text
    except PolicyError:
        return ""


def main() -> None:
    print(
        f"fake server {os.getpid()} for {given.checkpoint}; my key is {os.environ.get('FAKE_KEY')}",
        flush=True,
    )
    if given.api_key:
        print(given, flush=True)
    if given.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.child:
        child = subprocess.Popen(["sleep", "600"])
        print(f"child {child.pid}", flush=True)
    time.sleep(given.delay)
    if given.dies:
        print(given.dies, flush=True)
        sys.exit(3)
    if given.silent:
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
