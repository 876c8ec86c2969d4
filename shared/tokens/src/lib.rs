//! From prompt to block hashes.
