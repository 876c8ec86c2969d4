//! Load generation and benchmark programs.
