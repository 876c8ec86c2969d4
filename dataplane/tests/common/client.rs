//! A raw client.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::PATIENCE;

/// A parsed answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// Payload, chunks decoded.
    pub body: Vec<u8>,
    /// The body ended as its framing says; otherwise the connection did.
    pub complete: bool,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// A client's connection.
pub struct Client<S = TcpStream> {
    pub stream: S,
    buf: Vec<u8>,
    ended: bool,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }

    /// Closes the sending side.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    /// Over any stream.
    pub fn over(stream: S) -> Self {
        Self { stream, buf: Vec::new(), ended: false }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self.stream.flush().unwrap();
    }

    fn fill(&mut self) -> bool {
        if self.ended {
            return false;
        }
        let mut piece = [0; 65536];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(count) => self.buf.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no bytes from the gateway; so far: {:?}", String::from_utf8_lossy(&self.buf))
            }
            Err(_) => self.ended = true,
        }
        !self.ended
    }

    /// Reads until `text` has arrived, and returns all up to its end.
    pub fn until(&mut self, text: &str) -> String {
        String::from_utf8(self.until_bytes(text)).unwrap()
    }

    /// The same where it need not be text.
    pub fn until_bytes(&mut self, mark: impl AsRef<[u8]>) -> Vec<u8> {
        let mark = mark.as_ref();
        loop {
            if let Some(at) = self.buf.windows(mark.len()).position(|window| window == mark) {
                return self.buf.drain(..at + mark.len()).collect();
            }
            assert!(self.fill(), "ended before {mark:?}: {:?}", String::from_utf8_lossy(&self.buf));
        }
    }

    /// Reads to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buf)
    }

    /// Reads a chunked body whose head was read already to its end.
    pub fn rest_of_stream(&mut self) -> Vec<u8> {
        self.until("0\r\n\r\n").into_bytes()
    }

    /// Whether the gateway has closed the connection, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// Reads one answer. Interim answers (1xx) are passed over.
    pub fn answer(&mut self) -> Answer {
        self.answer_to(false)
    }

    pub fn answer_to(&mut self, head_request: bool) -> Answer {
        loop {
            let head = self.until("\r\n\r\n");
            let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
            if (100..200).contains(&status) {
                continue;
            }
            let mut answer = Answer { status, head, body: Vec::new(), complete: true };
            if head_request || status == 204 || status == 304 {
                return answer;
            }
            if answer.header("transfer-encoding").is_some() {
                self.chunks(&mut answer);
            } else if let Some(length) = answer.header("content-length") {
                let length: usize = length.parse().unwrap();
                while self.buf.len() < length && self.fill() {}
                answer.complete = self.buf.len() >= length;
                answer.body = self.buf.drain(..length.min(self.buf.len())).collect();
            } else {
                answer.body = self.rest();
            }
            return answer;
        }
    }

    fn chunks(&mut self, answer: &mut Answer) {
        loop {
            let line = loop {
                if let Some(at) = self.buf.windows(2).position(|window| window == b"\r\n") {
                    let line: Vec<u8> = self.buf.drain(..at + 2).collect();
                    break String::from_utf8(line).unwrap();
                }
                if !self.fill() {
                    answer.complete = false;
                    return;
                }
            };
            let digits = line.trim_end().split(';').next().unwrap();
            let size = usize::from_str_radix(digits, 16).unwrap();
            if size == 0 {
                // Trailers, then an empty line.
                while self.until("\r\n") != "\r\n" {}
                return;
            }
            while self.buf.len() < size + 2 && self.fill() {}
            let have = self.buf.len().min(size);
            answer.body.extend(self.buf.drain(..have));
            if self.buf.len() < 2 {
                answer.complete = false;
                return;
            }
            assert_eq!(self.buf.drain(..2).collect::<Vec<_>>(), b"\r\n");
        }
    }
}
