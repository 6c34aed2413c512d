"""Chat templates that behave as those of well-known models do, in words of our own, and what their tokenizers hold."""

from __future__ import annotations

from tests.data.conftest import Style

_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen 3: JSON calls in tags, results as user turns, reasoning of the last exchange alone, thinking that can be off.
QWEN3 = Style(
    """
{%- if tools %}
{{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '') + '# Tools\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}
{{- '<think>\\n' + (m.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{- m.content }}
{%- for call in m.tool_calls or [] %}{% set call = call.function or call %}
{{- '\\n' if not loop.first or m.content }}{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- (call.arguments if call.arguments is string else call.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}""",
    "{}<|im_end|>",
    _CHATML,
    unflagged=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    eos="<|im_end|>",
)

# DeepSeek R1: thought is cut out of what was said, answers are opened with <think>, arguments are text.
R1 = Style(
    """
{{- bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- elif m.role == 'assistant' and m.content is none %}{{- '<|Assistant|>' }}
{%- for call in m.tool_calls %}
{{- '<|call|>' + call.function.name + '\\n' + call.function.arguments + '<|end of call|>' }}{% endfor %}
{{- eos_token }}
{%- elif m.role == 'assistant' %}{{- '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}
{%- elif m.role == 'tool' %}{{- '<|output|>' + m.content + '<|end of output|>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{% endif %}""",
    "{}<|end of sentence|>",
    (
        "<|begin of sentence|>",
        "<|end of sentence|>",
        "<|User|>",
        "<|Assistant|>",
        "<|call|>",
        "<|end of call|>",
        "<|output|>",
        "<|end of output|>",
    ),
    unflagged=("<think>", "</think>"),
    bos="<|begin of sentence|>",
    eos="<|end of sentence|>",
)

# Mistral: turns must alternate, calls need nine-character ids, and only calls or text are written.
MISTRAL = Style(
    """
{{- bos_token }}{% if messages[0].role == 'system' %}{% set talk = messages[1:] %}{% else %}{% set talk = messages %}
{%- endif %}{% set ns = namespace(due='user', last=none) %}
{%- for m in talk %}{% if m.role == 'user' %}{% set ns.last = m %}{% endif %}{% endfor %}
{%- for m in talk %}{% if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}
{%- if m.role != ns.due %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}
{%- set ns.due = 'assistant' if m.role == 'user' else 'user' %}{% endif %}{% endfor %}
{%- for m in talk %}
{%- if m.role == 'user' %}
{%- if m == ns.last and tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}{{- '[INST]' + (messages[0].content + '\\n\\n' if loop.first and messages[0].role == 'system' else '') }}
{{- m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{- '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}
{%- if call.id is undefined or call.id | length != 9 %}{{ raise_exception('ids must have length 9') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + ', "id": "' + call.id }}
{{- '"}' + ('' if loop.last else ', ') }}{% endfor %}{{- ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}
{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' + m.content | tojson + '[/TOOL_RESULTS]' }}
{%- endif %}{% endfor %}""",
    "{}</s>",
    (
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    bos="<s>",
    eos="</s>",
)

# Llama 3.1: one call a turn, text beside it is lost, results are JSON of a role of their own.
LLAMA31 = Style(
    """
{{- bos_token }}
{%- if tools %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}{{- '<|eot_id|>' }}{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('Only single tool-calls are supported') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson + '}<|eot_id|>' }}
{%- elif m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "{}<|eot_id|>",
    ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
)
