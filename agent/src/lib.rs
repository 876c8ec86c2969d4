//! The agent: engine adapters, readiness, reports.
