"""The error tree that every part of Headrace shares, with the wire's error codes.

HeadraceError                 code, retryable
├── RequestError              a request was answered with something else than `completed`
│   ├── BadRequest            bad_request
│   ├── UnknownEndpoint       unknown_endpoint
│   ├── TooLarge              too_large
│   ├── InfeasibleDeadline    infeasible_deadline
│   ├── InfeasibleAccuracy    infeasible_accuracy
│   ├── Overloaded            overloaded            (retryable)
│   ├── QuotaExceeded         quota                 (retryable)
│   ├── DeadlineExceeded      deadline_exceeded     (retryable)
│   ├── BackendError          backend_error
│   └── AttemptsExhausted     attempts_exhausted    (retryable)
├── StillPending              the wait for an answer is over, the request is not    (retryable; a TimeoutError too)
├── Unattributable            no usable request id: the record goes to the dead letters
├── LogUnavailable            the log did not acknowledge: the write is *unknown*   (retryable)
├── StoreUnavailable          the response store did not answer                     (retryable)
├── ConfigurationError        a file, option or environment variable is wrong
├── CatalogError              a catalog document is wrong: names file, line and near miss
├── ModelRefused              a model file cannot be trusted or used
└── DeviceUnavailable         the accelerator that was asked for is not here
"""

from __future__ import annotations

from typing import ClassVar


class HeadraceError(Exception):
    """Something went wrong in Headrace."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__class__.__doc__ or "").strip())


class RequestError(HeadraceError):
    """The request was answered with an error."""

    code = "request_error"

    def __init__(self, message: str = "", *, request_id: str = "", stage: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.stage = stage


class BadRequest(RequestError):
    """The request cannot be understood."""

    code = "bad_request"


class UnknownEndpoint(RequestError):
    """No endpoint of this name is in the catalog."""

    code = "unknown_endpoint"


class TooLarge(RequestError):
    """The payload is over the limit."""

    code = "too_large"


class InfeasibleDeadline(RequestError):
    """No variant can answer by the deadline."""

    code = "infeasible_deadline"


class InfeasibleAccuracy(RequestError):
    """No variant reaches the accuracy floor."""

    code = "infeasible_accuracy"


class Overloaded(RequestError):
    """The request could be served, but not under the present load."""

    code = "overloaded"
    retryable = True


class QuotaExceeded(RequestError):
    """The tenant is over its quota."""

    code = "quota"
    retryable = True


class DeadlineExceeded(RequestError):
    """The deadline came before the answer."""

    code = "deadline_exceeded"
    retryable = True


class BackendError(RequestError):
    """The model raised while it computed this request."""

    code = "backend_error"


class AttemptsExhausted(RequestError):
    """Every attempt was lost with its worker."""

    code = "attempts_exhausted"
    retryable = True


class StillPending(HeadraceError, TimeoutError):
    """The wait is over and there is no answer yet; the request goes on."""

    code = "still_pending"
    retryable = True


class Unattributable(HeadraceError):
    """The record carries no usable request id."""

    code = "unattributable"


class LogUnavailable(HeadraceError):
    """The log did not acknowledge in time; whether the records were written is unknown."""

    code = "log_unavailable"
    retryable = True


class StoreUnavailable(HeadraceError):
    """The response store does not answer."""

    code = "store_unavailable"
    retryable = True


class ConfigurationError(HeadraceError):
    """The configuration is wrong."""

    code = "configuration"


class CatalogError(HeadraceError):
    """A catalog document is wrong."""

    code = "catalog"


class ModelRefused(HeadraceError):
    """The model file is refused."""

    code = "model_refused"


class DeviceUnavailable(HeadraceError):
    """The accelerator that was asked for is not on this machine."""

    code = "device_unavailable"


REQUEST_ERRORS: dict[str, type[RequestError]] = {
    error.code: error
    for error in (
        BadRequest,
        UnknownEndpoint,
        TooLarge,
        InfeasibleDeadline,
        InfeasibleAccuracy,
        Overloaded,
        QuotaExceeded,
        DeadlineExceeded,
        BackendError,
        AttemptsExhausted,
    )
}


def request_error(code: str, message: str, *, request_id: str = "", stage: str | None = None) -> RequestError:
    """The typed error for a code on the wire; an unknown code (a newer writer's) becomes a plain RequestError."""
    return REQUEST_ERRORS.get(code, RequestError)(message, request_id=request_id, stage=stage)
