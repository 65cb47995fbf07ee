"""What the web page's script sends to its server, sent without a browser."""

from __future__ import annotations

import json
from typing import Any


def joined(address: str, wanted: str, data: list[Any], session: str, **event: Any) -> str:
    """Posts to the queue as the page does, to the function that a component starts -> what the server answers."""
    import httpx

    config = httpx.get(address + "/config", timeout=60).json()
    start, dependency = _started_by(config, wanted)
    body = {"data": data, "fn_index": dependency["id"], "session_hash": session, "trigger_id": start}
    answer = httpx.post(address + "/gradio_api/queue/join", json={**body, "event_data": event or None}, timeout=60)
    if answer.status_code != 200:
        return answer.text
    lines = list[str]()
    with httpx.stream("GET", address + f"/gradio_api/queue/data?session_hash={session}", timeout=120) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if '"process_completed"' in line or '"close_stream"' in line:
                break
    return "\n".join(lines)


def output_of(address: str, answer: str, started: str, wanted: str) -> Any:
    """Returns what an answer of `joined` puts into a component, by its elem_id."""
    import httpx

    config = httpx.get(address + "/config", timeout=60).json()
    identity, dependency = _id_of(config, wanted), _started_by(config, started)[1]
    line = next(line for line in answer.splitlines() if "process_completed" in line)
    return json.loads(line.removeprefix("data: "))["output"]["data"][dependency["outputs"].index(identity)]


def _id_of(config: dict[str, Any], elem_id: str) -> int:
    (identity,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id]
    return int(identity)


def _started_by(config: dict[str, Any], elem_id: str) -> tuple[int, dict[str, Any]]:
    start = _id_of(config, elem_id)
    found = [d for d in config["dependencies"] if d["targets"] and d["targets"][0][0] == start and d["backend_fn"]]
    return start, found[0]
