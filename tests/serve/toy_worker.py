"""A worker process that loads nothing: the option `label` of a job says what becomes of it."""

import json
import os
import queue
import signal
import threading
import time
from pathlib import Path

from serve.job_worker import DONE
from serve.pipe import PipeMessage, pack, unpack


def main(connection, settings_json, index):
    """make: a file in five steps, with the seed 1 never. deaf: does not hear that it is cancelled. die: killed in the midst.
    dies-late: killed when its result is whole. fail: says why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks, cancelled = queue.SimpleQueue(), set()

    def listen():
        while True:
            try:
                message = unpack(connection.recv_bytes()).fields
            except (EOFError, OSError):
                os._exit(0)
            cancelled.add(message["job"]) if message["do"] == "cancel" else tasks.put(message)

    threading.Thread(target=listen, daemon=True).start()

    def say(**fields):
        connection.send_bytes(pack(PipeMessage(fields)))

    say(tell="up")
    while True:
        task = tasks.get()
        how, job, output = task["options"]["label"], task["job"], Path(task["output"])
        output.parent.mkdir(exist_ok=True)
        with open(output.parent.parent.parent / "tries.txt", "a") as file:
            file.write(f"{job} {os.getpid()}\n")
        for k in range(5):
            time.sleep(60 if how == "deaf" else 0.02)
            while task["options"].get("seed") == 1 and job not in cancelled:
                time.sleep(0.02)
            if job in cancelled:
                break
            output.write_bytes(bytes(100 * k))
            say(tell="progress", job=job, percent=20 * k)
            if how == "die" and k == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        if job in cancelled:
            say(tell="cancelled", job=job)
        elif how == "fail":
            say(tell="failed", job=job, code="refused", message="the sound is odd")
        else:
            made = {"frames": 5, "seconds": 0.2, "warnings": ["quiet"]}
            (output.parent / DONE).write_text(json.dumps(made))
            if how == "dies-late":
                os.kill(os.getpid(), signal.SIGKILL)
            say(tell="done", job=job, **made)
