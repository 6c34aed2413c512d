"""Checks that a model has embeddings for the tokens it gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefine.errors import ModelError


def require_embedded(ids: Iterable[int], rows: int, tokenizer: Any) -> None:
    """Refuse token ids without a row in the model's embedding, before they raise an index error.

    A tokenizer may have more tokens than the model, as long as they do not occur.

    Args:
        ids: token ids to compute.
        rows: of the embedding.
        tokenizer: transformers', to name the token.

    Raises:
        ModelError: names the first such token and its id.
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
