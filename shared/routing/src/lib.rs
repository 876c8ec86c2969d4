//! The fleet view and the routing decision.
