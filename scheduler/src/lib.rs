//! The scheduler: sessions, liveness, fan-out.
