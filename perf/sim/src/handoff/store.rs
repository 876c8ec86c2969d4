//! A store that engines share: the names of the blocks whose KV is in it, in this process or in a folder.
//!
//! In a folder each engine appends its names to a file of its own, eight bytes each, and reads on in the others' files
//! before it looks something up.

use crate::engine::lock;
use ahash::RandomState;
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// Names kept; a store that is full begins anew, as one that evicts everything.
const MAX_NAMES: usize = 1 << 22;
/// What the files' names end in.
const ENDING: &str = "blocks";

type Names = HashSet<u64, RandomState>;

/// One engine's view of a store.
pub(crate) enum Store {
    Process(Arc<Mutex<Names>>),
    Folder(Mutex<Folder>),
}

pub(crate) struct Folder {
    dir: PathBuf,
    own: File,
    read: HashMap<PathBuf, u64>,
    names: Names,
}

fn add(into: &mut Names, names: impl Iterator<Item = u64>) {
    for name in names {
        if into.len() >= MAX_NAMES {
            into.clear();
        }
        into.insert(name);
    }
}

impl Store {
    /// The store in `dir`, or the one of this process with that name.
    pub fn open(dir: Option<&Path>, name: &str, engine_id: &str) -> io::Result<Self> {
        static STORES: OnceLock<Mutex<HashMap<String, Arc<Mutex<Names>>>>> = OnceLock::new();
        let Some(dir) = dir else {
            let mut stores = lock(STORES.get_or_init(Mutex::default));
            return Ok(Self::Process(Arc::clone(stores.entry(name.to_owned()).or_default())));
        };
        std::fs::create_dir_all(dir)?;
        let own = dir.join(format!("{engine_id}.{ENDING}"));
        let own = OpenOptions::new().create(true).append(true).open(own)?;
        let (read, names) = (HashMap::new(), Names::default());
        Ok(Self::Folder(Mutex::new(Folder { dir: dir.to_owned(), own, read, names })))
    }

    /// Puts a prompt's blocks in.
    pub fn put(&self, path: &[u64]) {
        match self {
            Self::Process(names) => add(&mut lock(names), path.iter().copied()),
            Self::Folder(folder) => {
                if let Err(error) = lock(folder).put(path) {
                    tracing::warn!(%error, "the shared store cannot be written");
                }
            }
        }
    }

    /// Leading blocks of a prompt that are there.
    pub fn leading(&self, path: &[u64]) -> usize {
        let count = |names: &Names| path.iter().take_while(|name| names.contains(name)).count();
        match self {
            Self::Process(names) => count(&lock(names)),
            Self::Folder(folder) => {
                let mut folder = lock(folder);
                if let Err(error) = folder.catch_up() {
                    tracing::warn!(%error, "the shared store cannot be read");
                }
                count(&folder.names)
            }
        }
    }
}

impl Folder {
    fn put(&mut self, path: &[u64]) -> io::Result<()> {
        self.catch_up()?;
        let new: Vec<u64> = path.iter().copied().filter(|name| !self.names.contains(name)).collect();
        // In one write, so that others read whole names.
        self.own.write_all(&new.iter().flat_map(|name| name.to_le_bytes()).collect::<Vec<u8>>())
    }

    fn catch_up(&mut self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            let at = self.read.get(&path).copied().unwrap_or(0);
            let whole = entry.metadata()?.len() / 8 * 8;
            if whole <= at || path.extension().is_none_or(|e| e != ENDING) {
                continue;
            }
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(at))?;
            let mut new = vec![0; (whole - at) as usize];
            file.read_exact(&mut new)?;
            let names = new.chunks_exact(8).map(|c| c.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
            add(&mut self.names, names);
            self.read.insert(path, whole);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_puts_in_the_other_finds() {
        let dir = std::env::temp_dir().join(format!("fairlead-store-{}", std::process::id()));
        for dir in [None, Some(dir.as_path())] {
            let [a, b] = ["a", "b"].map(|id| Store::open(dir, "found", id).unwrap());
            assert_eq!(b.leading(&[1, 2]), 0);
            a.put(&[1, 2, u64::MAX]);
            a.put(&[1, 2, u64::MAX, 4]);
            for (path, found) in [(&[1, 2][..], 2), (&[1, 3], 1), (&[3, 1], 0), (&[1, 2, u64::MAX, 4, 5], 4)]
            {
                assert_eq!((a.leading(path), b.leading(path)), (found, found), "{path:?}");
            }
        }
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(Store::open(None, "another", "c").unwrap().leading(&[1]), 0);
    }
}
