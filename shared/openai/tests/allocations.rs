//! Reading a request and watching its answer allocate nothing on the usual path.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fairlead_openai::{Api, SseWatch, canonical, scan};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only a thread-local cell
// without a destructor and without an allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
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
