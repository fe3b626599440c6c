"""The public face of Headrace: the client, the embedded mode, the records that they take and return, and the errors."""

from __future__ import annotations

from broker.client import Client
from broker.published import Request
from broker.response import Response, Status
from deploy.embedded import Embedded
from schemas.errors import (
    AttemptsExhausted,
    BackendError,
    BadRequest,
    CatalogError,
    ConfigurationError,
    DeadlineExceeded,
    DeviceUnavailable,
    HeadraceError,
    InfeasibleAccuracy,
    InfeasibleDeadline,
    LogUnavailable,
    ModelRefused,
    Overloaded,
    QuotaExceeded,
    RequestError,
    StillPending,
    StoreUnavailable,
    TooLarge,
    Unattributable,
    UnknownEndpoint,
)
from schemas.terminal import ErrorDetail, PathStep

__all__ = [
    "AttemptsExhausted",
    "BackendError",
    "BadRequest",
    "CatalogError",
    "Client",
    "ConfigurationError",
    "DeadlineExceeded",
    "DeviceUnavailable",
    "Embedded",
    "ErrorDetail",
    "HeadraceError",
    "InfeasibleAccuracy",
    "InfeasibleDeadline",
    "LogUnavailable",
    "ModelRefused",
    "Overloaded",
    "PathStep",
    "QuotaExceeded",
    "Request",
    "RequestError",
    "Response",
    "Status",
    "StillPending",
    "StoreUnavailable",
    "TooLarge",
    "Unattributable",
    "UnknownEndpoint",
]
