use super::*;
use crate::prompt::{self, Api};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use std::io::Write as _;

const ALL: Take = Take { requests: u64::MAX, max_input: u32::MAX };

fn read(text: &str, take: Take) -> Result<Trace, TraceError> {
    Trace::read(text.as_bytes(), take, "t")
}

fn times(t: &Trace) -> Vec<f64> {
    t.talks.iter().map(|t| t.at.unwrap()).collect()
}

#[test]
fn requests_of_one_slot_are_spread_over_it() {
    let line = |t: u64| {
        format!("{{\"timestamp\": {t}, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [3]}}\n")
    };
    let text: String = [6000, 6000, 6000, 9000, 9000, 9050, 30_000, 30_000].into_iter().map(line).collect();
    let t = read(&text, ALL).unwrap();
    let want = [0.0, 1.0, 2.0, 3.0, 3.025, 3.05, 24.0, 25.5];
    assert!(times(&t).iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{:?}", times(&t));
    assert_eq!(t.arrival(2, 4.0), Some(Duration::from_millis(500)));
    assert_eq!(read(&text, Take { requests: 3, ..ALL }).unwrap().requests(), 3);
}

#[test]
fn the_three_forms_are_told_apart() {
    let mooncake = r#"{"timestamp": 5, "input_length": 1100, "output_length": 7, "hash_ids": [4, 5, 9]}"#;
    let t = read(mooncake, ALL).unwrap();
    let ask = Ask { input: 1100, output: 7, think: 0.0, shared: 0, fresh: Box::new([(4, 2), (9, 1)]) };
    assert_eq!(t.talks, [Talk { at: Some(0.0), prefix: 0, asks: vec![ask] }]);

    let session = r#"{"s":"x","tool":9,"sys":8,"r":[[0.0,700,5,0,7.3,0,0,[[0,2]]],[19.0,1500,6,12.5,9.1,1,1,[[7,2]]]]}"#;
    let t = read(session, ALL).unwrap();
    assert!(!t.timed() && t.requests() == 2);
    assert_eq!((t.talks[0].asks[1].shared, t.talks[0].asks[1].think), (1, 12.5));
    let t = read(session, Take { max_input: 1000, ..ALL }).unwrap();
    assert_eq!((t.requests(), t.left_out), (1, 1));

    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-12-31 23:59:58.5000000,374,44\r\n\
        2024-01-01 00:00:01,396,109\n";
    let t = read(azure, ALL).unwrap();
    assert_eq!(times(&t), [0.0, 2.5]);
    assert_eq!((t.talks[1].asks[0].input, t.talks[1].asks[0].output), (396, 109));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let good = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n";
    for (line, says) in [
        ("{\"timestamp\":0", "line 2: EOF"),
        ("{\"timestamp\":0}", "neither a request"),
        ("{\"timestamp\":-1,\"input_length\":1,\"output_length\":1}", "timestamp is out of range"),
        ("{\"timestamp\":0,\"input_length\":4000000000,\"output_length\":1}", "prompt of 4000000000"),
        ("{\"r\":[[0,9,9,0,0,0,3,[]]]}", "request 0 shares 3 blocks, the one before it has 0"),
        ("{\"r\":[[0,9,9,0,0,0,0,[[1,4000000000]]]]}", "4000000000 blocks"),
        ("2023-11-16 18:15:46,x,1", "\"x\" is not a number"),
        ("2023-13-16 18:15:46,1,1", "not a time"),
        ("hello", "fewer than the fields"),
    ] {
        let e = read(&format!("{good}{line}"), ALL).unwrap_err().to_string();
        assert!(e.contains("line 2") && e.contains(says), "{line}: {e}");
    }
    assert!(read("", ALL).unwrap_err().to_string().contains("no requests"));
    assert!(read(good, Take { max_input: 0, ..ALL }).unwrap_err().to_string().contains("--max-input"));
}

#[test]
fn gzip_is_seen_by_its_first_bytes() {
    let path = std::env::temp_dir().join(format!("fairlead-trace-{}.gz", std::process::id()));
    let mut z = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
    z.write_all(b"{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n").unwrap();
    z.finish().unwrap();
    let t = Trace::load(&path, ALL);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(t.unwrap().requests(), 1);
    let e = Trace::load(Path::new("/nowhere/x.jsonl"), ALL).unwrap_err().to_string();
    assert!(e.contains("cannot read the trace /nowhere/x.jsonl"), "{e}");
}

/// The prompt as a simulated engine sees it.
fn engine_text(message: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(message).unwrap();
    let body = serde_json::json!({"messages": [{"role": "user", "content": text}]}).to_string();
    prompt::parse(Api::Chat, body.as_bytes()).unwrap().prompts.pop().unwrap()
}

fn prompt_of(ids: &[u64], input: u32, own: u64, block: u32) -> Vec<u8> {
    let mut w = Writer::new(block, 4, Frame::of_sim(), 1);
    let mut out = Vec::new();
    w.write(&ask(input, 1, 0.0, 0, runs(ids)).unwrap(), own, &mut out);
    engine_text(&out)
}

proptest! {
    /// Lengths are those of the trace, and two prompts have exactly the blocks in common that their ids have.
    #[test]
    fn text_follows_ids(
        block in 16u32..600,
        common in 0usize..6,
        a in 1usize..5,
        b in 1usize..5,
        tail in 0u32..600,
        seed in any::<u64>(),
    ) {
        let ids = |from: u64, n: usize| (0..n as u64).map(move |i| seed.wrapping_add(from + i));
        let one: Vec<u64> = ids(0, common).chain(ids(100, a)).collect();
        let two: Vec<u64> = ids(0, common).chain(ids(200, b)).collect();
        let tokens = |path: &[u64]| path.len() as u32 * block + tail % block;
        let (x, y) = (prompt_of(&one, tokens(&one), 1, block), prompt_of(&two, tokens(&two), 2, block));
        prop_assert_eq!(prompt::count_tokens(&x), tokens(&one));
        prop_assert_eq!(prompt::count_tokens(&y), tokens(&two));
        let same = x.iter().zip(&y).take_while(|(p, q)| p == q).count();
        let shared = common * block as usize * 4;
        // The words that spell the id begin with the fourth.
        prop_assert!((shared..shared + 16 + 44).contains(&same), "{} {}", same, shared);
    }
}

#[test]
fn prompts_without_ids_are_all_different_and_short_ones_stand() {
    let (x, y) = (prompt_of(&[], 400, 1, 512), prompt_of(&[], 400, 2, 512));
    assert_eq!((prompt::count_tokens(&x), prompt::count_tokens(&y)), (400, 400));
    assert_ne!(x[..80], y[..80]);
    for input in [0, 1, 8, 9, 10] {
        assert_eq!(prompt::count_tokens(&prompt_of(&[7], input, 1, 512)), input.max(9));
    }
}

#[test]
fn a_session_keeps_what_it_shares() {
    let mut w = Writer::new(64, 4, Frame::of_sim(), 9);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    w.write(&ask(192, 1, 0.0, 0, Box::new([(10, 3)])).unwrap(), 1, &mut first);
    w.write(&ask(320, 1, 0.0, 2, Box::new([(40, 2), (90, 1)])).unwrap(), 2, &mut second);
    assert_eq!(w.path(), [10, 11, 40, 41, 90]);
    let (first, second) = (engine_text(&first), engine_text(&second));
    assert_eq!(first[..512], second[..512]);
    assert_ne!(first[512..576], second[512..576]);
}
