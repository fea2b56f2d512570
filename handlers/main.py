"""The handlers as a process of their own: ``uvicorn handlers.main:app``.

With ``--http handlers.door.connections:BoundedProtocol`` nobody can hold its connections.
"""

from __future__ import annotations

from handlers.app import create_app
from posedrop import logs, settings
from posedrop.errors import ConfigurationError
from posedrop.transport import queue

logs.to_stderr()
_settings = settings.load()
if _settings.api_token is None:
    # Whatever address it listens on, others than its owner reach it: users of the same machine.
    raise ConfigurationError(
        "POSEDROP_API_TOKEN is not set: without it anybody who reaches the API could list and "
        "delete everything; make one with `openssl rand -hex 20`"
    )
app = create_app(_settings, queue.connect(_settings.broker_url))
