//! Sessions and layers by themselves.
