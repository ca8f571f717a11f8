"""The two sides of an HTTP/2 connection, and the data that goes from one to the other. Sans I/O."""

from __future__ import annotations

import contextlib
from typing import Any

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from voidbox.secrets.http1 import Sink
from voidbox.secrets.put_in import Headers

STREAMS_MAX = 100
_STREAM_WINDOW_BYTES = 1 << 20
_CONNECTION_WINDOW_BYTES = 2 << 20  # what one connection can have us keep, each way
_FRAME_BYTES = 128 << 10
_HEAD_BYTES_MAX = 64 << 10
_FIRST_WINDOW_BYTES = 65535  # RFC 9113 §6.9.2


class Side:
    """One of the two connections: h2's, and where its bytes go."""

    def __init__(self, sink: Sink, is_client: bool) -> None:
        self._sink = sink
        # Names and values are bytes, as they are on the wire.
        config: Any = H2Configuration(client_side=is_client, header_encoding=None)
        self.h2: Any = H2Connection(config)
        # RFC 9113 §6.8: after GOAWAY what was begun goes on. h2 by itself takes nothing any more.
        machine = self.h2.state_machine
        machine._transitions = {
            **machine._transitions,
            (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): (
                None,
                ConnectionState.CLIENT_OPEN,
            ),
        }

    def begin(self, streams_max: int = STREAMS_MAX) -> None:
        """Send the preface and the settings."""
        wanted: dict[Any, int] = {
            SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
            SettingCodes.MAX_FRAME_SIZE: _FRAME_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: _HEAD_BYTES_MAX,
        }
        is_client = self.h2.config.client_side
        if is_client:
            wanted[SettingCodes.ENABLE_PUSH] = 0
        else:
            wanted[SettingCodes.MAX_CONCURRENT_STREAMS] = streams_max
        self.h2.local_settings = Settings(client=is_client, initial_values=wanted)
        self.h2.max_inbound_frame_size = _FRAME_BYTES
        self.h2.decoder.max_header_list_size = _HEAD_BYTES_MAX
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - _FIRST_WINDOW_BYTES)
        self.flush()

    def flush(self) -> None:
        """Hand on what there is to send."""
        data = self.h2.data_to_send()
        if data:
            self._sink.write(data)

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream, unless it has ended by itself."""
        with contextlib.suppress(H2Error):
            self.h2.reset_stream(stream_id, error_code=code)

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let as many bytes come again."""
        if size:
            with contextlib.suppress(H2Error):  # all of the connection is over
                self.h2.acknowledge_received_data(size, stream_id)


class Flow:
    """Data on its way from a stream of one side to one of the other.

    Attributes:
        source_id, target_id: the streams; 0 while there is none.
        is_ending: nothing comes behind what is queued.
        trailers: what comes behind the data, if anything.
        has_ended: all of it has gone.
    """

    def __init__(self, source: Side, target: Side) -> None:
        self.source_id = self.target_id = 0
        self.is_ending = self.has_ended = False
        self.trailers: Headers = []
        self._source, self._target = source, target
        self._queue = bytearray()
        self._owed = 0  # of flow control: what came and is not acknowledged

    def add(self, data: bytes, owed: int) -> None:
        """Queue data, for which so many bytes of the source's window were used."""
        self._queue += data
        self._owed += owed

    def move(self) -> None:
        """Send what the target's windows take.

        Raises:
            H2Error: the target's stream is no more.
        """
        if not self.target_id or self.has_ended:
            return
        h2 = self._target.h2
        while self._queue:
            room = min(h2.local_flow_control_window(self.target_id), h2.max_outbound_frame_size)
            if room <= 0:
                break
            chunk = bytes(self._queue[:room])
            h2.send_data(self.target_id, chunk)
            del self._queue[: len(chunk)]
        self._acknowledge()
        if self.is_ending and not self._queue:
            self.has_ended = True
            if self.trailers:
                h2.send_headers(self.target_id, self.trailers, end_stream=True)
            else:
                h2.end_stream(self.target_id)

    def _acknowledge(self) -> None:
        size = self._owed - len(self._queue)
        if size > 0 and self.source_id:
            self._owed -= size
            self._source.acknowledge(self.source_id, size)

    def drop(self) -> None:
        """Nobody wants the rest."""
        self._queue.clear()
        self.has_ended = True
        self._acknowledge()
