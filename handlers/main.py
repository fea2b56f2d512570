"""The handlers as a process of their own: ``uvicorn handlers.main:app``.

With ``--http handlers.connections:BoundedProtocol`` nobody can hold its connections.
"""

from __future__ import annotations

from handlers.app import create_app
from posedrop import logs, queue, settings

logs.to_stderr()
_settings = settings.load()
app = create_app(_settings, queue.connect(_settings.broker_url))
