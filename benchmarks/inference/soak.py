"""Many clients at once on a real server, for minutes: errors, and what is left behind.

python benchmarks/inference/soak.py --clients 16 --seconds 120 --out benchmarks/results/soak.json

Clients of OpenAI's own library stream answers, one after another; one in eight leaves in the middle
of an answer. Memory is read every second, once every client has had an answer; at the end the
server must hold no block and no request, and SIGTERM must end it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai

PROMPTS = (
    "What is the capital of France?",
    "Write a limerick about a lighthouse.",
    "Name three prime numbers above one hundred.",
    "Explain recursion to a child in two sentences.",
    "Summarise in one sentence: the cat sat on the mat, then the dog came, and both fell asleep.",
)
MIB = 2**20


def main() -> int:
    """Serve, ask, look, end; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120.0)
    # Blocks are memory once they are first written to: a small pool has been so within seconds.
    parser.add_argument("--cache-mib", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command = "from worthit.cli.main import main; main()"
    arguments = ["serve", options.model, "--port", "0", "--json", "--log", "none"]
    arguments += ["--cache-mib", str(options.cache_mib)]
    server = subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        report = soak(address(server), server.pid, options)
    finally:
        server.send_signal(signal.SIGTERM)
        ended = server.wait(timeout=60)
    report["exit_code"] = ended
    is_clean = not report["errors"] and not report["left"] and ended == 0
    report["is_clean"] = is_clean
    text = json.dumps(report, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if is_clean else 1


def address(server: subprocess.Popen[str]) -> str:
    """Where the server says that it listens."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found.group()
    raise SystemExit("the server ended before it listened")


def soak(url: str, pid: int, options: argparse.Namespace) -> dict[str, object]:
    """Ask for so long; answers, errors, memory by the second, and what the server still holds."""
    ends = time.monotonic() + options.seconds
    errors: list[str] = []
    done = [0] * options.clients
    left_early = [0] * options.clients
    n_tokens = [0] * options.clients

    def ask(index: int) -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        rng = random.Random(index)
        while time.monotonic() < ends:
            leaves = rng.random() < 1 / 8
            try:
                stream = client.chat.completions.create(
                    model=options.model,
                    messages=[{"role": "user", "content": rng.choice(PROMPTS)}],
                    max_tokens=rng.randint(8, 48),
                    stream=True,
                    stream_options={"include_usage": True},
                )
                for i, chunk in enumerate(stream):
                    if leaves and i == 3:
                        stream.close()
                        left_early[index] += 1
                        break
                    if chunk.usage is not None:
                        n_tokens[index] += chunk.usage.completion_tokens
                else:
                    done[index] += 1
            except openai.OpenAIError as error:
                errors.append(f"client {index}: {type(error).__name__}: {error}")

    clients = [threading.Thread(target=ask, args=(i,)) for i in range(options.clients)]
    for client in clients:
        client.start()
    memory: list[float] = []
    times: list[float] = []
    while any(client.is_alive() for client in clients):
        if all(done):
            memory.append(resident_mib(pid))
            times.append(time.monotonic())
        time.sleep(1.0)
    deadline = time.monotonic() + 10
    while (left := held(url)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return {
        "model": options.model,
        "clients": options.clients,
        "seconds": options.seconds,
        "answers": sum(done),
        "left_early": sum(left_early),
        "tokens": sum(n_tokens),
        "errors": errors,
        "left": left,
        "memory_mib": {
            "first": memory[0] if memory else None,
            "last": memory[-1] if memory else None,
            "most": max(memory, default=None),
            "every_10_s": memory[::10],
            "mib_per_minute": {
                "first_half": per_minute(times[: len(times) // 2], memory[: len(times) // 2]),
                "last_half": per_minute(times[len(times) // 2 :], memory[len(times) // 2 :]),
            },
        },
    }


def per_minute(times: list[float], memory: list[float]) -> float | None:
    """By how much memory grows in a minute: the slope of a line through what was read."""
    if len(times) < 3:
        return None
    return round(60 * statistics.linear_regression(times, memory).slope, 2)


def held(url: str) -> dict[str, float]:
    """What the server's metrics say is still held: names and numbers above nought."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    wanted = r"^\w*:?(num_requests_running|num_requests_waiting|kv_cache_usage_perc)\S* (\S+)$"
    return {
        name: float(value) for name, value in re.findall(wanted, text, re.M) if float(value) > 0
    }


def resident_mib(pid: int) -> float:
    """Memory that a process has in RAM."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return round(int(found.group(1)) * 1024 / MIB, 1)


if __name__ == "__main__":
    sys.exit(main())
