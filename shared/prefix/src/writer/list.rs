//! Doubly linked lists inside vectors, newest to oldest.

use super::{Ends, NIL, Node, Record};

/// An element that knows its neighbours.
pub(super) trait Linked {
    fn newer(&mut self) -> &mut u32;
    fn older(&mut self) -> &mut u32;
}

impl Linked for Node {
    fn newer(&mut self) -> &mut u32 {
        &mut self.newer
    }
    fn older(&mut self) -> &mut u32 {
        &mut self.older
    }
}

impl Linked for Record {
    fn newer(&mut self) -> &mut u32 {
        &mut self.newer
    }
    fn older(&mut self) -> &mut u32 {
        &mut self.older
    }
}

/// Enters `item` as the newest.
pub(super) fn push_newest<T: Linked>(all: &mut [T], ends: &mut Ends, item: u32) {
    *all[item as usize].newer() = NIL;
    *all[item as usize].older() = ends.newest;
    match ends.newest {
        NIL => ends.oldest = item,
        next => *all[next as usize].newer() = item,
    }
    ends.newest = item;
}

/// Enters `item` on the newer side of `mark`, which is in the list.
pub(super) fn insert_newer_than<T: Linked>(all: &mut [T], ends: &mut Ends, mark: u32, item: u32) {
    let newer = *all[mark as usize].newer();
    *all[item as usize].older() = mark;
    *all[item as usize].newer() = newer;
    *all[mark as usize].newer() = item;
    match newer {
        NIL => ends.newest = item,
        next => *all[next as usize].older() = item,
    }
}

/// Takes `item` out.
pub(super) fn remove<T: Linked>(all: &mut [T], ends: &mut Ends, item: u32) {
    let newer = std::mem::replace(all[item as usize].newer(), NIL);
    let older = std::mem::replace(all[item as usize].older(), NIL);
    match newer {
        NIL => ends.newest = older,
        next => *all[next as usize].older() = older,
    }
    match older {
        NIL => ends.oldest = newer,
        next => *all[next as usize].newer() = newer,
    }
}

/// Makes `item`, which is in the list, the newest.
pub(super) fn renew<T: Linked>(all: &mut [T], ends: &mut Ends, item: u32) {
    if ends.newest != item {
        remove(all, ends, item);
        push_newest(all, ends, item);
    }
}
