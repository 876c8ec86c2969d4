//! The HTTP side of an engine.

pub(crate) mod body;
pub(crate) mod conn;
pub(crate) mod control;
pub(crate) mod forms;
pub(crate) mod info;
pub(crate) mod prompts;
pub(crate) mod realtime;
pub(crate) mod route;
