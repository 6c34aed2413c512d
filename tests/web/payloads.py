"""Texts that attack a page, and the elements that a text may become."""

from __future__ import annotations

# Of OWASP's and PortSwigger's cheat sheets, by the kind of the hole; each would set window.hacked.
PAYLOADS = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=1>",
    "<svg><script>window.hacked=1</script></svg>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<details open ontoggle=window.hacked=1>x</details>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.hacked=1>",
    "<body onload=window.hacked=1>",
    "<input autofocus onfocus=window.hacked=1>",
    "<a href='javascript:window.hacked=1' id=click>click</a>",
    "<base href='http://127.0.0.1:9/'>",
    "<style>@import 'http://127.0.0.1:9/x.css';</style>",
    "<meta http-equiv=refresh content='0;url=javascript:window.hacked=1'>",
    "[click](javascript:window.hacked=1)",
    '![x](x" onerror="window.hacked=1)',
    "<javascript:window.hacked=1>",
    '```"><img src=x onerror=window.hacked=1>\n</code></pre><script>window.hacked=1</script>\n```',
    "`</code><img src=x onerror=window.hacked=1>`",
    "# <img src=x onerror=window.hacked=1>",
    "- <img src=x onerror=window.hacked=1>",
    "> <img src=x onerror=window.hacked=1>",
    "|<img src=x onerror=window.hacked=1>|\n|-|\n|<svg onload=window.hacked=1>|",
    "**<img src=x onerror=window.hacked=1>**",
    "\u202e<script>window.hacked=1</script>\u0000",
    "</textarea><script>window.hacked=1</script>",
    "{{constructor.constructor('window.hacked=1')()}}",
    "__proto__",
]
# What answers are made of; nothing else may come into being from a text.
ALLOWED = {
    *("p", "h3", "h4", "h5", "h6", "hr", "ul", "ol", "li", "blockquote", "div", "table", "thead", "tbody", "tr", "th"),
    *("td", "code", "pre", "strong", "em", "span", "button", "svg", "path"),
}
