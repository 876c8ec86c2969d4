//! The target table: an immutable snapshot of who is there.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_wire::msg::{CacheSource, Handoff, InstanceInfo, ServingRole};
use fairlead_wire::{Slot, TargetId, hash_names};

use super::cells::{ModelCells, TargetCells};
use super::key::name_key;
use super::parts::Parts;

/// A target as a decision sees it.
#[derive(Debug)]
pub struct TargetEntry {
    /// Local slot and generation.
    pub id: TargetId,
    /// Instance name; the rank is appended when the instance has several.
    pub name: Arc<str>,
    /// Hash of the name, the same in every gateway: see [`rendezvous`](super::rendezvous).
    pub key: u64,
    /// `host:port` to connect to.
    pub address: Arc<str>,
    /// Rank within the instance.
    pub rank: u16,
    /// Whether it may be picked.
    pub ready: bool,
    /// Where the index learns what it holds.
    pub cache: CacheSource,
    /// Which parts of a request it can take.
    pub parts: Parts,
    /// The part that the scheduler would rather have it play; `Both` for no leaning.
    pub leaning: ServingRole,
    /// The instance's description.
    pub info: Arc<InstanceInfo>,
    /// Figures that change while the description stays.
    pub cells: Arc<TargetCells>,
}

impl TargetEntry {
    /// Builds an entry; `cells` are the target's own, carried over from table to table.
    pub fn new(
        id: TargetId,
        info: Arc<InstanceInfo>,
        rank: u16,
        ready: bool,
        cells: Arc<TargetCells>,
    ) -> Self {
        let name = if info.dp_ranks > 1 { format!("{}#{rank}", info.name) } else { info.name.clone() };
        let (key, cache, parts) = (name_key(&name), CacheSource::default(), Parts::of(&info));
        let (name, address, leaning) = (name.into(), info.address.as_str().into(), ServingRole::Both);
        Self { id, name, key, address, rank, ready, cache, parts, leaning, info, cells }
    }

    /// With a part that it should rather play.
    pub fn with_leaning(self, leaning: ServingRole) -> Self {
        Self { leaning, ..self }
    }

    /// How it hands KV over, where it does.
    pub fn handoff(&self) -> Option<Handoff> {
        self.info.transfer.as_ref().map(|transfer| transfer.handoff)
    }

    /// With another source of what is known of its cache than the placements.
    pub fn with_cache(self, cache: CacheSource) -> Self {
        Self { cache, ..self }
    }
}

/// The targets that serve one model.
#[derive(Debug)]
pub struct ModelEntry {
    /// Name by which clients ask for it.
    pub name: Arc<str>,
    /// Base model and LoRA adapter (empty for none): the names that enter the hashes of its token ids.
    pub hash_names: (Arc<str>, Arc<str>),
    /// Its targets, ready or not.
    pub targets: Vec<Arc<TargetEntry>>,
    /// What a decision reads of each of `targets`, side by side in the same order.
    rows: Vec<Row>,
    /// Numbers of the targets that take prefill legs, and of those that take decode legs.
    pub(crate) prefillers: Vec<u32>,
    pub(crate) decoders: Vec<u32>,
    /// Some target takes prefill legs and nothing else: whole requests alone would leave it idle.
    pub(crate) is_split: bool,
    /// What was learnt about the model.
    pub cells: Arc<ModelCells>,
}

impl ModelEntry {
    fn new(name: Arc<str>, hash_names: (Arc<str>, Arc<str>), cells: Arc<ModelCells>) -> Self {
        Self {
            name,
            hash_names,
            targets: Vec::new(),
            rows: Vec::new(),
            prefillers: Vec::new(),
            decoders: Vec::new(),
            is_split: false,
            cells,
        }
    }

    fn push(&mut self, target: Arc<TargetEntry>, domain: u8) {
        let number = self.targets.len() as u32;
        let TargetEntry { id, ready, parts, leaning, .. } = *target;
        if parts.has(Parts::PREFILL) {
            self.prefillers.push(number);
            self.is_split |= !parts.has(Parts::DECODE);
        }
        if parts.has(Parts::DECODE) {
            self.decoders.push(number);
        }
        self.rows.push(Row { cells: target.cells.clone(), slot: id.slot, ready, parts, domain, leaning });
        self.targets.push(target);
    }

    /// Whether prefill and decode can be placed apart.
    pub fn can_split(&self) -> bool {
        !self.prefillers.is_empty() && !self.decoders.is_empty()
    }

    /// Whether some target does nothing but prefill for others.
    pub fn is_split(&self) -> bool {
        self.is_split
    }

    /// Which of the targets has that slot. They are in the order of their slots, mostly without gaps.
    #[inline]
    pub(crate) fn number_of(&self, slot: Slot) -> Option<usize> {
        let first = self.rows.first()?.slot;
        let guess = usize::from(slot.checked_sub(first)?).min(self.rows.len() - 1);
        if self.rows[guess].slot == slot {
            return Some(guess);
        }
        self.rows.binary_search_by_key(&slot, |row| row.slot).ok()
    }

    /// The targets as a decision reads them, in the order of `targets`.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// The part of a [`TargetEntry`] that every decision reads: 16 bytes, so that a thousand targets are passed over
/// without following a pointer to each one's description.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) cells: Arc<TargetCells>,
    pub(crate) slot: Slot,
    pub(crate) ready: bool,
    pub(crate) parts: Parts,
    /// Targets of one domain can hand over to each other; 0 to none.
    pub(crate) domain: u8,
    pub(crate) leaning: ServingRole,
}

const _: () = assert!(size_of::<Row>() == 16);

/// Numbers of the domains within which KV is handed over. Beyond 255 in one fleet, the targets of the rest are not
/// paired.
#[derive(Default)]
struct Domains<'a>(AHashMap<(Handoff, &'a str), u8>);

impl<'a> Domains<'a> {
    fn number(&mut self, info: &'a InstanceInfo) -> u8 {
        let Some(transfer) = &info.transfer else { return 0 };
        let next = u8::try_from(self.0.len() + 1).unwrap_or(0);
        let key = (transfer.handoff, transfer.domain.as_str());
        match self.0.get(&key) {
            Some(known) => *known,
            None if next == 0 => 0,
            None => *self.0.entry(key).or_insert(next),
        }
    }
}

/// All targets, by slot and by model.
#[derive(Debug, Default)]
pub struct TargetTable {
    /// Rises with every publication.
    pub version: u64,
    /// By local slot.
    pub entries: Vec<Option<Arc<TargetEntry>>>,
    models: AHashMap<Arc<str>, ModelEntry>,
}

impl TargetTable {
    pub(super) fn build(version: u64, entries: Vec<Option<Arc<TargetEntry>>>, before: &Self) -> Self {
        let mut models: AHashMap<Arc<str>, ModelEntry> = AHashMap::new();
        let mut domains = Domains::default();
        for entry in entries.iter().flatten() {
            let domain = domains.number(&entry.info);
            for model in &entry.info.models {
                let name = model.name.as_str();
                if !models.contains_key(name) {
                    let (name, cells) = match before.models.get(name) {
                        Some(old) => (old.name.clone(), old.cells.clone()),
                        None => (Arc::from(name), Arc::default()),
                    };
                    let (base, adapter) = hash_names(&entry.info.models, &name).unwrap_or((&name, ""));
                    let hash_names = (base.into(), adapter.into());
                    models.insert(name.clone(), ModelEntry::new(name, hash_names, cells));
                }
                if let Some(listed) = models.get_mut(name) {
                    listed.push(entry.clone(), domain);
                }
            }
        }
        drop(domains);
        Self { version, entries, models }
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.models.get(name)
    }

    /// The only model served, when there is exactly one: what a request without a model name means.
    pub fn sole_model(&self) -> Option<&ModelEntry> {
        let mut models = self.models.values();
        models.next().filter(|_| models.next().is_none())
    }

    /// Names of all models, sorted.
    pub fn model_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.models.keys().cloned().collect();
        names.sort();
        names
    }

    /// Targets that may be picked.
    pub fn ready(&self) -> usize {
        self.entries.iter().flatten().filter(|entry| entry.ready).count()
    }

    /// The target of that slot and generation.
    pub fn get(&self, id: TargetId) -> Option<&Arc<TargetEntry>> {
        self.entries.get(usize::from(id.slot))?.as_ref().filter(|entry| entry.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests_support::entry;

    #[test]
    fn models_are_listed_with_their_targets_and_keep_what_was_learnt() {
        let entries =
            vec![Some(entry(0, "a", "x")), None, Some(entry(2, "b", "x")), Some(entry(3, "c", "y"))];
        let first = TargetTable::build(1, entries, &TargetTable::default());
        assert_eq!(first.model("x").unwrap().targets.len(), 2);
        assert!(first.sole_model().is_none() && first.model("z").is_none());
        assert_eq!(first.model_names().iter().map(|n| &**n).collect::<Vec<_>>(), ["x", "y"]);
        first.model("x").unwrap().cells.learn(200, 100);
        let learnt = first.model("x").unwrap().cells.bytes_per_token();
        let second = TargetTable::build(2, vec![Some(entry(0, "a", "x"))], &first);
        assert_eq!(second.model("x").unwrap().cells.bytes_per_token(), learnt);
        assert!(second.sole_model().is_some());
        assert!(second.get(TargetId::new(0, 2)).is_none() && second.get(TargetId::new(0, 1)).is_some());
    }
}
