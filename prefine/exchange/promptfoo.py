"""Promptfoo (promptfoo.dev): a folder that `promptfoo eval` runs, and the results that it writes with `-o FILE.json`.

Texts of rows are data: Promptfoo renders templates in expected values and reads files that a value names, so both are
escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefine.errors import DataError
from prefine.exchange.cases import Battle, Case, Suite, Turns
from prefine.exchange.files import write_files
from prefine.exchange.openai_evals import Check
from prefine.exchange.results import ResultLog, ResultRow
from prefine.json_reading import JsonError, read_json
from prefine.judges.endpoint import endpoint_url
from prefine.judges.template import JudgeTemplate
from prefine.runs.atomic import json_bytes

_CONFIG = "promptfooconfig.yaml"
_SCHEMA = "# yaml-language-server: $schema=https://promptfoo.dev/config-schema.json\n"
# What Nunjucks or Promptfoo would not leave as it is.
_SPECIAL = re.compile(r"\{\{|\{%|\{#|#\}|\A\s*(?:file|package)://?|\A\s*package:")
_LETTERS = ("A", "B")
_CLOSING = "Reply with one letter and nothing else: A if answer A is better, B if answer B is better."
# The whole reply: in a sentence, "A" may be an article. Python and JavaScript read it alike.
_VERDICT = r"^[\W_]*(?:[Aa]nswer[\W_]+)?({letters})[\W_]*$"
_NO_VERDICT = "the reply is not a verdict"
_KEY_VARIABLE = "PREFINE_ENDPOINT_KEY"
# Promptfoo would send the user's OPENAI_API_KEY to any endpoint if the configuration had no key of its own.
_KEY = f"{{{{ env.{_KEY_VARIABLE} | default('none', true) }}}}"


def write_config(
    suite: Suite, folder: Path, name: str, check: Check = "starts", *, model: str, url: str | None
) -> list[str]:
    """Write promptfooconfig.yaml, prompt.txt and tests; returns the configuration files, for `promptfoo eval -c`.

    Args:
        suite: what to write; battles go to a folder `battle` of their own if there are cases, too.
        folder: for the files.
        name: the configuration's description.
        check: how an answer is compared with the expected ones.
        model: its name at the endpoint; of battles the judge.
        url: of the OpenAI-compatible endpoint; None for OpenAI's. Promptfoo sends it the key in PREFINE_ENDPOINT_KEY.

    Raises:
        RecipeError: the URL is not one of an endpoint, or holds a key.
        DataError: the folder has a configuration already; nothing to write.
        CheckpointError: the files cannot be written.
    """
    suite.require()
    provider: dict[str, Any] = {"id": f"openai:chat:{model}", "config": {"temperature": 0}}
    if url is not None:
        provider["config"] |= {"apiBaseUrl": endpoint_url(url, _KEY_VARIABLE), "apiKey": _KEY}
    parts = {folder: [_case_test(case, check) for case in suite.cases]} if suite.cases else {}
    if suite.battles:
        template = JudgeTemplate(closing=_CLOSING)
        parts[folder / "battle" if suite.cases else folder] = [_battle_test(each, template) for each in suite.battles]
    for place in parts:
        if (place / _CONFIG).exists():
            raise DataError(f"--out: {place / _CONFIG} exists already", "Choose another folder.")
    config = {
        "description": name,
        "prompts": ["file://prompt.txt"],
        "providers": [provider],
        "defaultTest": {"options": {"disableVarExpansion": True}},
        "tests": "file://tests.jsonl",
    }
    files: dict[Path, str] = {}
    for place, tests in parts.items():
        files[place / "prompt.txt"] = "{{ messages }}"
        files[place / "tests.jsonl"] = b"".join(map(json_bytes, tests)).decode()
        files[place / _CONFIG] = _SCHEMA + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_files(files)
    return [str(place / _CONFIG) for place in parts]


def escaped(text: str) -> str:
    """A value that Promptfoo renders to this text."""
    if not _SPECIAL.search(text):
        return text
    return '{{ "' + text.replace("\\", "\\\\").replace('"', '\\"') + '" }}'


def _case_test(case: Case, check: Check) -> dict[str, Any]:
    values = [escaped(each) for each in case.expected]
    one = {"starts": "starts-with", "contains": "contains"}[check]
    checks: list[dict[str, Any]] = [{"type": one, "value": value} for value in values]
    # One of several is enough.
    asserts = checks if len(checks) == 1 else [{"type": "assert-set", "threshold": 1 / len(checks), "assert": checks}]
    metadata = {"id": case.id, "category": case.category, "expected": json.dumps(case.expected, ensure_ascii=False)}
    return {"description": case.id, "vars": {"messages": _json(case.prompt)}, "assert": asserts, "metadata": metadata}


def _battle_test(battle: Battle, template: JudgeTemplate) -> dict[str, Any]:
    question = template.fill(battle.prompt, *battle.answers)
    right = "[AB]" if battle.better is None else _LETTERS[battle.sides.index(battle.better)]
    wanted = {"type": "regex", "value": _VERDICT.format(letters=right)}
    return {
        "description": battle.id,
        "vars": {"messages": _json(({"role": "user", "content": question},))},
        "assert": [wanted],
        "metadata": {
            "id": battle.id,
            "category": battle.category,
            "sides": " ".join(battle.sides),
            **{name: _plain(value) for name, value in battle.origin.items()},
        },
    }


def _plain(value: Any) -> str:
    """A text, or JSON of what is none."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(turns: Turns) -> str:
    """A chat as JSON text without braces in its strings, which Promptfoo might take for a template.

    In a list instead of a text, it would look for file names.
    """
    return "[" + ", ".join(f'{{"role": {_quoted(t["role"])}, "content": {_quoted(t["content"])}}}' for t in turns) + "]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("{", "\\u007b").replace("}", "\\u007d")


def read_results(path: Path) -> ResultLog:
    """Read results of `promptfoo eval -o FILE.json` or `promptfoo export`.

    Raises:
        DataError: it is not such a file.
    """
    try:
        value = read_json(path)
    except JsonError as error:
        raise DataError(f"{path} cannot be read: {error}", "Give a file of promptfoo eval -o FILE.json.") from None
    except (OSError, ValueError) as error:  # ValueError: the name holds NUL
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", "Name a result file."
        ) from None
    results = value.get("results") if isinstance(value, dict) else None
    listed = results.get("results") if isinstance(results, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise DataError(f"{path} has no list results.results", "Give a file of promptfoo eval -o FILE.json.")
    stats = _object(_object(value, "results"), "stats")
    report: dict[str, Any] = {name: stats[name] for name in ("successes", "failures", "errors") if name in stats}
    return ResultLog(
        str(_object(value, "config").get("description") or path.stem), [_row(each) for each in listed], report
    )


def _row(result: Mapping[str, Any]) -> ResultRow:
    grading, response, provider = (_object(result, name) for name in ("gradingResult", "response", "provider"))
    test = _object(result, "testCase")
    metadata = _object(result, "metadata") | _object(test, "metadata")
    output = response.get("output")
    answer = output if isinstance(output, str) or output is None else json.dumps(output, ensure_ascii=False)
    sides = str(metadata.get("sides") or "").split()
    is_battle = answer is not None and len(sides) == len(_LETTERS)
    found = re.match(_VERDICT.format(letters="[AB]"), answer or "") if is_battle else None
    choice = found[1] if found else None
    no_verdict = is_battle and choice is None
    # Promptfoo counts a reply without a verdict as a failed one, as if the judge had preferred the other answer.
    score, graded = result.get("score"), bool(grading) and not no_verdict
    failed = _NO_VERDICT if no_verdict else str(result.get("error") or "") if not graded else ""
    return ResultRow(
        id=str(metadata.get("id", test.get("description", result.get("testIdx", "")))),
        model=str(provider.get("label") or provider.get("id") or ""),
        answer=answer,
        expected=_expected(metadata.get("expected")),
        passed=bool(result.get("success")) if graded else None,
        score=float(score) if graded and isinstance(score, int | float) else None,
        choice=choice,
        winner=sides[_LETTERS.index(choice)] if choice is not None else None,
        error=failed.split("\n", 1)[0],
    )


def _expected(text: object) -> tuple[str, ...]:
    try:
        listed = json.loads(text) if isinstance(text, str) else []
    except ValueError:
        return ()
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


def _object(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}
