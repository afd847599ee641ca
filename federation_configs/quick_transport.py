"""How objects travel in the processes that Flower 1.41 runs in: with short waits, few copies and few hashes.

All of it is private to Flower or httpcore and has a contract test.
"""

from __future__ import annotations

from typing import Any

from federation_configs.flower import check_version

_GATHERED = 2**20


def hasten() -> None:
    """Put the changes in place, in a process that speaks for a site or the coordinator."""
    check_version()
    _pull_often()
    _hash_pieces_once()
    _gather_bodies()


def _pull_often() -> None:
    """Ask for an object that is not there yet after 0.05 s, not after 1 to 10 s.

    The waits are bound as keyword defaults (`flwr.supercore.inflatable.inflatable_utils`, private). The number of
    tries is raised along, so that an upload over a slow line is still waited for.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        defaults = pull.__kwdefaults__
        if defaults is None or not {"initial_backoff", "backoff_cap", "max_tries_per_object"} <= set(defaults):
            raise RuntimeError("this flwr pulls objects in another way than the one that was verified")
        defaults.update(initial_backoff=0.05, backoff_cap=0.2, max_tries_per_object=20_000)


def _hash_pieces_once() -> None:
    """Compute the id of a piece of an array once: Flower hashes it again for each message that carries it.

    A piece is a view of the array's bytes, which do not change (`flwr.app.message.arraychunk`, private).
    """
    from flwr.app.message.arraychunk import ArrayChunk

    ArrayChunk.is_dirty = property(lambda piece: False)  # type: ignore[assignment,method-assign]


def _gather_bodies() -> None:
    """Take a long answer off its connection in large pieces (`httpcore`'s HTTP/1.1 connection, private).

    TLS gives 16 KiB at a time, and h11, httpcore and httpx each turn that into an event of their own: 320 of them for
    one piece of a model's weights. The pieces are put together before h11 sees them.
    """
    import h11
    from httpcore import HTTP11Connection, RemoteProtocolError
    from httpcore._exceptions import map_exceptions

    def receive_event(connection: Any, timeout: float | None = None) -> Any:
        state = connection._h11_state
        while True:
            with map_exceptions({h11.RemoteProtocolError: RemoteProtocolError}):
                event = state.next_event()
            if event is not h11.NEED_DATA:
                return event
            wanted = min(getattr(state._reader, "_remaining", 0), _GATHERED)
            data = connection._network_stream.read(connection.READ_NUM_BYTES, timeout=timeout)
            if data == b"" and state.their_state == h11.SEND_RESPONSE:
                raise RemoteProtocolError("Server disconnected without sending a response.")
            pieces, size = [data], len(data)
            while data and size < wanted:
                data = connection._network_stream.read(connection.READ_NUM_BYTES, timeout=timeout)
                pieces.append(data)
                size += len(data)
            state.receive_data(b"".join(pieces))

    if not hasattr(HTTP11Connection, "_receive_event"):
        raise RuntimeError("this httpcore receives in another way than the one that was verified")
    HTTP11Connection._receive_event = receive_event  # type: ignore[method-assign,assignment]
