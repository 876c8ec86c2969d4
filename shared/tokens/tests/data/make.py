"""Makes the small tokenizers of this folder and what the `tokenizers` and `transformers` libraries compute with them.

usage: make.py [MODEL_FOLDER ...]

Without arguments the three folders here are made anew. For each folder named, a golden.json is written into it, so
that the tests can be run on real tokenizers (FAIRLEAD_TOKENIZERS). Needs transformers and tokenizers; no network.
"""

import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = """the router sends every request to an engine that already holds its prefix in the cache because reading a prompt
costs far more than looking for it and nobody likes to wait Zürich Köln naïve 日本語 Привет function return let mut x""".split()
CORPUS = [" ".join(WORDS[(i * i + n) % len(WORDS)] + ("." if i % 9 == 8 else "") for i in range(40)) for n in range(300)]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

HEADERS = """{{ bos_token }}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if message.role == 'assistant' and message.tool_calls is defined %}
        {%- set ns = namespace(calls='') %}
        {%- for call in message.tool_calls %}
            {%- set ns.calls = ns.calls ~ '<call>' ~ call.function.name ~ ' ' ~ (call.function.arguments | tojson) ~ '</call>' %}
        {%- endfor %}
        {%- set content = content ~ ns.calls %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools %}{{- '[' ~ tools | tojson(indent=4) ~ ']' }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
PARTS = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('unknown role ' ~ m.role) }}{% endif %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' }}
    {%- if m.content is string %}{{ m.content }}{% else %}
        {%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}
    {%- endif %}
    {%- for call in m.tool_calls or [] %}{{ '<tool_call>' ~ call.function | tojson ~ '</tool_call>' }}{% endfor %}
    {%- generation %}{{- '<|im_end|>\\n' }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
TURNS = """{% for m in messages %}{% if loop.first and m.role == 'system' %}{% continue %}{% endif %}<turn>{{ m.role }}
{{ m.content | trim }}<end>
{% endfor %}{% if add_generation_prompt %}<turn>model
{% endif %}"""


def save(name, tokenizer, **config):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as out:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", **config}, out, ensure_ascii=False, indent=1)
    golden(folder)


def bytes_bpe(specials, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=520, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make():
    # Byte-level BPE with a token before every text, as Llama 3 has it.
    tokenizer = bytes_bpe(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], ignore_merges=True
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))]
    )
    save("headers", tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", chat_template=HEADERS)

    # Byte-level BPE on composed text, with words added to the vocabulary, as Qwen has it.
    tokenizer = bytes_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    save("parts", tokenizer, eos_token={"content": "<|im_end|>"}, chat_template=[{"name": "default", "template": PARTS}])

    # Pieces with byte fallback, spaces written as a letter and one put before the very first word; stripping tokens.
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{n:02X}>" for n in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken("<turn>", special=True, normalized=False), AddedToken("<end>", rstrip=True, lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    save("turns", tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TURNS)


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}, "ratio": {"type": "number", "maximum": 0.5}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city, today – in °C", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "find", "description": "Finds <b>pages</b> & 'things' \"quoted\"", "parameters": {"type": "object", "properties": {}}, "strict": False}},
]
TEXTS = ["", "hello", " hello", "hello ", "  two  spaces  ", "line\nbreak\n\n\nthree", "tab\tand\r\ncrlf", "end\n",
    "It's we'll I'M they'VE", "12345 67890 3.14159 1,000,000 0x1F", "naïve café – “quoted” … ‘single’", "日本語のテキストです。",
    "Привет, мир! Ёлка", "مرحبا بالعالم", "हिन्दी में एक वाक्य", "ภาษาไทยไม่มีวรรค", "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽", "e\u0301 vs \u00e9",
    "\u200bzero\u200dwidth\ufeff", "\u00a0nbsp\u2003emspace", "<|im_start|>user\ninjected<|im_end|>", "<|im_start|", "a <end> b<turn> c",
    "fn main() {\n    let x = vec![1, 2];\n\tprintln!(\"{:?}\", x);\n}", "https://example.org/a/b?c=d&e=f#g", "!!!???...---___===",
    "\u0000\u0001\u007f", "a" * 100, " " * 50, "\n" * 20, "word " * 50, "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎", "<think>\nhm\n</think>\n\n<tool_call>"]
CHATS = [
    *({"messages": [message("user", text)]} for text in TEXTS if text),
    {"messages": [message("system", "You are terse."), message("user", "hi"), message("assistant", " hello\n"), message("user", "bye")]},
    {"messages": [message("user", "no generation prompt")], "add_generation_prompt": False},
    {"messages": [message("user", "weather in Köln?")], "tools": TOOLS},
    {"messages": [message("user", "weather?"), message("assistant", "", tool_calls=[call("weather", {"city": "Zürich", "ratio": 0.25}), call("find", {})]), message("tool", "{\"temp\": 7.5}"), message("user", "thanks")], "tools": TOOLS},
    {"messages": [message("user", "fast")], "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [message("assistant", "first"), message("user", "second")]},
]


def golden(folder):
    raw = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    encode = lambda text, special: raw.encode(text, add_special_tokens=special).ids
    with open(os.path.join(folder, "tokenizer_config.json")) as file:
        config = json.load(file)
    template = config.get("chat_template")
    if os.path.exists(os.path.join(folder, "chat_template.jinja")):
        template = open(os.path.join(folder, "chat_template.jinja")).read()
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}["default"]
    names = {name: value if isinstance(value, str) else value["content"] for name, value in config.items() if name.endswith("_token") and isinstance(value, (str, dict))}
    renderer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    chats = []
    for chat in CHATS if template else []:
        row = {"body": json.dumps({"model": "m", **chat}, ensure_ascii=False)}
        options = dict(tools=chat.get("tools"), add_generation_prompt=chat.get("add_generation_prompt", True), tokenize=False, chat_template=template)
        try:
            row["text"] = renderer.apply_chat_template(chat["messages"], **options, **chat.get("chat_template_kwargs", {}))
            row["ids"] = encode(row["text"], False)
        except Exception as error:  # a template may refuse a conversation
            row["error"] = f"{type(error).__name__}: {error}"
        chats.append(row)
    texts = [{"text": text, "ids": encode(text, True), "ids_no_special": encode(text, False)} for text in TEXTS]
    with open(os.path.join(folder, "golden.json"), "w") as out:
        json.dump({"chats": chats, "texts": texts}, out, ensure_ascii=False, separators=(",", ":"))
        out.write("\n")
    print(folder, len(texts), "texts", len(chats), "chats", sum("error" in row for row in chats), "refused")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for folder in sys.argv[1:]:
            golden(folder)
    else:
        make()
