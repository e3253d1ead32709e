"""What pages asked for and never read is forgotten, and nothing else."""

from __future__ import annotations

from asyncio import Queue as AsyncQueue

import gradio as gr
from gradio.queueing import Queue
from gradio.server_messages import HeartbeatMessage

from prefrestore.serving.site import drop_unread


def _queue(**unread: int) -> Queue:
    """Return a page's queue in which sessions wait with so many messages each, the longest known first."""
    with gr.Blocks() as page:
        pass
    for name, count in unread.items():
        page._queue.pending_messages_per_session[name] = AsyncQueue()
        page._queue.pending_event_ids_session[name] = {"event"}
        for _ in range(count):
            page._queue.pending_messages_per_session[name].put_nowait(HeartbeatMessage())
    return page._queue


def _waiting(queue: Queue) -> dict[str, int]:
    return {name: messages.qsize() for name, messages in queue.pending_messages_per_session.items()}


def test_nothing_is_dropped_below_the_limit() -> None:
    queue = _queue(first=3, reading=0, second=2)
    drop_unread(queue, 5)
    assert _waiting(queue) == {"first": 3, "reading": 0, "second": 2}


def test_the_longest_known_go_first_and_readers_stay() -> None:
    queue = _queue(reading=0, first=3, second=2, third=4)
    drop_unread(queue, 5)
    assert _waiting(queue) == {"reading": 0, "first": 0, "second": 0, "third": 4}
    assert set(queue.pending_event_ids_session) == {"reading", "third"}
