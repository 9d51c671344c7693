"""
message - one message, as the published class has it: plain attributes, of which any may be added

Its JSON is what lies in the message's file: the attributes in the order in which they came,
default separators, ASCII. What a file holds beyond the published names is kept.

See also: broker, claims (who read and write the files).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Self


class Message:
    """
    One message. Everything is None until it is given; a broker fills it in.

    *filename* is that of the file now: the waiting message's, or after consume() the claim's. *requeue* is False, True,
    or the priority that the message gets when it is requeued.
    """

    def __init__(  # noqa: PLR0917 - the published order
        self,
        queue: str | None = None,
        message: Any = None,
        timeout: float | None = None,
        id: str | None = None,  # noqa: A002 - the published name
        priority: int | None = None,
        queue_number: str | None = None,
        filename: str | None = None,
        requeue: bool | int | None = None,
        requeue_counter: int | None = None,
        requeue_limit: int | None = None,
    ) -> None:
        # In this order they are written.
        self.message = message
        self.queue = queue
        self.timeout = timeout
        self.id = id
        self.priority = priority
        self.queue_number = queue_number
        self.filename = filename
        self.requeue = requeue
        self.requeue_counter = requeue_counter
        self.requeue_limit = requeue_limit

    @classmethod
    def json2msg(cls, package: str | bytes | Mapping[str, Any]) -> Self:
        """The message that *package* is: JSON, or what was read from it. Raises ValueError when it is no object."""
        found = json.loads(package) if isinstance(package, str | bytes) else package
        if not isinstance(found, Mapping):
            raise ValueError(f"a message is a JSON object, not {type(found).__name__}")
        new = cls()
        new.update(found)
        return new

    def msg2json(self) -> str:
        """Its JSON. Raises TypeError, ValueError for what JSON cannot hold."""
        return json.dumps(self.__dict__)

    def update(self, package: Mapping[str, Any]) -> None:
        """Set the attributes that *package* has."""
        self.__dict__.update(package)

    def __repr__(self) -> str:
        return os.linesep.join(f"{key} = {value}" for key, value in sorted(self.__dict__.items()))


message = Message
