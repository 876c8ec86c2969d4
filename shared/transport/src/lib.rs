//! QUIC transport: identities, framing, reconnect.
