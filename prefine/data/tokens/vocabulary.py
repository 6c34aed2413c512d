"""Whether a model has an embedding for the tokens it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefine.errors import ModelError


def require_embedded(ids: Iterable[int], rows: int, tokenizer: Any) -> None:
    """Refuse token ids that a model's embedding has no row for, before they become an index error.

    A tokenizer may hold more tokens than a model: some are never used. One that occurs is an error.

    Args:
        ids: token ids that are to be computed.
        rows: of the embedding.
        tokenizer: transformers', to name the token.

    Raises:
        ModelError: with the first token beyond, its id, and what to do.
    """
    beyond = next((token for token in ids if token >= rows), None)
    if beyond is not None:
        raise ModelError(
            f"the token {tokenizer.convert_ids_to_tokens(beyond)!r} has id {beyond}, but the model's "
            f"embedding has {rows} rows",
            "Resize it (model.resize_token_embeddings(len(tokenizer))) and save the model again, or remove the token "
            "from the tokenizer and the chat template.",
            field="model.name",
        )
