"""The light client of Likeness: how alike are two products?

It needs NumPy and tritonclient, nothing that a model needs.
"""

from importlib.metadata import version

from likeness_client._channel import Tls
from likeness_client._discovery import ServerInfo
from likeness_client._operations import OnError
from likeness_client.async_client import AsyncClient
from likeness_client.client import Client
from likeness_client.contract import InputSchema, Metric
from likeness_client.errors import (
    BatchError,
    DeadlineExceededError,
    InputError,
    LikenessError,
    MissingExtraError,
    ModelNotFoundError,
    OverloadedError,
    ProductError,
    RecordError,
    ServerError,
    ServerUnavailableError,
    SpaceMismatchError,
)
from likeness_client.records import ImageSource, Product, VideoSource, read_products, scan_products
from likeness_client.results import Comparison, Embeddings, ScoreMatrix, Scores

__all__ = [
    "AsyncClient",
    "BatchError",
    "Client",
    "Comparison",
    "DeadlineExceededError",
    "Embeddings",
    "ImageSource",
    "InputError",
    "InputSchema",
    "LikenessError",
    "Metric",
    "MissingExtraError",
    "ModelNotFoundError",
    "OnError",
    "OverloadedError",
    "Product",
    "ProductError",
    "RecordError",
    "ScoreMatrix",
    "Scores",
    "ServerError",
    "ServerInfo",
    "ServerUnavailableError",
    "SpaceMismatchError",
    "Tls",
    "VideoSource",
    "__version__",
    "read_products",
    "scan_products",
]

__version__ = version("likeness")
