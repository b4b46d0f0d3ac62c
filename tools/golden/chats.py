#!/usr/bin/env python3
"""Writes crates/chat/tests/fixtures/rendered.json: chats as transformers renders them, with the spans of its generation blocks;
and crates/data/tests/fixtures/chats.json: their token ids and masks of assistant tokens by the tokenizers there.

usage: python tools/golden/chats.py [--templates DIR] [--out FILE]

DIR: the `chat_templates` folder of an installed trl, from which TEMPLATES are copied beside the output, with its licence
(Apache-2.0). Templates of our own stand in OWN. Each case names a template, a chat of CHATS, whether it ends with the
generation prompt, and holds the text, or the message with which the template refuses the chat. Spans are in characters.
"""

import argparse
import datetime
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import transformers
import transformers.utils.chat_template_utils as utils

DATA = Path(__file__).resolve().parents[2] / "crates" / "data" / "tests" / "fixtures" / "chats.json"
ROOT = Path(__file__).resolve().parents[2] / "crates" / "chat" / "tests" / "fixtures"
TEMPLATES = """qwen2_5 qwen2_5_training qwen3 qwen3_training qwen3_instruct_2507 llama3 llama3_training llama3_1 gemma gemma_training
gemma3 gemma3_training phi3 phi3_training phi3_5 deepseek_r1_distill lfm2 lfm2_training""".split()

# In the manner of others, and what the engine has to know besides.
OWN = {
    "chatml_default_system": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "inst": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate user/assistant, got " + message["role"] ~ " at " ~ loop.index0) }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "engine": """{#- what templates may ask of the engine -#}
{%- macro show(x, name='x') -%}{{ name }}={{ x }};{%- endmacro -%}
{{- show(none) }}{{ show(true, name='t') }}{{ show(1.0) }}{{ show([1, 'a', none, true, 2.5]) }}{{ show({'k': "v'", 'n': none}) }}
{% set ns = namespace(n=0, last='') %}
{% for m in messages %}
  {%- if m.role == 'system' %}{% continue %}{% endif %}
  {%- set ns.n = ns.n + 1 %}
  {%- set ns.last = m.role %}
  {{- ns.n ~ ':' ~ m.role | upper ~ '/' }}
  {%- if m.content is string %}{{ m.content | trim | replace('o', '0') }}{{ m.content[:3] }}{{ m.content.split(' ')[-1] }}
  {%- elif m.content is iterable and m.content is sequence and m.content is not mapping %}
    {%- for part in m.content %}{% if part.type == 'text' %}{{ part['text'].strip() }}{% endif %}{% endfor %}
  {%- endif %}
  {%- if loop.previtem is defined %}<{{ loop.previtem.role }}>{% endif %}
  {%- if not loop.last %}{{ '|' }}{% endif %}
  {%- if ns.n > 6 %}{% break %}{% endif %}
{% endfor %}
   {{ messages | map(attribute='role') | join(',') }}   
  {% if 'user' in messages | map(attribute='role') | list %}has{% endif +%}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'z': 1, 'a': [1.5, 1e20, true, none, "q\\"é\\n\u007f</b>"], 'e': {}, 'l': []} | tojson }}
{{ {'z': 1, 'a': {'b': [1, 2]}, 'e': {}, 'l': []} | tojson(indent=2) }}
{{ {'b': 1, 'a': "é😀"} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}
{{ "abc".startswith('a') }} {{ "a-b-c".rsplit('-', 1) }} {{ "x" in "xyz" }} {{ 7 // 2 }} {{ 7 % 4 }} {{ -7 // 2 }} {{ 2 ** 5 }} {{ 6 / 3 }}
{{ "Title case".title() }} {{ "  pad ".lstrip() }}| {{ ("a" if undefined_thing is not defined else "b") }} {{ undefined_thing }}
{{ dict(a=1, b='x') }} {{ range(3) | list }} {{ [1, 2] + [3] }} {{ [3, 1, 2] | sort }} {{ messages[-1].role }} {{ messages[::-1][0].role }}
{{ 'é' | length }} {{ "%s" }} {{ [1,2,3] | first }} {{ {'a': 1}.get('b', 'none') }} {{ ({'a': 1}.items() | list)[0][0] }}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{{ "," if not loop.last }}{% endfor %} {{ loop is defined }}
{% if bos_token is defined %}{{ bos_token }}{% endif %}{{ strftime_now('%d %b %Y') }}{{ ns.last }}
""",
}

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place <now> & \"later\".",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "id": "call12345", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}

CHATS = {
    "one": {"messages": [{"role": "user", "content": "Hello there, who are you?"}]},
    "two": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help?"}]},
    "system": {
        "messages": [
            {"role": "system", "content": "You are terse.  "},
            {"role": "user", "content": " 2+2?\n"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "and 3+3?"},
            {"role": "assistant", "content": " six \n"},
        ]
    },
    "think": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"},
            {"role": "user", "content": "3+3?"},
            {"role": "assistant", "content": "6", "reasoning_content": "also easy"},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Weather in Zürich?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "{\"temp\": 3.5}"},
            {"role": "assistant", "content": "3.5 degrees."},
        ],
        "tools": [TOOL],
    },
    "odd": {"messages": [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "x"}, {"role": "user", "content": "y 中文 😀"}]},
    "empty": {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "user", "content": "{{ 7*7 }} <|im_end|> {% raw %}"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}, {"role": "assistant", "content": "three"}]},
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
NOW = datetime.datetime(2026, 11, 5, 7, 8, 9)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, chat, opened):
    kwargs = dict(SPECIAL)
    try:
        texts, spans = utils.render_jinja_template(
            [chat["messages"]],
            tools=chat.get("tools"),
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=opened,
            **kwargs,
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": texts[0], "spans": spans[0]}


TOKENIZERS = ["gpt2", "classes/llama-json", "classes/gemma-json", "classes/gpt2-added"]
MASKED = ["qwen3_training", "llama3_training", "gemma_training"]


def masks(sources):
    """Ids and masks by each tokenizer; chats that a template refuses are left out."""
    folder = DATA.parent
    cases = []
    for name in TOKENIZERS:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        for template in MASKED:
            for chat_name, chat in CHATS.items():
                try:
                    found = tokenizer.apply_chat_template(
                        chat["messages"],
                        tools=chat.get("tools"),
                        chat_template=sources[template],
                        tokenize=True,
                        return_dict=True,
                        return_assistant_tokens_mask=True,
                    )
                except Exception:
                    continue
                case = {"tokenizer": name, "template": template, "chat": chat_name}
                cases.append(case | {"input_ids": found["input_ids"], "mask": found["assistant_masks"]})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "rendered.json")
    parser.add_argument("--all", action="store_true", help="all templates of the folder, to look for gaps; they are not copied")
    args = parser.parse_args()
    utils.datetime = Clock
    folder = args.templates
    if folder is None:
        import trl

        folder = Path(trl.__file__).parent / "chat_templates"
    names = sorted(p.stem for p in folder.glob("*.jinja")) if args.all else TEMPLATES
    sources = {name: (folder / f"{name}.jinja").read_text() for name in names} | OWN
    copies = args.out.parent / "templates"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(parents=True)
    for name, source in sources.items():
        (copies / f"{name}.jinja").write_text(source)
    licence = folder.parent.parent / f"trl-{version('trl')}.dist-info" / "licenses" / "LICENSE"
    shutil.copy(licence, copies / "LICENSE-trl")
    cases = []
    for name, source in sources.items():
        for chat_name, chat in CHATS.items():
            for opened in (False, True):
                cases.append({"template": name, "chat": chat_name, "open": opened, **render(source, chat, opened)})
    versions = {package: version(package) for package in ("transformers", "jinja2", "trl")}
    out = {"versions": versions, "special_tokens": SPECIAL, "now": NOW.isoformat(), "chats": CHATS, "cases": cases}
    args.out.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    if not args.all:
        found = {"versions": versions, "cases": masks(sources)}
        DATA.write_text(json.dumps(found, ensure_ascii=False) + "\n")
        print(len(found["cases"]), "masks", file=sys.stderr)
    print(len(cases), "cases,", sum("error" in case for case in cases), "refused", file=sys.stderr)


if __name__ == "__main__":
    main()
