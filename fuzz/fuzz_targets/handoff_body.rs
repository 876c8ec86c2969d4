//! Any bytes as a body to be handed off, and as an engine's answer: edits of a scanned body are bodies again, with the
//! values that were given; members found are values; corrected counts change no length, however the answer is cut. The
//! first byte says how, and which API it is.
#![no_main]

use bytes::Bytes;
use fairlead_openai::splice::{
    Edits, Located, MAX_PIECES, Member, decode_copy, member_in, member_of, object_of, prefill_copy,
};
use fairlead_openai::{Api, CachedPatch, scan, validate};
use libfuzzer_sys::fuzz_target;

const APIS: [Api; 5] = [Api::Chat, Api::Completions, Api::Responses, Api::Messages, Api::Other];

const PARAMS: &str = r#"{"do_remote_decode":true}"#;

fn body(body: &[u8], api: Api) {
    let located = Located::of(body);
    if scan(body, api).is_err() {
        return;
    }
    let Some(located) = located else { return };
    let body = Bytes::copy_from_slice(body);
    let every = Member::ALL.iter().fold(Edits::new(&located, &body), |edits, member| edits.set(*member, "1"));
    let none = Member::ALL.iter().fold(Edits::new(&located, &body), |edits, member| edits.remove(*member));
    let edited = [
        prefill_copy(&located, &body, api, Some(PARAMS.into())),
        decode_copy(&located, &body, PARAMS.into()),
        every.finish(),
        none.finish(),
    ]
    .map(|edited| {
        assert!(edited.pieces().len() <= MAX_PIECES);
        let whole = edited.pieces().concat();
        assert_eq!(whole.len(), edited.len());
        assert!(validate(&whole).is_ok());
        whole
    });
    let value = |body: &[u8], member: Member| member_of(body, member.name()).map(|span| span.of(body).to_vec());
    for edited in &edited[..2] {
        assert_eq!(value(edited, Member::KvTransferParams).as_deref(), Some(PARAMS.as_bytes()));
    }
    for member in Member::ALL {
        assert_eq!(value(&edited[2], *member).as_deref(), Some(&b"1"[..]));
        assert_eq!(value(&edited[3], *member), None);
    }
}

fn answer(answer: &[u8], cut: usize) {
    for name in ["kv_transfer_params", "usage"] {
        if let Some(span) = member_of(answer, name) {
            assert!(validate(span.of(answer)).is_ok());
        }
        if let Some(span) = object_of(answer, name)
            && let Some(inner) = member_in(answer, span, "transfer_mode")
        {
            assert!(span.start < inner.start && inner.end < span.end);
            assert!(validate(inner.of(answer)).is_ok());
        }
    }
    let valid = validate(answer).is_ok();
    let mut patched = answer.to_vec();
    let mut patch = CachedPatch::new(cut as u64);
    for piece in patched.chunks_mut(cut) {
        patch.patch(piece);
    }
    for (new, old) in patched.iter().zip(answer) {
        assert!(new == old || old.is_ascii_digit());
    }
    if valid {
        assert!(validate(&patched).is_ok());
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, bytes)) = input.split_first() else { return };
    body(bytes, APIS[usize::from(first) % APIS.len()]);
    answer(bytes, usize::from(first) + 1);
});
