//! TLS on both sides of the gateway, by the bytes that clients and engines see.

#[path = "../common/mod.rs"]
mod common;
mod edge;
mod edge_config;
mod kit;
mod upstream;
