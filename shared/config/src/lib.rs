//! Fairlead's configuration.
