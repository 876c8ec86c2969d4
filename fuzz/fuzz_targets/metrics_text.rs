//! The metrics page reader: no input panics, figures make sense, and how the page is cut makes no difference.
#![no_main]

use fairlead_agent::metrics::{Field, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first two bytes say where to cut.
    let Some((cut, page)) = data.split_first_chunk::<2>() else { return };
    let mut whole = Reader::new();
    whole.feed(page);
    let whole = whole.finish();
    for rank in 0..whole.ranks() + 1 {
        for field in Field::ALL {
            let figure = whole.get(rank, field).unwrap_or(0.0);
            assert!(figure.is_finite() && figure >= 0.0);
        }
    }
    let at = usize::from(u16::from_le_bytes(*cut)).min(page.len());
    let mut halves = Reader::new();
    halves.feed(&page[..at]);
    halves.feed(&page[at..]);
    assert_eq!(halves.finish(), whole);
});
