//! The radix-tree prefix index: one writer, lock-free readers.
