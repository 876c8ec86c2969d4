//! Request and response heads: no bytes make the parser panic; what it accepts does not depend on the split; what is
//! sent on is acceptable in turn and carries nothing that was to be removed.
#![no_main]

use fairlead_dataplane::http::{
    ClientHead, Framing, HeadLimits, OutgoingBody, Parsed, RequestHead, RequestIdRule, ResponseHead,
    UpstreamHead, Version,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let cut = bytes.len() * usize::from(cut) / 255;
    // A few fewer than may be parsed, because what is sent on gains some.
    let limits = HeadLimits { max_fields: 100, ..HeadLimits::default() };
    for plain in [false, true] {
        request(bytes, cut, &limits, plain);
    }
    response(bytes, cut, &limits);
});

fn request(bytes: &[u8], cut: usize, limits: &HeadLimits, plain: bool) {
    let mut whole = RequestHead::new();
    let outcome = whole.parse(bytes, limits);
    let mut split = RequestHead::new();
    let early = split.parse(&bytes[..cut], limits);
    let later = if early == Parsed::NeedMore { split.parse(bytes, limits) } else { early };
    assert_eq!(outcome, later);
    let Parsed::Done(len) = outcome else { return };
    assert!(len <= bytes.len());
    assert!(whole.path(bytes).starts_with('/') || whole.path(bytes) == "*");

    let plan = UpstreamHead {
        base_path: "",
        host: "engine",
        request_id: RequestIdRule::KeepOr("generated"),
        body: OutgoingBody::like(whole.framing()),
        add: &[],
        plain,
    };
    let mut sent = Vec::new();
    whole.write_upstream(bytes, &plan, &mut sent);
    let mut again = RequestHead::new();
    assert_eq!(again.parse(&sent, limits_for(&sent)), Parsed::Done(sent.len()));
    match whole.framing() {
        Framing::None => assert!(matches!(again.framing(), Framing::None | Framing::Length(0))),
        framing => assert_eq!(again.framing(), framing),
    }
    assert!(again.keep_alive() && !again.upgrade() && !again.expect_continue());
    assert!(again.request_id(&sent).is_some());
    for (name, _) in again.headers(&sent) {
        let name = name.to_ascii_lowercase().replace('_', "-");
        assert!(!plain || name != "accept-encoding", "{name}");
        let unwanted =
            ["connection", "te", "trailer", "keep-alive", "upgrade", "expect", "x-encoder-hosts-ports"];
        assert!(!unwanted.contains(&name.as_str()), "{name}");
        let steering =
            ["proxy-", "x-override-", "x-prefiller-", "x-data-parallel-", "x-fairlead-", "target-pod"];
        assert!(!steering.iter().any(|prefix| name.starts_with(prefix)), "{name}");
    }
}

/// What is added (an id, a host, a length) may lift a head over the limit for what comes from clients.
fn limits_for(sent: &[u8]) -> &'static HeadLimits {
    assert!(sent.len() < 100_000);
    &HeadLimits { max_bytes: 128 * 1024, max_fields: 128 }
}

fn response(bytes: &[u8], cut: usize, limits: &HeadLimits) {
    for to_head in [false, true] {
        let mut whole = ResponseHead::new();
        let outcome = whole.parse(bytes, to_head, limits);
        let mut split = ResponseHead::new();
        let early = split.parse(&bytes[..cut], to_head, limits);
        let later = if early == Parsed::NeedMore { split.parse(bytes, to_head, limits) } else { early };
        assert_eq!(outcome, later);
        let Parsed::Done(len) = outcome else { continue };
        assert!(len <= bytes.len());
        for version in [Version::Http10, Version::Http11] {
            let mut sent = Vec::new();
            let plan = ClientHead { version, keep_alive: true, own_id: false, add: &[("x-fairlead-instance", "e")] };
            whole.write_client(bytes, &plan, &mut sent);
            let parsed = ResponseHead::new().parse(&sent, to_head, limits_for(&sent));
            let interim = whole.status().is_informational();
            assert!(interim || parsed == Parsed::Done(sent.len()), "{parsed:?}");
        }
    }
}
