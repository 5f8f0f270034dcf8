"""Every error that Flotilla raises on purpose.

FlotillaError
├── InvalidSpec     the user must change something; retrying is useless
├── Transient       the same call may succeed later
│   ├── Forbidden   until somebody grants the permission
│   └── Incomplete  an answer that lacks a part of the data
├── Conflict        the object changed meanwhile, or its name is taken: look again, then retry
│   └── NameTaken   an object of that name belongs to somebody else
├── Ending          its namespace is being terminated: nothing can be made there
└── NotReady        something that this depends on is not there yet
"""


class FlotillaError(Exception):
    """Base of the tree; the message is a full sentence that says what to do."""


class InvalidSpec(FlotillaError):
    """The resource asks for something that cannot work until its owner changes it.

    `field` is the JSON path (`spec.engine.version`), `reason` the CamelCase condition reason.
    """

    def __init__(self, message: str, *, field: str = "", reason: str = "InvalidSpec") -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason


class Transient(FlotillaError):
    """A failure that time may heal: timeouts, 429, 5xx, a closed connection.

    `retry_after_s` is the server's own wish in seconds, where it gave one.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Forbidden(Transient):
    """HTTP 401 or 403: may end when the permission is granted, so it is retried and reported."""


class Incomplete(Transient):
    """The server reports that a part of its data is missing, so that sums over it are unknown."""


class Conflict(FlotillaError):
    """HTTP 409: an object of that name is there, or it changed under us."""


class NameTaken(Conflict):
    """The object was looked at and belongs to somebody else: only its owner, or a new name, helps."""


class Ending(FlotillaError):
    """The namespace is being terminated: its objects are deleted by Kubernetes, and retrying is useless."""


class NotReady(FlotillaError):
    """Something this depends on does not exist yet; an event will wake us."""


class UntranslatableRequest(FlotillaError):
    """A request that a target's API cannot serve as it was meant. `param` is the path of the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
