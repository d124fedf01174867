"""An environment server without leafe, for `Remote(url)`: guess a number. Standard library only;
docs/remote.md describes each call.

    python docs/examples/remote_server.py [PORT]
"""

import json
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NUMBERS = [str(n) for n in range(1, 51)]
LOCK = threading.Lock()  # one environment call at a time is enough here
SESSIONS = {}  # name -> {"call": last number, "answer": its answer, "state": (secret, tries left)}
SNAPSHOTS = {}  # name -> state; names are random, so that none means another state after a restart


def reset(session, body):
    session["state"] = (body["task"]["payload"]["secret"], 7)
    return {"observation": "I think of a number from 1 to 50."}


def step(session, body):
    secret, left = session["state"]
    over = {"done": True, "valid": False, "observation": "The game is over."}
    word, _, guess = body["action"].strip().partition(" ")
    if left == 0:
        return over
    if word != "guess" or guess not in NUMBERS:
        return {"valid": False, "observation": "Say: guess N, with a number N from 1 to 50."}
    won, left = int(guess) == secret, left - 1
    session["state"] = (secret, 0 if won else left)
    if won:
        return {"observation": "Right!", "reward": 1.0, "done": True, "success": True}
    hint = "Too low." if int(guess) < secret else "Too high."
    return {"observation": f"{hint} Guesses left: {left}.", "done": left == 0}


def snapshot(session, body):
    name = secrets.token_hex(8)
    SNAPSHOTS[name] = session["state"]
    return {"snapshot": name}


def restore(session, body):
    if body["snapshot"] not in SNAPSHOTS:
        return {"error": {"kind": "gone", "message": "This snapshot is not held here."}}
    session["state"] = SNAPSHOTS[body["snapshot"]]
    return {}


def answer(path, body):
    if path == "/tasks":
        split, count = body["split"], 50 if body["count"] is None else body["count"]
        targets = [(13 * n + len(split)) % 50 + 1 for n in range(count)]
        return {
            "tasks": [
                {"id": f"{split}-{n}", "instruction": "Guess it.", "payload": {"secret": secret}}
                for n, secret in enumerate(targets)
            ]
        }
    if path in ("/close", "/release"):
        SESSIONS.pop(body.get("session"), None)
        for name in body.get("snapshots", []):
            SNAPSHOTS.pop(name, None)
        return {}
    call = {"/reset": reset, "/step": step, "/snapshot": snapshot, "/restore": restore}.get(path)
    if call is None:
        return {"error": {"kind": "absent", "message": f"There is no {path} here."}}
    if body["call"] == 1 and call in (reset, restore):
        SESSIONS.setdefault(body["session"], {"call": 0})
    session = SESSIONS.get(body["session"])
    if session is None or body["call"] not in (session["call"], session["call"] + 1):
        return {"error": {"kind": "lost", "message": "This session is not known here."}}
    if body["call"] == session["call"] + 1:  # else it has been sent again: the recorded answer
        session["answer"], session["call"] = call(session, body), body["call"]
    return session["answer"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    disable_nagle_algorithm = True  # else every answer waits 40 ms

    def send(self, value):
        raw = json.dumps(value).encode()
        self.send_response(400 if "error" in value else 200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self):
        facts = {"name": "guess", "deterministic": True, "horizon": 7, "snapshots": True}
        self.send({"protocol": 1, **facts, "actions_help": "Actions: guess N."})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            value = answer(self.path, body)
        self.send(value)

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
