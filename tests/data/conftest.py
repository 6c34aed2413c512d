"""Small tokenizers, made on the spot, under the chat templates that models in use have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "My parcel is late. What now? It left Lyon this morning; expect it tomorrow.",
    "You work for a parcel service. Please wait. User: Assistant: System: system user assistant model",
    "<think>\nThe parcel is late.\n</think>\n\nhello there, hello world, im_end end start [INST] [/INST]",
] * 3
PRINTABLE = [chr(code) for code in range(32, 127)] + ["\n"]


def _trained(tokenizer: Tokenizer) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=["<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if tokenizer.pre_tokenizer else PRINTABLE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer)


def _sentencepiece(prefix: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    return _trained(tokenizer)


def _old_sentencepiece() -> Tokenizer:
    """As the first Llama's and Mistral's were converted: a normalizer writes the spaces, every piece is prefixed."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _trained(tokenizer)


def _words() -> Tokenizer:
    vocabulary = dict.fromkeys(word for text in CORPUS for word in text.replace(".", " .").replace("?", " ?").split())
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{w: i + 1 for i, w in enumerate(vocabulary)}}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": _byte_level,
    "sentencepiece, first": lambda: _sentencepiece("first"),
    "sentencepiece, always": lambda: _sentencepiece("always"),
    "sentencepiece, old": _old_sentencepiece,
    "words": _words,
}


@cache
def _base(kind: str) -> str:
    return KINDS[kind]().to_str()


@dataclass(frozen=True)
class Style:
    """A way chat templates are written.

    Attributes:
        turn: what the model is to write when its answer is `{}`.
        special, unflagged: control tokens, those that the tokenizer calls special and others.
        system: whether it takes a system turn.
        whole: whether it writes an earlier assistant turn as it wrote it when it was the last one.
    """

    template: str
    turn: str
    special: tuple[str, ...]
    unflagged: tuple[str, ...] = ()
    eos: str = ""
    bos: str | None = None
    system: bool = True
    whole: bool = True
    options: dict[str, Any] = field(default_factory=dict)


_CHATML_TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
_CHATML_OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

STYLES = {
    "chatml": Style(
        "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_OPENING,
        "{}<|im_end|>",
        _CHATML_TOKENS,
        eos="<|im_end|>",
        bos="<|im_start|>",
    ),
    "chatml with generation": Style(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
        + _CHATML_TURN
        + "{% endif %}{% endfor %}"
        + _CHATML_OPENING,
        "{}<|im_end|>",
        _CHATML_TOKENS,
        eos="<|im_end|>",
    ),
    "llama 3": Style(
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' "
        "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "{}<|eot_id|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
    ),
    "llama 2": Style(
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
        "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
        "{% for m in loop_messages %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        " {} </s>",
        ("<s>", "</s>"),
        eos="</s>",
        bos="<s>",
    ),
    "qwen 3": Style(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% set said = m['content'].split('</think>')[-1].lstrip('\\n') %}"
        "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') "
        "if '</think>' in m['content'] else '' %}"
        "{{ '<|im_start|>assistant\\n' "
        "+ ('<think>\\n' + thought + '\\n</think>\\n\\n' if loop.index0 > ns.last else '')"
        " + said + '<|im_end|>\\n' }}{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _CHATML_OPENING,
        "<think>\n\n</think>\n\n{}<|im_end|>",
        _CHATML_TOKENS,
        unflagged=("<think>", "</think>", "<tool_call>"),
        eos="<|im_end|>",
        whole=False,
    ),
    "harmony": Style(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% if loop.last %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|return|>' }}{% else %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% else %}"
        "{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        "<|channel|>final<|message|>{}<|return|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
        eos="<|return|>",
        whole=False,
    ),
    "zephyr": Style(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        "{}</s>",
        ("<s>", "</s>"),
        unflagged=("<|user|>", "<|assistant|>", "<|system|>"),
        eos="</s>",
        bos="<s>",
    ),
    "phi 3": Style(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        "{}<|end|>",
        ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        eos="<|endoftext|>",
    ),
    "gemma": Style(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') "
        "+ '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "{}<end_of_turn>",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
        system=False,
    ),
    "no end of turn": Style(
        "{% for m in messages %}{{ '### ' + m['role'] + ':\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}",
        "{}</s>",
        ("</s>",),
        eos="</s>",
    ),
    "plain": Style("", "{}</s>", ("</s>",), eos="</s>"),
}


def _tokenizer(style: Style, kind: str, **options: Any) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_base(kind)),
        eos_token=style.eos,
        **({"bos_token": style.bos} if style.bos else {}),
        **({} if kind == "byte-level" else {"unk_token": "<unk>"}),
        **style.options,
        **options,
    )
    made.add_special_tokens({"additional_special_tokens": list(style.special)})
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in style.unflagged])
    if style.template:
        made.chat_template = style.template
    else:
        from prefine.data.tokens.template_source import PLAIN_TEMPLATE

        made.chat_template = PLAIN_TEMPLATE
    return made


@pytest.fixture(scope="session")
def styles() -> dict[str, Style]:
    return STYLES


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> Style:
    return STYLES[request.param]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of tokenizer."""
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """`make_tokenizer(style, kind="byte-level", **options)` gives a transformers tokenizer."""

    def make(style: Style | str, kind: str = "byte-level", **options: Any) -> Any:
        return _tokenizer(STYLES[style] if isinstance(style, str) else style, kind, **options)

    return make
