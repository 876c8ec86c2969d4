//! Any bytes as an event stream: any cutting gives the same result. The first byte says how the rest is cut.
#![no_main]

use fairlead_openai::{SseWatch, Usage, usage_of_json};
use libfuzzer_sys::fuzz_target;

type State = (Option<Usage>, bool, bool, u64, bool, &'static [u8]);

fn state(watch: &SseWatch) -> State {
    (watch.usage, watch.done, watch.failed, watch.events, watch.mid_event(), watch.separator())
}

fn watch<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> SseWatch {
    let mut watch = SseWatch::new();
    for piece in pieces {
        watch.feed(piece);
    }
    watch
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, stream)) = input.split_first() else { return };
    let mut whole = watch(std::iter::once(stream));
    let mut pieces = watch(stream.chunks(usize::from(cut) % 97 + 1));
    assert_eq!(state(&pieces), state(&whole));
    assert_eq!(whole.usage, usage_of_json(stream));
    pieces.finish();
    whole.finish();
    assert_eq!(state(&pieces), state(&whole));
    assert!(!whole.mid_event());
});
