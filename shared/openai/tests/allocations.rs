//! Reading a request and watching its answer allocate nothing on the usual path.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use fairlead_openai::splice::{Located, decode_copy, member_of, prefill_copy};
use fairlead_openai::{Api, CachedPatch, SseWatch, canonical, scan};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only a thread-local cell
// without a destructor and without an allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    run();
    COUNT.get() - before
}

#[test]
fn requests_are_read_without_allocating() {
    let long = "text with \\n escapes \\\"and\\\" \\u00e9 ".repeat(500);
    let bodies = [
        (
            Api::Chat,
            format!(
                r#"{{"messages":[{{"role":"system","content":"s"}},{{"role":"user","content":[{{"type":"text","text":"{long}"}},{{"type":"image_url","image_url":{{"url":"data:,x"}}}}]}},{{"role":"assistant","tool_calls":[{{"id":"1","function":{{"name":"f","arguments":"{{}}"}}}}]}}],"tools":[{{"type":"function","function":{{"name":"f","parameters":{{"type":"object"}}}}}}],"model":"m","stream":true,"user":"u","x":{{"y":[1,2.5,null]}}}}"#
            ),
        ),
        (Api::Completions, format!(r#"{{"model":"m","prompt":["{long}",[1,2,3]]}}"#)),
        (
            Api::Messages,
            format!(
                r#"{{"model":"m","system":[{{"type":"text","text":"{long}","cache_control":{{"type":"ephemeral"}}}}],"messages":[{{"role":"user","content":[{{"type":"tool_result","tool_use_id":"t","content":"x","b":1,"a":2}}]}}]}}"#
            ),
        ),
        (
            Api::Responses,
            format!(r#"{{"model":"m","instructions":"i","input":[{{"role":"user","content":"{long}"}}]}}"#),
        ),
    ];
    for (api, body) in &bodies {
        let mut bytes = 0;
        let count = allocations(|| {
            let found = scan(body.as_bytes(), *api).expect("valid");
            canonical(body.as_bytes(), &found, *api, &mut |piece: &[u8]| bytes += piece.len());
        });
        assert!(bytes > 10_000);
        assert_eq!(count, 0, "{api:?}");
    }
}

#[test]
fn chunks_are_watched_without_allocating() {
    let chunk = b"data: {\"choices\":[{\"delta\":{\"content\":\" token\"}}],\"usage\":null}\n\n";
    let mut watch = SseWatch::new();
    watch.feed(chunk);
    let count = allocations(|| {
        for cut in 0..chunk.len() {
            watch.feed(&chunk[..cut]);
            watch.feed(&chunk[cut..]);
        }
    });
    assert_eq!((count, watch.events), (0, 1 + chunk.len() as u64));
}

#[test]
fn a_giant_line_needs_no_memory() {
    let mut watch = SseWatch::new();
    watch.feed(b"data: {\"usage\":{\"x\":\"");
    watch.feed(&[b'y'; 8192]);
    let count = allocations(|| {
        for _ in 0..1000 {
            watch.feed(&[b'y'; 16384]);
        }
    });
    assert_eq!(count, 0);
    assert!(watch.mid_event());
}

#[test]
fn legs_of_a_hand_off_cost_the_same_for_any_body() {
    let leg = |length: usize| {
        let text = "x".repeat(length);
        let body = Bytes::from(format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":5,"user":"{text}","stream":true,"stream_options":{{"include_usage":true}}}}"#
        ));
        // A shared buffer, as a connection's is: the first clone of an owned one allocates its counter.
        let _shared = body.clone();
        let params = Bytes::from_static(br#"{"do_remote_decode":true,"do_remote_prefill":false}"#);
        let before = BYTES.get();
        let count = allocations(|| {
            let located = Located::of(&body).expect("an object");
            let prefill = prefill_copy(&located, &body, Api::Chat, Some(params.clone()));
            let decode = decode_copy(&located, &body, params.clone());
            assert!(prefill.len() > 2 * length && decode.len() > 2 * length);
        });
        (count, BYTES.get() - before)
    };
    let (count, bytes) = leg(200);
    assert_eq!(leg(1_000_000), (count, bytes));
    assert!(count <= 16 && bytes < 4096, "{count} allocations of {bytes} bytes");
}

#[test]
fn answers_of_prefill_legs_are_read_and_corrected_without_allocating() {
    let mut answer = br#"{"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":64}},"kv_transfer_params":{"remote_block_ids":[[1,2,3]]}}"#.to_vec();
    let mut patch = CachedPatch::new(16);
    let count = allocations(|| {
        assert!(member_of(&answer, "kv_transfer_params").is_some());
        assert_eq!(patch.patch(&mut answer), 1);
    });
    assert_eq!(count, 0);
}
