"""Query parameters: unknown and repeated ones are refused, and errors have one form."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse


async def check_names(request: Request) -> None:
    """Refuses a request with an unknown or repeated query parameter."""
    route: Any = request.scope["route"]
    accepted = [each.alias for each in route.dependant.query_params]
    given = Counter(name for name, _ in request.query_params.multi_items())
    takes = f"takes {', '.join(accepted)}" if accepted else "takes no parameters"
    for name, times in given.items():
        if name not in accepted:
            raise HTTPException(422, f"{name}: unknown parameter; {route.path} {takes}")
        if times > 1:
            raise HTTPException(422, f"{name}: given {times} times; pass it once")


async def _explain(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    texts = []
    for each in error.errors():
        value = f"{each['input']!r}: " if isinstance(each.get("input"), str) else ""
        texts.append(f"{each['loc'][-1]}: {value}{each['msg'][:1].lower()}{each['msg'][1:]}")
    return JSONResponse({"detail": "; ".join(texts)}, 422)


def add_explanations(app: FastAPI) -> None:
    """Returns errors of parameters as one line of text, like all other errors."""
    app.add_exception_handler(RequestValidationError, _explain)
