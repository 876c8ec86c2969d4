//! Messages between Fairlead's processes: types, frame layout, protocol version, size limits.
//!
//! Nothing here does I/O. Every message is an rkyv archive inside a frame with a fixed 48-byte header; a receiver
//! validates the archive before it reads a field. Times are microseconds; a time's clock is named in its field.

mod check;
pub mod frame;
mod ids;
pub mod limits;
#[allow(missing_docs, reason = "rkyv derives undocumented public archive types")]
pub mod msg;

pub use check::Reason;
pub use frame::{Body, Frame, FrameError, Header, Kind, Message, Stamp, encode, max_len};
pub use ids::{Slot, TargetId};

/// The protocol version this build speaks. A peer whose range does not contain it is refused with both versions.
pub const PROTOCOL: u16 = 5;
/// The oldest protocol version this build still accepts.
pub const PROTOCOL_MIN: u16 = 5;

/// One block in so many is an anchor, on average.
pub const ANCHOR_SPACING: u64 = 16;

/// Whether a block is an *anchor*: a block that the scheduler finds by its hash alone wherever it stands in a run, so
/// that [`msg::CacheOp`] can name a place in the tree by a few blocks. Chosen by the hash itself, so that agents and
/// scheduler agree without a word. The first block of a path can be found too, anchor or not.
pub const fn is_anchor(hash: u64) -> bool {
    hash.is_multiple_of(ANCHOR_SPACING)
}

/// The names that enter the root of a chain of token hashes: the base model and the LoRA adapter (empty for none) when
/// a request asks an instance with these `models` for `asked`. Aliases of one base model share their cache, so the
/// first listed model that is no adapter names the base for all of them. `None` when `asked` is not served.
pub fn hash_names<'a>(models: &'a [msg::ModelInfo], asked: &str) -> Option<(&'a str, &'a str)> {
    let found = models.iter().find(|model| model.name == asked)?;
    let base = models.iter().find(|model| model.parent.is_none());
    let base = base.map_or(found.name.as_str(), |model| model.name.as_str());
    Some(if found.parent.is_some() { (base, found.name.as_str()) } else { (base, "") })
}

#[cfg(test)]
mod tests {
    use super::hash_names;
    use super::msg::ModelInfo;

    #[test]
    fn adapters_and_aliases_hash_under_the_base_model() {
        let model = |name: &str, parent: Option<&str>| ModelInfo {
            name: name.into(),
            max_model_len: None,
            parent: parent.map(Into::into),
        };
        let models = [model("ada", Some("base")), model("base", None), model("alias", None)];
        for (asked, expected) in [
            ("base", Some(("base", ""))),
            ("alias", Some(("base", ""))),
            ("ada", Some(("base", "ada"))),
            ("other", None),
        ] {
            assert_eq!(hash_names(&models, asked), expected, "{asked}");
        }
        assert_eq!(hash_names(&models[..1], "ada"), Some(("ada", "ada")));
    }
}
