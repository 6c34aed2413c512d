"""A tokenizer of one token a byte and a chat template, for random models."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_letters() -> list[str]:
    """The 256 characters that stand for bytes, in the order of their tokens."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(
    words: dict[str, int] | None = None,
    merges: list[tuple[str, str]] | None = None,
    template: str | None = CHATML,
    **special: str,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with <|im_start|> and <|im_end|> after all other tokens; needs no download.

    Args:
        words: token -> id; one token a byte if None.
        merges: none if None.
        special: further roles of tokens, as bos_token; <|im_end|> ends and, unless given, pads.
    """
    words = {letter: place for place, letter in enumerate(byte_letters())} if words is None else words
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges or []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"} | special
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    made.chat_template = template
    return made
