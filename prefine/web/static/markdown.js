// A small, safe part of Markdown as DOM nodes: paragraphs, headings, lists, quotes, tables, code, bold and italic.
// Text becomes text nodes and nothing else. Links and images stay the text that they are: a model's answer is no
// place to click on. Every step is linear in the length of the text.

import { iconButton, make } from "./elements.js";

const FENCE = /^ *(`{3,}(?=[^`]*$)|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}(?:-{3,}|\*{3,}|_{3,}) *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ *(?:\| *)?(?::?-+:? *\| *)+(?::?-+:? *)?$/;
const MOST_DEPTH = 6;
const MOST_CELLS = 50; // of a row of a table; a wider one is shown as text

/** Show a text in an element. Blocks that are there already stay, so that streaming redraws the last one only. */
export function show(container, text) {
  const blocks = splitBlocks(text.split(/\r?\n/));
  const children = container.children;
  blocks.forEach((block, at) => {
    const source = block.lines.join("\n");
    const there = children[at];
    if (there && there.source === source && there.kind === block.kind) return;
    const made = draw(block, 0);
    made.source = source;
    made.kind = block.kind;
    if (there) there.replaceWith(made);
    else container.append(made);
  });
  while (children.length > blocks.length) container.lastElementChild.remove();
}

function splitBlocks(lines) {
  const blocks = [];
  let at = 0;
  const take = (kind, until) => {
    const start = at;
    at = until;
    blocks.push({ kind, lines: lines.slice(start, until) });
  };
  while (at < lines.length) {
    const line = lines[at];
    if (line.trim() === "") at += 1;
    else if (FENCE.test(line)) take("code", endOfFence(lines, at));
    else if (HEADING.test(line)) take("heading", at + 1);
    else if (RULE.test(line)) take("rule", at + 1);
    else if (ITEM.test(line)) take("list", endOfList(lines, at));
    else if (QUOTE.test(line)) take("quote", endWhere(lines, at, (each) => !QUOTE.test(each)));
    else if (isTableHead(line, lines[at + 1] ?? "")) take("table", endWhere(lines, at, (each) => !isTableRow(each)));
    else take("paragraph", endWhere(lines, at + 1, startsBlock));
  }
  return blocks;
}

function isTableRow(line) {
  return line.includes("|") && line.split("|").length <= MOST_CELLS;
}

function isTableHead(line, next) {
  return isTableRow(line) && TABLE_RULE.test(next);
}

function endWhere(lines, from, ends) {
  let at = from;
  while (at < lines.length && !ends(lines[at])) at += 1;
  return at;
}

function startsBlock(line) {
  return line.trim() === "" || FENCE.test(line) || HEADING.test(line) || ITEM.test(line) || QUOTE.test(line);
}

function endOfFence(lines, at) {
  const mark = FENCE.exec(lines[at])[1];
  const closes = (line) => line.trim().startsWith(mark) && line.trim().replaceAll(mark[0], "") === "";
  return Math.min(endWhere(lines, at + 1, closes) + 1, lines.length);
}

// A blank line belongs to a list where an item or an indented line follows.
function endOfList(lines, at) {
  let end = at + 1;
  while (end < lines.length && !FENCE.test(lines[end]) && !HEADING.test(lines[end])) {
    const next = lines[end];
    if (next.trim() === "") {
      const after = lines[end + 1] ?? "";
      if (!ITEM.test(after) && !/^ {2,}\S/.test(after)) break;
      if (FENCE.test(after)) break;
    }
    end += 1;
  }
  return end;
}

function draw({ kind, lines }, depth) {
  switch (kind) {
    case "code": return drawCode(lines);
    case "heading": return drawHeading(lines[0]);
    case "rule": return make("hr");
    case "list": return drawList(lines);
    case "quote": return drawQuote(lines.map((line) => QUOTE.exec(line)[1]), depth);
    case "table": return drawTable(lines);
    default: return inline(make("p"), lines.join("\n"));
  }
}

function drawCode(lines) {
  const [, mark, info] = FENCE.exec(lines[0]);
  const last = lines[lines.length - 1].trim();
  const isClosed = lines.length > 1 && last.startsWith(mark) && last.replaceAll(mark[0], "") === "";
  const indent = /^ */.exec(lines[0])[0].length;
  const body = lines.slice(1, isClosed ? -1 : lines.length);
  const text = body.map((line) => line.slice(Math.min(indent, /^ */.exec(line)[0].length))).join("\n");
  const language = info.trim().split(" ")[0].slice(0, 30);
  const head = make("div", { class: "code-head" }, make("span", {}, language || "code"));
  if (navigator.clipboard) {
    head.append(iconButton("copy", "Copy the code", () => navigator.clipboard.writeText(text)));
  }
  return make("div", { class: "code" }, head, make("pre", { tabIndex: 0 }, make("code", {}, text)));
}

function drawHeading(line) {
  const [, marks, text] = HEADING.exec(line);
  return inline(make(`h${Math.min(marks.length + 2, 6)}`), withoutClosing(text));
}

// A heading may end with a space and any number of #.
function withoutClosing(text) {
  const body = text.trimEnd();
  let end = body.length;
  while (end > 0 && body[end - 1] === "#") end -= 1;
  return body[end - 1] === " " ? body.slice(0, end).trimEnd() : body;
}

function drawQuote(lines, depth) {
  const quote = make("blockquote");
  if (depth >= MOST_DEPTH) quote.append(lines.join("\n"));
  else for (const block of splitBlocks(lines)) quote.append(draw(block, depth + 1));
  return quote;
}

function drawTable(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, name) => make("tr", {}, ...cells(line).map((cell) => inline(make(name), cell)));
  const [head, , ...body] = lines;
  const rows = make("tbody");
  for (const line of body) rows.append(row(line, "td"));
  return make("div", { class: "table", tabIndex: 0 }, make("table", {}, make("thead", {}, row(head, "th")), rows));
}

function drawList(lines) {
  const open = []; // the lists that the current item is in, outermost first
  let root = null;
  let item = null;
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (!found) {
      if (item && line.trim()) item.texts.push(line.trim());
      continue;
    }
    const [, spaces, marker, text] = found;
    while (open.length > 1 && spaces.length < open[open.length - 1].indent) open.pop();
    const deeper = open.length === 0 || spaces.length >= open[open.length - 1].indent + 2;
    if (deeper && open.length < MOST_DEPTH) {
      const ordered = /\d/.test(marker);
      const list = make(ordered ? "ol" : "ul", ordered ? { start: Number.parseInt(marker, 10) } : {});
      if (open.length) open[open.length - 1].last.append(list);
      else root = list;
      open.push({ indent: spaces.length, list, last: null });
    }
    finish(item);
    const current = open[open.length - 1];
    current.last = make("li");
    current.list.append(current.last);
    item = { element: current.last, texts: [text] };
  }
  finish(item);
  return root;
}

// An item's text stands before the lists within it.
function finish(item) {
  if (item) item.element.prepend(inline(document.createDocumentFragment(), item.texts.join("\n")));
}

/** Append text to an element, with `code`, **bold** and *italic*. Returns the element. */
export function inline(element, text, depth = 0) {
  const missing = new Set(); // marks that do not come again: no need to look for them again
  const closing = (mark, from) => {
    if (missing.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) missing.add(mark);
    return found;
  };
  let plain = "";
  const flush = () => {
    if (plain) element.append(plain);
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const character = text[at];
    if (character === "\\" && "\\`*_#".includes(text[at + 1] ?? " ")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    const mark = character === "`" ? /^`+/.exec(text.slice(at, at + 20))[0]
      : text.startsWith("***", at) ? "***"
      : text.startsWith("**", at) ? "**"
      : character === "*" ? "*" : "";
    const end = mark && /\S/.test(text[at + mark.length] ?? " ") ? closing(mark, at + mark.length) : -1;
    if (end <= at + mark.length || (mark[0] === "*" && (depth >= MOST_DEPTH || /\s/.test(text[end - 1])))) {
      plain += mark || character;
      at += mark.length || 1;
      continue;
    }
    flush();
    const inner = text.slice(at + mark.length, end);
    if (mark[0] === "`") element.append(make("code", {}, inner));
    else if (mark === "***") element.append(make("strong", {}, inline(make("em"), inner, depth + 1)));
    else element.append(inline(make(mark === "**" ? "strong" : "em"), inner, depth + 1));
    at = end + mark.length;
  }
  flush();
  return element;
}
