//! The gateway: runtime, HTTP/1.1 relay, shards.
