//! One TLS session without its transport: records in, records out.

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
};

/// Longest fragment of a record, bytes.
const FRAGMENT: usize = 16 * 1024;
/// What a record adds to its fragment, at most (TLS 1.2 with AES-GCM), bytes.
const OVERHEAD: usize = 40;
/// A close notification as a record, at most, bytes.
const NOTICE: usize = 64;

/// Either side of a session.
pub trait Side: 'static {
    /// What rustls keeps for it.
    type Data;

    /// What both sides have in common.
    fn common(&self) -> &UnbufferedConnectionCommon<Self::Data>;

    /// Takes the next step.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn common(&self) -> &UnbufferedConnectionCommon<Self::Data> {
        self
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn common(&self) -> &UnbufferedConnectionCommon<Self::Data> {
        self
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// What is to happen with what has been decrypted.
pub enum Sink<'a> {
    /// It stays where it is; that it is there is told.
    Leave,
    /// It is appended up to the spare capacity, and what is left of a record goes to the store.
    Into(&'a mut BytesMut),
    /// It goes to the store.
    Store,
}

/// A session and what it has decrypted that nobody has read.
pub struct Session<C> {
    side: C,
    /// Read before all else.
    store: BytesMut,
    /// The session holds a decrypted record.
    holds: bool,
    /// The peer has closed its direction.
    pub closed: bool,
}

/// What stopped a step.
enum Stop {
    /// More records are needed, or nothing is to be done.
    Need,
    /// There is something to read.
    Readable,
}

impl<C: Side> Session<C> {
    /// A session that has not begun.
    pub fn new(side: C) -> Self {
        Self { side, store: BytesMut::new(), holds: false, closed: false }
    }

    /// Whether the handshake goes on.
    pub fn is_handshaking(&self) -> bool {
        self.side.common().is_handshaking()
    }

    /// The two sides' protocol, where they agreed on one.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.side.common().alpn_protocol()
    }

    /// Whether the session goes on from an earlier one.
    pub fn is_resumed(&self) -> bool {
        matches!(self.side.common().handshake_kind(), Some(rustls::HandshakeKind::Resumed))
    }

    /// Whether something decrypted waits to be read.
    pub fn has_plain(&self) -> bool {
        self.holds || !self.store.is_empty()
    }

    /// Takes what is stored, up to the spare capacity of `buf`.
    pub fn take_stored(&mut self, buf: &mut BytesMut) -> usize {
        let count = self.store.len().min(buf.capacity() - buf.len());
        buf.extend_from_slice(self.store.get(..count).unwrap_or_default());
        self.store.advance(count);
        if self.store.is_empty() {
            self.store = BytesMut::new();
        }
        count
    }

    /// Works off `incoming`, as far as `sink` goes; what is to be sent is appended to `out`. Whether something can be read,
    /// or was.
    ///
    /// # Errors
    /// The peer broke the protocol or was not accepted. What is to be told of it is in `out`.
    pub fn advance(
        &mut self,
        incoming: &mut BytesMut,
        out: &mut Vec<u8>,
        sink: &mut Sink<'_>,
    ) -> Result<bool, rustls::Error> {
        let advanced = self.steps(incoming, out, sink, |_| {});
        if advanced.is_err() {
            // The alert waits inside. A step beyond it would come to the same record again.
            while self.side.common().wants_write() {
                let UnbufferedStatus { discard, state } = self.side.process(incoming);
                let Ok(ConnectionState::EncodeTlsData(mut data)) = state else { break };
                encode(out, &mut data);
                incoming.advance(discard.min(incoming.len()));
            }
        }
        advanced
    }

    /// Encrypts `bytes` behind `out`. False: the session cannot take any more.
    ///
    /// # Errors
    /// As for [`advance`](Self::advance): records that have arrived are worked off before.
    pub fn encrypt(
        &mut self,
        bytes: &[u8],
        incoming: &mut BytesMut,
        out: &mut Vec<u8>,
    ) -> Result<bool, rustls::Error> {
        let mut encrypted = false;
        let room = bytes.len() + (bytes.len() / FRAGMENT + 1) * OVERHEAD;
        let mut sealed = Vec::new();
        self.steps(incoming, out, &mut Sink::Store, |traffic| {
            sealed.reserve_exact(room);
            encrypted = seal(&mut sealed, room, |out| traffic.encrypt(bytes, out));
        })?;
        append(out, sealed);
        Ok(encrypted)
    }

    /// Encrypts the notice that nothing more comes behind `out`, where that can be said.
    ///
    /// # Errors
    /// As for [`encrypt`](Self::encrypt).
    pub fn close(&mut self, incoming: &mut BytesMut, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let mut sealed = Vec::new();
        self.steps(incoming, out, &mut Sink::Store, |traffic| {
            seal(&mut sealed, NOTICE, |out| traffic.queue_close_notify(out));
        })?;
        append(out, sealed);
        Ok(())
    }

    fn steps(
        &mut self,
        incoming: &mut BytesMut,
        out: &mut Vec<u8>,
        sink: &mut Sink<'_>,
        traffic: impl FnOnce(&mut WriteTraffic<'_, C::Data>),
    ) -> Result<bool, rustls::Error> {
        let mut traffic = Some(traffic);
        let mut read = false;
        loop {
            let UnbufferedStatus { mut discard, state } = self.side.process(incoming);
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    incoming.advance(discard.min(incoming.len()));
                    return Err(error);
                }
            };
            let stop = match state {
                ConnectionState::ReadTraffic(mut records) => {
                    self.holds = true;
                    let room = match sink {
                        Sink::Leave => 0,
                        Sink::Into(buf) => buf.capacity() - buf.len(),
                        Sink::Store => usize::MAX,
                    };
                    if room == 0 {
                        Some(Stop::Readable)
                    } else {
                        if let Some(record) = records.next_record() {
                            let record = record?;
                            discard += record.discard;
                            let (now, later) = match sink {
                                Sink::Into(_) => record.payload.split_at(record.payload.len().min(room)),
                                _ => (&[][..], record.payload),
                            };
                            if let Sink::Into(buf) = sink {
                                buf.extend_from_slice(now);
                                read |= !now.is_empty();
                            }
                            self.store.extend_from_slice(later);
                        }
                        self.holds = false;
                        None
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(out, &mut data);
                    None
                }
                // It is on its way as far as the session is concerned: whoever owns `out` keeps the order.
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    None
                }
                ConnectionState::PeerClosed => {
                    self.closed = true;
                    None
                }
                ConnectionState::WriteTraffic(mut writer) => {
                    if let Some(traffic) = traffic.take() {
                        traffic(&mut writer);
                    }
                    Some(Stop::Need)
                }
                // Early data is not offered, so none comes.
                _ => Some(Stop::Need),
            };
            incoming.advance(discard.min(incoming.len()));
            match stop {
                None => {}
                Some(Stop::Readable) => return Ok(true),
                Some(Stop::Need) => return Ok(read || self.has_plain()),
            }
        }
    }
}

/// Appends a message of the handshake.
fn encode<D>(out: &mut Vec<u8>, data: &mut EncodeTlsData<'_, D>) {
    let start = out.len();
    let mut room = 0;
    loop {
        out.resize(start + room, 0);
        match data.encode(out.get_mut(start..).unwrap_or_default()) {
            Ok(count) => return out.truncate(start + count),
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > room =>
            {
                room = required_size;
            }
            Err(_) => return out.truncate(start),
        }
    }
}

/// Fills `out` with what is encrypted, for which `room` should be enough. Whether it was encrypted.
fn seal(
    out: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> bool {
    for _ in 0..2 {
        out.resize(room, 0);
        match write(out) {
            Ok(count) => {
                out.truncate(count);
                return true;
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                room = required_size;
            }
            Err(EncryptError::EncryptExhausted) => break,
        }
    }
    out.clear();
    false
}

fn append(out: &mut Vec<u8>, more: Vec<u8>) {
    if out.is_empty() { *out = more } else { out.extend_from_slice(&more) }
}
