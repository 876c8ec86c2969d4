//! Reads an event stream over the relay's shoulder: tokens used, number of events, and whether it ended properly.
//!
//! Two searches per piece do the ordinary work, one for line ends and one for `"usage"`. Of a line only its first
//! bytes are looked at, and kept if the line is cut by a piece's end, so that a line of any length costs no memory.
//! Lines end with LF or CRLF. A lone CR, which no engine sends, does not end a line here.

use memchr::memchr_iter;

use crate::usage::{Usage, UsageWatch};

/// Bytes of a line that are looked at: enough for `data: {"type": "response.incomplete"`.
const HEAD: usize = 48;

/// Watches one answer in the form of server-sent events, of the OpenAI, Responses or Anthropic kind. Any cutting of
/// the stream gives the same result.
#[derive(Debug)]
pub struct SseWatch {
    /// Token counts seen so far.
    pub usage: Option<Usage>,
    /// The stream's own end mark was seen: `[DONE]`, `message_stop`, or a final `response.*` event.
    pub done: bool,
    /// An error event was seen, in the stream's own form.
    pub failed: bool,
    /// Complete events with data, the end mark included.
    pub events: u64,
    /// An event was seen that may bear a token: one with data that is not known to be an end mark, a failure, or an
    /// announcement of an answer that has not begun (`message_start`, `ping`, `response.created` and the like).
    pub begun: bool,
    finder: UsageWatch,
    head: [u8; HEAD],
    /// Bytes of the unfinished line, also those that `head` has no room for.
    line: u64,
    /// The unfinished event has a line of data.
    data: bool,
    /// The unfinished event bears no token.
    idle: bool,
    /// The unfinished event has any complete line.
    open: bool,
}

impl Default for SseWatch {
    fn default() -> Self {
        Self {
            usage: None,
            done: false,
            failed: false,
            events: 0,
            begun: false,
            finder: UsageWatch::new(),
            head: [0; HEAD],
            line: 0,
            data: false,
            idle: false,
            open: false,
        }
    }
}

impl SseWatch {
    /// A watch at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next piece of the stream.
    pub fn feed(&mut self, piece: &[u8]) {
        self.finder.feed(piece);
        self.usage = self.finder.usage();
        let mut from = 0;
        for at in memchr_iter(b'\n', piece) {
            let line = &piece[from..at];
            if self.line == 0 {
                self.end_line(&line[..line.len().min(HEAD)], line.len() as u64);
            } else {
                self.keep(line);
                let (head, length) = (self.head, self.line);
                self.end_line(&head[..head_len(length)], length);
                self.line = 0;
            }
            from = at + 1;
        }
        self.keep(&piece[from..]);
    }

    /// The stream has ended; a last line without its line end counts too.
    pub fn finish(&mut self) {
        if self.line > 0 {
            self.feed(b"\n");
        }
        self.end_event();
    }

    /// Whether an event has begun and is not complete, so that an event put in now would be lost in it.
    pub fn mid_event(&self) -> bool {
        self.open || self.line > 0
    }

    /// The line ends that must come before an event of the router's own.
    pub fn separator(&self) -> &'static [u8] {
        match (self.line > 0, self.open) {
            (true, _) => b"\n\n",
            (false, true) => b"\n",
            (false, false) => b"",
        }
    }

    #[inline]
    fn keep(&mut self, part: &[u8]) {
        let held = head_len(self.line);
        let taken = part.len().min(HEAD - held);
        self.head[held..held + taken].copy_from_slice(&part[..taken]);
        self.line += part.len() as u64;
    }

    /// A line has ended. `head` are its first bytes, all of them if there are `length`.
    #[inline]
    fn end_line(&mut self, head: &[u8], length: u64) {
        let whole = head.len() as u64 == length;
        let head = if whole { head.strip_suffix(b"\r").unwrap_or(head) } else { head };
        if head.is_empty() {
            self.end_event();
            return;
        }
        self.open = true;
        if let Some(value) = head.strip_prefix(b"data:") {
            self.data = true;
            self.data_line(value.trim_ascii_start(), whole);
        } else if let Some(value) = head.strip_prefix(b"event:") {
            self.named(value.trim_ascii());
        }
    }

    fn end_event(&mut self) {
        self.events += u64::from(self.data);
        self.begun |= self.data && !self.idle;
        self.data = false;
        self.idle = false;
        self.open = false;
    }

    #[inline]
    fn data_line(&mut self, value: &[u8], whole: bool) {
        if whole && value.trim_ascii_end() == b"[DONE]" {
            self.done = true;
            self.idle = true;
            return;
        }
        let Some(member) = value.strip_prefix(b"{").map(<[u8]>::trim_ascii_start) else { return };
        if let Some(rest) = after_name(member, b"\"type\"") {
            let name = rest.strip_prefix(b"\"").unwrap_or_default();
            if let Some(end) = memchr::memchr(b'"', name) {
                self.named(&name[..end]);
            }
        } else if let Some(rest) = after_name(member, b"\"error\"") {
            let failed = matches!(rest.first(), Some(b'{' | b'"'));
            self.failed |= failed;
            self.idle |= failed;
        }
    }

    /// An event of that name or type.
    fn named(&mut self, name: &[u8]) {
        match name {
            b"message_stop" | b"response.completed" | b"response.incomplete" => self.done = true,
            b"response.failed" => (self.done, self.failed) = (true, true),
            b"error" => self.failed = true,
            b"message_start"
            | b"ping"
            | b"response.created"
            | b"response.queued"
            | b"response.in_progress" => {}
            _ => return,
        }
        self.idle = true;
    }
}

#[inline]
fn head_len(line: u64) -> usize {
    line.min(HEAD as u64) as usize
}

/// What follows a member's name and colon, if the member has that name.
#[inline]
fn after_name<'h>(member: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    let rest = member.strip_prefix(name)?.trim_ascii_start().strip_prefix(b":")?;
    Some(rest.trim_ascii_start())
}
