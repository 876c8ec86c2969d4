//! State machines of the replicated state, sans I/O.
