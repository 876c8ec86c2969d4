//! Fairlead as a library: the parts of the router that an embedder needs, re-exported under one roof.

pub use fairlead_openai as openai;
pub use fairlead_prefix as prefix;
pub use fairlead_routing as routing;
pub use fairlead_tokens as tokens;
pub use fairlead_wire as wire;
