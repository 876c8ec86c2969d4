//! The request head that goes to an engine.

use http::Method;

use super::fields::{Kind, copy_lines};
use super::write::{write_field, write_length};
use super::{Framing, RequestHead};

/// How the body goes to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutgoingBody {
    /// No body. (Methods that usually have one are sent with `Content-Length: 0`.)
    None,
    /// This many bytes.
    Length(u64),
    /// In chunks made by the gateway; trailers of the client are not passed on.
    Chunked,
}

impl OutgoingBody {
    /// The form that corresponds to how the client sends it.
    pub fn like(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::UntilClose => Self::None,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked,
        }
    }
}

/// Which request id the engine gets.
#[derive(Clone, Copy, Debug)]
pub enum RequestIdRule<'a> {
    /// The client's where it sent a well-formed one, else this.
    KeepOr(&'a str),
    /// This, whatever the client sent (hand-offs that carry meaning in the id).
    Set(&'a str),
}

/// What the gateway decides about the head for the engine.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamHead<'a> {
    /// Prefix of the path that only exists outside; removed if the path has it. Empty: none.
    pub base_path: &'a str,
    /// `Host` for clients that sent none (HTTP/1.0).
    pub host: &'a str,
    /// Request id.
    pub request_id: RequestIdRule<'a>,
    /// Framing of the body.
    pub body: OutgoingBody,
    /// The gateway reads the answer itself, so it may not come compressed.
    pub plain: bool,
    /// Further fields, written as they are; names and values must be valid.
    pub add: &'a [(&'a str, &'a str)],
}

impl RequestHead {
    /// The path as the routes see it: without `base_path`. `None` if the path is not below it.
    pub fn route<'b>(&self, buf: &'b [u8], base_path: &str) -> Option<&'b str> {
        strip_base_path(self.path(buf), base_path)
    }

    /// Appends the head for the engine: origin form, hop-by-hop and steering fields left out, all other fields as the
    /// client wrote them and in its order, framing and request id set.
    pub fn write_upstream(&self, buf: &[u8], head: &UpstreamHead<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        let path = self.path(buf);
        out.extend_from_slice(strip_base_path(path, head.base_path).unwrap_or(path).as_bytes());
        out.extend_from_slice(self.query.get(buf));
        out.extend_from_slice(b" HTTP/1.1\r\n");

        let keep_host = self.authority.is_none() && self.host.is_some();
        if !keep_host {
            write_field("Host", self.host(buf).unwrap_or(head.host), out);
        }
        let id = match head.request_id {
            RequestIdRule::KeepOr(_) if self.request_id.is_some() => None,
            RequestIdRule::KeepOr(id) | RequestIdRule::Set(id) => Some(id),
        };
        let keep_length = match (head.body, self.facts.length) {
            (OutgoingBody::Length(out), Some(sent)) => out == sent && self.facts.length_plain,
            _ => false,
        };
        copy_lines(buf, &self.fields, self.len.saturating_sub(2), out, |field| match field.kind {
            Kind::Forward | Kind::Key | Kind::ContentType | Kind::ContentEncoding => true,
            Kind::Host => keep_host,
            Kind::AcceptEncoding => !head.plain,
            Kind::RequestId => id.is_none(),
            Kind::Length => keep_length,
            Kind::Drop
            | Kind::Ask
            | Kind::Coding
            | Kind::Connection
            | Kind::Expect
            | Kind::Upgrade
            | Kind::Trailer => false,
        });
        if let Some(id) = id {
            write_field("X-Request-Id", id, out);
        }
        match head.body {
            OutgoingBody::Length(_) if keep_length => {}
            OutgoingBody::Length(n) => write_length(n, out),
            OutgoingBody::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            OutgoingBody::None => {
                if matches!(self.method, Method::POST | Method::PUT | Method::PATCH) {
                    write_length(0, out);
                }
            }
        }
        for (name, value) in head.add {
            write_field(name, value, out);
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Removes `base` (with or without a slash at its end) from the front of `path`, at a segment border. `None`: the path
/// does not lie below it.
pub fn strip_base_path<'p>(path: &'p str, base: &str) -> Option<&'p str> {
    let base = base.trim_end_matches('/');
    let rest = path.strip_prefix(base)?;
    match rest.as_bytes().first() {
        Some(b'/') => Some(rest),
        None => Some("/"),
        Some(_) if base.is_empty() => Some(rest),
        Some(_) => None,
    }
}
