//! What a request's headers ask of the router.
//!
//! Fields that ask are refused where they make no sense: whoever sends them wants something, and would otherwise not
//! learn that it did not happen. Fields that name a session or user are taken as they come. A session is looked up,
//! never connected to, and a request's id is not its session.

use fairlead_routing::text_key;

use super::answer::{Refusal, shown};
use crate::http::RequestHead;
use crate::routing::{Asked, BadAsk};

/// Longest value of a field that asks, bytes.
const LONGEST: usize = 256;
/// Longest label selector, bytes.
const LONGEST_FILTER: usize = 1024;
/// Longest limit that may be asked for, milliseconds: an hour.
const MOST_MS: f64 = 3_600_000.0;

/// What the headers ask.
#[derive(Debug, Default)]
pub struct Wishes<'h> {
    /// How to route.
    pub asked: Asked<'h>,
    /// Key of the session that they name.
    pub session: Option<u64>,
    /// Key of the user that they name.
    pub user: Option<u64>,
    /// Say why.
    pub explain: bool,
}

/// The fields read here.
const NAMES: [&str; 15] = [
    "routing-strategy",
    "config-profile",
    "external-filter",
    "x-llm-d-slo-ttft-ms",
    "x-llm-d-slo-tpot-ms",
    "x-slo-ttft-ms",
    "x-slo-tpot-ms",
    "x-fairlead-explain",
    "x-aibrix-session-key",
    "x-session-id",
    "x-claude-code-session-id",
    "x-dynamo-session-id",
    "x-smg-routing-key",
    "user",
    "x-user-id",
];

/// A value found, and the rank of the name it stood under: the lowest wins.
#[derive(Default)]
struct Best(Option<(u8, u64)>);

impl Best {
    fn take(&mut self, rank: u8, value: &[u8]) {
        if !value.is_empty() && self.0.is_none_or(|(have, _)| rank < have) {
            self.0 = Some((rank, text_key(value)));
        }
    }

    fn key(self) -> Option<u64> {
        self.0.map(|(_, key)| key)
    }
}

impl<'h> Wishes<'h> {
    /// Reads the fields of a head.
    ///
    /// # Errors
    /// One that asks makes no sense, or stands there twice.
    pub fn read(head: &RequestHead, buf: &'h [u8]) -> Result<Self, Refusal> {
        let mut wishes = Self::default();
        let (mut session, mut user) = (Best::default(), Best::default());
        // Newer names win over those that they replaced.
        let (mut old_ttft, mut old_tpot) = (None, None);
        for (name, value) in head.for_router(buf) {
            let asked = &mut wishes.asked;
            // Their own spelling, since names come in any case: nothing is allocated for it.
            match NAMES.iter().find(|known| known.eq_ignore_ascii_case(name)).copied().unwrap_or_default() {
                "routing-strategy" => once(&mut asked.strategy, name, text(name, value, LONGEST)?)?,
                "config-profile" => once(&mut asked.profile, name, text(name, value, LONGEST)?)?,
                "external-filter" => once(&mut asked.filter, name, text(name, value, LONGEST_FILTER)?)?,
                "x-llm-d-slo-ttft-ms" => once(&mut asked.ttft_us, name, limit(name, value)?)?,
                "x-llm-d-slo-tpot-ms" => once(&mut asked.tpot_us, name, limit(name, value)?)?,
                "x-slo-ttft-ms" => once(&mut old_ttft, name, limit(name, value)?)?,
                "x-slo-tpot-ms" => once(&mut old_tpot, name, limit(name, value)?)?,
                "x-fairlead-explain" => wishes.explain |= value == b"1" || value == b"true",
                "x-aibrix-session-key" => session.take(0, value),
                "x-session-id" => session.take(1, value),
                "x-claude-code-session-id" => session.take(2, value),
                "x-dynamo-session-id" => session.take(3, value),
                "x-smg-routing-key" => session.take(4, value),
                "user" => user.take(0, value),
                "x-user-id" => user.take(1, value),
                _ => {}
            }
        }
        wishes.asked.ttft_us = wishes.asked.ttft_us.or(old_ttft);
        wishes.asked.tpot_us = wishes.asked.tpot_us.or(old_tpot);
        wishes.session = session.key();
        wishes.user = user.key();
        Ok(wishes)
    }
}

/// Puts a value where none may be yet. An empty one is as good as absent.
fn once<T>(slot: &mut Option<T>, name: &str, value: Option<T>) -> Result<(), Refusal> {
    match value {
        Some(_) if slot.is_some() => Err(bad(name, " is given more than once")),
        Some(value) => {
            *slot = Some(value);
            Ok(())
        }
        None => Ok(()),
    }
}

fn bad(name: &str, what: &str) -> Refusal {
    let name = name.to_ascii_lowercase();
    Refusal::new(400, format!("header `{name}`{what}")).code("invalid_header").param(&name)
}

fn text<'h>(name: &str, value: &'h [u8], longest: usize) -> Result<Option<&'h str>, Refusal> {
    if value.len() > longest {
        return Err(bad(name, &format!(" is longer than {longest} bytes")));
    }
    match std::str::from_utf8(value) {
        Ok("") => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(bad(name, " is not UTF-8")),
    }
}

/// A limit in milliseconds, as microseconds: digits with at most one point among them. Zero is no limit.
fn limit(name: &str, value: &[u8]) -> Result<Option<u32>, Refusal> {
    let Some(text) = text(name, value, LONGEST)? else {
        return Err(bad(name, " is empty; it takes a number of milliseconds"));
    };
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.parse::<f64>() {
        Ok(ms) if plain && ms <= MOST_MS => Ok(Some((ms * 1e3).round() as u32)),
        _ => {
            let what = format!(" is {:?}; it takes a number of milliseconds up to {MOST_MS}", shown(text));
            Err(bad(name, &what))
        }
    }
}

/// The answer for who asks for what does not exist.
pub fn refused(what: &BadAsk) -> Refusal {
    match what {
        // As AIBrix flags it.
        BadAsk::Strategy(why) => Refusal::new(400, format!("header `routing-strategy`: {why}"))
            .code("invalid_routing_strategy")
            .param("routing-strategy")
            .fields(&[("x-error-invalid-routing-strategy", "true")]),
        BadAsk::Profile(why) => Refusal::new(400, format!("header `config-profile`: {why}"))
            .code("unknown_profile")
            .param("config-profile"),
        BadAsk::Filter(why) => bad("external-filter", &format!(": {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, Parsed};

    fn read<T>(lines: &str, then: impl FnOnce(Result<Wishes<'_>, Refusal>) -> T) -> T {
        let bytes = format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        let mut head = RequestHead::new();
        assert_eq!(
            head.parse(bytes.as_bytes(), &HeadLimits::default()),
            Parsed::Done(bytes.len()),
            "{lines:?}"
        );
        then(Wishes::read(&head, bytes.as_bytes()))
    }

    #[test]
    fn what_is_asked_is_read() {
        read(
            "Routing-Strategy: a:2, b:1 \r\nconfig-profile: chat\r\nX-SLO-TTFT-MS: 1.5\r\nx-fairlead-explain: 1\r\n",
            |w| {
                let wishes = w.unwrap();
                assert_eq!((wishes.asked.strategy, wishes.asked.profile), (Some("a:2, b:1"), Some("chat")));
                assert_eq!(
                    (wishes.asked.ttft_us, wishes.asked.tpot_us, wishes.explain),
                    (Some(1500), None, true)
                );
            },
        );
        read("x-slo-ttft-ms: 5\r\nx-llm-d-slo-ttft-ms: 7\r\nx-llm-d-slo-tpot-ms: 0\r\n", |w| {
            let asked = w.unwrap().asked;
            assert_eq!((asked.ttft_us, asked.tpot_us), (Some(7000), Some(0)), "the new name wins");
        });
        read("routing-strategy:\r\nconfig-profile: \r\nx-fairlead-explain: 0\r\n", |w| {
            let wishes = w.unwrap();
            assert_eq!((wishes.asked.strategy, wishes.asked.profile, wishes.explain), (None, None, false));
        });
    }

    #[test]
    fn sessions_and_users_have_an_order_of_names() {
        let keys = |lines: &str| read(lines, |w| w.map(|w| (w.session, w.user)).unwrap());
        let key = |text: &str| Some(text_key(text.as_bytes()));
        for (lines, want) in [
            ("", (None, None)),
            ("x-request-id: r\r\nx-correlation-id: c\r\n", (None, None)),
            ("x-session-id: s\r\nuser: u\r\n", (key("s"), key("u"))),
            ("x-session-id: s\r\nX-AIBrix-Session-Key: a\r\n", (key("a"), None)),
            ("x-session-id:\r\nx-claude-code-session-id: c\r\n", (key("c"), None)),
            ("x-session-id: one\r\nx-session-id: two\r\n", (key("one"), None)),
            ("x-user-id: b\r\nuser: a\r\n", (None, key("a"))),
        ] {
            assert_eq!(keys(lines), want, "{lines:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let long = "x".repeat(LONGEST + 1);
        for (lines, says) in [
            ("routing-strategy: a\r\nRouting-Strategy: a\r\n", "`routing-strategy` is given more than once"),
            (&*format!("routing-strategy: {long}\r\n"), "`routing-strategy` is longer"),
            (&*format!("config-profile: {long}\r\n"), "`config-profile` is longer"),
            ("x-slo-ttft-ms: soon\r\n", "`x-slo-ttft-ms` is \"soon\""),
            ("x-slo-ttft-ms: -1\r\n", "`x-slo-ttft-ms`"),
            ("x-slo-ttft-ms: 1e3\r\n", "`x-slo-ttft-ms`"),
            ("x-slo-ttft-ms: inf\r\n", "`x-slo-ttft-ms`"),
            ("x-slo-tpot-ms: 1.2.3\r\n", "`x-slo-tpot-ms`"),
            ("x-slo-tpot-ms: .\r\n", "`x-slo-tpot-ms`"),
            ("x-llm-d-slo-tpot-ms:\r\n", "`x-llm-d-slo-tpot-ms` is empty"),
            ("x-llm-d-slo-ttft-ms: 3600001\r\n", "`x-llm-d-slo-ttft-ms`"),
            ("x-llm-d-slo-ttft-ms: 1\r\nx-llm-d-slo-ttft-ms: 1\r\n", "more than once"),
        ] {
            let refusal = read(lines, |w| w.map(|_| ()).unwrap_err());
            assert_eq!(refusal.status, 400);
            assert!(refusal.message.contains(says), "{lines:?}: {}", refusal.message);
        }
    }
}
