"""
workers - directory queues and the life of one worker; the standard library only

What a handler or a producer needs::

    from workers import Message, Done, Retry, Reject, Forward, open_queue
"""

from workers.message import Done, Forward, Message, Reject, Retry
from workers.queues.open import open_queue

__all__ = ["Done", "Forward", "Message", "Reject", "Retry", "open_queue"]
