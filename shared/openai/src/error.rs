//! Error answers in the shapes that the clients' SDKs understand.

use crate::api::{Api, ErrorStyle};

/// An error to tell a client.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorInfo<'a> {
    /// HTTP status; within a stream it only chooses the type.
    pub status: u16,
    /// The error's type; [`error_type`] of the status if `None`.
    pub kind: Option<&'a str>,
    /// A machine-readable code such as `model_not_found` (OpenAI's shape only).
    pub code: Option<&'a str>,
    /// The request's member at fault (OpenAI's shape only).
    pub param: Option<&'a str>,
    /// What happened, for people.
    pub message: &'a str,
    /// The request's id (Anthropic's shape only; OpenAI's has it in a header).
    pub request_id: Option<&'a str>,
}

impl<'a> ErrorInfo<'a> {
    /// An error with the type that belongs to its status.
    pub fn new(status: u16, message: &'a str) -> Self {
        Self { status, message, ..Self::default() }
    }
}

/// The error type that belongs to a status.
pub fn error_type(style: ErrorStyle, status: u16) -> &'static str {
    match (style, status) {
        (_, 401) => "authentication_error",
        (_, 403) => "permission_error",
        (ErrorStyle::Anthropic, 404) => "not_found_error",
        (ErrorStyle::Anthropic, 413) => "request_too_large",
        (_, 429) => "rate_limit_error",
        (_, 503 | 529) => "overloaded_error",
        (_, 408 | 504) => "timeout_error",
        (_, 400..=499) => "invalid_request_error",
        _ => "api_error",
    }
}

/// The JSON body of an error answer.
pub fn error_body(style: ErrorStyle, error: &ErrorInfo<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(192 + error.message.len());
    match style {
        ErrorStyle::OpenAi => {
            out.extend_from_slice(b"{\"error\":{\"message\":");
            string(&mut out, error.message);
            out.extend_from_slice(b",\"type\":");
            string(&mut out, kind(style, error));
            for (name, value) in [(&b",\"param\":"[..], error.param), (&b",\"code\":"[..], error.code)] {
                out.extend_from_slice(name);
                string_or_null(&mut out, value);
            }
            out.extend_from_slice(b"}}");
        }
        ErrorStyle::Anthropic => {
            out.extend_from_slice(b"{\"type\":\"error\",\"error\":{\"type\":");
            string(&mut out, kind(style, error));
            out.extend_from_slice(b",\"message\":");
            string(&mut out, error.message);
            out.push(b'}');
            if let Some(id) = error.request_id {
                out.extend_from_slice(b",\"request_id\":");
                string(&mut out, id);
            }
            out.push(b'}');
        }
    }
    out
}

/// The same as an event, in the form of the stream that it ends. `sequence` is the number of events before it, which
/// the Responses API counts. Put [`SseWatch::separator`](crate::SseWatch::separator) before it.
pub fn error_event(api: Api, error: &ErrorInfo<'_>, sequence: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + error.message.len());
    match api {
        Api::Responses => {
            out.extend_from_slice(b"event: error\ndata: {\"type\":\"error\",\"code\":");
            string(&mut out, error.code.unwrap_or_else(|| kind(ErrorStyle::OpenAi, error)));
            out.extend_from_slice(b",\"message\":");
            string(&mut out, error.message);
            out.extend_from_slice(b",\"param\":");
            string_or_null(&mut out, error.param);
            out.extend_from_slice(b",\"sequence_number\":");
            out.extend_from_slice(sequence.to_string().as_bytes());
            out.push(b'}');
        }
        _ => {
            let style = api.error_style();
            if style == ErrorStyle::Anthropic {
                out.extend_from_slice(b"event: error\n");
            }
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(&error_body(style, error));
        }
    }
    out.extend_from_slice(b"\n\n");
    out
}

fn kind<'a>(style: ErrorStyle, error: &ErrorInfo<'a>) -> &'a str {
    error.kind.unwrap_or_else(|| error_type(style, error.status))
}

fn string_or_null(out: &mut Vec<u8>, value: Option<&str>) {
    match value {
        Some(value) => string(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

/// Writes a JSON string.
pub(crate) fn string(out: &mut Vec<u8>, value: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for &byte in value.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1F => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}
