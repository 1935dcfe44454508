"""Put load on a running service, check every answer, and tell how fast it was.

python -m forecasting.load --url http://127.0.0.1:8000 --clients 8 --requests 200
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from forecasting.candles import COLUMNS, as_text
from forecasting.market import make_candles

__all__ = ["Reply", "ask", "faults", "main", "question"]

KINDS = 5
"""Different questions; those of one kind, seed included, must have the same answer."""
HORIZON, CANDLES = 12, 64


@dataclass(frozen=True)
class Reply:
    """What came of one request."""

    kind: int
    seconds: float
    answer: dict[str, Any] | None
    fault: str | None
    """None, or what is wrong with it."""


def question(kind: int, *, samples: int = 8) -> dict[str, Any]:
    """The request of this kind; always the same."""
    candles = make_candles(CANDLES, seed=kind)
    rows = zip(as_text(candles.times), candles.values.tolist(), strict=True)
    told = [{"time": when, **dict(zip(COLUMNS, row, strict=True))} for when, row in rows]
    return {"candles": told, "horizon": HORIZON, "samples": samples, "seed": kind}


def ask(url: str, clients: int, requests: int, *, samples: int = 8) -> tuple[list[Reply], float]:
    """The replies to so many requests of so many clients at once, each on one connection, and the seconds it took."""
    bodies = [json.dumps(question(kind, samples=samples)).encode() for kind in range(KINDS)]
    shares = [range(client, requests, clients) for client in range(clients)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        replies = [reply for share in pool.map(lambda share: _client(url, share, bodies), shares) for reply in share]
    return replies, time.perf_counter() - begin


def faults(replies: Sequence[Reply]) -> Counter[str]:
    """What went wrong, and how often; also that answers differ which should be the same."""
    found = Counter(reply.fault for reply in replies if reply.fault is not None)
    for kind in range(KINDS):
        answers = [json.dumps(reply.answer) for reply in replies if reply.kind == kind and reply.fault is None]
        if different := len(set(answers)) - 1:
            found["another answer to the same question and seed"] += max(0, different)
    return +found


def _client(url: str, numbers: range, bodies: Sequence[bytes]) -> list[Reply]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    try:
        return [_one(connection, number % KINDS, bodies[number % KINDS]) for number in numbers]
    finally:
        connection.close()


def _one(connection: http.client.HTTPConnection, kind: int, body: bytes) -> Reply:
    begin = time.perf_counter()
    answer = None
    try:
        connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        fault = f"status {response.status}: {answer['error']}" if response.status != 200 else _wrong(answer)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        connection.close()  # the next request opens it anew
        fault = f"{type(error).__name__}: {error}"
    return Reply(kind, time.perf_counter() - begin, answer, fault)


def _wrong(answer: dict[str, Any]) -> str | None:
    """None for a forecast that can be one."""
    candles = answer["candles"]
    if len(candles) != HORIZON:
        return f"{len(candles)} candles instead of {HORIZON}"
    for each in candles:
        if not 0 < each["low"] <= min(each["open"], each["close"]) <= max(each["open"], each["close"]) <= each["high"]:
            return "a candle that cannot be"
    return None


def _not_ready(url: str) -> str | None:
    """None, or why there is no use in asking."""
    try:
        place = urlsplit(url)
        if place.scheme != "http" or not place.hostname:
            return "it is no http://HOST:PORT"
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/readyz")
            told = json.loads(connection.getresponse().read())
        return None if told["ready"] else str(told["error"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and tell; 1 when an answer was wrong, 2 when nothing could be asked."""
    options = _parser().parse_args(arguments)
    if trouble := _not_ready(options.url):
        sys.stderr.write(f"forecasting.load: {options.url} cannot be asked: {trouble}\n")
        return 2
    replies, seconds = ask(options.url, options.clients, options.requests, samples=options.samples)
    found = faults(replies)
    taken = sorted(reply.seconds * 1e3 for reply in replies)
    middle, late = statistics.median(taken), taken[min(len(taken) - 1, int(0.95 * len(taken)))]
    sys.stdout.write(
        f"{len(replies)} requests of {options.clients} clients in {seconds:.2f} s\n"
        f"throughput: {len(replies) / seconds:.1f} a second\n"
        f"latency: median {middle:.1f} ms, 95 % within {late:.1f} ms\n"
        f"errors: {found.total()}\n"
    )
    for fault, count in found.most_common():
        sys.stdout.write(f"  {count} times {fault}\n")
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forecasting.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", required=True, metavar="URL", help="http://HOST:PORT")
    for name, default in (("clients", 8), ("requests", 200), ("samples", 8)):
        parser.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help=f"({default})")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
