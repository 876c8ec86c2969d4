//! Handshakes: of clients with the gateway, and of the gateway with instances.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::Shard;
use super::conn::Conn;
use super::observe::Handshake;
use super::upstream::Cause;
use super::watch::Watch;
use crate::runtime::{Link, Runtime};
use crate::tls::{Failure, H2, Tls};

/// What a client is told that speaks HTTP where TLS is spoken.
const SPEAK_TLS: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 136\r\n\
Connection: close\r\n\r\n\
{\"error\":{\"message\":\"this port speaks HTTPS, and the request came without TLS\",\"type\":\"invalid_request_error\",\
\"param\":null,\"code\":null}}";

impl<R: Runtime> Conn<R> {
    /// Puts TLS on a connection from which only `buf` was read. False: the connection is to be closed.
    pub(super) async fn shake_hands(&mut self, socket: R::Socket) -> bool {
        let time = self.shard.options.timeouts.head;
        if self.buf.is_empty() {
            // Until something comes there is nothing to be done, and a drain may end it.
            self.guard.arm_idle(time);
            self.watch.readable().await;
        }
        self.guard.arm_write(time);
        let Some(Ok(session)) = self.shard.shared.edge.as_ref().map(|edge| edge.session()) else {
            return false;
        };
        let tls = Rc::new(Tls::new(socket, session, std::mem::take(&mut self.buf)));
        let shaken = tls.handshake().await;
        let late = self.guard.fired();
        self.guard.clear();
        match shaken {
            Ok(()) => {
                let how = if tls.is_resumed() { Handshake::RESUMED } else { Handshake::FULL };
                self.shard.metrics.shook_hands(how);
                tracing::trace!(how, http2 = tls.speaks(H2), "TLS handshake with a client");
                self.multiplexed = tls.speaks(H2);
                self.socket = Link::Layered(tls);
                self.watch = Watch::new(self.socket.clone());
                true
            }
            Err(failure) => {
                let how = if late { Handshake::LATE } else { failure.as_str() };
                self.shard.metrics.shook_hands(how);
                tracing::debug!(%failure, late, "no TLS handshake with a client");
                if matches!(failure, Failure::Plaintext) {
                    drop(tls);
                    if self.send(SPEAK_TLS.into()).await {
                        self.linger().await;
                    }
                }
                false
            }
        }
    }
}

/// Puts TLS on a new connection to the instance at `address`, within `patience`.
pub async fn to_instance<R: Runtime>(
    shard: &Shard<R>,
    socket: R::Socket,
    address: &str,
    patience: Duration,
) -> Result<Link<R::Socket>, Cause> {
    let Some(session) = shard.trust.as_ref().and_then(|trust| trust.session(address)) else {
        if shard.may_complain() {
            tracing::warn!(address, "an instance that cannot be reached over TLS: its host is no name");
        }
        return Err(Cause::Untrusted);
    };
    let tls = Rc::new(Tls::new(socket, session, BytesMut::new()));
    match R::within(patience, tls.handshake()).await {
        Some(Ok(())) => Ok(Link::Layered(tls)),
        Some(Err(Failure::Io(_))) => Err(Cause::Refused),
        Some(Err(failure)) => {
            if shard.may_complain() {
                tracing::warn!(address, %failure, "no TLS connection to an instance comes about");
            }
            Err(Cause::Untrusted)
        }
        None => Err(Cause::ConnectTimeout),
    }
}

#[cfg(test)]
mod tests {
    use super::SPEAK_TLS;

    #[test]
    fn the_plain_answer_is_well_formed() {
        let (head, body) = SPEAK_TLS.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
