//! Corrected counts of cached tokens: what is overwritten, and that any cutting only ever leaves a count as it was.

mod common;

use common::{any_text, config};
use fairlead_openai::CachedPatch;
use proptest::prelude::*;
use serde_json::{Value, json};

fn patched(answer: &str, cached: u64) -> (String, usize) {
    let mut bytes = answer.as_bytes().to_vec();
    let count = CachedPatch::new(cached).patch(&mut bytes);
    (String::from_utf8(bytes).expect("ASCII digits for digits"), count)
}

#[test]
fn counts_are_overwritten_in_place() {
    let table = [
        (
            64,
            r#"{"usage":{"prompt_tokens_details":{"cached_tokens":1024}}}"#,
            Some(r#"{"usage":{"prompt_tokens_details":{"cached_tokens":  64}}}"#),
        ),
        (
            0,
            r#"{"usage":{"input_tokens_details":{"cached_tokens":7}}}"#,
            Some(r#"{"usage":{"input_tokens_details":{"cached_tokens":0}}}"#),
        ),
        (
            5,
            "data: {\"usage\" : { \"prompt_tokens\" : 20, \"prompt_tokens_details\" : {\"a\":[{\"cached_tokens\":22}], \"cached_tokens\" : 10 , \"audio_tokens\":33} } }\n\n",
            Some(
                "data: {\"usage\" : { \"prompt_tokens\" : 20, \"prompt_tokens_details\" : {\"a\":[{\"cached_tokens\":22}], \"cached_tokens\" :  5 , \"audio_tokens\":33} } }\n\n",
            ),
        ),
        // The new count does not fit.
        (100, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":99}}}"#, None),
        (u64::MAX, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":1234567890123456789}}}"#, None),
        // No plain count.
        (1, r#"{"usage":{"prompt_tokens_details":null}}"#, None),
        (1, r#"{"usage":null}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":null}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":"12"}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":-12}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":12.5}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":[12]}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"cached_tokens":12"#, None),
        // Another place.
        (1, r#"{"usage":{"cached_tokens":12,"prompt_tokens_details":{"x":{"cached_tokens":12}}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{"x":"cached_tokens","y":12}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":[{"cached_tokens":12}]}}"#, None),
        (1, r#"{"usage":{"x":{"prompt_tokens_details":{"cached_tokens":12}}}}"#, None),
        (1, r#"{"usage":{"prompt_tokens_details":{}},"prompt_tokens_details":{"cached_tokens":12}}"#, None),
        (1, r#"{"content":"\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":12}}"}"#, None),
        // Anthropic's counts depend on each other.
        (1, r#"{"usage":{"input_tokens":5,"cache_read_input_tokens":12}}"#, None),
    ];
    for (cached, answer, expected) in table {
        let (found, count) = patched(answer, cached);
        assert_eq!(found, expected.unwrap_or(answer));
        assert_eq!(count, usize::from(expected.is_some()), "{answer}");
    }
}

#[test]
fn every_count_of_a_stream_is_overwritten() {
    let event = "data: {\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":128}}}\n\n";
    let (found, count) = patched(&event.repeat(3), 16);
    assert_eq!((found, count), (event.replace("128", " 16").repeat(3), 3));
}

#[test]
fn ranges_are_what_is_overwritten() {
    let answer = br#"{"usage":{"prompt_tokens_details":{"cached_tokens":128}}}"#;
    let mut found = Vec::new();
    let mut patch = CachedPatch::new(16);
    patch.ranges(answer, |range| found.push(range));
    assert_eq!(found, vec![51..54]);
    let mut old = *b"128";
    patch.write(&mut old);
    assert_eq!(&old, b" 16");
    let mut short = *b"1";
    patch.write(&mut short);
    assert_eq!(&short, b"1");
}

fn answer(before: &str, name: &str, old: u64, after: &Value) -> Value {
    json!({
        "a": before,
        "usage": {"prompt_tokens": old, name: {"audio_tokens": 3, "cached_tokens": old, "x": after}, "z": after},
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_cutting_leaves_json_and_lengths(
        before in any_text(),
        after in common::any_value(),
        name in prop::sample::select(&["prompt_tokens_details", "input_tokens_details", "other"]),
        old in prop_oneof![0..10_000_u64, any::<u64>()],
        new in prop_oneof![0..10_000_u64, any::<u64>()],
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        pretty in any::<bool>(),
    ) {
        let document = answer(&before, name, old, &after);
        let original = if pretty { format!("{document:#}") } else { document.to_string() };
        let fits = old.to_string().len() >= new.to_string().len() && name != "other";
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(original.len() + 1)).collect();
        cuts.extend([0, original.len()]);
        cuts.sort_unstable();
        let mut bytes = original.clone().into_bytes();
        let mut patch = CachedPatch::new(new);
        let mut count = 0;
        for pair in cuts.windows(2) {
            count += patch.patch(&mut bytes[pair[0]..pair[1]]);
        }
        let digits = original.find("\"cached_tokens\":").unwrap() + "\"cached_tokens\":".len() + usize::from(pretty);
        let end = digits + old.to_string().len();
        let cut = cuts.iter().any(|cut| (digits + 1..=end).contains(cut));
        prop_assert_eq!(count, usize::from(fits && !cut), "{:?} of {}", cuts, original);
        let found: Value = serde_json::from_slice(&bytes).unwrap();
        let mut expected = document;
        if count == 1 {
            expected["usage"][name]["cached_tokens"] = new.into();
        }
        prop_assert_eq!(found, expected);
        for (at, (new, old)) in bytes.iter().zip(original.as_bytes()).enumerate() {
            prop_assert!(new == old || (digits..end).contains(&at));
        }
    }

    #[test]
    fn any_bytes_do_no_harm(
        mut bytes in "(\"usage\"|\"prompt_tokens_details\"|\"cached_tokens\"|[{}\\[\\]\":,\\\\ 0-9-]){0,40}"
            .prop_map(String::into_bytes),
        cached in any::<u64>(),
        cut in 1..9_usize,
    ) {
        let mut patch = CachedPatch::new(cached);
        for piece in bytes.chunks_mut(cut) {
            patch.patch(piece);
        }
    }
}
