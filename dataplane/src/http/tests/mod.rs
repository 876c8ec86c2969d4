//! Tests of the codec: tables by subject, and properties over arbitrary splits of the bytes.

mod chunked;
mod form;
mod proxy;
mod request;
mod response;
mod splits;
mod upstream;
mod websocket;
