//! A tokenizer for which every word of a trace's prompts is one token, so that tokens, blocks and hits of a trace are the
//! same through it as in a replay. The words are added tokens: they are found by their bytes, and a prompt of 12,000
//! tokens costs well under a millisecond.

use serde_json::{Map, Value, json};

use crate::text::word;

/// A chat template that adds nothing to the messages.
pub const BARE_TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

/// Different words in the prompts of traces.
const WORDS: u64 = 64;

/// The tokenizer, as a tokenizer.json has it. Other text is a token a byte.
pub fn tokenizer() -> Vec<u8> {
    let vocab: Map<String, Value> =
        (0..=u8::MAX).map(|byte| (stand_in(byte).to_string(), Value::from(byte))).collect();
    let added: Vec<Value> = (0..WORDS)
        .map(|number| {
            let content = String::from_utf8_lossy(word(number));
            json!({"id": 256 + number, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": []});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes, "model": model});
    file.to_string().into_bytes()
}

/// The printable character that stands for a byte in byte-level vocabularies: itself where it is printable, else the
/// next one from U+0100 on.
fn stand_in(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('?')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Ask, Frame, Writer};
    use fairlead_tokens::{PieceCache, TokenModel};

    #[test]
    fn a_prompt_has_the_tokens_that_the_trace_says() {
        let model = TokenModel::from_parts(&tokenizer(), None, Some(BARE_TEMPLATE)).unwrap();
        let mut cache = PieceCache::new(1 << 20);
        let mut encode = |ids: (u64, u32), input: u32| {
            let mut writer = Writer::new(512, 4, Frame { before: 0, behind: 0 }, 1);
            let mut text = Vec::new();
            let ask = Ask { input, output: 1, think: 0.0, shared: 0, fresh: [ids].into() };
            writer.write(&ask, 7, &mut text);
            let body = json!({"messages": [{"role": "user", "content": String::from_utf8(text).unwrap()}]});
            model.encode_chat(body.to_string().as_bytes(), &mut cache).unwrap()
        };
        for (ids, input) in
            [((40, 1), 1), ((40, 1), 511), ((40, 1), 512), ((40, 3), 1_300), ((90, 24), 12_000)]
        {
            assert_eq!(encode(ids, input).len(), input as usize, "{input} tokens");
        }
        let (long, short) = (encode((40, 3), 1_300), encode((40, 2), 1_024));
        assert_eq!(long[..1_024], short);
        assert_ne!(encode((41, 1), 512), short[..512]);
    }
}
