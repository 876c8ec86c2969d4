//! Proxies as processes of their own between a null engine and a load generator, both of which cost as little as they
//! can: what is measured is the proxy.
//!
//! ```text
//! load ──▶ proxy under test (first core) ──▶ null engine
//! └─────────── second core ──────────────────────┘
//! ```

pub mod body;
pub mod engine;
pub mod floor;
pub mod load;
pub mod multiplex;
pub mod poll;
pub mod process;
pub mod reply;
pub mod seal;
pub mod subjects;
