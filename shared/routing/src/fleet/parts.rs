//! Which parts of a request a target can take.

use fairlead_wire::msg::{InstanceInfo, ServingRole};

/// Parts of a request that a target can take: all of it, the prefill of one that another decodes, the decoding of one
/// that another has prefilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Parts(u8);

impl Parts {
    /// The whole of a request.
    pub const WHOLE: Self = Self(1);
    /// The prefill leg.
    pub const PREFILL: Self = Self(2);
    /// The decode leg.
    pub const DECODE: Self = Self(4);
    /// Any of them.
    pub const ANY: Self = Self(7);

    /// What an instance of that description can take. One with a fixed role and no known hand-off cannot be paired: it
    /// serves whole requests if it decodes, and none if it prefills. Where an engine decodes alone, an instance that
    /// decodes also serves whole requests, so that its prefill side may fail.
    pub fn of(info: &InstanceInfo) -> Self {
        match (info.role, &info.transfer) {
            (ServingRole::Both, None) | (ServingRole::Decode, None) => Self::WHOLE,
            (ServingRole::Both, Some(_)) => Self::ANY,
            (ServingRole::Prefill, None) => Self(0),
            (ServingRole::Prefill, Some(_)) => Self::PREFILL,
            (ServingRole::Decode, Some(transfer)) if transfer.handoff.decodes_alone() => {
                Self(Self::DECODE.0 | Self::WHOLE.0)
            }
            (ServingRole::Decode, Some(_)) => Self::DECODE,
        }
    }

    /// Whether any of `other` is among them.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use fairlead_wire::msg::{Handoff, Transfer};

    use super::*;

    #[test]
    fn parts_follow_from_role_and_hand_off() {
        use ServingRole::{Both, Decode, Prefill};
        for (role, handoff, whole, prefill, decode) in [
            (Both, None, true, false, false),
            (Both, Some(Handoff::NixlPull), true, true, true),
            (Prefill, None, false, false, false),
            (Prefill, Some(Handoff::NixlPull), false, true, false),
            (Decode, None, true, false, false),
            (Decode, Some(Handoff::NixlPull), true, false, true),
            (Decode, Some(Handoff::Sglang), false, false, true),
        ] {
            let transfer = handoff.map(Transfer::new);
            let parts = Parts::of(&InstanceInfo { role, transfer, ..InstanceInfo::new("a", "a:1", ["m"]) });
            let has = [Parts::WHOLE, Parts::PREFILL, Parts::DECODE].map(|part| parts.has(part));
            assert_eq!(has, [whole, prefill, decode], "{role:?} {handoff:?}");
        }
    }
}
