"""Errors of the HTTP interface, in the shape that the `openai` client reads."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # else by hundreds


class ApiError(Exception):
    """A request that is answered with an error: `code` is for programs, the message for people, `param` the field it is about."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code"}}."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The handler of ApiError: `app.add_exception_handler(ApiError, answer_error)`."""
    assert isinstance(error, ApiError)
    return JSONResponse(error_body(error.status, error.code, str(error), error.param), error.status, error.headers)
