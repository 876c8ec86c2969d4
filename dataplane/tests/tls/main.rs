//! TLS on both sides of the gateway, by the bytes that clients and engines see.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

#[path = "../common/mod.rs"]
mod common;
mod edge;
mod edge_config;
mod kit;
mod upstream;
