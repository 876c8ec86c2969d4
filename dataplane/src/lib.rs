//! The gateway: runtime, HTTP/1.1 relay, shards.

pub mod http;
pub mod runtime;
