"""Makes a small Qwen2 model with random weights and a real tokenizer.

usage: make_model.py OUT [TOKENIZER]

TOKENIZER is a folder with a Qwen2 tokenizer.json and tokenizer_config.json. Without it a tokenizer of the same kind
(Qwen2's normaliser, pre-tokeniser and byte-level BPE) is trained on a few sentences.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def trained_tokenizer():
    subjects = ["the scheduler", "a gateway", "every engine", "the agent", "this request", "its prompt"]
    verbs = ["keeps", "forwards", "evicts", "predicts", "counts", "restores"]
    text = (f"{s} {v} {n * n % 997} of {n} blocks, line {n};\n" for n in range(400) for s in subjects for v in verbs)
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(text, 2000)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def main(out, folder=None):
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(folder) if folder else trained_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # As many rows as tokens: whatever the model generates is a token that has a text.
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8192, tie_word_embeddings=True,
        eos_token_id=end, bos_token_id=None, pad_token_id=end,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    where = "of " + folder if folder else "trained here"
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens, {where}")


if __name__ == "__main__":
    main(*sys.argv[1:])
