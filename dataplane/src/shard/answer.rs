//! Answers that the gateway gives itself.

use std::borrow::Cow;

use bytes::Bytes;
use fairlead_openai::{Api, ErrorInfo, ErrorStyle, error_body, error_event};
use http::StatusCode;

use crate::http::{Answer, Reject, Version};

/// An error for a client, before it is put into the shape of the client's API.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What happened, for people.
    pub message: String,
    code: Option<&'static str>,
    param: Option<String>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    fields: &'static [(&'static str, &'static str)],
}

impl Refusal {
    /// An error of that status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            code: None,
            param: None,
            retry_after: None,
            allow: None,
            fields: &[],
        }
    }

    /// Adds a machine-readable code.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Names the member at fault.
    #[must_use]
    pub fn param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// Names the member at fault, unless it is the body as a whole.
    #[must_use]
    pub fn param_from(self, place: &str) -> Self {
        if place.is_empty() { self } else { self.param(place) }
    }

    /// Tells when to try again, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds headers, two at most.
    #[must_use]
    pub fn fields(mut self, fields: &'static [(&'static str, &'static str)]) -> Self {
        self.fields = fields;
        self
    }

    /// Tells the methods that the route has.
    #[must_use]
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }
}

/// An engine's answer that is passed on although that engine does not serve the client.
#[derive(Debug, Clone)]
pub struct PassedOn {
    /// Its status.
    pub status: StatusCode,
    /// Type of its body.
    pub content_type: String,
    /// Header lines that it shares with the client.
    pub add: Vec<(&'static str, String)>,
    /// Its body.
    pub body: Bytes,
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::new(reject.status.as_u16(), reject.message)
    }
}

/// Longest part of a client's own text that an error repeats, bytes.
const SHOWN: usize = 200;

/// A name or path as an error shows it: whole, or its beginning.
pub fn shown(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN {
        return Cow::Borrowed(text);
    }
    let end = (0..=SHOWN).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    Cow::Owned(format!("{}...", text.get(..end).unwrap_or("")))
}

/// What every answer of the gateway needs to know of the request.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The client's protocol version.
    pub version: Version,
    /// The request was HEAD.
    pub head_only: bool,
    /// Keep the connection.
    pub keep_alive: bool,
    /// Shape of errors.
    pub style: ErrorStyle,
    /// The request's id.
    pub request_id: &'a str,
}

impl Reply<'_> {
    /// Appends a JSON answer.
    pub fn json(&self, status: StatusCode, body: &[u8], out: &mut Vec<u8>) {
        self.write(status, "application/json", body, &[], out);
    }

    /// Appends a short text.
    pub fn text(&self, status: StatusCode, body: &str, out: &mut Vec<u8>) {
        self.write(status, "text/plain; charset=utf-8", body.as_bytes(), &[], out);
    }

    /// Appends an error in the shape of the API.
    pub fn refuse(&self, refusal: &Refusal, out: &mut Vec<u8>) {
        let info = ErrorInfo {
            status: refusal.status,
            kind: None,
            code: refusal.code,
            param: refusal.param.as_deref(),
            message: &refusal.message,
            request_id: Some(self.request_id),
        };
        let body = error_body(self.style, &info);
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let seconds = refusal.retry_after.map(|seconds| seconds.to_string());
        let mut add: [(&str, &str); 4] = [("", ""); 4];
        let mut count = 0;
        let after = seconds.as_deref().map(|seconds| ("Retry-After", seconds));
        let own = [after, refusal.allow.map(|methods| ("Allow", methods))];
        let told = refusal.fields.iter().take(2).copied();
        for field in own.into_iter().flatten().chain(told) {
            add[count] = field;
            count += 1;
        }
        self.write(status, "application/json", &body, &add[..count], out);
    }

    /// Appends an engine's answer.
    pub fn pass_on(&self, answer: &PassedOn, out: &mut Vec<u8>) {
        let mut add = vec![("x-request-id", self.request_id)];
        add.extend(answer.add.iter().map(|(name, value)| (*name, value.as_str())));
        Answer {
            status: answer.status,
            content_type: &answer.content_type,
            body: &answer.body,
            head_only: self.head_only,
            version: self.version,
            keep_alive: self.keep_alive,
            add: &add,
        }
        .write(out);
    }

    fn write(
        &self,
        status: StatusCode,
        content_type: &str,
        body: &[u8],
        more: &[(&str, &str)],
        out: &mut Vec<u8>,
    ) {
        let mut add = [("", ""); 5];
        add[0] = ("x-request-id", self.request_id);
        add[1..=more.len()].copy_from_slice(more);
        Answer {
            status,
            content_type,
            body,
            head_only: self.head_only,
            version: self.version,
            keep_alive: self.keep_alive,
            add: &add[..=more.len()],
        }
        .write(out);
    }
}

/// The event that ends a stream whose engine broke off.
pub fn broken_event(api: Api, request_id: &str, events: u64) -> Vec<u8> {
    let info = ErrorInfo {
        status: 502,
        code: Some("upstream_error"),
        message: "the engine broke off in the middle of the answer",
        request_id: Some(request_id),
        ..ErrorInfo::default()
    };
    error_event(api, &info, events)
}
