//! HTTP/2 at the edge, driven by the client of the same crate: what holds for HTTP/1 holds here.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say what they skip"
)]

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod kit;
mod limits;
mod requests;
