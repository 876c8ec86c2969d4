//! What tokenising costs: `cargo run --profile fast -p fairlead-tokens --example speed FOLDER` prints microseconds for
//! a tokenizer of yours.
#![allow(clippy::print_stdout, reason = "it prints figures")]

use std::hint::black_box;
use std::time::Instant;

use fairlead_tokens::{BlockHasher, PieceCache, TokenModel};
use serde_json::json;

fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..41)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn text(bytes: usize, seed: usize) -> String {
    let words = [
        "the", "router", "sends", "every", "request", "to", "an", "engine,", "that", "holds", "prefix", "42",
        "(cache)",
    ];
    let mut text = String::with_capacity(bytes + 10);
    let mut at = seed;
    while text.len() < bytes {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[(at >> 33) % words.len()]);
        text.push(' ');
    }
    text
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "shared/tokens/tests/data/headers".to_owned());
    let start = Instant::now();
    let model = TokenModel::load(&folder, None)?;
    println!("{folder}: loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    for kilobytes in [1, 10, 100] {
        let text = text(kilobytes * 1024, kilobytes);
        let tokens = model.encode_piece(&text, true)?.len();
        let time = median(|| drop(black_box(model.encode_piece(&text, true))));
        println!("{kilobytes:>4} KB of new text, {tokens} tokens: {time:.0} us");
    }
    for turns in [4, 40] {
        let mut messages = vec![json!({"role": "system", "content": text(2_000, 1)})];
        for turn in 0..turns {
            let role = if turn % 2 == 0 { "user" } else { "assistant" };
            messages.push(json!({"role": role, "content": text(1_000, turn + 7)}));
        }
        let body = serde_json::to_vec(&json!({"model": "m", "messages": messages}))?;
        let mut cache = PieceCache::new(64 << 20);
        model.encode_chat(&body, &mut cache)?;
        let render = median(|| drop(black_box(model.render_chat(&body))));
        let rendered = model.render_chat(&body)?;
        let look_up = median(|| drop(black_box(model.begin(&rendered, &mut cache))));
        let encoding = model.begin(&rendered, &mut cache);
        let hash = median(|| {
            let mut path = Vec::with_capacity(1024);
            let mut hasher = BlockHasher::from_root(1, 1, 256, &mut path);
            encoding.each(|ids| hasher.update_tokens(ids));
            black_box(path);
        });
        println!(
            "{turns:>4} turns, {} KB, {} tokens, all cached: render {render:.0} us, cut and look up {look_up:.0} us, hash {hash:.0} us",
            body.len() / 1024,
            encoding.tokens()
        );
    }
    Ok(())
}
