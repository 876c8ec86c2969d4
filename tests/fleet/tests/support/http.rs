//! Just enough of HTTP/1.1 to read what well-behaved peers send; anything else is a test's failure.

use bytes::BytesMut;
use fairlead_dataplane::runtime::Stream;
use fairlead_dataplane::runtime::sim::SimSocket;

/// A message's head.
#[derive(Debug, Clone)]
pub struct Head {
    pub line: String,
    pub fields: Vec<(String, String)>,
}

impl Head {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line")
    }
}

/// How a body's end was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where its framing said.
    Whole,
    /// With the connection, where that is the framing.
    Close,
    /// The connection ended too early.
    Cut,
}

/// Reads messages from a connection.
pub struct Messages {
    pub socket: SimSocket,
    pub buf: BytesMut,
}

impl Messages {
    pub fn new(socket: SimSocket) -> Self {
        Self { socket, buf: BytesMut::new() }
    }

    /// Reads once more. False at the end, whichever.
    pub async fn more(&mut self) -> bool {
        self.buf.reserve(4096);
        let (result, buf) = self.socket.read(std::mem::take(&mut self.buf)).await;
        self.buf = buf;
        matches!(result, Ok(count) if count > 0)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buf.windows(2).position(|two| two == b"\r\n") {
                let line = self.buf.split_to(at + 2);
                return Some(String::from_utf8(line[..at].to_vec()).expect("text"));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next message's head; `None` when the connection ends before it.
    pub async fn head(&mut self) -> Option<Head> {
        let first = self.line().await?;
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(Head { line: first, fields });
            }
            let (name, value) = line.split_once(':').expect("a field");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The body that follows `head`; `on_piece` sees it as it comes and may stop the reading.
    pub async fn body(
        &mut self,
        head: &Head,
        is_answer: bool,
        mut on_piece: impl AsyncFnMut(&[u8]) -> bool,
    ) -> End {
        if head.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                let Some(size) = self.line().await else { return End::Cut };
                let mut left = usize::from_str_radix(&size, 16).expect("a chunk size");
                if left == 0 {
                    return if self.line().await.is_some() { End::Whole } else { End::Cut };
                }
                while left > 0 {
                    if self.buf.is_empty() && !self.more().await {
                        return End::Cut;
                    }
                    let piece = self.buf.split_to(left.min(self.buf.len()));
                    left -= piece.len();
                    if !on_piece(&piece).await {
                        return End::Cut;
                    }
                }
                if self.line().await.is_none() {
                    return End::Cut;
                }
            }
        }
        if let Some(length) = head.field("content-length") {
            let mut left: usize = length.parse().expect("a length");
            while left > 0 {
                if self.buf.is_empty() && !self.more().await {
                    return End::Cut;
                }
                let piece = self.buf.split_to(left.min(self.buf.len()));
                left -= piece.len();
                if !on_piece(&piece).await {
                    return End::Cut;
                }
            }
            return End::Whole;
        }
        if !is_answer {
            return End::Whole;
        }
        loop {
            let piece = self.buf.split();
            if !piece.is_empty() && !on_piece(&piece).await {
                return End::Cut;
            }
            self.buf.reserve(4096);
            let (result, buf) = self.socket.read(std::mem::take(&mut self.buf)).await;
            self.buf = buf;
            match result {
                Ok(0) => return End::Close,
                Ok(_) => {}
                Err(_) => return End::Cut,
            }
        }
    }
}
