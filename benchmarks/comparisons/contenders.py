"""How each kind of server is asked, as its callers would: the body is made and the answer is read in every request."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from likeness_bench.load_config import LoadConfig, open_client
from likeness_bench.sources import SourceConfig, read_sources
from likeness_client import Product, ServerInfo
from likeness_client.contract import InputSchema
from likeness_client.payloads import payloads
from numpy.typing import NDArray

from comparisons.rounds import ComparisonError, Embed


@asynccontextmanager
async def open_likeness(address: str, load: LoadConfig) -> AsyncIterator[tuple[Embed, ServerInfo]]:
    """Ask a Likeness server through its gRPC client, as the load harness does."""
    async with open_client(replace(load, address=address)) as client:

        async def embed(products: Sequence[Product]) -> NDArray[np.float32]:
            vectors: NDArray[np.float32] = (await client.embed(products)).vectors
            return vectors

        yield embed, await client.info()


def open_session() -> aiohttp.ClientSession:
    """Open a pool of HTTP connections that are kept alive, as many as there are callers; use it in ``async with``."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def infinity_embed(name: str, session: aiohttp.ClientSession, url: str, schema: InputSchema) -> Embed:
    """Ask infinity-emb for the texts of products; vectors come back as base64, the cheaper of its two ways."""

    async def embed(products: Sequence[Product]) -> NDArray[np.float32]:
        texts = [payloads(product, schema, ["text"])["text"].decode() for product in products]
        answer = await _post(session, f"{url}/embeddings", {"model": name, "input": texts, "encoding_format": "base64"})
        rows = [base64.b64decode(entry["embedding"]) for entry in answer["data"]]
        return np.stack([np.frombuffer(row, dtype=np.float32) for row in rows])

    return embed


def json_embed(session: aiohttp.ClientSession, url: str, schema: InputSchema, modalities: Sequence[str]) -> Embed:
    """Ask the FastAPI service, one product per request."""

    async def embed(products: Sequence[Product]) -> NDArray[np.float32]:
        answers = [
            await _post(session, f"{url}/embed", json_body(payloads(product, schema, modalities)))
            for product in products
        ]
        return np.array([answer["embedding"] for answer in answers], dtype=np.float32)

    return embed


def json_body(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Turn the bytes of a product's modalities into what a JSON service takes: pictures as base64."""
    body: dict[str, Any] = {}
    for modality, data in parts.items():
        if modality == "text":
            body[modality] = data.decode()
        elif modality == "attributes":
            body[modality] = json.loads(data)
        else:
            body[modality] = base64.b64encode(data).decode()
    return body


async def _post(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> Any:
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                raise ComparisonError(f"{url} answered {response.status}: {(await response.text())[:300]}")
            return await response.json()
    except aiohttp.ClientError as error:
        raise ComparisonError(f"{url} does not answer: {error}") from error


def read_some(file: Path, count: int) -> list[Product]:
    """Read the first products of a file.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    return [product for product, _ in read_sources(SourceConfig(file=file, count=count))]
