//! Forms: no bytes make the scanner panic, and the model that it finds does not depend on the split.
#![no_main]

use fairlead_dataplane::http::form::{Found, FormScan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step) + 1;
    assert_eq!(scan(bytes, bytes.len().max(1)), scan(bytes, step));
});

fn scan(bytes: &[u8], step: usize) -> Found {
    let mut form = FormScan::new(b"multipart/form-data; boundary=b").expect("a boundary");
    let mut have = 0;
    loop {
        have = (have + step).min(bytes.len());
        let found = form.look(&bytes[..have]);
        if found != Found::Nothing || have == bytes.len() {
            return found;
        }
    }
}
