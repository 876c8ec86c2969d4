//! Payloads of KV-cache events: nothing panics, decoding allocates nothing, and a mirror keeps within its bound and
//! tells what it holds.
#![no_main]

use fairlead_agent::kv::event::{Batch, Event};
use fairlead_agent::kv::{Mirror, MirrorConfig, Ops};
use fairlead_wire::msg::CacheOp;
use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes on to the system's allocator unchanged.
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

const MAX_BYTES: usize = 4096;

fn read(payload: &[u8]) {
    let Ok(batch) = Batch::decode(payload) else { return };
    let mut tokens = 0;
    for event in batch.events() {
        match event {
            Ok(Event::Stored(event)) => {
                let pages = event.hashes.len();
                assert_eq!(event.hashes.count(), pages as usize);
                let many = event.tokens.len();
                assert_eq!(event.tokens.count(), many as usize);
                tokens += many as usize;
                assert!(event.extra_keys.pages(event.lora_name).count() <= payload.len());
            }
            Ok(Event::Removed(event)) => assert!(event.hashes.count() <= payload.len()),
            _ => {}
        }
    }
    assert!(tokens <= payload.len(), "each token takes a byte");
}

fuzz_target!(|data: &[u8]| {
    // First byte: whether copies count, and tokens of a routing block. Then payloads, each with its length before it.
    let Some((block, mut rest)) = data.split_first() else { return };
    let config = MirrorConfig {
        seed: 1,
        block_tokens: u32::from(*block >> 1),
        model: "m".into(),
        max_bytes: MAX_BYTES,
        copies: (block & 1 == 1).then_some(8),
    };
    let mut mirror = Mirror::new(config, false);
    let mut held: BTreeSet<u64> = BTreeSet::new();
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(after.len());
        let (payload, after) = after.split_at(len);
        rest = after;
        let before = ALLOCATED.get();
        read(payload);
        assert_eq!(ALLOCATED.get(), before, "decoding allocates");
        let Ok(batch) = Batch::decode(payload) else { continue };
        let mut ops = Ops::default();
        for event in batch.events().flatten() {
            mirror.apply(&event, &mut ops);
            assert!(mirror.bytes() <= MAX_BYTES);
        }
        for op in ops.take() {
            match op {
                CacheOp::Store { blocks, .. } => held.extend(blocks),
                CacheOp::Remove { blocks, .. } => held.retain(|block| !blocks.contains(block)),
                CacheOp::Clear => held.clear(),
            }
        }
        assert_eq!(held.len(), mirror.blocks());
    }
});
