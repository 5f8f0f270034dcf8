"""Read the bytes of a dataset: a local file, or an object of a bucket by s3:// or gs://."""

import asyncio
from pathlib import Path

from flotilla.errors import InvalidSpec, Transient
from flotilla.evaluation.dataset import MAX_BYTES, DatasetInvalid

_BUCKETS = ("s3://", "gs://")


async def read_dataset(source: str) -> bytes:
    """Raises DatasetInvalid where there is nothing to read, Transient where a bucket does not answer."""
    if source.startswith(_BUCKETS):
        return await asyncio.to_thread(_object, source)
    path = Path(source)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetInvalid(f"{source} has more than {MAX_BYTES} bytes. Take a part of it.")
        return await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise DatasetInvalid(f"{source} cannot be read: {error.strerror}.") from error


def _object(source: str) -> bytes:
    """By the environment's credentials, as the clouds' own tools read them."""
    try:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise InvalidSpec(
            f"{source} needs the package obstore: install flotilla-operator[buckets].", field="dataset"
        ) from error
    bucket, _, key = source.partition("://")[2].partition("/")
    try:
        found = obstore.get(from_url(f"{source.partition('://')[0]}://{bucket}"), key)
        if found.meta["size"] > MAX_BYTES:
            raise DatasetInvalid(f"{source} has more than {MAX_BYTES} bytes. Take a part of it.")
        return bytes(found.bytes())
    except FileNotFoundError as error:
        raise DatasetInvalid(f"{source} does not exist.") from error
    except BaseError as error:
        raise Transient(f"{source} cannot be read: {error}") from error
