"""What the service takes and gives, as OpenAPI, and as a page without any foreign address."""

from __future__ import annotations

import html
import json
from typing import Any

from thinned.core.pages import STYLE

_EXAMPLES = """\
curl -F image=@7.png http://127.0.0.1:8000/predict
curl -H 'Content-Type: application/json' -d "{\\"images\\": [\\"$(base64 -w0 7.png)\\"]}" \\
  http://127.0.0.1:8000/predict"""


def openapi_of(images: int) -> dict[str, Any]:
    """The description of the service.

    Args:
        images: how many a request may hold.
    """
    number, text = {"type": "number"}, {"type": "string"}
    result = {
        "class": {**text, "description": "the most probable class"},
        "probability": {**number, "description": "its probability, from 0 to 1"},
        "entropy": {**number, "description": "in nats; with samples"},
        "mutual_information": {**number, "description": "in nats: how much samples disagree"},
        "deviation": {**number, "description": "over samples, of the probability"},
        "set": {"type": "array", "items": text, "description": "classes that it may be"},
        "unsure": {"type": "boolean", "description": "below the threshold of the promised risk"},
        "energy": {**number, "description": "higher is less like the training images"},
        "known": {"type": "boolean", "description": "false: probably none of the classes"},
        "doubts": {"type": "array", "items": text, "description": "reasons; empty when sure"},
        "error": {**text, "description": "alone, for an image that cannot be read"},
        "top": {
            "type": "array",
            "items": {"type": "object"},
            "description": "with detail=1: up to 10 classes with the probability of each sample",
        },
    }
    answer = _object(
        {"model": text, "results": {"type": "array", "items": _object(result, required=[])}}
    )
    json_body = _object(
        {"images": {"type": "array", "maxItems": images, "items": {**text, "format": "byte"}}}
    )
    files = {"type": "array", "items": {**text, "format": "binary"}}
    errors = {
        "400": "malformed",
        "408": "too slow",
        "413": "too large",
        "415": "another content type",
        "422": "no image can be read",
        "503": "busy: try again after Retry-After seconds",
    }
    predict = {
        "summary": f"Classify up to {images} images",
        "parameters": [{"name": "detail", "in": "query", "schema": {"type": "integer"}}],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _object({"image": files})},
                "application/json": {"schema": json_body},
            },
        },
        "responses": {
            "200": _response("a result for each image, in order", answer),
            **{
                status: _response(told, _object({"error": text})) for status, told in errors.items()
            },
        },
    }
    pages = {
        "/health": "Answers once everything is compiled",
        "/model": "Classes, form of the images, promises",
        "/metrics": "Counters for Prometheus",
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "thinned", "version": "1"},
        "paths": {
            "/predict": {"post": predict},
            **{
                path: {"get": {"summary": told, "responses": {"200": {"description": told}}}}
                for path, told in pages.items()
            },
        },
    }


def docs_of(described: dict[str, Any]) -> str:
    """The description as a page."""
    rows = "".join(
        f"<h2>{method.upper()} {path}</h2><p>{html.escape(what['summary'])}</p>"
        for path, methods in described["paths"].items()
        for method, what in methods.items()
    )
    whole = html.escape(json.dumps(described, indent=2))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>thinned: the service</title>'
        f"<style>{STYLE}</style></head><body><main><h1>The service</h1>"
        f'<pre tabindex="0">{html.escape(_EXAMPLES)}</pre>{rows}<h2>OpenAPI</h2>'
        f'<p>For tools: <a href="openapi.json">openapi.json</a></p>'
        f'<pre tabindex="0">{whole}</pre></main></body></html>\n'
    )


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


def _response(told: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": told, "content": {"application/json": {"schema": schema}}}
