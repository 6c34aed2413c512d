"""Chat templates are programs that others wrote: what they may compute and write is bounded."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from prefine.data.tokens import rendering_budget
from prefine.data.tokens.rendering import Renderer
from prefine.errors import TemplateError
from tests.training.tiny import make_tokenizer

ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
CHATS = (ASKED, [*ASKED, {"role": "assistant", "content": "4, said {{ 7 * 7 }} <b> & ünï"}, *ASKED])
DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(60) %}@{% endfor %}{{ n.x }}"
LONG_LIST = "{% set x = ['a' * 100000] * 1000 %}"
LONG_TEXT = "{% set x = 'a' * 1000000 %}"
HOSTILE = {
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "computed for more than",
    ),
    "macros that call twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "computed for more than",
    ),
    "a lazy filter": (
        "{% for a in range(99999) %}{{ range(99999) | map('string') | select('eq', 'x') | list }}{% endfor %}",
        "computed for more than",
    ),
    "repeat": ("{{ 'a' * 500000000 }}", "writes more than"),
    "repeat a list": ("{{ ([0] * 100000000) | length }}", "writes more than"),
    "500 MB in a loop": ("{% for i in range(50000) %}{{ 'a' * 10000 }}{% endfor %}", "writes more than"),
    "doubled by ~": (DOUBLED.replace("@", "{% set n.x = n.x ~ n.x %}"), "writes more than"),
    "doubled by +": (DOUBLED.replace("@", "{% set n.x = n.x + n.x %}"), "writes more than"),
    "doubled by a block": (DOUBLED.replace("@", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"), "writes more than"),
    "power": ("{{ 10 ** (10 ** 10) }}", "computes a number of more than"),
    "square": (DOUBLED.replace("'ab'", "3").replace("@", "{% set n.x = n.x * n.x %}"), "computes a number"),
    "center": ("{{ 'x' | center(1000000000) }}", "writes more than"),
    "ljust": ("{{ 'x'.ljust(width=1000000000) }}", "writes more than"),
    "batch": ("{{ [1] | batch(1000000000, 'x') | list }}", "writes more than"),
    "%": ("{{ '%1000000000d' % 1 }}", "writes more than"),
    "% by a variable": ("{{ '%*d' % (1000000000, 1) }}", "width of a text from a variable"),
    "% over and over": ("{% set x = '%(a)s' * 100000 %}{{ x % {'a': 'b' * 100000} }}", "writes more than"),
    "the filter format": ("{{ '%1000000000d' | format(1) }}", "writes more than"),
    "format": ("{{ '{:1000000000}'.format(1) }}", "writes more than"),
    "format by a variable": ("{{ '{:{}}'.format(1, '1000000000') }}", "width of a text from a variable"),
    "format over and over": ("{% set x = '{0}' * 100000 %}{{ x.format('a' * 100000) }}", "writes more than"),
    "shared entries": (LONG_LIST + "{{ x }}", "writes more than"),
    "shared entries as JSON": (LONG_LIST + "{{ x | tojson }}", "writes more than"),
    "shared entries joined": (LONG_LIST + "{{ x | join }}", "writes more than"),
    "shared entries joined by a method": (LONG_LIST + "{{ ''.join(x) }}", "writes more than"),
    "a long joint": ("{{ range(99999) | map('string') | join('x' * 100000) }}", "writes more than"),
    "replace": (LONG_TEXT + "{{ x | replace('a', x) }}", "writes more than"),
    "replace nothing": (LONG_TEXT + "{{ x.replace('', x) }}", "writes more than"),
    "indent": ("{{ ('\\n' * 100000) | indent(1000) }}", "indents by more than"),
    "JSON indented": ("{{ range(9999) | list | tojson(indent=9999) }}", "indents by more than"),
    "a page of words": ("{{ lipsum(n=1000000) }}", "'lipsum' is undefined"),
    "lists summed": ("{{ ([[1]] * 100000) | sum(start=[]) }}", "No filter named 'sum'"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "itself": ("x" * 2_000_000, "prefine reads at most"),
}
HONEST = {
    "chatml": make_tokenizer().chat_template,
    "filters": "{% for m in messages %}{{ m.content | trim | upper | replace('A', 'b') | indent(2) }}"
    "{{ m | tojson(indent=2) }}{{ [m.role, 'x'] | join('-') }}{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | join('|', attribute='content') }}{% endfor %}",
    "operators": "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t ~ m.content + '%s %5.2f' % "
    "(m.role, 1.5) %}{{ '-' * 3 }}{{ 2 ** 10 }}{{ loop.index0 * 2 }}{% endfor %}{{ n.t }}",
    "macros": "{% macro say(m) %}<{{ m['role'] }}>{{ caller() if caller else '' }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "methods": "{% for m in messages %}{{ '{}: {text:>10}'.format(m.role, text='x') }}{{ m.content.split('+')[-1] }}"
    "{{ ' '.join(['a', 'b']) }}{{ m.content.replace('2', 'two') }}{% generation %}g{% endgeneration %}{% endfor %}",
    "names": "{{ bos_token }}{{ eos_token }}{{ tools is none }}{% if add_generation_prompt %}go{% endif %}"
    "{{ none }}{{ true }}{{ 1.5 }}{{ [1, 'a'] }}{{ {'a': 1} }}",
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    return make_tokenizer(template=template)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_one_line_within_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering_budget, "_MAX_SECONDS", 0.3)
    template, reason = HOSTILE[name]
    began = time.thread_time()
    with pytest.raises(TemplateError) as refused:
        Renderer(tokenizer(template)).render(ASKED, opened=True)
    assert time.thread_time() - began < 5
    assert reason in str(refused.value)
    assert str(refused.value).startswith("model.chat_template: ")
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_template_renders_as_transformers_renders_it(name: str, chat: Any, opened: bool) -> None:
    one = tokenizer(HONEST[name])
    theirs = one.apply_chat_template(chat, tokenize=False, add_generation_prompt=opened)
    assert Renderer(one).render(chat, opened=opened) == theirs


def test_a_long_conversation_is_not_a_hostile_one() -> None:
    long = [{"role": role, "content": "words " * 20_000} for role in ("user", "assistant")] * 50
    one = make_tokenizer()
    assert Renderer(one).render(long, opened=False) == one.apply_chat_template(long, tokenize=False)


def test_a_template_changed_later_is_compiled_again() -> None:
    one = tokenizer("a")
    renderer = Renderer(one)
    assert renderer.render(ASKED, opened=True) == "a"
    one.chat_template = "b"
    assert renderer.render(ASKED, opened=True) == "b"
