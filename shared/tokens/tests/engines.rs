//! Token ids must be those of the `tokenizers` and `transformers` libraries, which the engines use.
//!
//! The small vectors in `tests/data` were made with them. A folder named by `FAIRLEAD_TOKENIZERS` may hold more: one
//! folder per model with its tokenizer files and a `golden.json` of the same form.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

use fairlead_tokens::{PieceCache, TokenModel};
use serde_json::Value;

fn folders() -> Vec<PathBuf> {
    let mut folders = vec![];
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let more = std::env::var_os("FAIRLEAD_TOKENIZERS").map(PathBuf::from);
    for root in [Some(data), more].into_iter().flatten() {
        for entry in std::fs::read_dir(root).unwrap().flatten() {
            if entry.path().join("golden.json").exists() {
                folders.push(entry.path());
            }
        }
    }
    folders.sort();
    folders
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_equal_those_of_the_engines_libraries() {
    let mut wrong = Vec::new();
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = match TokenModel::load(&folder, None) {
            Ok(model) => model,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let golden: Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let mut cache = PieceCache::new(1 << 20);
        let (mut texts, mut chats, mut refused) = (0, 0, 0);
        for text in golden["texts"].as_array().unwrap() {
            for (member, add_special) in [("ids", true), ("ids_no_special", false)] {
                let prompt = text["text"].as_str().unwrap();
                let got = model.encode_text(prompt, add_special, &mut cache);
                texts += 1;
                if got.as_deref() != Ok(&ids(&text[member])[..]) {
                    let shown: String = prompt.chars().take(40).collect();
                    wrong.push(format!("{name}: {member} of {shown:?}: {got:?} instead of {}", text[member]));
                }
            }
        }
        for chat in golden["chats"].as_array().unwrap() {
            let body = chat["body"].as_str().unwrap();
            match (chat.get("text"), model.render_chat(body.as_bytes())) {
                // What the engine refuses may be routed anywhere.
                (None, _) => refused += 1,
                (Some(_), Err(error)) => wrong.push(format!("{name}: {error} for {body}")),
                (Some(expected), Ok(rendered)) => {
                    chats += 1;
                    if rendered.text() != expected.as_str().unwrap() {
                        wrong.push(format!("{name}: {:?} instead of {expected}", rendered.text()));
                        continue;
                    }
                    let got = model.encode(&rendered, &mut cache).unwrap();
                    if got != ids(&chat["ids"]) {
                        wrong.push(format!("{name}: {got:?} instead of {} for {expected}", chat["ids"]));
                    }
                }
            }
        }
        println!("{name}: {texts} texts, {chats} chats, {refused} refused");
    }
    let count = wrong.len();
    let shown: Vec<String> = wrong.into_iter().map(|line| line.chars().take(700).collect()).collect();
    assert!(shown.is_empty(), "{count} differ:\n{}", shown.join("\n"));
}
