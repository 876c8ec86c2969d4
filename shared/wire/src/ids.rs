//! Identifiers that travel between processes.

/// Index of a target in every table of a process.
pub type Slot = u16;

/// A target: what a request is sent to and what holds KV blocks, that is, one data-parallel rank of one instance.
///
/// The slot indexes tables; the generation tells two tenants of the same slot apart, so that a late release or a
/// late operation never touches the newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    /// Table index.
    pub slot: Slot,
    /// Tenant of the slot.
    pub generation: u16,
}

impl TargetId {
    /// Builds an id from its parts.
    pub const fn new(slot: Slot, generation: u16) -> Self {
        Self { slot, generation }
    }

    /// The form used in messages: generation in the upper half, slot in the lower.
    pub const fn pack(self) -> u32 {
        (self.generation as u32) << 16 | self.slot as u32
    }

    /// Inverse of [`TargetId::pack`].
    pub const fn unpack(packed: u32) -> Self {
        Self { slot: packed as u16, generation: (packed >> 16) as u16 }
    }
}

impl std::fmt::Display for TargetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}
